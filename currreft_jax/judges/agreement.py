"""Agreement of two judges, and of scores with lengths. Loads no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from currreft_jax.judges.judgement import Judgement

BIN_POINTS = 10  # of the scores that weighted kappa compares: [0, 10), [10, 20), ..., [90, 100]
RESAMPLES = 9_999
_BINS = 100 // BIN_POINTS
_MIN_ANSWERS = 10  # a bootstrap of fewer covers too little
_MIN_CORRELATED = 3
_BATCH_SIZE = 1 << 20  # numbers that one batch of resamples may hold


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer that two judges score differently.

    Attributes:
        key: of the answer.
        first: overall score by the first judge.
        second: overall score by the second judge.
    """

    key: str
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two judges on the answers that both score.

    Attributes:
        kappa: quadratic weighted kappa of the overall scores; None where it is undefined.
        interval: its 95% interval by the bootstrap over answers; None for fewer than 10, or where it is undefined.
        answers: number of answers that both judges score.
        unjudged: number of answers that one of them, or both, leave unjudged.
        same_side: share of the answers that are above the threshold for both judges or for none; None without answers.
        largest: the largest disagreements, the largest first.
    """

    kappa: float | None
    interval: tuple[float, float] | None
    answers: int
    unjudged: int
    same_side: float | None
    largest: list[Disagreement]


def compare_judges(
    first: Sequence[Judgement], second: Sequence[Judgement], *, threshold: float, shown: int = 20, seed: int = 0
) -> Agreement:
    """Compares two judges on the answers that both were given, told by their keys.

    Args:
        first: judgements of the first judge.
        second: judgements of the second judge.
        threshold: overall score above which an answer is kept.
        shown: number of disagreements to list at most.
        seed: seed of the resampling.
    """
    others = {judgement.key: judgement.overall for judgement in second}
    shared = [(judgement, others[judgement.key]) for judgement in first if judgement.key in others]
    pairs = [
        Disagreement(judgement.key, judgement.overall, other)
        for judgement, other in shared
        if judgement.overall is not None and other is not None
    ]
    one, two = np.array([pair.first for pair in pairs]), np.array([pair.second for pair in pairs])
    different = [pair for pair in pairs if pair.first != pair.second]
    return Agreement(
        kappa=weighted_kappa(one, two),
        interval=kappa_interval(one, two, seed),
        answers=len(pairs),
        unjudged=len(shared) - len(pairs),
        same_side=float(((one > threshold) == (two > threshold)).mean()) if pairs else None,
        largest=sorted(different, key=lambda pair: (-abs(pair.first - pair.second), pair.key))[:shown],
    )


def weighted_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Computes the quadratic weighted kappa of scores `[n]` from 0 to 100, in bins of 10 points.

    1 - mean (i - j)² / E (i - j)² for the bins i and j of an answer (Cohen 1968), where E is the mean over all pairs of
    one answer's i and another's j: var i + var j + (mean i - mean j)². None where E is 0: there are no answers, or all
    scores are in one bin.
    """
    if not len(np.unique(_bins(np.concatenate([first, second])))) > 1:
        return None
    return float(_kappa(_bins(first), _bins(second)))


def kappa_interval(first: np.ndarray, second: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Computes the 95% interval of `weighted_kappa` by the percentile bootstrap over answers.

    Returns:
        (low, high); None for fewer than 10 answers, or if kappa is undefined. A resample with all scores in one bin
        counts as 1.
    """
    if len(first) < _MIN_ANSWERS or weighted_kappa(first, second) is None:
        return None
    result = scipy.stats.bootstrap(
        (_bins(first), _bins(second)),
        _kappa,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_SIZE // len(first)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    return low, high


def length_correlation(scores: Sequence[float], lengths: Sequence[int]) -> float | None:
    """Computes Spearman's rank correlation of scores and answers' lengths: a judge should not pay for words.

    Returns:
        -1 to 1; None for fewer than three answers, or if all scores or all lengths are equal.
    """
    if len(scores) < _MIN_CORRELATED or len(set(scores)) == 1 or len(set(lengths)) == 1:
        return None
    return float(scipy.stats.spearmanr(scores, lengths).statistic)


def _bins(scores: np.ndarray) -> np.ndarray:
    return np.minimum(scores // BIN_POINTS, _BINS - 1)


def _kappa(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    observed = np.square(first - second).mean(axis)
    expected = first.var(axis) + second.var(axis) + np.square(first.mean(axis) - second.mean(axis))
    return 1 - np.divide(observed, expected, out=np.zeros_like(observed), where=expected > 0)
