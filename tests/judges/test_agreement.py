"""Agreement of two judges: weighted kappa by hand, its interval, the disagreements, scores and lengths."""

import numpy as np
import pytest

from currreft_jax.judges import Judgement, Unjudged, compare_judges, length_correlation
from currreft_jax.judges.agreement import Disagreement, kappa_interval, weighted_kappa


def judgement(key, overall):
    return Judgement(key, None, overall, unjudged=Unjudged.FAILED if overall is None else None)


def scores(*bins):
    return np.array([10 * number + 3.0 for number in bins])


# Tables of counts, worked by hand: Σ (i - j)² of the n pairs, over n times its expectation, the mean of all n² pairs.
KAPPAS = [
    (scores(0, 9), scores(0, 9), 1.0),
    (scores(0, 9), scores(9, 0), -1.0),  # 81 observed; (0 + 81 + 81 + 0) / 4 = 40.5 expected
    (scores(8, 9, 8, 9), scores(8, 8, 9, 9), 0.0),  # 1/2 of 1/2
    (scores(1, 2, 3, 4), scores(1, 2, 3, 5), 1 - (1 / 4) / (5 / 4 + 35 / 16 + 1 / 16)),  # variances, squared means
    (scores(5, 5, 5), scores(6, 6, 6), 0.0),  # one point apart always, as expected
    (np.array([85.0, 89.9, 90.0]), np.array([80.0, 85.0, 100.0]), 1.0),  # the same bins; 100 is in the last
    (scores(5, 5), scores(5, 5), None),
    (scores(), scores(), None),
]


@pytest.mark.parametrize(("first", "second", "kappa"), KAPPAS)
def test_weighted_kappa_by_hand(first, second, kappa):
    assert weighted_kappa(first, second) == (kappa if kappa is None else pytest.approx(kappa))


def test_the_interval_holds_kappa_and_shrinks_with_the_sample():
    rng = np.random.default_rng(1)
    widths = []
    for size in (40, 400):
        first = rng.integers(0, 10, size)
        second = np.clip(first + rng.integers(-3, 4, size), 0, 9)
        one, two = scores(*first), scores(*second)
        kappa, interval = weighted_kappa(one, two), kappa_interval(one, two)
        assert interval is not None and kappa is not None and interval[0] < kappa < interval[1] < 1
        widths.append(interval[1] - interval[0])
    assert 2 < widths[0] / widths[1] < 5  # about the root of ten
    one, two = scores(*range(10)), scores(*range(9), 8)
    assert kappa_interval(one, two) == kappa_interval(one, two) != kappa_interval(one, two, seed=1)
    assert kappa_interval(scores(*range(9)), scores(*range(9))) is None
    assert kappa_interval(scores(*[5] * 20), scores(*[5] * 20)) is None
    rare = scores(*[9] * 19, 0), scores(*[9] * 18, 8, 0)  # in some resamples all answers are in one bin
    interval = kappa_interval(*rare)
    assert interval is not None and interval[1] == 1


def test_judges_are_compared_on_what_both_score():
    first = [judgement(key, overall) for key, overall in [("a", 90), ("b", 80), ("c", 10), ("d", 86), ("e", None)]]
    second = [judgement(key, overall) for key, overall in [("e", 50), ("d", 85), ("c", 95), ("b", 80), ("z", 1)]]
    found = compare_judges(first, second, threshold=85)
    assert (found.answers, found.unjudged) == (3, 1)
    assert found.largest == [Disagreement("c", 10, 95), Disagreement("d", 86, 85)]
    assert found.same_side == pytest.approx(1 / 3)
    assert found.kappa == weighted_kappa(np.array([80.0, 10, 86]), np.array([80.0, 95, 85]))
    assert found.interval is None
    assert compare_judges(first, second, threshold=85, shown=1).largest == [Disagreement("c", 10, 95)]


def test_nothing_in_common_is_no_agreement():
    found = compare_judges([judgement("a", 90)], [judgement("b", 90)], threshold=85)
    assert (found.kappa, found.same_side, found.answers, found.largest) == (None, None, 0, [])


def test_scores_and_lengths_are_correlated_by_rank():
    assert length_correlation([10, 20, 90], [1, 2, 3000]) == 1
    assert length_correlation([10, 20, 90], [3, 2, 1]) == -1
    assert length_correlation([50, 50, 50], [1, 2, 3]) is None
    assert length_correlation([50, 60, 70], [2, 2, 2]) is None
    assert length_correlation([50, 60], [1, 2]) is None
