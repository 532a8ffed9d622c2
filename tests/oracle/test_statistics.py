"""Intervals, McNemar's test, Holm's method and weighted kappa against statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from currreft_jax.evaluation.statistics import holm, mcnemar_p, wilson_interval
from currreft_jax.judges.agreement import weighted_kappa


@pytest.mark.parametrize("rows", [1, 10, 218, 1000])
def test_wilsons_interval_is_statsmodels(rows):
    for right in sorted({0, 1, rows // 3, rows - 1, rows}):
        expected = proportion_confint(right, rows, method="wilson")
        assert wilson_interval(right, rows) == pytest.approx(expected, abs=1e-12)


def test_mcnemars_test_is_statsmodels():
    for only_first, only_second in [(0, 1), (1, 8), (12, 12), (40, 61), (200, 231)]:
        table = [[300, only_first], [only_second, 150]]
        expected = mcnemar(table, exact=True).pvalue
        assert mcnemar_p(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_holms_method_is_statsmodels():
    for p_values in np.random.default_rng(0).beta(0.3, 2, (20, 7)):
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


def test_weighted_kappa_is_statsmodels():
    rng = np.random.default_rng(0)
    for spread in (1, 3, 9):
        first = rng.uniform(0, 100, 200)
        second = np.clip(first + 10 * rng.integers(-spread, spread + 1, 200), 0, 99)
        table = np.histogram2d(first, second, bins=10, range=[[0, 100], [0, 100]])[0]
        assert weighted_kappa(first, second) == pytest.approx(cohens_kappa(table, wt="quadratic").kappa, rel=1e-12)
