"""Intervals, paired comparisons and verdicts: against values by hand and published ones, and coverage by simulation."""

from collections import Counter
from functools import cache
from math import comb

import numpy as np
import pytest
from scipy.stats import ttest_rel

from currreft_jax.evaluation import statistics
from currreft_jax.evaluation.statistics import (
    ClaimVerdict,
    Interval,
    PairedDifference,
    estimate_mean,
    holm,
    judge_claim,
    mcnemar_p,
    newcombe_interval,
    paired_difference,
    pass_at_k,
    rows_needed,
    wilson_interval,
)

DRAWS = 10_000


def scores_of(both_wrong: int, only_second: int, only_first: int, both_right: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores of two models with these numbers of rows."""
    pairs = [(0, 0)] * both_wrong + [(0, 1)] * only_second + [(1, 0)] * only_first + [(1, 1)] * both_right
    first, second = np.array(pairs, float).T
    return first, second


def found(low: float, high: float, variance: float = 0.2) -> PairedDifference:
    return PairedDifference((low + high) / 2, Interval(low, high), 0.5, variance, 100, 100)


def covers(interval: Interval | None, truth: float) -> bool:
    assert interval
    return interval.low <= truth <= interval.high


def test_one_rate_has_wilsons_interval():
    # Agresti & Coull's example of 0 and 10 of 10, and R's prop.test(80, 100, correct=FALSE)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(80, 100) == pytest.approx((0.7111708, 0.8666331), abs=1e-7)
    estimate = estimate_mean([1] * 80 + [0] * 20)
    assert (estimate.mean, estimate.interval) == (0.8, wilson_interval(80, 100))
    assert (estimate.rows, estimate.clusters) == (100, 100)


def test_mcnemars_test_is_exact_and_needs_discordant_rows():
    assert mcnemar_p(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_p(4, 4) == 1
    assert mcnemar_p(0, 0) == 1
    assert paired_difference(*scores_of(30, 8, 1, 60)).p_value == mcnemar_p(1, 8)


def test_paired_rates_have_newcombes_interval():
    # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness of 21 children: -0.507 to -0.026
    assert newcombe_interval(12, 1, 7, 1) == pytest.approx((-0.507, -0.026), abs=5e-4)
    # Both rates 1/2 of 100: half the width of Wilson's interval, h, is 0.09617. Correlation (2500 - 50) / 2500 and -1.
    half = 0.09617
    assert newcombe_interval(50, 0, 0, 50) == pytest.approx((-0.2 * half, 0.2 * half), abs=1e-5)
    assert newcombe_interval(0, 50, 50, 0) == pytest.approx((-2 * half, 2 * half), abs=1e-5)
    # All right: the rates' intervals alone
    assert newcombe_interval(0, 0, 0, 10) == pytest.approx((-0.27753, 0.27753), abs=1e-5)


def test_a_paired_difference_is_the_second_minus_the_first():
    difference = paired_difference(*scores_of(30, 12, 2, 56))
    assert difference.difference == pytest.approx(0.1)
    assert difference.interval == newcombe_interval(30, 12, 2, 56)
    assert difference.variance == pytest.approx(0.14)  # the share of discordant rows
    swapped = paired_difference(*reversed(scores_of(30, 12, 2, 56)))
    assert swapped.interval == pytest.approx((-difference.interval.high, -difference.interval.low))


def test_graded_scores_are_compared_by_a_bootstrap_that_the_seed_determines():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 11, 200) / 10
    second = np.clip(first + rng.choice([-0.1, 0, 0.2], 200), 0, 1)
    difference = paired_difference(first, second, seed=1)
    assert difference == paired_difference(first, second, seed=1)
    assert difference != paired_difference(first, second, seed=2)
    standard_error = (second - first).std(ddof=1) / np.sqrt(200)
    expected = [difference.difference + sign * 1.96 * standard_error for sign in (-1, 1)]
    assert difference.interval == pytest.approx(expected, abs=0.15 * standard_error)
    assert difference.p_value == pytest.approx(ttest_rel(first, second).pvalue, abs=0.002)
    assert difference.variance == pytest.approx(((second - first) ** 2).mean())


def test_the_interval_of_skewed_scores_is_corrected_for_bias_and_skew():
    scores = np.random.default_rng(0).beta(0.1, 2, 60)  # the percentiles alone reach 1.4 times as far up as down
    estimate = estimate_mean(scores)
    assert estimate.interval.high - estimate.mean > 2 * (estimate.mean - estimate.interval.low)


def test_the_permutation_test_is_exact_for_few_rows():
    # 2 of the 2^4 ways to swap the models give sums as far apart: all of them, and none.
    assert paired_difference([0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.5]).p_value == pytest.approx(2 / 2**4)
    # Rows of one image are swapped together: two rows of each of these images are four clusters, not eight rows.
    first, second, images = np.repeat([0.1, 0.2, 0.3, 0.4], 2), np.repeat([0.2, 0.4, 0.6, 0.5], 2), list("aabbccdd")
    assert paired_difference(first, second, images).p_value == pytest.approx(2 / 2**4)
    assert paired_difference(first, second).p_value == pytest.approx(2 / 2**8)


def test_rows_that_share_an_image_count_as_one_cluster():
    # 40 images with 5 equal rows each: the interval is that of 40 rows, more than twice as wide as that of 200.
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 40)) < [[0.3], [0.6]]).astype(float)
    images = np.repeat([f"image {i}" for i in range(40)], 5).tolist()
    clustered = paired_difference(first.repeat(5), second.repeat(5), images)
    naive = paired_difference(first.repeat(5), second.repeat(5))
    assert (clustered.rows, clustered.clusters, naive.clusters) == (200, 40, 200)
    width = lambda difference: difference.interval.high - difference.interval.low  # noqa: E731
    assert width(clustered) > 2 * width(naive)
    assert clustered.variance == pytest.approx(5 * naive.variance)
    assert clustered.p_value > 10 * naive.p_value
    alone, shared = estimate_mean(first.repeat(5)), estimate_mean(first.repeat(5), images)
    assert (alone.mean, alone.clusters, shared.clusters) == (shared.mean, 200, 40)
    assert width(shared) > 2 * width(alone)


def test_rows_without_images_share_none():
    assert estimate_mean([0, 1, 1, 0], ["", "", "a", "a"]).clusters == 3


def test_the_mean_weighs_rows_not_images():
    images = ["a"] * 8 + [str(i) for i in range(12)]
    estimate = estimate_mean([1.0] * 8 + [0.5, 0.0] * 6, images)
    assert estimate.mean == pytest.approx(11 / 20) and covers(estimate.interval, 11 / 20)


def test_there_is_no_interval_where_the_rows_tell_none():
    assert estimate_mean([0.5] * 100).interval is None
    assert estimate_mean([0.1, 0.5, 0.9]).interval is None
    same = paired_difference([0.5] * 100, [0.5] * 100)
    assert (same.interval, same.p_value, judge_claim(same)) == (None, 1.0, ClaimVerdict.UNDECIDED)
    assert paired_difference([0.3], [0.9]).p_value == 1.0
    # Equal answers to 100 questions about 10 images say no more than 10.
    images = [str(i // 10) for i in range(100)]
    assert estimate_mean([0] * 100, images).interval == wilson_interval(0, 10)


def test_holm_multiplies_by_the_claims_that_are_left():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("interval", "size", "verdict"),
    [
        ((0.01, 0.05), None, ClaimVerdict.HOLDS),
        ((-0.05, -0.01), None, ClaimVerdict.DOES_NOT_HOLD),
        ((-0.01, 0.05), None, ClaimVerdict.UNDECIDED),
        ((0.0, 0.05), None, ClaimVerdict.UNDECIDED),
        ((-0.01, 0.03), 0.04, ClaimVerdict.DOES_NOT_HOLD),
        ((-0.01, 0.05), 0.04, ClaimVerdict.UNDECIDED),
        ((0.01, 0.03), 0.04, ClaimVerdict.HOLDS),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(interval, size, verdict):
    assert judge_claim(found(*interval), size=size) == verdict
    low, high = interval
    assert judge_claim(found(-high, -low), higher=False, size=size) == verdict


def test_rows_needed_follow_from_the_discordant_share():
    # A fifth of the rows is discordant: 4 points need 980 rows, twice the difference a quarter of them.
    assert rows_needed(found(0.03, 0.05)) == 980
    assert rows_needed(found(0.03, 0.05), 0.08) == 245
    assert rows_needed(found(-0.05, -0.03)) == 980
    assert rows_needed(found(-0.01, 0.01)) is None


def test_pass_at_k_is_unbiased():
    assert [pass_at_k(4, right, 1) for right in (0, 1, 2, 4)] == pytest.approx([0, 1 / 4, 2 / 4, 1])
    assert [pass_at_k(4, right, 2) for right in (0, 1, 2, 4)] == pytest.approx([0, 3 / 6, 5 / 6, 1])
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)
    # The mean over all draws of n completions is the pass rate of k fresh ones, 1 - 0.7^2.
    chances = np.array([comb(5, c) * 0.3**c * 0.7 ** (5 - c) for c in range(6)])
    assert chances @ [pass_at_k(5, right, 2) for right in range(6)] == pytest.approx(1 - 0.7**2)
    estimate = estimate_mean([pass_at_k(4, right, 2) for right in (0, 1, 2, 4)] * 10)
    assert covers(estimate.interval, estimate.mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_mean([]), "no scores"),
        (lambda: estimate_mean([0.5, 1.5]), "from 0 to 1"),
        (lambda: estimate_mean([float("nan")]), "from 0 to 1"),
        (lambda: estimate_mean([1, 0], ["a"]), "1 images for 2 scores"),
        (lambda: paired_difference([1], [1, 0]), "the same rows"),
        (lambda: pass_at_k(3, 1, 4), "it takes 1 to 3 for k"),
        (lambda: pass_at_k(3, 4, 1), "4 right among 3 samples"),
        (lambda: pass_at_k(3, 1, 0), "it takes 1 to 3 for k"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("rate", "rows"), [(0.9, 200), (0.5, 1000)])
def test_wilsons_interval_covers_what_it_says(rate, rows):
    counts = Counter(np.random.default_rng(0).binomial(rows, rate, DRAWS).tolist())
    covered = sum(times for right, times in counts.items() if covers(wilson_interval(right, rows), rate))
    assert 0.935 <= covered / DRAWS <= 0.965


def test_newcombes_interval_covers_what_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "wilson_interval", cache(wilson_interval))
    shares = [0.3, 0.18, 0.08, 0.44]
    tables = Counter(map(tuple, np.random.default_rng(0).multinomial(100, shares, DRAWS).tolist()))
    covered = sum(times for table, times in tables.items() if covers(newcombe_interval(*table), 0.1))
    assert 0.935 <= covered / DRAWS <= 0.965


@pytest.mark.slow
def test_the_bootstraps_interval_covers_what_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    scores = np.random.default_rng(0).binomial(10, 0.6, (DRAWS, 60)) / 10
    covered = sum(covers(estimate_mean(row, seed=draw).interval, 0.6) for draw, row in enumerate(scores))
    assert 0.935 <= covered / DRAWS <= 0.965


@pytest.mark.slow
def test_the_interval_of_shared_images_covers_what_it_says_and_that_of_rows_does_not(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    draws, images, per_image = 2000, 80, 4
    rng = np.random.default_rng(0)
    rates = rng.beta(1, 1, (draws, images)).repeat(per_image, axis=1)
    rows = (rng.random(rates.shape) < rates).astype(float)
    keys = [str(i) for i in np.arange(images).repeat(per_image)]
    clustered = sum(covers(estimate_mean(row, keys, seed=draw).interval, 0.5) for draw, row in enumerate(rows))
    naive = sum(covers(estimate_mean(row).interval, 0.5) for row in rows)
    assert 0.935 <= clustered / draws <= 0.965
    assert naive / draws < 0.9
