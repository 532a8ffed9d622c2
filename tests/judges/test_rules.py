"""The judge of rules: only right, well laid out, whole and varied answers score above 85."""

from dataclasses import astuple, replace
from itertools import count

import pytest

from currreft_jax.config import DetectionScore, Judge, Overlong, PartialCredit, Rewards
from currreft_jax.judges import Judged, Unjudged, open_judge
from currreft_jax.rewards import RewardError, register, registry
from currreft_jax.structs import Completion, Frame, Turn, Verdict
from tests.rewards.helpers import make_row, well_formed

YES = make_row("judge", "detection", "yes")
LETTER = make_row("choice", "math", "B", options=4)
LABELS = make_row("open", "classify", "cat, dog, cow, hen, pig")
BOX = make_row("open", "detection", "[0, 0, 10, 10]", frame=Frame(20, 20))
NUMBER = make_row("open", "math", "7")
CHAT = replace(
    make_row("chat", "other", ""), messages=(Turn("user", "What is it?"), Turn("assistant", "A cat on a mat."))
)
RIGHT = [(YES, "yes"), (LETTER, "B"), (LABELS, "pig, hen, cow, dog, cat"), (BOX, "[0, 0, 10, 9]"), (NUMBER, "7.0")]
WRONG = [
    *[(YES, "no"), (LETTER, "A"), (LETTER, "E"), (LABELS, "cat, dog, cow, hen"), (BOX, "[0, 0, 3, 3]")],
    *[(NUMBER, "8"), (NUMBER, ""), (NUMBER, "7 or 8")],
]


def judgements(answers, pool, rewards=None, tmp_path=None):
    judge = open_judge(Judge(), rewards or Rewards(), ledger=tmp_path, pool=pool, log=print)
    keys = count()
    return list(judge.judge(Judged(str(next(keys)), row, (), answer) for row, answer in answers))


def score(row, completion, pool, rewards=None):
    (judgement,) = judgements([(row, completion)], pool, rewards)
    return judgement


@pytest.mark.parametrize(("row", "answer"), RIGHT)
def test_a_right_and_well_laid_out_answer_scores_100(row, answer, pool):
    judgement = score(row, Completion(well_formed(answer)), pool)
    assert astuple(judgement.scores) == (100, 100, 100, 100) and judgement.overall == 100


@pytest.mark.parametrize(("row", "answer"), WRONG)
@pytest.mark.parametrize("credit", PartialCredit)
def test_a_wrong_answer_never_scores_above_85(row, answer, credit, pool):
    rewards = Rewards(partial_credit=credit, partial_value=0.99)
    assert score(row, Completion(well_formed(answer)), pool, rewards).overall <= 75


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<answer>7</answer>", "bad_layout"),
        ("<think></think><answer>7</answer>", "bad_layout"),
        ("7", "no_answer_tag"),
        (well_formed("7") + " That is all.", "bad_layout"),
        (well_formed("7") + well_formed("7"), "several_answers"),
    ],
)
def test_another_layout_is_not_enough(text, reason, pool):
    judgement = score(NUMBER, Completion(text), pool)
    assert judgement.overall <= 75 and reason in judgement.rationale


def test_a_truncated_answer_fails(pool):
    judgement = score(NUMBER, Completion(well_formed("7"), finished=False), pool)
    assert judgement.overall <= 25 and "truncated" in judgement.rationale


@pytest.mark.parametrize(("repeats", "fluency"), [(0, 100), (29, 42), (30, 40), (90, 0)])
def test_repetition_costs_fluency(repeats, fluency, pool):
    # 101 words between two tags are 100 runs of four words; m equal words are m - 3 runs, m - 4 of them repeats.
    words = [*(f"w{index}" for index in range(97 - repeats)), *["again"] * (repeats + 4)]
    judgement = score(YES, Completion(f"<think> {' '.join(words)} </think> <answer> yes </answer>"), pool)
    assert judgement.scores.fluency == pytest.approx(fluency)
    assert (judgement.overall > 85) is (repeats < 30)


def test_an_answer_may_repeat_its_thoughts(pool):
    labels = "cat, dog, cow, hen, pig"
    judgement = score(LABELS, Completion(f"<think>{labels}</think><answer>{labels}</answer>"), pool)
    assert judgement.overall == 100


def test_length_counts_if_its_penalty_has_a_weight(pool):
    long = Completion(well_formed("7"), num_tokens=500)
    limits = Overlong(max_tokens=512, buffer_tokens=128)
    weighted = Rewards(weights={"accuracy": 1.0, "overlong": 0.5}, overlong=limits)
    assert score(NUMBER, long, pool, Rewards(overlong=limits)).overall == 100
    assert score(NUMBER, long, pool, weighted).scores.fluency == pytest.approx(100 * 12 / 128)
    with pytest.raises(RewardError, match="num_tokens is unknown"):
        score(NUMBER, Completion(well_formed("7")), pool, weighted)


def test_boxes_are_right_in_the_frame_that_the_model_saw_whatever_their_score(pool):
    rewards = Rewards(detection=DetectionScore.SOFT_IOU)
    seen = Judged("1", BOX, (), Completion(well_formed("[0, 0, 20, 19]")), Frame(40, 40))
    judge = open_judge(Judge(), rewards, ledger=None, pool=pool, log=print)
    (judgement,) = judge.judge([seen])
    assert judgement.overall == 100


def test_rows_without_a_rule_are_unjudged_and_counted(pool):
    judge = open_judge(Judge(), Rewards(), ledger=None, pool=pool, log=print)
    answers = [Judged(str(n), CHAT if n % 2 else YES, (), Completion(well_formed("yes"))) for n in range(70)]
    found = list(judge.judge(answers))
    assert [judgement.key for judgement in found] == [str(n) for n in range(70)]
    for n, judgement in enumerate(found):
        assert judgement.unjudged is (Unjudged.NO_RULE if n % 2 else None)
        assert (judgement.overall is None) is bool(n % 2)
    assert judge.summary() == "rules: 35 answers judged, 35 of them right; 35 of rows that no rule scores"


DIAL = make_row("open", "other", "7.0")


def close(row, completion, answer, frame):
    """A reward of one's own, for open rows alone."""
    if answer is None:
        return Verdict(0.0, "no answer")
    value = max(0.0, 1 - abs(float(answer) - float(row.solution)))
    return Verdict(value, None if value else "far off")


def brief(row, completion, answer, frame):
    return Verdict(-1.0, "long") if len(completion.text) > 100 else Verdict(0.0)


def wordy(row, completion, answer, frame):
    return Verdict(1.0) if len(completion.text) > 100 else Verdict(0.0, "brief")


def test_open_rows_of_another_task_are_judged_by_rewards_of_ones_own(pool):
    rewards = Rewards(weights={"accuracy": 1.0, f"{__name__}:close": 2.0})
    for answer, accuracy, overall in (("7", 100, 100), ("6.5", 50, 62.5), ("5", 0, 50)):
        judgement = score(DIAL, Completion(well_formed(answer)), pool, rewards)
        assert (judgement.scores.accuracy, judgement.overall) == (accuracy, overall)
    assert judgement.rationale.startswith("accuracy 0, format 1, tests.judges.test_rules:close 0 (far off)")
    assert score(DIAL, Completion("<answer>7</answer>"), pool, rewards).overall == 75
    assert score(YES, Completion(well_formed("yes")), pool, rewards).overall == 100  # by its rule alone
    assert score(CHAT, Completion("A cat."), pool, rewards).unjudged is Unjudged.NO_RULE
    with pytest.raises(ValueError, match="defines no 'clsoe'; nearest: close"):
        open_judge(Judge(), Rewards(weights={f"{__name__}:clsoe": 1.0}), ledger=None, pool=pool, log=print)


def test_a_penalty_of_ones_own_lowers_the_accuracy(pool, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register("brief", low=-1.0, high=0.0)(brief)
    for penalty in ({"brief": 0.25}, {f"{__name__}:wordy": -0.25}):
        rewards = Rewards(weights={f"{__name__}:close": 1.0, **penalty})
        for text, accuracy in ((well_formed("7"), 100), (well_formed("7").replace("look", "look " * 30), 75)):
            assert score(DIAL, Completion(text), pool, rewards).scores.accuracy == accuracy
