"""Models compared by their answers to the same rows: means with intervals, and paired differences. Loads no JAX."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from currreft_jax.config import ImageCondition, Kind, Source, SuiteDomain, Task
from currreft_jax.config.missing import name_nearest
from currreft_jax.config.wording import plural
from currreft_jax.evaluation.answers import SUFFIX, Answer, read_answers
from currreft_jax.evaluation.benchmarks.aggregates import ScoredUnit
from currreft_jax.evaluation.benchmarks.columns import (
    MODEL,
    BenchmarkColumn,
    benchmark_columns,
    column_score,
    counted_units,
    estimate_column,
    failed_units,
)
from currreft_jax.evaluation.benchmarks.items import Decision
from currreft_jax.evaluation.benchmarks.scoring import BenchmarkScores, read_verdicts, verdicts_path
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.statistics import (
    ClaimVerdict,
    MeanEstimate,
    PairedDifference,
    estimate_mean,
    holm,
    judge_claim,
    paired_difference,
    pass_at_k,
    rows_needed,
)

_SETTINGS = ("pixels", "dtype", "prompts", "decoding", "scorer")  # of a manifest, besides model, rows and images
BENCHMARK = "benchmark"  # the metric of benchmarks: the score that each defines
# Of each completion; the names are those of `Answer`.
METRICS = {name: attrgetter(name) for name in ("strict", "readable", "strict_score", "readable_score", "official")}


class TableColumn(NamedTuple):
    """Answers that a table takes together: those to rows of one domain, task and kind, with the same images shown."""

    domain: SuiteDomain
    task: Task
    kind: Kind
    images: ImageCondition

    @property
    def label(self) -> str:
        """Its heading; open questions with the rows' own images, as in the paper, need no further words."""
        kind = "" if self.kind is Kind.OPEN else f" {self.kind.value}"
        images = "" if self.images is ImageCondition.ORIGINAL else f", {self.images.value} images"
        return f"{self.task.value}{kind} {self.domain.value}{images}"


@dataclass(frozen=True, slots=True)
class SuiteAnswers:
    """The answers of a model to a suite.

    Attributes:
        suite: name of the suite.
        domain: in or out of the domain of training.
        images: the images that were shown.
        answers: one for each row.
        files: sample and hash of each of the suite's files, which tell them from others.
        sources: the same files as the evaluation named them.
        settings: what else the answers depend on, by name.
        leaks: rows whose images the model was trained on, or why their number is unknown.
        model_path: path of the model.
        benchmark: its scores; None for a suite of rows.
    """

    suite: str
    domain: SuiteDomain
    images: ImageCondition
    answers: tuple[Answer, ...]
    files: Any = None
    sources: tuple[Source, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    leaks: int | str = 0
    model_path: str = ""
    benchmark: BenchmarkScores | None = None


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """The answers of a model to all suites."""

    name: str
    suites: tuple[SuiteAnswers, ...]


class EstimateCell(NamedTuple):
    """The mean of a model in a column."""

    model: str
    metric: str
    column: TableColumn | BenchmarkColumn
    estimate: MeanEstimate


class DifferenceCell(NamedTuple):
    """Two models on the rows of a column, and the claim that the second is better.

    Attributes:
        first: name of a model.
        second: name of the other.
        metric: what is measured.
        column: the rows.
        difference: second minus first.
        p_holm: its p-value among all differences of the metric, by Holm's method.
        verdict: of the claim, by the interval alone.
        rows_needed: rows that would show the difference; None where the claim is decided, or there is no difference.
    """

    first: str
    second: str
    metric: str
    column: TableColumn | BenchmarkColumn
    difference: PairedDifference
    p_holm: float
    verdict: ClaimVerdict
    rows_needed: int | None


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """All numbers of a comparison.

    Attributes:
        models: names, in the given order.
        columns: those of any model.
        estimates: of all models, columns and metrics.
        differences: of each model and the one before it.
        notes: settings in which the models' answers differ, rows that a model was trained on, and rows without answers.
    """

    models: tuple[str, ...]
    columns: tuple[TableColumn | BenchmarkColumn, ...]
    estimates: tuple[EstimateCell, ...]
    differences: tuple[DifferenceCell, ...]
    notes: tuple[str, ...]


_Rows = dict[tuple[str, str], Answer]  # by suite and row


def read_model_answers(folder: str | Path) -> ModelAnswers:
    """Reads the folder of a model's answers.

    Raises:
        ValueError: the folder has no answers, some rows are not answered yet, or a file is damaged.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        models = sorted({str(path.parent) for path in folder.glob(f"*/*{SUFFIX}") if manifest_path(path).exists()})
        there = f"; those of models are in {', '.join(models)}" if models else name_nearest(folder)
        command = f"python -m currreft_jax.evaluate --model=MODEL --rows=FILE --out={folder.parent}"
        raise ValueError(f"{folder} holds no answers{there or f'; evaluate its model first: {command}'}")
    return ModelAnswers(files[0].parent.name, tuple(map(_read_suite_answers, files)))


def _read_suite_answers(answers_path: Path) -> SuiteAnswers:
    path = manifest_path(answers_path)
    if not path.exists():
        raise ValueError(f"{answers_path} has no manifest beside it; evaluate again into another --out")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        rows = manifest["rows"]
        suite, count = str(rows["suite"]), int(rows["count"])
        domain, images = SuiteDomain(rows["domain"]), ImageCondition(manifest["images"])
        files = [(file["sample"], file["hash"]) for file in rows["files"]]
        sources = tuple(_recorded_source(file) for file in rows["files"])
        settings, leaks = {name: manifest[name] for name in _SETTINGS}, manifest["leaks"]
        model_path = str(manifest["model"]["path"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no manifest of this version ({error!r}); evaluate again into another --out"
        ) from error
    benchmark = None
    if "benchmark" in settings["prompts"]:
        if not verdicts_path(answers_path).exists():
            raise ValueError(f"{answers_path} has no verdicts beside it; evaluate again, which makes them")
        benchmark = read_verdicts(verdicts_path(answers_path))
        settings = {**settings, "rules": benchmark.rules}
    answers = tuple(read_answers(answers_path))
    if len(answers) != count:
        raise ValueError(
            f"{answers_path} has answers to {len(answers)} of {plural(count, 'row')}; evaluate again, which completes"
            " the file"
        )
    return SuiteAnswers(suite, domain, images, answers, files, sources, settings, leaks, model_path, benchmark)


def _recorded_source(file: dict[str, Any]) -> Source:
    kind, task = file.get("kind"), file.get("task")
    return Source(
        file=str(file["file"]),
        sample=str(file["sample"]),
        image_root=str(file.get("image_root", "")),
        kind=Kind(kind) if kind else None,
        task=Task(task) if task else None,
    )


def _distinct_names(models: Sequence[ModelAnswers]) -> list[str]:
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name}; evaluate one of them under another name")
    return names


def _notes(models: Sequence[ModelAnswers]) -> list[str]:
    """Describes what makes models less comparable: other settings, and images that they were trained on."""
    notes = [note for first, second in pairwise(models) for note in _compare_settings(first, second)]
    return notes + [
        f"{suite.suite}: {model.name} was trained on the images of {plural(suite.leaks, 'row')}"
        for model in models
        for suite in model.suites
        if isinstance(suite.leaks, int) and suite.leaks
    ]


def _failed_rows(models: Sequence[ModelAnswers]) -> dict[tuple[str, ImageCondition, str], str]:
    """Returns the rows that some server could not take, and the last such model."""
    return {
        (suite.suite, suite.images, answer.row): model.name
        for model in models
        for suite in model.suites
        if not suite.benchmark
        for answer in suite.answers
        if answer.failure
    }


def compare_models(models: Sequence[ModelAnswers], *, seed: int = 0) -> ModelComparison:
    """Computes the means of each model, and the difference of each model and the one before it.

    Args:
        models: the models, such as the base and what was made of it step by step.
        seed: seed of the resampling.

    Raises:
        ValueError: two models have the same name, or answered other rows of a suite or column.
    """
    names = _distinct_names(models)
    notes = _notes(models)
    failed = _failed_rows(models)
    notes += [
        f"{plural(count, 'row is', 'rows are')} left out: the server of {name} could not take them"
        for name, count in Counter(failed.values()).items()
    ]
    rows = {model.name: _rows_by_column(model, failed) for model in models}
    columns = sorted({column for by_column in rows.values() for column in by_column}, key=_column_order)
    notes += [
        f"{column.label}: not answered by {name}" for column in columns for name in names if column not in rows[name]
    ]
    metrics = {
        column: _metrics_of([rows[name][column] for name in names if column in rows[name]]) for column in columns
    }
    differences = [
        _difference(first, second, metric, column, rows, seed)
        for metric in METRICS
        for first, second in pairwise(names)
        for column in columns
        if column in rows[first] and column in rows[second] and metric in metrics[column]
    ]
    estimates = [
        EstimateCell(name, metric, column, estimate)
        for name in names
        for column in columns
        if column in rows[name]
        for metric, estimate in _estimates(list(rows[name][column].values()), metrics[column], seed)
    ]
    units = _units_by_column(models, notes)
    benchmarks = dict.fromkeys(column for by_column in units.values() for column in by_column)
    estimates += [
        EstimateCell(name, BENCHMARK, column, estimate)
        for name in names
        for column, own in units[name].items()
        if (estimate := estimate_column(list(own.values()), column, seed))
    ]
    differences += [
        _benchmark_difference(first, second, column, units, seed)
        for first, second in pairwise(names)
        for column in benchmarks
        if column.part in ("", MODEL) and units[first].get(column) and units[second].get(column)
    ]
    return ModelComparison(
        models=tuple(names),
        columns=(*columns, *benchmarks),
        estimates=tuple(estimates),
        differences=tuple(_judge_all(differences)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _compare_settings(first: ModelAnswers, second: ModelAnswers) -> Iterator[str]:
    """Yields a note for each setting that differs; refuses other files."""
    others = {(suite.suite, suite.images): suite for suite in second.suites}
    for suite in first.suites:
        other = others.get((suite.suite, suite.images))
        if other is None:
            continue
        if suite.files != other.files:
            raise ValueError(
                f"the files of {suite.suite} changed between {first.name} and {second.name}; evaluate one of them again"
            )
        for name in suite.settings:
            if suite.settings[name] != other.settings.get(name):
                yield f"{suite.suite}: {first.name} and {second.name} were evaluated with other {name}"


def _rows_by_column(
    model: ModelAnswers, failed: Collection[tuple[str, ImageCondition, str]]
) -> dict[TableColumn, _Rows]:
    """Returns a model's answers to the rows that no model's server has failed to take."""
    columns: dict[TableColumn, _Rows] = {}
    for suite in model.suites:
        for answer in suite.answers if not suite.benchmark else ():
            if (suite.suite, suite.images, answer.row) in failed:
                continue
            column = TableColumn(suite.domain, answer.task, answer.kind, suite.images)
            columns.setdefault(column, {})[suite.suite, answer.row] = answer
    return columns


def _units_by_column(
    models: Sequence[ModelAnswers], notes: list[str]
) -> dict[str, dict[BenchmarkColumn, dict[str, ScoredUnit]]]:
    """Returns each model's units of benchmarks that failed for none of them, and notes what is left out or unread."""
    suites = [(model.name, suite, suite.benchmark) for model in models for suite in model.suites if suite.benchmark]
    failed: dict[tuple[str, ImageCondition], set[str]] = {}
    for _, suite, scores in suites:
        failed.setdefault((suite.suite, suite.images), set()).update(failed_units(scores))
    notes += [
        f"{suite}: {plural(len(keys), 'item')} not answered, or not judged, for some model left out"
        for (suite, _), keys in failed.items()
        if keys
    ]
    units: dict[str, dict[BenchmarkColumn, dict[str, ScoredUnit]]] = {model.name: {} for model in models}
    for model, suite, scores in suites:
        counted = counted_units(scores, failed[suite.suite, suite.images])
        for column in benchmark_columns(scores, suite.suite, suite.images):
            units[model][column] = counted
        if unread := sum(unit.decision is Decision.UNDECIDED for unit in counted.values()):
            count = plural(unread, "undecided answer counts", "undecided answers count")
            notes.append(f"{suite.suite}: {count} as wrong, of {len(counted):,} of {model}")
    return units


def _benchmark_difference(
    first: str,
    second: str,
    column: BenchmarkColumn,
    units: Mapping[str, dict[BenchmarkColumn, dict[str, ScoredUnit]]],
    seed: int,
) -> DifferenceCell:
    before, after = units[first][column], units[second][column]
    if before.keys() != after.keys():
        raise ValueError(f"{column.label}: {first} and {second} answered other items; evaluate one of them again")
    difference = paired_difference(
        [column_score(unit, column.part) for unit in before.values()],
        [column_score(after[key], column.part) for key in before],
        [unit.image for unit in before.values()],
        seed=seed,
    )
    return _difference_cell(first, second, BENCHMARK, column, difference)


def _difference_cell(
    first: str, second: str, metric: str, column: TableColumn | BenchmarkColumn, difference: PairedDifference
) -> DifferenceCell:
    verdict = judge_claim(difference)
    needed = rows_needed(difference) if verdict is ClaimVerdict.UNDECIDED else None
    return DifferenceCell(first, second, metric, column, difference, difference.p_value, verdict, needed)


def _column_order(column: TableColumn) -> tuple[int, ...]:
    """Sorts columns: the rows' own images and open questions, as in the paper, come first."""
    kinds = [Kind.OPEN, *(kind for kind in Kind if kind is not Kind.OPEN)]
    places = [list(ImageCondition).index(column.images), kinds.index(column.kind), list(Task).index(column.task)]
    return (*places, list(SuiteDomain).index(column.domain))


def _metrics_of(models: Sequence[_Rows]) -> list[str]:
    """Returns a column's metrics: graded scores where some are neither 0 nor 1, the official one if all have it."""
    answers = [answer for rows in models for answer in rows.values()]
    graded = any(score not in (0, 1) for answer in answers for score in (*answer.strict_score, *answer.readable_score))
    absent = set() if graded else {"strict_score", "readable_score"}
    if not all(answer.official for answer in answers):
        absent.add("official")
    return [metric for metric in METRICS if metric not in absent]


def _estimates(answers: Sequence[Answer], metrics: Sequence[str], seed: int) -> Iterator[tuple[str, MeanEstimate]]:
    images = [answer.image for answer in answers]
    for metric in metrics:
        scores = METRICS[metric]
        yield metric, estimate_mean([fmean(scores(answer)) for answer in answers], images, seed=seed)
    k = 2
    while k <= min(len(answer.completions) for answer in answers):
        for metric in ("strict", "readable"):
            passes = [pass_at_k(len(answer.completions), sum(METRICS[metric](answer)), k) for answer in answers]
            yield f"{metric}@{k}", estimate_mean(passes, images, seed=seed)
        k *= 2


def _difference(
    first: str, second: str, metric: str, column: TableColumn, rows: Mapping[str, dict[TableColumn, _Rows]], seed: int
) -> DifferenceCell:
    before, after = rows[first][column], rows[second][column]
    if before.keys() != after.keys():
        only_one = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"{column.label}: {plural(len(only_one), 'row is', 'rows are')} answered by {first} or {second} alone,"
            f" such as {only_one[0][1]!r} of {only_one[0][0]}; evaluate both on the same suites"
        )
    scores = METRICS[metric]
    difference = paired_difference(
        [fmean(scores(answer)) for answer in before.values()],
        [fmean(scores(after[key])) for key in before],
        [answer.image for answer in before.values()],
        seed=seed,
    )
    return _difference_cell(first, second, metric, column, difference)


def _judge_all(differences: Sequence[DifferenceCell]) -> Iterator[DifferenceCell]:
    """Adjusts the p-values of each metric, whose differences are one table."""
    for metric in dict.fromkeys(cell.metric for cell in differences):
        table = [cell for cell in differences if cell.metric == metric]
        for cell, p_holm in zip(table, holm([cell.difference.p_value for cell in table]), strict=True):
            yield cell._replace(p_holm=p_holm)
