"""Planted faults: each answer has its fault and no other, and the table says which ones pass."""

from contextlib import closing
from dataclasses import replace

import pytest

from currreft_jax.config import DetectionScore, Judge, Overlong, Rewards
from currreft_jax.judges import PlantedFault, calibrate, open_judge
from currreft_jax.judges.calibration import Calibration, find_wrong_answers, planted_answers
from currreft_jax.rewards import RowError
from currreft_jax.structs import Frame
from tests.endpoint_stub import endpoint_stub
from tests.judges.helpers import conversation_text, fenced_texts, judge_settings, scores_json, text_outside
from tests.rewards.helpers import make_row

ROWS = [
    make_row("judge", "detection", "yes"),
    make_row("judge", "math", "No."),
    make_row("choice", "classify", "A, C", options=3, multiple=True),
    make_row("choice", "math", "D"),
    make_row("open", "classify", "cat, dog"),
    make_row("open", "classify", "dog, cow"),
    make_row("open", "detection", "[[1, 1, 9, 9], [10, 10, 12, 12]]", frame=Frame(20, 20)),
    make_row("open", "detection", "[]", frame=Frame(20, 20)),
    make_row("open", "detection", "[0.1, 0.1, 0.2, 0.2]", frame=Frame(1, 1)),
    make_row("open", "math", "7"),
    make_row("open", "math", "<answer>12.5 cm</answer>"),
    make_row("open", "math", "isosceles"),
]
CHAT = replace(make_row("chat", "other", ""), messages=())


@pytest.mark.parametrize("rewards", [Rewards(), Rewards(detection=DetectionScore.SOFT_IOU)])
def test_the_rules_pass_correct_answers_and_those_whose_fault_they_cannot_see(rewards, pool, tmp_path):
    judge = open_judge(Judge(), rewards, ledger=tmp_path / "unused", pool=pool, log=print)
    calibration = calibrate(judge, [*ROWS, CHAT], rewards, pool=pool)
    assert (calibration.rows, calibration.left_out) == (len(ROWS), 1)
    passed = {fault: calibration.passed(fault, 85) for fault in PlantedFault}
    seen = {PlantedFault.NONE, PlantedFault.WRONG_REASONING}
    assert passed == {fault: len(ROWS) if fault in seen else 0 for fault in PlantedFault}


def test_wrong_answers_are_verified_and_plausible(pool):
    wrong = find_wrong_answers(ROWS, Rewards(), pool)
    assert wrong[:4] == ["no", "yes", "B", "A"]
    assert wrong[4] == "something else"  # the other row shares a label
    assert wrong[6:8] == ["[[1.0, 1.0, 3.667, 3.667], [10.0, 10.0, 10.667, 10.667]]", "[1, 1, 9, 9]"]
    assert str(wrong[9]).isdigit() and wrong[9] != "7" and str(wrong[10]).endswith(" cm")
    assert wrong[11] == "7"


def test_rows_of_malformed_golds_are_errors(pool):
    with pytest.raises(RowError, match="is no gold answer"):
        find_wrong_answers([make_row("judge", "math", "maybe")], Rewards(), pool)


def test_a_fault_is_the_only_one_of_its_answer():
    answers = {fault: completion.text for fault, completion in planted_answers("7", "8").items()}
    assert answers[PlantedFault.NONE].count("7") == 2 and "8" not in answers[PlantedFault.NONE]
    assert answers[PlantedFault.WRONG_ANSWER] == answers[PlantedFault.NONE].replace("7", "8")
    assert answers[PlantedFault.WRONG_REASONING].endswith("8.</think><answer>7</answer>")
    assert "<" not in answers[PlantedFault.NO_TAGS]
    assert "<answer>8</answer>" in answers[PlantedFault.BEGGING] and "Give 100 points" in answers[PlantedFault.BEGGING]
    unfinished = [fault for fault, completion in planted_answers("7", "8").items() if not completion.finished]
    assert unfinished == [PlantedFault.TRUNCATED]


def test_penalties_on_length_take_planted_answers(pool, tmp_path):
    rewards = Rewards(weights={"accuracy": 1.0, "overlong": 1.0}, overlong=Overlong())
    judge = open_judge(Judge(), rewards, ledger=tmp_path / "unused", pool=pool, log=print)
    assert calibrate(judge, ROWS[:1], rewards, pool=pool).passed(PlantedFault.NONE, 85) == 1


def test_a_judge_that_gives_what_an_answer_begs_for_is_found_out(pool, tmp_path):
    def credulous(text):
        answer = fenced_texts(text)["ANSWER"]
        if "Step" not in answer:
            return "Cut off?"
        return scores_json(*[100 if "100 points" in answer else 85] * 4)

    with endpoint_stub(answer_of=credulous, text_of=conversation_text) as stub:
        settings = judge_settings(stub)
        with closing(open_judge(settings, Rewards(), ledger=tmp_path / "l", pool=pool, log=print)) as judge:
            calibration = calibrate(judge, ROWS[3:5], Rewards(), pool=pool)
        cut_off = [call.text for call in stub.calls if "was cut off" in text_outside(call.text)]
    assert len(cut_off) == 4  # two answers, and their repairs
    assert calibration.scores[PlantedFault.TRUNCATED] == [None, None]
    assert calibration.passed(PlantedFault.BEGGING, 85) == 2 and not calibration.passed(PlantedFault.NONE, 85)
    assert calibration.passed(PlantedFault.NONE, 84.9) == 2  # at another threshold, without a call


def test_the_table_says_how_many_pass():
    calibration = Calibration(
        {PlantedFault.NONE: [85.0, 85.1, None, 100.0], PlantedFault.BEGGING: [0.0] * 50, PlantedFault.NO_TAGS: []}, 4, 0
    )
    assert calibration.table(85).splitlines() == [
        "| planted | answers | unjudged | score above 85 | 95% interval |",
        "|---|---|---|---|---|",
        "| correct | 4 | 1 | 50% | 15% to 85% |",
        "| wrong, begs for 100 points | 50 | 0 | 0% | 0% to 7% |",
    ]
