"""A comparison of models as Markdown and as CSV, with the paper's printed figures beside it. Loads no JAX."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from currreft_jax.evaluation.compare import DifferenceCell, EstimateCell, ModelComparison, TableColumn
from currreft_jax.evaluation.figures import PAPER, PrintedFigure, read_figures
from currreft_jax.evaluation.statistics import Interval

_TITLES = {
    "strict": "Strict: right, in the layout that training demands",
    "readable": "Readable: right, as a careful person reads the text",
    "strict_score": "Strict, graded scores",
    "readable_score": "Readable, graded scores",
    "official": "Official: right by the authors' lenient scorer",
}
_BINARY = ("strict", "readable", "official")  # the paper's figures are shares of right answers
_CSV_COLUMNS = (
    *("section", "model", "against", "metric", "column", "value", "low", "high", "rows", "images", "p", "p_holm"),
    *("verdict", "rows_needed", "source", "faults"),
)


def format_comparison(comparison: ModelComparison) -> str:
    """Formats a comparison as Markdown: a table of means and one of differences for each metric, in percent."""
    printed = _printed_figures(comparison.columns)
    metrics = dict.fromkeys(cell.metric for cell in comparison.estimates)
    lines = ["Percent of rows, with 95% intervals. Columns: task, kind unless open, and domain of the rows."]
    lines += [f"Note: {note}." for note in comparison.notes]
    for metric in metrics:
        lines += ["", f"## {_TITLES.get(metric, metric.capitalize())}", ""]
        lines += _estimate_table(comparison, metric, printed if metric in _BINARY else [])
        differences = [cell for cell in comparison.differences if cell.metric == metric]
        if differences:
            lines += ["", *_difference_table(differences)]
    if any(figure.faults for figure in printed):
        lines += ["", "† contradicts another figure, or is impossible for its number of rows: see docs/evaluation.md."]
    return "\n".join(lines)


def write_comparison_csv(comparison: ModelComparison, path: str | Path) -> None:
    """Writes all numbers of a comparison, and the paper's, as fractions, one a line."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_csv_records(comparison))


def _csv_records(comparison: ModelComparison) -> Iterator[dict[str, Any]]:
    for cell in comparison.estimates:
        estimate = cell.estimate
        yield {
            "section": "mean",
            **{"model": cell.model, "metric": cell.metric, "column": cell.column.label, "value": estimate.mean},
            **_csv_interval(estimate.interval),
            **{"rows": estimate.rows, "images": estimate.clusters},
        }
    for cell in comparison.differences:
        found = cell.difference
        yield {
            "section": "difference",
            **{"model": cell.second, "against": cell.first, "metric": cell.metric, "column": cell.column.label},
            **{
                "value": found.difference,
                **_csv_interval(found.interval),
                "rows": found.rows,
                "images": found.clusters,
            },
            **{"p": found.p_value, "p_holm": cell.p_holm, "verdict": cell.verdict.value},
            "rows_needed": "" if cell.rows_needed is None else cell.rows_needed,
        }
    for figure in _printed_figures(comparison.columns):
        yield {
            "section": "printed",
            **{"model": figure.model, "column": figure.metric, "value": float(figure.value / 100)},
            **{"rows": figure.rows, "source": figure.table, "faults": " ".join(sorted(figure.faults))},
        }


def _csv_interval(interval: Interval | None) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high} if interval else {}


def _printed_figures(columns: Sequence[TableColumn]) -> list[PrintedFigure]:
    """Returns the paper's figures of named models in these columns."""
    labels = {column.label for column in columns}
    return [figure for figure in read_figures(PAPER) if figure.model and figure.metric in labels]


def _estimate_table(comparison: ModelComparison, metric: str, printed: Sequence[PrintedFigure]) -> list[str]:
    cells = {(cell.model, cell.column): cell for cell in comparison.estimates if cell.metric == metric}
    columns = [column for column in comparison.columns if any(key[1] == column for key in cells)]
    rows = [[name, *(_format_estimate(cells.get((name, column))) for column in columns)] for name in comparison.models]
    by_row: dict[str, dict[str, str]] = {}
    for figure in printed:
        mark = "†" if figure.faults else ""
        by_row.setdefault(f"*{figure.table}: {figure.model}*", {})[figure.metric] = figure.text + mark
    rows += [[name, *(texts.get(column.label, "") for column in columns)] for name, texts in by_row.items()]
    return _markdown_table(["model", *(column.label for column in columns)], rows)


def _format_estimate(cell: EstimateCell | None) -> str:
    if cell is None:
        return ""
    estimate = cell.estimate
    images = "" if estimate.clusters == estimate.rows else f", {estimate.clusters:,} images"
    return f"{100 * estimate.mean:.1f} {_format_interval(estimate.interval)} n = {estimate.rows:,}{images}"


def _difference_table(cells: Sequence[DifferenceCell]) -> list[str]:
    header = ["claim", "rows of", "n", "difference", "95% interval", "p", "p (Holm)", "verdict", "rows needed"]
    rows = []
    for cell in cells:
        found = cell.difference
        images = "" if found.clusters == found.rows else f", {found.clusters:,} images"
        rows.append(
            [
                *(f"{cell.second} above {cell.first}", cell.column.label, f"{found.rows:,}{images}"),
                *(f"{100 * found.difference:+.1f}", _format_interval(found.interval, "+")),
                *(_format_p(found.p_value), _format_p(cell.p_holm), cell.verdict.value),
                "" if cell.rows_needed is None else f"{cell.rows_needed:,}",
            ]
        )
    return _markdown_table(header, rows)


def _format_interval(interval: Interval | None, sign: str = "") -> str:
    return f"[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]" if interval else "[no interval]"


def _format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [list(header), ["---"] * len(header), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in table]
