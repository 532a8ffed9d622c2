"""Circular groups, shares and categories, by hand."""

import pytest

from currreft_jax.config import ImageCondition
from currreft_jax.evaluation.benchmarks.aggregates import (
    ScoredUnit,
    circular_groups,
    decide_group,
    score_units,
    summarize,
)
from currreft_jax.evaluation.benchmarks.columns import (
    MODEL,
    REFERENCE,
    RELATIVE,
    BenchmarkColumn,
    benchmark_columns,
    estimate_column,
)
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem, BenchmarkVerdict, Decision
from currreft_jax.evaluation.benchmarks.scoring import BenchmarkScores

RIGHT, WRONG = (1.0, Decision.RULE), (0.0, Decision.RULE)
JUDGED, JUDGED_WRONG = (1.0, Decision.JUDGE), (0.0, Decision.JUDGE)
OPEN, FAILED = (None, Decision.UNDECIDED), (None, Decision.FAILED)


def verdict(key, score, decision, reference=None):
    return BenchmarkVerdict(key, score, decision, reference=reference)


def item(key, group="", categories=()):
    return BenchmarkItem(key, f"f:{key}", "q", "q", ("A",), AnswerType.CHOICE, ("a",), categories, group=group or key)


@pytest.mark.parametrize(
    ("rotations", "group"),
    [
        ([RIGHT, RIGHT], RIGHT),
        ([RIGHT, WRONG], WRONG),
        ([RIGHT, OPEN], OPEN),
        ([OPEN, WRONG], WRONG),  # whatever the others are
        ([FAILED, WRONG], WRONG),
        ([FAILED, OPEN], FAILED),
        ([RIGHT, JUDGED], JUDGED),
        ([JUDGED_WRONG, RIGHT], JUDGED_WRONG),
        ([JUDGED_WRONG, WRONG], WRONG),
    ],
)
def test_a_circular_group_is_right_if_every_rotation_is(rotations, group):
    assert decide_group([verdict(str(k), *one) for k, one in enumerate(rotations)]) == group


def test_rotations_follow_their_first_row_wherever_they_stand():
    items = [item("1000007", "7"), item("3"), item("7", "7"), item("2000007", "7")]
    assert [[one.key for one in group] for group in circular_groups(items)] == [["7", "1000007", "2000007"], ["3"]]


def test_undecided_answers_count_as_wrong_and_failed_ones_not_at_all():
    found = {"1": RIGHT, "2": OPEN, "3": FAILED, "4": (0.4, Decision.JUDGE)}
    categories = {"1": ("rec", "ocr"), "2": ("rec",), "3": ("ocr",), "4": ("rec",)}
    items = [item(key, categories=categories[key]) for key in found]
    verdicts = {key: verdict(key, *one) for key, one in found.items()}
    overall, ocr, rec = summarize(score_units(items, verdicts, dict.fromkeys(found, "")))
    assert (overall.name, ocr.name, rec.name) == ("overall", "ocr", "rec")
    assert overall.score == pytest.approx((1 + 0 + 0.4) / 3)
    assert (overall.units, overall.hit, overall.undecided, overall.failed, overall.judged) == (
        4,
        0.25,
        0.25,
        0.25,
        0.25,
    )
    assert ocr.score == 1 and ocr.failed == 0.5
    assert rec.score == pytest.approx(1.4 / 3)
    (nothing,) = summarize(score_units(items[2:3], verdicts, {"3": ""}))[:1]
    assert nothing.score is None


def test_the_relative_score_is_that_of_the_means():
    items = [item("1"), item("2")]
    verdicts = {"1": verdict("1", 0.6, Decision.JUDGE, 0.8), "2": verdict("2", 0.8, Decision.JUDGE, 0.9)}
    overall, *_ = summarize(score_units(items, verdicts, {"1": "", "2": ""}))
    assert (overall.score, overall.reference) == pytest.approx((0.7, 0.85))
    assert overall.relative == pytest.approx(0.7 / 0.85)


def test_the_columns_of_references_are_empty_where_one_was_not_scored():
    def means(*units):
        columns = [
            BenchmarkColumn("LLaVABench", part, ImageCondition.ORIGINAL) for part in (RELATIVE, MODEL, REFERENCE)
        ]
        estimates = [estimate_column(list(units), column, seed=0) for column in columns]
        return [estimate and pytest.approx(estimate.mean) for estimate in estimates]

    judged = [ScoredUnit(key, "", score, Decision.JUDGE, (), 0.8) for key, score in (("1", 0.4), ("2", 0.8))]
    assert means(*judged) == [0.75, 0.6, 0.8]
    assert means(*judged, ScoredUnit("3", "", None, Decision.UNDECIDED)) == [None, 0.4, None]


@pytest.mark.parametrize(
    ("benchmark", "published", "label"),
    [
        ("mmbench", "MMBench_DEV_EN", "MMBench"),
        ("mmbench", "MMBench_DEV_EN_V11", "MMBench_DEV_EN_V11"),
        ("ai2d", "", "AI2D of mine"),
        ("math", "", "MATH-500"),
    ],
)
def test_only_the_default_file_has_the_papers_column(benchmark, published, label):
    scores = BenchmarkScores(benchmark, published, {}, (), ())
    assert [column.label for column in benchmark_columns(scores, "mine", ImageCondition.ORIGINAL)] == [label]
