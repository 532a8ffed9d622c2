"""Published figures in CSV files: as printed, with what they are shares of and what is said of them. Loads no JAX.

A file has a header and one figure a line; docs/evaluation.md describes the columns. The paper's are in `paper/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from currreft_jax.config.names import nearest
from currreft_jax.data.builders.records import read_records
from currreft_jax.data.fields import Fields, LineError

PAPER = Path(__file__).parent / "paper" / "paper.csv"
AUTHORS_README = Path(__file__).parent / "paper" / "readme.csv"
_COLUMNS = ("table", "model", "metric", "value", "unit", "rows", "step", "relation", "faults", "note")
_Name = TypeVar("_Name", bound=StrEnum)


class FigureUnit(StrEnum):
    """What a figure of right rows is printed in."""

    PERCENT = "percent"
    FRACTION = "fraction"
    SCORE = "score"  # the sum over rows


class Fault(StrEnum):
    """What is wrong with a figure."""

    IMPOSSIBLE = "impossible"  # no rows give it
    PADDED = "padded"  # rows give it only if zeros were added after rounding
    CONFLICT = "conflict"  # another table prints another value
    RELATION = "relation"  # what is said of it is false


@dataclass(frozen=True, slots=True)
class PrintedFigure:
    """A figure of a published table.

    Attributes:
        file: path as given by the user.
        line: its line in the file.
        table: the table or section that prints it, such as "Table 2".
        model: the model that it is of; empty if unknown, and then compared with nothing.
        metric: what is measured; equal names are equal measurements.
        text: the figure as printed.
        unit: what it is printed in.
        rows: number of rows that it is a mean or a sum of; None if unknown.
        step: what a row's score, from 0 to 1, moves in: 1 for right or wrong, 1/10 for scores in tenths.
        relation: what the source says of it, such as `[Relative] = 100 * [VLM] / [GPT4]`; may be empty.
        faults: what is known to be wrong with it, as marked in the file.
        note: a remark.
    """

    file: str
    line: int
    table: str
    model: str
    metric: str
    text: str
    unit: FigureUnit
    rows: int | None
    step: Fraction
    relation: str
    faults: frozenset[Fault]
    note: str

    @property
    def value(self) -> Fraction:
        """The figure as a number."""
        return Fraction(self.text)

    @property
    def decimals(self) -> int:
        """Number of digits behind the point, as printed."""
        return len(self.text.partition(".")[2])

    @property
    def half_digit(self) -> Fraction:
        """How far rounding may have moved the figure."""
        return Fraction(1, 2 * 10**self.decimals)


def read_figures(path: str | Path) -> list[PrintedFigure]:
    """Reads a CSV file of figures.

    Raises:
        ValueError: the file holds none, or a line is malformed; the message names line, column and remedy.
        OSError: the file cannot be read.
    """
    if Path(path).suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path} is no table of figures; write a .csv or .tsv file")
    figures = list(_read_figures(Path(path)))
    if not figures:
        raise ValueError(f"{path} holds no figures; write one a line, below a header of table,model,metric,value,...")
    return figures


def _read_figures(path: Path) -> Iterator[PrintedFigure]:
    for record in read_records(path):
        if isinstance(record, LineError):
            raise record
        yield _parse_figure(record, str(path))


def _parse_figure(record: Fields, file: str) -> PrintedFigure:
    for column in record.keys:
        if column not in _COLUMNS:
            names = nearest(column, _COLUMNS) or _COLUMNS
            record.refuse(f"there is no column {column!r}; nearest: {', '.join(names)}")
    text = record.text("value", meaning="the figure as printed, such as 64.70").strip()
    if not text.replace(".", "", 1).isdecimal() or not text.isascii():
        record.refuse_value("value", "the figure as printed, such as 64.70")
    rows = record.text("rows", "").strip()
    if rows and not (rows.isdecimal() and int(rows)):
        record.refuse_value("rows", "the number of rows, or nothing if it is unknown")
    return PrintedFigure(
        file=file,
        line=int(record.location.rpartition(":")[2]),
        table=record.text("table", meaning="the table or section that prints the figure").strip(),
        model=record.text("model", "").strip(),
        metric=record.text("metric", meaning="what is measured").strip(),
        text=text,
        unit=next(iter(_members(record, "unit", FigureUnit)), FigureUnit.PERCENT),
        rows=int(rows) if rows else None,
        step=_step(record),
        relation=record.text("relation", "").strip(),
        faults=frozenset(_members(record, "faults", Fault)),
        note=record.text("note", ""),
    )


def _members(record: Fields, column: str, enum: type[_Name]) -> list[_Name]:
    names = record.text(column, "").split()
    if not set(names) <= set(enum):
        record.refuse_value(column, f"{', '.join(enum)}, or nothing")
    return [enum(name) for name in names]


def _step(record: Fields) -> Fraction:
    try:
        step = Fraction(record.text("step", "").strip() or 1)
    except (ValueError, ZeroDivisionError):
        step = Fraction(0)
    if not 0 < step <= 1:
        record.refuse_value("step", "what a row's score moves in, such as 0.1; or nothing for right and wrong answers")
    return step
