"""Short answers and substrings, by hand: by default and as VLMEvalKit scores them without a judge."""

import pytest

from currreft_jax.config import Extraction
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem, Decision
from currreft_jax.evaluation.benchmarks.scorers import score_choice, score_short_answer, score_substring
from currreft_jax.structs import Completion


def item_of(gold, answer_type=AnswerType.TEXT, **fields):
    golds = gold if isinstance(gold, tuple) else (gold,)
    return BenchmarkItem("1", "f:1", "q", "q", golds, answer_type, group="1", **fields)


def score(scorer, item, text, extraction=Extraction.READABLE, finished=True):
    verdict = scorer(item, Completion(text, finished=finished), extraction)
    assert (verdict.score is None) == (verdict.decision is Decision.UNDECIDED)
    return verdict.score


def test_an_option_is_right_wrong_or_undecided():
    item = item_of("B", AnswerType.CHOICE, options=("cat", "dog"))
    assert [score(score_choice, item, text) for text in ("B", "(A)", "dog.", "I do not know")] == [1, 0, 1, None]


INTEGER, FLOAT, LIST = AnswerType.INTEGER, AnswerType.FLOAT, AnswerType.LIST


@pytest.mark.parametrize(
    ("gold", "answer_type", "precision", "answer", "ours", "theirs"),
    [
        ("14", INTEGER, None, "14", 1, 1),
        ("14", INTEGER, None, " 14 \n", 1, 1),
        ("14", INTEGER, None, "14.0", 1, None),
        ("14", INTEGER, None, "The answer is 14 because 7 + 7", 1, None),
        ("14", INTEGER, None, r"7 + 7 = \boxed{14}", 1, None),
        ("1400", INTEGER, None, "1,400 people", 1, None),
        ("14", INTEGER, None, "15", 0, None),
        ("14", INTEGER, None, "14.2", 0, None),
        ("14", INTEGER, None, "7 or 14", None, None),
        ("14", INTEGER, None, "fourteen", None, None),
        ("0", INTEGER, None, "0", 1, None),  # 0 counts as no answer there
        ("-5", INTEGER, None, "\N{MINUS SIGN}5", 1, None),
        ("14.0", INTEGER, None, "14", 1, None),  # int("14.0") fails there
        ("1.2", FLOAT, None, "1.2", 1, 1),
        ("1.2", FLOAT, None, "1.23", 1, None),
        ("1.2", FLOAT, None, "1.26", 0, None),
        ("1.2", FLOAT, 2, "1.23", 0, None),
        ("1.2", FLOAT, 1, "about 1.16 m", 1, None),
        ("1.2", FLOAT, None, "12e-1", 1, 1),
        ("1", INTEGER, None, "A-1", None, None),
        ("[1, 2]", LIST, None, "It is [1, 2.0].", 1, None),
        ("[1, 2]", LIST, None, "[2, 1]", 0, None),
        ("[1, 2]", LIST, None, "[1]", 0, None),
        ("[1, 2]", LIST, None, "1, 2", None, None),
        ("yes", AnswerType.TEXT, None, "The answer is: Yes.", 1, None),
        ("yes", AnswerType.TEXT, None, "no", None, None),  # another text may say the same
    ],
)
def test_a_short_answer_is_compared_by_its_type(gold, answer_type, precision, answer, ours, theirs):
    item = item_of(gold, answer_type, precision=precision)
    assert score(score_short_answer, item, answer) == ours
    assert score(score_short_answer, item, answer, Extraction.G1) == theirs


def test_the_thoughts_are_not_the_answer():
    item = item_of("3", INTEGER)
    assert score(score_short_answer, item, "<think> 1, 2 or 3 </think> <answer> 3 </answer>") == 1
    assert score(score_short_answer, item, "<think> 3, so far", finished=False) is None
    texts = item_of("3")
    assert score(score_substring, texts, "<think> 3 </think> <answer> 4 </answer>") == 0
    assert score(score_substring, texts, "<think> 3 </think> <answer> 4 </answer>", Extraction.G3) == 1


@pytest.mark.parametrize(
    ("golds", "formulas", "answer", "hit"),
    [
        (("Hello World",), False, "it says hello\nworld!", 1),
        (("Hello World",), False, "it says helloworld", 0),
        (("no", " 42 "), False, "the number is 42.", 1),
        (("x ^ 2 + Y",), True, "$x^2 + Y = 1$", 1),
        (("x ^ 2 + Y",), True, "$x^2 + y = 1$", 0),
        (("a",), False, "", 0),
    ],
)
def test_a_gold_text_stands_in_the_answer(golds, formulas, answer, hit):
    for extraction in Extraction:
        assert score(score_substring, item_of(golds, case_sensitive=formulas), answer, extraction) == hit
