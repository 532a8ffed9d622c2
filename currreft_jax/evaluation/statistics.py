"""Statistics of evaluations: intervals, paired comparisons of two models, and verdicts on claims. Loads no JAX.

All intervals have 95% confidence. Rows that share an image are one cluster: where there are such rows, intervals and
tests resample clusters, not rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import scipy

CONFIDENCE = 0.95
Z = 1.96  # normal quantile of a two-sided 95% interval
POWER_Z = 0.84  # normal quantile of 80% power
RESAMPLES = 9_999
MIN_CLUSTERS = 10  # a bootstrap of fewer covers too little
_BATCH_SIZE = 1 << 22  # numbers that one batch of resamples may hold


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """The mean of rows' scores.

    Attributes:
        mean: the mean over rows.
        interval: its interval; None where `estimate_mean` gives none.
        rows: number of rows.
        clusters: number of groups of rows that share an image.
    """

    mean: float
    interval: Interval | None
    rows: int
    clusters: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of two models on the same rows, second minus first.

    Attributes:
        difference: the difference of the means over rows.
        interval: its interval; None where `paired_difference` gives none.
        p_value: two-sided, of no difference.
        variance: variance per row of the summed differences, under no difference; for right and wrong answers
            without shared images the share of discordant rows.
        rows: number of rows.
        clusters: number of groups of rows that share an image.
    """

    difference: float
    interval: Interval | None
    p_value: float
    variance: float
    rows: int
    clusters: int


class ClaimVerdict(StrEnum):
    """Verdict on the claim that one model is better than another."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    UNDECIDED = "undecided"


def wilson_interval(successes: int, trials: int) -> Interval:
    """Computes Wilson's interval of a success rate.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    return Interval(*scipy.stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson"))


def estimate_mean(scores: Sequence[float] | np.ndarray, images: Sequence[str] = (), *, seed: int = 0) -> MeanEstimate:
    """Estimates the mean of rows' scores.

    Right and wrong answers without shared images have Wilson's interval, other scores the BCa bootstrap's. Scores that
    are all 0 or all 1 have Wilson's interval of as many rows as there are clusters. There is no interval for fewer than
    `MIN_CLUSTERS` clusters, or for graded scores that are all equal.

    Args:
        scores: `[rows]`, in [0, 1].
        images: key of each row's images, "" for a row without images; by default no row has any.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no scores, a score is outside [0, 1], or there is another number of images.
    """
    scores = _checked(scores)
    clusters = _cluster_index(images, len(scores))
    num_clusters = int(clusters.max()) + 1
    constant = np.ptp(scores) == 0
    if _is_binary(scores) and (constant or num_clusters == len(scores)):
        interval = wilson_interval(round(scores.mean() * num_clusters), num_clusters)
    else:
        interval = _bootstrap_interval(scores, clusters, seed)
    return MeanEstimate(float(scores.mean()), interval, len(scores), num_clusters)


def estimate_ratio(
    scores: Sequence[float] | np.ndarray,
    references: Sequence[float] | np.ndarray,
    images: Sequence[str] = (),
    *,
    seed: int = 0,
) -> MeanEstimate:
    """Estimates the mean of scores over the mean of references, with the BCa bootstrap's interval.

    Args:
        scores: `[rows]`, in [0, 1].
        references: `[rows]`, of the same rows, in (0, 1].
        images: as in `estimate_mean`.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no scores, one is out of range, or there is another number of references or images.
    """
    scores, references = _checked(scores), _checked(references)
    if len(scores) != len(references) or not references.all():
        raise ValueError("each score needs a reference above 0")
    clusters = _cluster_index(images, len(scores))
    interval = _bootstrap_interval(scores, clusters, seed, references)
    return MeanEstimate(scores.sum() / references.sum(), interval, len(scores), int(clusters.max()) + 1)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    images: Sequence[str] = (),
    *,
    seed: int = 0,
) -> PairedDifference:
    """Compares two models on the same rows.

    Right and wrong answers without shared images have Newcombe's paired interval and the exact McNemar test; other
    scores the BCa bootstrap's interval, and the permutation test that swaps the models in whole clusters. The bootstrap
    has no interval for fewer than `MIN_CLUSTERS` clusters, or for differences that are all equal.

    Args:
        first: scores of the first model, `[rows]`, in [0, 1].
        second: scores of the second model on the same rows, in the same order.
        images: key of each row's images, "" for a row without images; by default no row has any.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no scores, a score is outside [0, 1], or the numbers of scores or images differ.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores; a paired comparison needs the same rows")
    clusters = _cluster_index(images, len(first))
    sums = np.bincount(clusters, second - first)
    if len(sums) == len(first) and _is_binary(first) and _is_binary(second):
        table = np.histogram2d(first, second, bins=2, range=[[0, 1], [0, 1]])[0].astype(int)
        interval: Interval | None = newcombe_interval(*(int(count) for count in table.ravel()))
        p_value = mcnemar_p(int(table[1, 0]), int(table[0, 1]))
    else:
        interval = _bootstrap_interval(second - first, clusters, seed)
        p_value = _permutation_p(np.bincount(clusters, first), np.bincount(clusters, second), seed)
    return PairedDifference(
        difference=float((second - first).mean()),
        interval=interval,
        p_value=p_value,
        variance=float(np.square(sums).sum() / len(first)),
        rows=len(first),
        clusters=len(sums),
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Computes the exact McNemar test of the rows that only one of two models has right; 1 without such rows."""
    discordant = only_first + only_second
    return float(scipy.stats.binomtest(only_second, discordant).pvalue) if discordant else 1.0


def newcombe_interval(both_wrong: int, only_second: int, only_first: int, both_right: int) -> Interval:
    """Computes Newcombe's interval of a paired difference of success rates, second minus first.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998): from the Wilson intervals of both rates and the rows' correlation.
    """
    rows = both_wrong + only_second + only_first + both_right
    first, second = only_first + both_right, only_second + both_right
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, rows), wilson_interval(second, rows)
    rate_1, rate_2 = first / rows, second / rows
    product = both_right * both_wrong - only_first * only_second
    if product > 0:
        product = max(product - rows / 2, 0)  # continuity correction
    margins = first * (rows - first) * second * (rows - second)
    correlation = product / math.sqrt(margins) if margins else 0.0

    def distance(of_second: float, of_first: float) -> float:
        return math.sqrt(of_second**2 - 2 * correlation * of_second * of_first + of_first**2)

    below, above = distance(rate_2 - low_2, high_1 - rate_1), distance(high_2 - rate_2, rate_1 - low_1)
    return Interval(rate_2 - rate_1 - below, rate_2 - rate_1 + above)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of the claims of one table by Holm's step-down method."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1)
    return adjusted.tolist()


def judge_claim(found: PairedDifference, *, higher: bool = True, size: float | None = None) -> ClaimVerdict:
    """Judges the claim that the second model is better than the first.

    It holds if the interval excludes 0 on the claimed side. It does not hold if the interval excludes 0 on the other
    side, or excludes the claimed size from below. Otherwise it is undecided.

    Args:
        found: the difference, second minus first.
        higher: false for the claim that the second model is worse.
        size: the claimed distance of the two; None where only the side is claimed.
    """
    if found.interval is None:
        return ClaimVerdict.UNDECIDED
    low, high = found.interval if higher else (-found.interval.high, -found.interval.low)
    if low > 0:
        return ClaimVerdict.HOLDS
    if high < 0 or (size is not None and high < size):
        return ClaimVerdict.DOES_NOT_HOLD
    return ClaimVerdict.UNDECIDED


def rows_needed(found: PairedDifference, size: float | None = None) -> int | None:
    """Computes how many rows show a difference with 80% power: (1.96 + 0.84)² · variance / size².

    Args:
        found: the difference so far, with the variance of its rows.
        size: the difference to show; None for the one found.

    Returns:
        The number of rows; None for a difference of 0, which no number shows.
    """
    size = found.difference if size is None else size
    return math.ceil((Z + POWER_Z) ** 2 * found.variance / size**2) if size else None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Estimates the chance that one of k samples of a row is right, 1 − C(n−c, k) / C(n, k), without bias (2107.03374).

    `estimate_mean` of the rows' estimates is pass@k, with its interval by rows.

    Args:
        samples: sampled completions of the row, n.
        right: the right ones among them, c.
        k: number of completions of which one has to be right.

    Raises:
        ValueError: there are fewer than k samples, or more right ones than samples.
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise ValueError(f"pass@{k} of {right} right among {samples} samples; it takes 1 to {samples} for k")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def _checked(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    if not len(scores):
        raise ValueError("there are no scores; evaluate some rows first")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores are numbers from 0 to 1")
    return scores


def _is_binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _cluster_index(images: Sequence[str], rows: int) -> np.ndarray:
    """Numbers the clusters from 0 and returns each row's; a row without images is a cluster."""
    if not images:
        return np.arange(rows)
    if len(images) != rows:
        raise ValueError(f"{len(images)} images for {rows} scores; give one key for each row")
    keys = [(image, None if image else row) for row, image in enumerate(images)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray, seed: int, references: np.ndarray | None = None
) -> Interval | None:
    """Computes the BCa interval of the mean over rows, or of its ratio to that of references, resampling clusters."""
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters, references)
    if len(sums) < MIN_CLUSTERS or np.ptp(sums - values.sum() / sizes.sum() * sizes) < 1e-12:
        return None
    if (sizes == 1).all():
        data, statistic = (sums,), np.mean
    else:
        data, statistic = (sums, sizes), _ratio_of_sums
    result = scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_SIZE // len(sums)),
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    return Interval(low, high)


def _ratio_of_sums(sums: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis) / sizes.sum(axis)


def _permutation_p(first: np.ndarray, second: np.ndarray, seed: int) -> float:
    """Computes the p-value of equal sums, swapping the models in each cluster at random; exact for few clusters."""
    if len(first) == 1:
        return 1.0
    result = scipy.stats.permutation_test(
        (first, second),
        lambda x, y, axis: (y - x).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_SIZE // len(first)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
