"""The table of an evaluation: accuracies of each model on each suite, kind and task. Loads no JAX."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from currreft_jax.config import ImageCondition, SuiteDomain
from currreft_jax.config.wording import most_frequent
from currreft_jax.evaluation.answers import Answer, read_answers
from currreft_jax.evaluation.benchmarks.scoring import read_verdicts, verdicts_path
from currreft_jax.evaluation.statistics import pass_at_k

_REASONS = "not strict because"  # heading of the most frequent reasons


@dataclass(frozen=True, slots=True)
class AnswersFile:
    """An answers file and what it holds.

    Attributes:
        path: the file.
        model: name of the model.
        suite: name of the suite.
        domain: of the suite.
        images: images that were shown.
        is_benchmark: whether verdicts and scores are in a verdicts file beside it.
    """

    path: Path
    model: str
    suite: str
    domain: SuiteDomain
    images: ImageCondition
    is_benchmark: bool = False


@dataclass(slots=True)
class Tally:
    """Sums over rows of their means over completions.

    Attributes:
        rows: number of rows that were answered.
        failed: number of rows that a server could not take.
        sums: by the column's name.
        reasons: completions by the reason for which the strict reading is not right.
    """

    rows: int = 0
    failed: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        """Adds a row."""
        if answer.failure:
            self.failed += 1
            return
        samples = len(answer.completions)
        self.rows += 1
        self.reasons.update(filter(None, answer.reasons))
        self.sums["strict"] += sum(answer.strict) / samples
        self.sums["readable"] += sum(answer.readable) / samples
        self.sums["score"] += sum(answer.readable_score) / samples
        self.sums["cut off"] += 1 - sum(answer.finished) / samples
        if answer.official:
            self.sums["official"] += sum(answer.official) / samples
        for k in _powers_of_two(samples):
            self.sums[f"strict@{k}"] += pass_at_k(samples, sum(answer.strict), k)
            self.sums[f"readable@{k}"] += pass_at_k(samples, sum(answer.readable), k)

    def mean(self, column: str) -> float | None:
        """Returns the mean of a column; None if no row has it."""
        return self.sums[column] / self.rows if column in self.sums else None


def summary_table(files: Sequence[AnswersFile]) -> str:
    """Formats the means of all files, in percent: a table of suites of rows, and one of benchmarks."""
    rows = [file for file in files if not file.is_benchmark]
    benchmarks = [file for file in files if file.is_benchmark]
    tables = [_rows_table(rows)] if rows else []
    return "\n\n".join([*tables, *([_benchmark_table(benchmarks)] if benchmarks else [])])


def _benchmark_table(files: Sequence[AnswersFile]) -> str:
    """Formats the scores of each benchmark, overall and by category, and what they rest on.

    The score is the mean of what did not fail, undecided answers counting as wrong; for LLaVABench it is relative to
    the reference answers' score.
    """
    lines = [["benchmark", "category", "model", "items", "score", "hit", "undecided", "failed", "judged", "reference"]]
    for file in files:
        name = file.suite if file.images is ImageCondition.ORIGINAL else f"{file.suite}, {file.images.value}"
        for score in read_verdicts(verdicts_path(file.path)).scores:
            value = score.score if score.reference is None else score.relative
            shares = (value, score.hit, score.undecided, score.failed, score.judged, score.reference)
            lines.append([name, score.name, file.model, str(score.units), *map(_percent, shares)])
    return "\n".join(_align(lines))


def _rows_table(files: Sequence[AnswersFile]) -> str:
    """Formats the means of suites of rows.

    The drop is the readable accuracy with the rows' own images minus that with blank or shuffled ones.
    """
    tallies: dict[tuple[str, str, str], dict[ImageCondition, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for file in files:
        for answer in read_answers(file.path):
            group = f"{answer.kind.value} {answer.task.value}"
            tallies[file.suite, group, file.model][file.images].add(answer)
    domains = {file.suite: file.domain for file in files}
    shown = {images for by_images in tallies.values() for images in by_images}
    columns = {column for by_images in tallies.values() for tally in by_images.values() for column in tally.sums}
    passes = sorted((column for column in columns if "@" in column), key=lambda name: (name[0], _k(name)))
    has_reasons = any(tally.reasons for by_images in tallies.values() for tally in by_images.values())
    has_failed = any(tally.failed for by_images in tallies.values() for tally in by_images.values())
    names = ["strict", "readable", "score", "cut off", *(["official"] if "official" in columns else []), *passes]
    lines: list[list[str]] = []
    suites, models = ([*dict.fromkeys(names)] for names in zip(*((f.suite, f.model) for f in files), strict=True))
    for suite, group, model in sorted(tallies, key=lambda key: (suites.index(key[0]), key[1], models.index(key[2]))):
        by_images = tallies[suite, group, model]
        own = by_images.get(ImageCondition.ORIGINAL) or next(iter(by_images.values()))
        drops = [
            _drop(by_images, images) for images in (ImageCondition.BLANK, ImageCondition.SHUFFLED) if images in shown
        ]
        cells = [_percent(own.mean(name)) for name in names]
        counts = [str(own.rows), *([str(own.failed)] if has_failed else [])]
        reasons = [most_frequent(own.reasons) or "-"] if has_reasons else []
        lines.append([f"{suite} ({domains[suite].value})", group, model, *counts, *cells, *drops, *reasons])
    heading = ["suite", "kind and task", "model", "rows", *(["failed"] if has_failed else []), *names]
    heading += [
        f"drop, {images.value}" for images in (ImageCondition.BLANK, ImageCondition.SHUFFLED) if images in shown
    ]
    heading += [_REASONS] if has_reasons else []
    return "\n".join(_align([heading, *lines]))


def _drop(by_images: dict[ImageCondition, Tally], images: ImageCondition) -> str:
    own, other = (
        by_images[one].mean("readable") if one in by_images else None for one in (ImageCondition.ORIGINAL, images)
    )
    return "-" if own is None or other is None else f"{100 * (own - other):.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _powers_of_two(samples: int) -> Iterator[int]:
    return (k for k in (2**power for power in range(1, 12)) if k <= samples)


def _k(column: str) -> int:
    return int(column.partition("@")[2])


def _align(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if i < 3 or lines[0][i] == _REASONS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
