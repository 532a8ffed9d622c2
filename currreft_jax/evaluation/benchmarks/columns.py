"""Columns of benchmarks in comparisons of models: the paper's Tables 3 and 4b. Loads no JAX."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from currreft_jax.config import BenchmarkName, ImageCondition
from currreft_jax.evaluation.benchmarks.aggregates import ScoredUnit
from currreft_jax.evaluation.benchmarks.files import PUBLISHED
from currreft_jax.evaluation.benchmarks.items import Decision
from currreft_jax.evaluation.benchmarks.scoring import BenchmarkScores
from currreft_jax.evaluation.statistics import MeanEstimate, estimate_mean, estimate_ratio

# In the paper's order; its MATH column is of another, unnamed set.
LABELS = {
    BenchmarkName.MATHVISTA: "MathVista",
    BenchmarkName.MATH: "MATH-500",
    BenchmarkName.AI2D: "AI2D",
    BenchmarkName.MMVET: "MMVet",
    BenchmarkName.MMBENCH: "MMBench",
    BenchmarkName.OCRBENCH: "OCRBench",
    BenchmarkName.LLAVABENCH: "LLaVABench",
}
RELATIVE, MODEL, REFERENCE = "Relative", "VLM", "GPT4"  # the paper's columns of LLaVABench
PAPER_LABELS = (
    *(label for name, label in LABELS.items() if name is not BenchmarkName.LLAVABENCH),
    *(f"{LABELS[BenchmarkName.LLAVABENCH]} {part}" for part in (RELATIVE, MODEL, REFERENCE)),
)


class BenchmarkColumn(NamedTuple):
    """The answers to a benchmark, with the same images shown.

    Attributes:
        benchmark: the paper's name of the benchmark; another one for a file that is not the default one.
        part: what of LLaVABench is measured; empty for other benchmarks.
        images: that were shown.
    """

    benchmark: str
    part: str
    images: ImageCondition

    @property
    def label(self) -> str:
        """Its heading."""
        images = "" if self.images is ImageCondition.ORIGINAL else f", {self.images.value} images"
        return f"{self.benchmark} {self.part}".rstrip() + images


def benchmark_columns(scores: BenchmarkScores, suite: str, images: ImageCondition) -> list[BenchmarkColumn]:
    """Returns the columns of a benchmark.

    Args:
        scores: of a model.
        suite: name of the suite.
        images: that were shown.
    """
    name = BenchmarkName(scores.benchmark)
    default = next(iter(PUBLISHED[name]), "")
    label = LABELS[name] if scores.published == default else scores.published or f"{LABELS[name]} of {suite}"
    parts = (RELATIVE, MODEL, REFERENCE) if name is BenchmarkName.LLAVABENCH else ("",)
    return [BenchmarkColumn(label, part, images) for part in parts]


def counted_units(scores: BenchmarkScores, failed: Collection[str]) -> dict[str, ScoredUnit]:
    """Returns the units by their keys, without those that failed for any model."""
    return {unit.key: unit for unit in scores.units if unit.key not in failed}


def failed_units(scores: BenchmarkScores) -> Iterator[str]:
    """Yields the keys of the units that were not answered, or whose judge's replies are unreadable."""
    return (unit.key for unit in scores.units if unit.decision is Decision.FAILED)


def column_score(unit: ScoredUnit, part: str) -> float:
    """Returns what a unit counts in a column: undecided answers have no score."""
    return (unit.reference or 0.0) if part == REFERENCE else unit.counted_score


def estimate_column(units: list[ScoredUnit], column: BenchmarkColumn, seed: int) -> MeanEstimate | None:
    """Estimates the score of a column; None without units, or for references that were not scored."""
    images = [unit.image for unit in units]
    if not units or (column.part in (RELATIVE, REFERENCE) and not all(unit.reference for unit in units)):
        return None
    scores = [column_score(unit, column.part) for unit in units]
    if column.part == RELATIVE:
        return estimate_ratio(scores, [unit.reference or 0.0 for unit in units], images, seed=seed)
    return estimate_mean(scores, images, seed=seed)
