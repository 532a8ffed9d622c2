"""Columns of a custom table: which of them hold a row's keys, its boxes, and what rewards of one's own read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.config.names import nearest
from currreft_jax.data.builders.box_formats import NUMBER_KEYS
from currreft_jax.data.builders.converter import BuildError, DatasetSource
from currreft_jax.data.builders.image_files import IMAGE_SUFFIXES
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import KEYS, UNREAD_MEDIA

ROW_KEYS = ("id", "problem", "solution", "image", "options", "multiple", "split", "label")
# Columns in which tables hold the image, and those of boxes the label, where none has the key's own name.
_ALIASES = {
    "image": ("filename", "file_name", "file", "image_path", "path"),
    "label": ("class", "category", "class_name", "label_name"),
}
_FIELD = re.compile(r"\{(\w+)\}")  # of a question; `{box:0}` is none


@dataclass(frozen=True, slots=True)
class TableColumns:
    """The columns of a record.

    Attributes:
        keys: row key -> column.
        box: the four columns of a box, in the order of `numbers`; empty if the solution holds the boxes.
        numbers: the usual names of these columns, one of `NUMBER_KEYS`; empty if `--column` names them.
        options: the columns of the options, one each; empty if one column holds all of them.
        extra: columns that are kept for rewards of one's own.
        unread: columns that are not, because rows use their names for something else.
    """

    keys: dict[str, str]
    box: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def cell(self, record: Fields, key: str) -> Any:
        """Returns the cell of a row's key; None if the record has no such column."""
        return record.keys.get(self.keys[key]) if key in self.keys else None

    def solution(self, record: Fields) -> Any:
        """Returns the cell of the solution, or the box of the four columns: a list, or an object where they are named.

        Raises:
            LineError: one of the four is no number.
        """
        if not self.box:
            return self.cell(record, "solution")
        numbers = [_number(record, column) for column in self.box]
        return dict(zip(self.numbers, numbers, strict=True)) if self.numbers else numbers

    def option_cells(self, record: Fields) -> Any:
        """Returns the cell of the options, or the texts of their columns, without the empty ones at the end.

        Raises:
            LineError: an empty one stands before others, whose letters it would change.
        """
        if not self.options:
            return self.cell(record, "options")
        cells = ["" if record.keys[column] is None else str(record.keys[column]).strip() for column in self.options]
        while cells and not cells[-1]:
            cells.pop()
        if "" in cells:
            empty = self.options[cells.index("")]
            record.refuse(f"the option {empty!r} is empty, and {self.options[len(cells) - 1]!r} is not; fill it")
        return cells


@dataclass(slots=True)
class ColumnFinder:
    """Finds the columns of records, once for all records with the same ones.

    Attributes:
        source: names columns and the question.
        found: names of a record's columns -> what they hold.
        unwritable: columns with cells that JSON cannot hold, such as bytes.
    """

    source: DatasetSource
    found: dict[tuple[str, ...], TableColumns] = field(default_factory=dict)
    unwritable: set[str] = field(default_factory=set)

    def of(self, record: Fields) -> TableColumns:
        """Returns the columns of a record.

        Raises:
            BuildError: two columns could hold the same key, or a field of the question is no column; the first record
                lacks a column.
            LineError: a later one lacks it.
        """
        names = tuple(map(str, record.keys))
        if names not in self.found:
            try:
                self.found[names] = self._find(names, record)
            except LineError as error:
                if self.found:
                    raise
                raise BuildError(str(error)) from error  # the first record: the others will lack it, too
        return self.found[names]

    def extra_cells(self, record: Fields) -> dict[str, Any]:
        """Returns the cells for rewards of one's own; without empty ones, and those that JSON cannot hold."""
        cells = {column: record.keys[column] for column in self.of(record).extra}
        self.unwritable |= {column for column, cell in cells.items() if not _is_json(cell)}
        return {column: cell for column, cell in cells.items() if cell not in (None, "") and _is_json(cell)}

    def remarks(self) -> list[str]:
        """Says which columns were found for a row's keys, which are kept, and which are not."""
        tables = self.found.values()
        keys = [f"{key} from {column}" for one in tables for key, column in one.keys.items() if key != column]
        lists = {
            "columns": [
                *keys,
                *(f"boxes from {' '.join(one.box)}" for one in tables if one.box),
                *(f"options from {' '.join(one.options)}" for one in tables if one.options),
            ],
            "columns kept as extra, for rewards of your own": [
                column for one in tables for column in one.extra if column not in self.unwritable
            ],
            "columns with what JSON cannot hold": sorted(self.unwritable),
            "columns not read, as rows have keys of these names": [column for one in tables for column in one.unread],
        }
        return [f"{title}: {', '.join(dict.fromkeys(names))}" for title, names in lists.items() if names]

    def _find(self, names: tuple[str, ...], record: Fields) -> TableColumns:
        is_boxes = (self.source.kind, self.source.task) == (Kind.OPEN, Task.DETECTION)
        keys, box, numbers, options = {key: key for key in ROW_KEYS if key in names}, (), (), ()
        for key, column in self.source.columns.items():
            several = () if column in names else tuple(part.strip() for part in column.split(","))
            if key == "solution" and is_boxes and len(several) == 4:
                box = several
            elif key == "options" and len(several) > 1:
                options = several
            else:
                keys[key] = column
        if missing := [column for column in (*keys.values(), *box, *options) if column not in names]:
            record.refuse(f"no column {missing[0]!r}; {_name_nearest(missing[0], names)}")
        keys = _add_aliases(keys, names, ("image", "label") if is_boxes else ("image",))
        if "image" not in keys:
            _refuse_unnamed_images([name for name in names if name not in keys.values()], record)
        if is_boxes and not box and "solution" not in keys:
            box, numbers = _number_columns(names)
        if box:
            keys.pop("solution", None)
        if options:
            keys.pop("options", None)
        if self.source.question:
            keys.pop("problem", None)
        self._refuse_missing(names, keys, box, record)
        used = {*(column for key, column in keys.items() if key != "label"), *box, *options}
        rest = [name for name in names if name not in used]
        taken = KEYS.union(UNREAD_MEDIA)
        unread = tuple(name for name in rest if name in taken)
        extra = tuple(name for name in rest if name not in taken)
        return TableColumns(keys, box, numbers, options, extra, unread)

    def _refuse_missing(
        self, names: Sequence[str], keys: Mapping[str, str], box: Sequence[str], record: Fields
    ) -> None:
        """Refuses a record without a question or an answer, and a question with a field that is no column."""
        question, listed = self.source.question, f"there are {', '.join(names)}"
        if question and "problem" in self.source.columns:
            raise BuildError("--question and --column problem=…: give one of them")
        for name in _FIELD.findall(question):
            if name not in (*names, *keys):
                remedy = _name_nested(name, record) or _name_nearest(name, (*names, *keys))
                raise BuildError(f"--question has {{{name}}}, and no column is called so; {remedy}")
        if not question and "problem" not in keys:
            record.refuse(
                "no column for the question: give --question 'Where is the {label}?', or --column problem=NAME;"
                f" {listed}"
            )
        if not box and "solution" not in keys:
            of_boxes = ", or of the four numbers of a box --column solution=x1,y1,x2,y2"
            is_boxes = (self.source.kind, self.source.task) == (Kind.OPEN, Task.DETECTION)
            of_boxes = of_boxes if is_boxes else ""
            if not is_boxes and (found := _number_columns(names)[0]):
                record.refuse(
                    f"no column for the answer, but {' '.join(found)} hold a box: give --task detection --kind open, or"
                    f" --column solution=NAME; {listed}"
                )
            record.refuse(f"no column for the answer: give --column solution=NAME{of_boxes}; {listed}")


def _name_nested(name: str, record: Fields) -> str:
    """Names the column of a record that holds a list of objects with the key; nothing if there is none."""
    for column, cell in record.keys.items():
        if isinstance(cell, list) and any(isinstance(entry, dict) and name in entry for entry in cell):
            return f"the objects in {column!r} have it: write a record for each, with its image"
    return ""


def _name_nearest(name: str, names: Sequence[str]) -> str:
    """Names the columns that resemble a misspelt one, and all there are."""
    near = ", ".join(nearest(name, dict.fromkeys(names)))
    listed = f"there are {', '.join(dict.fromkeys(names))}"
    return f"nearest: {near}; {listed}" if near else listed


def _add_aliases(keys: Mapping[str, str], names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Adds the usual columns of the wanted keys that have none.

    Raises:
        BuildError: there are several for one key.
    """
    found = dict(keys)
    for key in wanted:
        matches = [name for name in names if name.casefold() in _ALIASES[key] and key not in keys]
        if len(matches) > 1:
            raise BuildError(f"{' and '.join(matches)} could both be the {key}: give --column {key}=NAME")
        if matches:
            found[key] = matches[0]
    return found


def _refuse_unnamed_images(names: Sequence[str], record: Fields) -> None:
    """Refuses a table without an image column in which another column names image files."""
    for name in names:
        if _names_image(record.keys[name]):
            record.refuse(
                f"no column is called image, and {name!r} names image files: give --column image={name}, or remove it"
            )


def _names_image(cell: Any) -> bool:
    cell = cell[0] if isinstance(cell, list) and cell else cell
    cell = cell.get("path") if isinstance(cell, dict) else cell
    return isinstance(cell, str) and Path(cell).suffix.casefold() in IMAGE_SUFFIXES


def fill_question(question: str, record: Fields, columns: TableColumns) -> str:
    """Writes the cells of a record into the `{column}` fields of a question.

    Raises:
        LineError: a cell is empty.
    """

    def cell(match: re.Match[str]) -> str:
        value = record.keys.get(match[1], columns.cell(record, match[1]))
        if value in (None, ""):
            record.refuse(f"{match[1]!r} is empty, and --question names it")
        return str(value)

    return _FIELD.sub(cell, question)


def _number_columns(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the columns that hold a box, and their usual names; nothing if there are none.

    Raises:
        BuildError: several sets of columns do.
    """
    by_name = {name.casefold(): name for name in names}
    sets = [numbers for numbers in NUMBER_KEYS if by_name.keys() >= set(numbers)]
    if len(sets) > 1:
        listed = " and ".join(", ".join(numbers) for numbers in sets)
        raise BuildError(f"{listed} could both be boxes: name four by --column solution=…,…,…,…")
    return (tuple(by_name[name] for name in sets[0]), sets[0]) if sets else ((), ())


def _number(record: Fields, column: str) -> float:
    value = record.keys[column]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        record.refuse_value(column, "a number: a side of the box")
    return number


def _is_json(cell: Any) -> bool:
    try:
        json.dumps(cell, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
