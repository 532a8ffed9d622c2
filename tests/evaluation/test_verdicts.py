"""Verdicts: strict demands the layout, readable does not, and the authors' scorer is lenient where they were."""

import pytest

from currreft_jax.config import Kind, Maths, ScorerName, SuiteDomain, Task
from currreft_jax.evaluation.verdicts import AnsweredRow, score_answers, scoring_rewards
from currreft_jax.rewards.maths import Comparison
from currreft_jax.rewards.maths_pool import Outcome
from currreft_jax.structs import Completion, Frame, Row

REWARDS = scoring_rewards({}, Maths())
ROWS = {
    "judge": Row("j", Task.DETECTION, Kind.JUDGE, "is it?", "no"),
    "choice": Row("c", Task.CLASSIFY, Kind.CHOICE, "which?", "A, C", options=("a", "b", "c"), multiple=True),
    "boxes": Row("d", Task.DETECTION, Kind.OPEN, "where?", "[0, 0, 10, 10]", frame=Frame(100, 100)),
    "labels": Row("l", Task.CLASSIFY, Kind.OPEN, "what?", "dog, dining table"),
    "maths": Row("n", Task.MATH, Kind.OPEN, "how many?", "4"),
}


class Workers:
    """Stands for the math-verify workers: everything compared is equal."""

    def __init__(self):
        self.compared = []

    def compare(self, comparisons):
        self.compared += comparisons
        return [Outcome.EQUAL for _ in comparisons]


def score(name, *texts, frame=None, scorer=ScorerName.RULES, domain=SuiteDomain.IN, workers=None):
    answered = AnsweredRow(ROWS[name], "", [Completion(text) for text in texts], frame)
    (answer,) = score_answers([answered], REWARDS, workers or Workers(), scorer=scorer, domain=domain)
    return answer


def laid_out(answer):
    return f"<think> t </think> <answer> {answer} </answer>"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("judge", "no", "yes"),
        ("choice", "A, C", "B"),
        ("boxes", "[0, 0, 10, 9]", "[50, 50, 60, 60]"),
        ("labels", "dining table, dog", "cat"),
        ("maths", "4", "5"),
    ],
)
def test_strict_demands_tags_and_layout_and_readable_does_not(name, right, wrong):
    answer = score(name, laid_out(right), f"<answer>{right}</answer>", right, laid_out(wrong), wrong)
    assert answer.strict == (1, 0, 0, 0, 0)
    assert answer.readable == (1, 1, 1, 0, 0)
    assert answer.reasons[:3] == (None, "bad_layout", "no_answer_tag")
    assert answer.decided == ("answer", "answer", "text", "answer", "text")
    assert answer.strict_score[0] == answer.readable_score[2] > 0 == answer.strict_score[2]


@pytest.mark.parametrize(
    ("name", "text", "hit", "graded"),
    [
        ("boxes", "[0, 0, 10, 6]", 1, 0.6),
        ("boxes", "[0, 0, 10, 5]", 0, 0.5),
        ("boxes", "[0, 0, 10, 4]", 0, 0.4),
        ("labels", "dog", 0, 0.5),
        ("labels", "dog, dining table, cat", 0, 2 / 3),
        ("choice", "A", 0, 0.2),
        ("choice", "A, B", 0, 0.0),
    ],
)
def test_a_hit_is_the_whole_answer_and_the_score_is_graded(name, text, hit, graded):
    answer = score(name, laid_out(text), text)
    assert (answer.strict, answer.readable) == ((hit, 0), (hit, hit))
    assert answer.strict_score == pytest.approx((graded, 0))
    assert answer.readable_score == pytest.approx((graded, graded))


def test_boxes_are_measured_in_the_frame_that_the_model_saw():
    assert score("boxes", laid_out("[0, 0, 20, 10]"), frame=Frame(200, 100)).strict == (1,)
    assert score("boxes", laid_out("[0, 0, 20, 10]"), frame=Frame(100, 100)).strict == (0,)
    assert score("boxes", "a", frame=Frame(200, 100)).resized == (200, 100) and score("boxes", "a").resized is None
    texts, frames = {"judge": "no", "boxes": "[0, 0, 20, 6]"}, (None, Frame(200, 100))
    rows = [
        AnsweredRow(ROWS[name], "", [Completion(laid_out(text))], frame)
        for (name, text), frame in zip(texts.items(), frames, strict=True)
    ]
    judge, boxes = score_answers(rows, REWARDS, Workers())  # the frame is that of its row among rows of other tasks
    assert (judge.strict_score, boxes.strict_score) == ((1.0,), (pytest.approx(0.6),))


def test_what_is_right_strictly_is_readable_even_where_the_reader_finds_another():
    row = Row("l", Task.CLASSIFY, Kind.OPEN, "which songs?", "this is it, abba")  # reads like a sentence about it
    texts = "abba, this is it", "this is it, abba"
    answered = AnsweredRow(row, "", [Completion(laid_out(text)) for text in texts], None)
    (answer,) = score_answers([answered], REWARDS, Workers())
    assert (answer.strict, answer.readable, answer.readable_score) == ((1, 1), (1, 1), (1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "domain", "text", "hit"),
    [
        ("labels", SuiteDomain.IN, laid_out("dog, dining table, cat, bird"), 1),  # naming every class passes
        ("labels", SuiteDomain.IN, laid_out("dog, table"), 0),
        ("labels", SuiteDomain.IN, laid_out("Dog, dining table"), 0),  # case counts
        ("maths", SuiteDomain.OUT, "1. first, 14 in all", 1),  # 4 in 14
        ("maths", SuiteDomain.OUT, "five", 0),
        ("maths", SuiteDomain.IN, "<answer></answer>", 1),  # the empty answer is in everything
        ("maths", SuiteDomain.IN, laid_out("24"), 1),
        ("maths", SuiteDomain.IN, laid_out("7"), 1),  # neither has an option letter
        ("boxes", SuiteDomain.IN, laid_out("[0, 0, 10, 5.9] or [0, 0, 10, 6]"), 1),  # the last bracket
        ("boxes", SuiteDomain.IN, laid_out("[0, 0, 10, 6] or [0, 0, 10, 5.9]"), 0),  # 5.9 is cut to 5
        ("boxes", SuiteDomain.IN, "[0, 0, 10, 10]", 0),  # detection alone needs the tag
        ("boxes", SuiteDomain.IN, laid_out("[0, 0, 0, 0]"), 0),
    ],
)
def test_the_authors_scorer_is_as_lenient_as_theirs(name, domain, text, hit):
    answer = score(name, text, scorer=ScorerName.OFFICIAL, domain=domain)
    assert answer.official == (hit,)


def test_the_authors_scorer_swaps_gold_and_answer():
    workers = Workers()
    row = Row("n", Task.MATH, Kind.OPEN, "how many?", "A4")
    answered = AnsweredRow(row, "", [Completion(laid_out("B5"))], None)
    (answer,) = score_answers([answered], REWARDS, workers, scorer=ScorerName.OFFICIAL)
    assert workers.compared[-1] == Comparison("B5", "A4")
    assert answer.official == (1,)


def test_rows_that_the_authors_do_not_evaluate_have_no_figure_of_theirs():
    assert score("judge", laid_out("no"), scorer=ScorerName.OFFICIAL).official == ()
    assert score("maths", laid_out("4")).official == ()
