"""Columns of a custom table: which of them hold a row's keys, its boxes, and what rewards of one's own read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.box_formats import NUMBER_KEYS
from currreft_jax.data.builders.converter import BuildError, DatasetSource
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import KEYS, UNREAD_MEDIA

ROW_KEYS = ("id", "problem", "solution", "image", "options", "split", "label")
# Columns in which tables of boxes hold the image and the label, where none has the key's own name.
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
        extra: columns that are kept for rewards of one's own.
        unread: columns that are not, because rows use their names for something else.
    """

    keys: dict[str, str]
    box: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
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
        keys = {f"{key} from {column}": None for one in self.found.values() for key, column in one.keys.items()}
        lines = {key: None for key in keys if key.partition(" from ")[0] != key.rpartition(" from ")[2]}
        found = [*lines, *{f"boxes from {' '.join(one.box)}": None for one in self.found.values() if one.box}]
        extra = {column: None for one in self.found.values() for column in one.extra if column not in self.unwritable}
        unread = {column: None for one in self.found.values() for column in one.unread}
        return [
            *([f"columns: {', '.join(found)}"] if found else []),
            *([f"columns kept as extra, for rewards of your own: {', '.join(extra)}"] if extra else []),
            *([f"columns with what JSON cannot hold: {', '.join(sorted(self.unwritable))}"] if self.unwritable else []),
            *([f"columns not read, as rows have keys of these names: {', '.join(unread)}"] if unread else []),
        ]

    def _find(self, names: tuple[str, ...], record: Fields) -> TableColumns:
        source, listed = self.source, ", ".join(names)
        is_boxes = (source.kind, source.task) == (Kind.OPEN, Task.DETECTION)
        keys, box = {key: key for key in ROW_KEYS if key in names}, ()
        for key, column in source.columns.items():
            parts = tuple(part.strip() for part in column.split(","))
            if key == "solution" and is_boxes and column not in names and len(parts) == 4:
                box, missing = parts, [part for part in parts if part not in names]
            else:
                keys[key], missing = column, [column] if column not in names else []
            if missing:
                record.refuse(f"no column {missing[0]!r}; there are {listed}")
        for key, aliases in _ALIASES.items() if is_boxes else ():
            matches = [name for name in names if name.casefold() in aliases] if key not in keys else []
            if len(matches) > 1:
                raise BuildError(f"{' and '.join(matches)} could both be the {key}: give --column {key}=NAME")
            keys |= dict.fromkeys([key] * len(matches), *matches) if matches else {}
        numbers = ()
        if box:
            keys.pop("solution", None)
        elif is_boxes and "solution" not in keys:
            box, numbers = _number_columns(names)
        if source.question:
            if "problem" in source.columns:
                raise BuildError("--question and --column problem=…: give one of them")
            keys.pop("problem", None)
            for name in _FIELD.findall(source.question):
                if name not in (*names, *keys):
                    raise BuildError(f"--question has {{{name}}}, and no column is called so; there are {listed}")
        if not source.question and "problem" not in keys:
            record.refuse(
                "no column for the question: give --question 'Where is the {label}?', or --column problem=NAME; there"
                f" are {listed}"
            )
        if not box and "solution" not in keys:
            numbers_of_box = ", or of the four numbers of a box --column solution=x1,y1,x2,y2" if is_boxes else ""
            record.refuse(f"no column for the answer: give --column solution=NAME{numbers_of_box}; there are {listed}")
        used = {*(column for key, column in keys.items() if key != "label"), *box}
        rest = [name for name in names if name not in used]
        taken = KEYS.union(UNREAD_MEDIA)
        return TableColumns(
            keys,
            box,
            numbers,
            tuple(name for name in rest if name not in taken),
            tuple(name for name in rest if name in taken),
        )


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
