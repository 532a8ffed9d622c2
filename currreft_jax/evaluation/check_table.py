"""Faults of published tables: figures that no rows give, and figures that contradict each other. Loads no JAX."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from currreft_jax.config.wording import plural
from currreft_jax.evaluation.figures import Fault, FigureUnit, PrintedFigure, read_figures
from currreft_jax.evaluation.relations import check_relations

_NOUNS = {FigureUnit.PERCENT: "percentage", FigureUnit.FRACTION: "fraction", FigureUnit.SCORE: "sum"}


@dataclass(frozen=True, slots=True)
class FigureFault:
    """A fault of a figure.

    Attributes:
        figure: the figure.
        fault: what is wrong with it.
        column: column of the file that shows the fault.
        message: what is wrong, with the nearest possible values or the other figure.
    """

    figure: PrintedFigure
    fault: Fault
    column: str
    message: str

    def __str__(self) -> str:
        """Returns the fault in one line, with its file, line and column."""
        figure = self.figure
        names = ", ".join(filter(None, [figure.table, figure.model, figure.metric]))
        return f"{figure.file}:{figure.line}: {self.column}: {names}: {self.message}"


def check_table(path: str | Path) -> list[FigureFault]:
    """Checks a CSV file of figures, and returns the faults in the order of its lines.

    Raises:
        ValueError: a line is malformed; the message names it, its column and the remedy.
        OSError: the file cannot be read.
    """
    return find_faults(read_figures(path))


def find_faults(figures: Sequence[PrintedFigure]) -> list[FigureFault]:
    """Returns the faults of figures that are compared with each other.

    Raises:
        ValueError: a relation is malformed, or names a figure that there is not.
    """
    faults = [fault for figure in figures for fault in _impossible(figure)]
    faults += _conflicts(figures)
    faults += [FigureFault(figure, Fault.RELATION, "relation", message) for figure, message in check_relations(figures)]
    return sorted(faults, key=lambda fault: fault.figure.line)


def format_faults(figures: int, faults: Sequence[FigureFault]) -> str:
    """Formats one line for each fault, and the numbers of figures and faults."""
    return "\n".join([*map(str, faults), f"figures {figures}, faults {len(faults)}"])


def _impossible(figure: PrintedFigure) -> Iterator[FigureFault]:
    if figure.rows is None or _is_possible(figure, figure.half_digit):
        return
    grain = "" if figure.step == 1 else f" whose scores move in steps of {float(figure.step):g}"
    noun = f"{_NOUNS[figure.unit]} of {plural(figure.rows, 'row')}{grain}"
    shorter = figure.text.rstrip("0").rstrip(".") if "." in figure.text else figure.text
    padding = len(figure.text) - len(shorter)
    decimals = len(shorter.partition(".")[2])
    if padding and _is_possible(figure, Fraction(1, 2 * 10**decimals)):
        message = f"{figure.text} is a {noun} only as {shorter}, rounded before the zero was added"
        yield FigureFault(figure, Fault.PADDED, "value", message)
        return
    nearest = " and ".join(_nearest(figure))
    message = f"{figure.text} is no {noun}; the nearest: {nearest}"
    yield FigureFault(figure, Fault.IMPOSSIBLE, "value", message)


def _grain(figure: PrintedFigure) -> tuple[Fraction, int]:
    """Returns the distance of possible values, and the number of the largest one from 0."""
    assert figure.rows
    largest = {FigureUnit.PERCENT: 100, FigureUnit.FRACTION: 1, FigureUnit.SCORE: figure.rows}[figure.unit]
    return largest * figure.step / figure.rows, math.floor(figure.rows / figure.step)


def _neighbours(figure: PrintedFigure) -> list[Fraction]:
    """Returns the largest possible value below the figure and the smallest one above it."""
    distance, last = _grain(figure)
    below = min(math.floor(figure.value / distance), last)
    return [distance * number for number in sorted({below, min(below + 1, last)})]


def _is_possible(figure: PrintedFigure, tolerance: Fraction) -> bool:
    return any(abs(figure.value - possible) <= tolerance for possible in _neighbours(figure))


def _nearest(figure: PrintedFigure) -> list[str]:
    return [f"{float(value):.{figure.decimals}f}" for value in _neighbours(figure)]


def _conflicts(figures: Sequence[PrintedFigure]) -> Iterator[FigureFault]:
    """Yields a fault for each further value of the same model and metric."""
    printings: dict[tuple[str, str], list[PrintedFigure]] = defaultdict(list)
    for figure in figures:
        if not figure.model:
            continue
        values = printings[figure.model, figure.metric]
        if all(_differ(figure, other) for other in values):
            if values:
                first = values[0]
                message = f"{figure.text}, but {first.text} in {first.table} (line {first.line})"
                yield FigureFault(figure, Fault.CONFLICT, "value", message)
            values.append(figure)


def _differ(figure: PrintedFigure, other: PrintedFigure) -> bool:
    return abs(_share(figure, figure.value) - _share(other, other.value)) > _share(figure, figure.half_digit) + _share(
        other, other.half_digit
    )


def _share(figure: PrintedFigure, value: Fraction) -> Fraction:
    """Converts a number in a figure's unit to a share of its rows; a sum of an unknown number of rows stays a sum."""
    return value / {FigureUnit.PERCENT: 100, FigureUnit.FRACTION: 1, FigureUnit.SCORE: figure.rows or 1}[figure.unit]
