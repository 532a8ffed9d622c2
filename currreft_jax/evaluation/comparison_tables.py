"""A comparison of models as Markdown and as CSV, with the paper's printed figures beside it. Loads no JAX."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from currreft_jax.config.wording import plural
from currreft_jax.evaluation.benchmarks.columns import PAPER_LABELS, BenchmarkColumn
from currreft_jax.evaluation.compare import BENCHMARK, DifferenceCell, EstimateCell, ModelComparison, TableColumn
from currreft_jax.evaluation.figures import PAPER, FigureUnit, PrintedFigure, read_figures
from currreft_jax.evaluation.statistics import Interval

CAPTION = "Percent of rows, with 95% intervals. Columns: task, kind unless open, and domain of the rows."
_METRIC_TITLES = {
    "strict": "Strict: right, in the layout that training demands",
    "readable": "Readable: right, as a careful person reads the text",
    "strict_score": "Strict, graded scores",
    "readable_score": "Readable, graded scores",
    "official": "Official: right by the authors' lenient scorer",
    BENCHMARK: "Benchmarks: the score that each defines",
}
_PRINTED = ("strict", "readable", "official", BENCHMARK)  # what the paper's figures measure
# The paper's tables whose columns are the same -> their columns, in the paper's order.
_PAPER_TABLES = {
    "Tables 1, 2 and 4a: in and out of domain": (
        *("detection in", "math in", "classify in", "detection out", "math out", "classify out"),
    ),
    "Tables 3 and 4b: general benchmarks": PAPER_LABELS,
}
_PRINTED_IN = {FigureUnit.PERCENT: 100, FigureUnit.FRACTION: 1}  # no figure in these columns is a sum
_OTHER_COLUMNS = "Rows that the paper's tables do not have"
_DIFFERENCES = "Differences"
_CSV_COLUMNS = (
    *("section", "model", "against", "metric", "column", "value", "low", "high", "rows", "images", "p", "p_holm"),
    *("verdict", "rows_needed", "source", "faults", "note"),
)


class ComparisonTable(NamedTuple):
    """A table of a comparison, in texts.

    Attributes:
        metric: what all its figures measure.
        title: its heading.
        header: names of the columns.
        rows: the cells.
        printed: how many of the last rows are the paper's.
    """

    metric: str
    title: str
    header: list[str]
    rows: list[list[str]]
    printed: int = 0


def format_comparison(comparison: ModelComparison) -> str:
    """Formats a comparison as Markdown: tables of means and one of differences for each metric, in percent."""
    lines = [CAPTION]
    lines += [f"Note: {note}." for note in comparison.notes]
    metric = ""
    for table in comparison_tables(comparison):
        if table.metric != metric:
            metric = table.metric
            lines += ["", f"## {metric_title(metric)}"]
        lines += ["", f"### {table.title}", "", *_markdown_table(table)]
    faults = fault_notes(comparison)
    return "\n".join([*lines, *([""] if faults else []), *faults])


def metric_title(metric: str) -> str:
    """Returns the heading of a metric."""
    return _METRIC_TITLES.get(metric, metric.capitalize())


def comparison_tables(comparison: ModelComparison) -> list[ComparisonTable]:
    """Returns the tables of a comparison, those of a metric together.

    The paper's tables come first, with its columns in its order and its figures in the last rows, then all other
    columns, then the differences.
    """
    printed = [figure for figure in _printed_figures(comparison.columns) if figure.model]
    tables = []
    for metric in dict.fromkeys(cell.metric for cell in comparison.estimates):
        columns = {
            column.label: column
            for column in comparison.columns
            if any((cell.metric, cell.column) == (metric, column) for cell in comparison.estimates)
        }
        for title, labels in _PAPER_TABLES.items():
            own = [columns.pop(label) for label in labels if label in columns]
            if own:
                tables.append(_mean_table(comparison, metric, title, own, printed if metric in _PRINTED else []))
        if columns:
            tables.append(_mean_table(comparison, metric, _OTHER_COLUMNS, list(columns.values()), []))
        if cells := [cell for cell in comparison.differences if cell.metric == metric]:
            tables.append(_difference_table(metric, cells))
    return tables


def fault_notes(comparison: ModelComparison) -> list[str]:
    """Says what is wrong with the paper's figures in the columns of a comparison, a line for each kind of fault."""
    faulty = [figure for figure in _printed_figures(comparison.columns) if figure.faults]
    named: dict[str, dict[str, None]] = {}
    unnamed: dict[tuple[str, str, int | None], list[str]] = {}
    for figure in faulty:
        if figure.model:
            named.setdefault(figure.note, {})[f"{figure.metric} of {figure.model}"] = None
        else:
            unnamed.setdefault((figure.table, figure.metric, figure.rows), []).append(figure.text)
    notes = [f"† {note}: {', '.join(figures)}." for note, figures in named.items()]
    notes += [
        f"† {table}, {metric}: {', '.join(texts)} {'is no share' if len(texts) == 1 else 'are no shares'} of"
        f" {plural(rows, 'row')}; the models are not recorded here."
        for (table, metric, rows), texts in unnamed.items()
        if rows
    ]
    return notes


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
            **{"model": figure.model, "column": figure.metric, "value": float(figure.value / _PRINTED_IN[figure.unit])},
            **{"rows": figure.rows, "source": figure.table, "faults": " ".join(sorted(figure.faults))},
            "note": figure.note,
        }


def _csv_interval(interval: Interval | None) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high} if interval else {}


def _printed_figures(columns: Sequence[TableColumn | BenchmarkColumn]) -> list[PrintedFigure]:
    """Returns the paper's figures in these columns."""
    labels = {column.label for column in columns}
    return [figure for figure in read_figures(PAPER) if figure.metric in labels]


def _mean_table(
    comparison: ModelComparison,
    metric: str,
    title: str,
    columns: Sequence[TableColumn | BenchmarkColumn],
    printed: Sequence[PrintedFigure],
) -> ComparisonTable:
    cells = {(cell.model, cell.column): cell for cell in comparison.estimates if cell.metric == metric}
    rows = [[name, *(_format_estimate(cells.get((name, column))) for column in columns)] for name in comparison.models]
    by_row: dict[str, dict[str, str]] = {}
    labels = [column.label for column in columns]
    for figure in printed:
        if figure.metric in labels:
            mark = "†" if figure.faults else ""
            by_row.setdefault(f"{figure.table}: {figure.model}", {})[figure.metric] = figure.text + mark
    rows += [[name, *(texts.get(label, "") for label in labels)] for name, texts in by_row.items()]
    return ComparisonTable(metric, title, ["model", *labels], rows, len(by_row))


def _format_estimate(cell: EstimateCell | None) -> str:
    if cell is None:
        return ""
    estimate = cell.estimate
    images = "" if estimate.clusters == estimate.rows else f", {estimate.clusters:,} images"
    return f"{100 * estimate.mean:.1f} {_format_interval(estimate.interval)} n = {estimate.rows:,}{images}"


def _difference_table(metric: str, cells: Sequence[DifferenceCell]) -> ComparisonTable:
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
    return ComparisonTable(metric, _DIFFERENCES, header, rows)


def _format_interval(interval: Interval | None, sign: str = "") -> str:
    return f"[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]" if interval else "[no interval]"


def _format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _markdown_table(table: ComparisonTable) -> list[str]:
    """Formats a table; the names of the paper's rows are in italics."""
    own = len(table.rows) - table.printed
    rows = [row if index < own else [f"*{row[0]}*", *row[1:]] for index, row in enumerate(table.rows)]
    lines = [table.header, ["---"] * len(table.header), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
