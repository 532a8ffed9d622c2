"""Which answers are kept: the threshold to the digit, ties, the rules, what has no score, quotas in order."""

import pytest

from currreft_jax.judges import Judgement, Unjudged
from currreft_jax.rejection.records import AnswerGroup, SampledAnswer, answer_key, open_records
from currreft_jax.rejection.selection import KeepRule, select
from currreft_jax.structs import Completion
from tests.rejection.fakes import SCORES

RULE = KeepRule(85.0, require_rules=True)


def answer(tokens: int = 10, right: bool | None = True, unusable: str = ""):
    return SampledAnswer(Completion("text", tokens), right, unusable=unusable)


@pytest.fixture
def records(tmp_path):
    with open_records(tmp_path / "ledger.jsonl") as records:
        yield records


def add(records, row, *answers_and_scores):
    """Adds a group of answers to a row, each with its score or why it has none."""
    first = sum(len(group.answers) for group in records.groups["s", row])
    records.add_group("s", row, AnswerGroup(None, tuple(one for one, _ in answers_and_scores)))
    for g, (one, score) in enumerate(answers_and_scores):
        key = answer_key("s", row, first + g)
        if isinstance(score, Unjudged):
            records.add_judgement(Judgement(key, None, None, unjudged=score))
        elif score is not None and not one.unusable:
            records.add_judgement(Judgement(key, SCORES, score))


def kept(records, rows, rule=RULE, quota=0):
    return [(one.row, one.sample) for one in select("s", "", quota, rows, records, rule).kept]


@pytest.mark.parametrize(("score", "passes"), [(85.0, False), (85.0001, True), (84.9999, False), (100.0, True)])
def test_the_threshold_is_exceeded_not_reached(records, score, passes):
    add(records, "a", (answer(), score))
    assert kept(records, ["a"]) == [("a", 0)] * passes


def test_the_best_answer_is_kept_then_the_shorter_one_then_the_first(records):
    add(records, "best", (answer(5), 86.0), (answer(50), 87.0))
    add(records, "shorter", (answer(9), 90.0), (answer(8), 90.0))
    add(records, "first", (answer(9), 90.0), (answer(9), 90.0))
    assert kept(records, ["best", "shorter", "first"]) == [("best", 1), ("shorter", 1), ("first", 0)]


def test_answers_that_the_judge_loves_are_dropped_where_the_rules_find_them_wrong(records):
    add(records, "wrong", (answer(right=False), 100.0), (answer(right=True), 86.0))
    add(records, "all wrong", (answer(right=False), 100.0))
    add(records, "unchecked", (answer(right=None), 100.0))
    rows = ["wrong", "all wrong", "unchecked"]
    assert kept(records, rows) == [("wrong", 1), ("unchecked", 0)]
    assert kept(records, rows, KeepRule(85.0, require_rules=False)) == [
        ("wrong", 0),
        ("all wrong", 0),
        ("unchecked", 0),
    ]
    assert select("s", "", 0, rows, records, RULE).reasons["wrong_by_rules"] == 2


def test_what_has_no_score_is_never_kept_and_counted_by_reason(records):
    rows = [reason.value for reason in Unjudged]
    for reason in Unjudged:
        add(records, reason.value, (answer(), reason))
    add(records, "cut", (answer(unusable="truncated"), 100.0))
    add(records, "waiting", (answer(), None))
    selection = select(
        "s", "", 0, [*rows, "cut", "waiting", "never sampled"], records, KeepRule(0.0, require_rules=False)
    )
    assert not selection.kept
    assert selection.reasons == {**dict.fromkeys(rows, 1), "truncated": 1, "not_judged": 1}
    assert (selection.rows, selection.sampled) == (len(rows) + 3, len(rows) + 2)


def test_a_quota_takes_rows_of_the_first_round_first_then_in_order(records):
    add(records, "late", (answer(), 10.0))
    add(records, "late", (answer(), 99.0))
    for row in ("b", "c", "d"):
        add(records, row, (answer(), 90.0))
    rows = ["late", "b", "c", "d"]
    assert kept(records, rows, quota=2) == [("b", 0), ("c", 0)]
    assert kept(records, rows, quota=4) == [("b", 0), ("c", 0), ("d", 0), ("late", 1)]
    selection = select("s", "", 2, rows, records, RULE)
    assert selection.reasons == {"kept": 2, "beyond_quota": 2, "below_threshold": 1} and selection.shortfall == 0
    assert select("s", "", 7, rows, records, RULE).shortfall == 3


def test_answers_of_later_rounds_change_no_row_that_has_one(records):
    """Such answers are there after a job with a higher threshold."""
    add(records, "a", (answer(), 90.0))
    add(records, "a", (answer(), 99.0))
    assert kept(records, ["a"]) == [("a", 0)]
    assert kept(records, ["a"], KeepRule(95.0, require_rules=True)) == [("a", 1)]
