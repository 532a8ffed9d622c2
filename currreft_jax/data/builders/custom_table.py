"""Custom tables: CSV, TSV, JSON or parquet, with a column for each key of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.box_formats import format_boxes, parse_box
from currreft_jax.data.builders.converter import (
    AnnotatedImage,
    BuildError,
    ConvertedItem,
    DatasetSource,
    DroppedRecord,
    Remark,
    convert_records,
)
from currreft_jax.data.builders.gold_filter import unreadable_gold
from currreft_jax.data.builders.image_files import load_image_cell
from currreft_jax.data.builders.object_questions import format_labels
from currreft_jax.data.builders.records import find_files, parse_json_cell, read_records, record_name
from currreft_jax.data.builders.table_boxes import AskedOfImage, RawBox, choose_box_format, merge_rows
from currreft_jax.data.builders.table_columns import ROW_KEYS, ColumnFinder, fill_question
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import IMAGE
from currreft_jax.rewards.answer import RowError, gold_text, parse_json
from currreft_jax.structs import Row

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0", "")  # of the column `multiple`
_LETTER = re.compile(r"[A-Z]")
_LISTED_OPTION = re.compile(r"(?<!\w)B\W")  # the second one's letter, in a question that lists them


def convert_table(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts each record to a row; boxes in the solution are converted from the source's format and scale.

    Boxes that one question asks for in one image are one row. Columns that are none of the row's are its `extra`.

    Raises:
        BuildError: `--column` names an unknown key, the kind is chat, a column is missing, or `--box-form` has to be
            given.
    """
    unknown = set(source.columns) - set(ROW_KEYS)
    if unknown:
        raise BuildError(f"--column {unknown.pop()}=…: it takes {', '.join(ROW_KEYS)}; other columns are kept as extra")
    if source.multiple and source.kind is not Kind.CHOICE:
        raise BuildError("--multiple: of choice rows alone; add --kind=choice")
    if source.kind is Kind.CHAT:
        raise BuildError("--kind=chat: conversations are not tables; `build chat` reads them")
    finder = ColumnFinder(source)
    if _is_boxes(source) and not source.box_format:
        box_format, told = _choose_format(source, finder)
        source = replace(source, box_format=box_format)
        yield from [Remark(told)] if told else []
    records = chain.from_iterable(map(read_records, find_files(source.folder)))
    broken: set[AskedOfImage] = set()
    rows: list[Row] = []
    for item in merge_rows(convert_records(records, partial(_convert, source, finder, broken)), broken):
        rows += [item] if isinstance(item, Row) else []
        yield item
    yield from map(Remark, [*finder.remarks(), *suggest_kind(rows)])


def suggest_kind(rows: Sequence[Row]) -> list[str]:
    """Returns a remark on open rows whose solutions are all of the form of another kind or task."""
    open_rows = [row for row in rows if row.kind is Kind.OPEN and row.task is not Task.DETECTION]
    if not open_rows:
        return []
    if all(row.solution.casefold() in ("yes", "no") for row in open_rows):
        return ["all solutions are yes or no: --kind judge makes yes/no rows of them"]
    if all(row.solution.casefold() in ("true", "false") for row in open_rows):
        return ["all solutions are true or false: written yes and no, --kind judge makes yes/no rows of them"]
    if all(_LETTER.fullmatch(row.solution) and _has_options(row) for row in open_rows):
        return [
            "all solutions are letters of options: --kind choice makes rows with options of them, and --column"
            " options=A,B,C names the columns of the options"
        ]
    if all(_is_box(row.solution) for row in open_rows):
        return ["all solutions are boxes: --task detection makes rows of boxes of them"]
    return []


def _has_options(row: Row) -> bool:
    return bool(row.options or row.extra.keys() >= {"A", "B"} or _LISTED_OPTION.search(row.problem))


def _is_box(solution: str) -> bool:
    try:
        value = parse_json(solution)
    except ValueError:
        return False
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _convert(
    source: DatasetSource, finder: ColumnFinder, broken: set[AskedOfImage], record: Fields
) -> Iterator[ConvertedItem]:
    """Converts a record; adds the question to `broken` where its box is refused."""
    columns = finder.of(record)
    cells = {key: columns.cell(record, key) for key in ROW_KEYS}
    split = str(cells["split"] or "")
    if source.split and split != source.split:
        return
    question = fill_question(source.question, record, columns) if source.question else cells["problem"]
    solution = columns.solution(record)
    if not question or solution in (None, ""):
        record.refuse("problem or solution is empty; --column problem=NAME names the column that holds it")
    image, frame = load_image_cell(cells["image"], source, record) if cells["image"] else (None, None)
    row = Row(
        id=f"{source.name}-{cells['id'] or record_name(record)}",
        task=source.task,
        kind=source.kind,
        problem=_parse_question(str(question), bool(image), record),
        solution=_solution_text(solution, source.task, record),
        images=(image,) if image else (),
        options=_parse_options(columns.option_cells(record), record),
        multiple=source.multiple or _parse_multiple(cells["multiple"], columns.keys.get("multiple", ""), record),
        source=source.name,
        split=split,
        origin=source.origin,
        extra=finder.extra_cells(record),
    )
    if row.kind is Kind.CHOICE and not row.options and not _LISTED_OPTION.search(row.problem):
        record.refuse(
            "a choice row without options; --column options=A,B,C names their columns, or --column options=NAME one"
            " that holds them all"
        )
    try:
        row = replace(row, solution=gold_text(row))
    except RowError as error:
        yield DroppedRecord(f"{record.location}: {error.problem}", unreadable_gold(row.task))
        return
    if not _is_boxes(source):
        yield row
        return
    if image is None or frame is None:
        record.refuse("a detection row without an image; --column image=NAME names the column that holds it")
    frame = source.frame or frame
    try:
        corners = [
            parse_box(box, source.box_format, frame, record, source.box_scale)
            for box in _solution_boxes(row.solution, record)
        ]
    except LineError:
        broken.add((row.images, row.problem))
        raise
    yield AnnotatedImage(image, frame, tuple((str(cells["label"] or ""), box) for box in corners))
    yield replace(row, solution=format_boxes(corners), frame=frame)


def _is_boxes(source: DatasetSource) -> bool:
    return (source.kind, source.task) == (Kind.OPEN, Task.DETECTION)


def _choose_format(source: DatasetSource, finder: ColumnFinder) -> tuple[str, str]:
    """Reads all boxes of a table, and returns the only format that fits them and a line that says so.

    Broken records are left to the conversion, which reports them.

    Raises:
        BuildError: several formats fit, or none.
    """
    boxes = list[RawBox]()
    for record in chain.from_iterable(map(read_records, find_files(source.folder))):
        if not isinstance(record, LineError):
            with suppress(LineError, RowError):
                boxes += _raw_boxes(source, finder, record)
    return choose_box_format(boxes, source.box_scale)


def _raw_boxes(source: DatasetSource, finder: ColumnFinder, record: Fields) -> list[RawBox]:
    columns = finder.of(record)
    cell, image = columns.solution(record), columns.cell(record, "image")
    if cell in (None, "") or not image or (source.split and str(columns.cell(record, "split")) != source.split):
        return []
    _, frame = load_image_cell(image, source, record)
    text = gold_text(Row("", source.task, source.kind, "", _solution_text(cell, source.task, record)))
    return [RawBox(box, source.frame or frame, record) for box in _solution_boxes(text, record)]


def _parse_question(text: str, has_image: bool, record: Fields) -> str:
    """Returns a question without `<image>`, as the images of a row stand before it."""
    marks = text.count(IMAGE)
    if marks > has_image:
        record.refuse(
            f"the question has {marks} {IMAGE}, but there are {int(has_image)} images; --column image=NAME names the"
            " column that holds one"
        )
    text = re.sub(rf"[^\S\n]*{IMAGE}[^\S\n]*(?=[,.;:?!\n]|$)", "", text)
    return re.sub(rf"[^\S\n]*{IMAGE}[^\S\n]*", " ", text).strip() if marks else text


def _solution_text(cell: Any, task: Task, record: Fields) -> str:
    if isinstance(cell, bool):
        record.refuse(f"the solution is {json.dumps(cell)}; write the word that is meant, such as yes")
    if isinstance(cell, list) and task is Task.CLASSIFY:
        return format_labels(cell)
    return json.dumps(cell, default=str) if isinstance(cell, list | dict) else str(cell)


def _solution_boxes(solution: str, record: Fields) -> list[Any]:
    """Returns the boxes of a solution, each in one of the forms that `parse_box` takes."""
    try:
        value = parse_json(solution)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        record.refuse(
            f'the solution {solution[:80]!r} is no box; it takes [a, b, c, d], {{"bbox_2d": [a, b, c, d]}} or a list of'
            " these",
            cause="a solution is no box",
        )
    is_box = bool(value) and all(type(x) in (int, float) for x in value)
    return [value] if is_box else value


def _parse_options(cell: Any, record: Fields) -> tuple[str, ...]:
    if not cell:
        return ()
    wanted = "a JSON list of strings, or strings separated by |"
    if isinstance(cell, str):
        is_json = cell.lstrip().startswith("[")
        cell = parse_json_cell(cell, record, "options", wanted) if is_json else cell.split("|")
    if not isinstance(cell, list) or not all(isinstance(option, str) for option in cell):
        record.refuse(f"options takes {wanted}")
    return tuple(option.strip() for option in cell)


def _parse_multiple(cell: Any, column: str, record: Fields) -> bool:
    """Returns whether several options may be right: false for an empty cell."""
    word = str(cell if cell is not None else "").strip().casefold()
    if word not in (*_YES, *_NO):
        record.refuse_value(column, "yes or no")
    return word in _YES
