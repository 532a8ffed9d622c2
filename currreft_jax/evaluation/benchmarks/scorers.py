"""Rules that score the answers of benchmarks: multiple choice, short answers, substrings. Loads no JAX.

By default they read what a careful person reads (`evaluation.readable`), and leave undecided what that is unclear
about. With a generation of VLMEvalKit's rules (`benchmarks.extraction`) they decide as it does without a judge.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from math import isclose

from currreft_jax.config import BenchmarkName, Extraction, Kind, Rewards, Task
from currreft_jax.evaluation.benchmarks.extraction import infer_option
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem, BenchmarkVerdict, Decision
from currreft_jax.evaluation.readable import Found, answer_text, read_answer, read_list, read_number, stated_parts
from currreft_jax.structs import Completion, Row

VERSION = 1  # of these rules; raised whenever a verdict may come out otherwise

_NUMBERS: dict[AnswerType, Callable[[str], float]] = {AnswerType.INTEGER: int, AnswerType.FLOAT: float}

Scorer = Callable[[BenchmarkItem, Completion, Extraction], BenchmarkVerdict]


def score_choice(item: BenchmarkItem, completion: Completion, extraction: Extraction) -> BenchmarkVerdict:
    """Scores the option that an answer gives: 1 for the gold one's letter, else 0; undecided if it gives none."""
    letter = read_letter(item, completion, extraction)
    return undecided(item) if letter is None else _decided(item, letter == item.gold, letter)


def read_letter(item: BenchmarkItem, completion: Completion, extraction: Extraction) -> str | None:
    """Reads the letter of the option that an answer gives; None if it gives none, or several."""
    if extraction is not Extraction.READABLE:
        return infer_option(completion.text, item.options, extraction)
    row = Row(item.key, Task.OTHER, Kind.CHOICE, item.question, item.gold, options=item.options)
    reading = read_answer(row, completion, Rewards())
    return None if reading.found is Found.NONE else reading.answer


def score_short_answer(item: BenchmarkItem, completion: Completion, extraction: Extraction) -> BenchmarkVerdict:
    """Scores an option, a number, a list of numbers or a short text, as MathVista asks for."""
    if item.answer_type is AnswerType.CHOICE:
        return score_choice(item, completion, extraction)
    if extraction is not Extraction.READABLE:
        return score_exact_answer(item, completion.text)
    text = answer_text(completion)
    read = _READERS[item.answer_type](item, text)
    return undecided(item) if read is None else _decided(item, *read)


def score_exact_answer(item: BenchmarkItem, answer: str) -> BenchmarkVerdict:
    """Scores an answer as VLMEvalKit does before it asks a judge: right if it is the gold number, else undecided.

    A right 0 is undecided, too, since 0 counts as no answer there.
    """
    is_zero = item.answer_type in _NUMBERS and equals_exactly(item, "0")
    return _decided(item, True, answer.strip()) if equals_exactly(item, answer) and not is_zero else undecided(item)


def equals_exactly(item: BenchmarkItem, answer: str) -> bool:
    """Compares an answer as VLMEvalKit does: whole numbers by `int`, others by `float` and without rounding.

    Lists and texts are never right there, as the answer to them is not compared.
    """
    number = _NUMBERS.get(item.answer_type)
    try:
        return number is not None and number(answer) == number(item.gold)
    except ValueError:
        return False


def score_substring(item: BenchmarkItem, completion: Completion, extraction: Extraction) -> BenchmarkVerdict:
    """Scores 1 if one of the gold texts stands in the answer, else 0; nothing is undecided.

    Case counts only in formulas, in which spaces do not.
    """
    text = completion.text if extraction is not Extraction.READABLE else answer_text(completion)
    answer = _comparable(text, item.case_sensitive)
    found = [gold for gold in item.golds if _comparable(gold, item.case_sensitive) in answer]
    return _decided(item, bool(found), found[0] if found else "")


def score_by_judge(item: BenchmarkItem, completion: Completion, extraction: Extraction) -> BenchmarkVerdict:
    """Leaves an answer to the judge."""
    return undecided(item)


SCORERS: dict[BenchmarkName, Scorer] = {
    BenchmarkName.MATHVISTA: score_short_answer,
    BenchmarkName.AI2D: score_choice,
    BenchmarkName.MMBENCH: score_choice,
    BenchmarkName.OCRBENCH: score_substring,
    BenchmarkName.MMVET: score_by_judge,
    BenchmarkName.LLAVABENCH: score_by_judge,
}  # MATH is scored by the rewards' rules


def undecided(item: BenchmarkItem) -> BenchmarkVerdict:
    """Returns the verdict that there is none."""
    return BenchmarkVerdict(item.key, None, Decision.UNDECIDED)


def _decided(item: BenchmarkItem, right: bool, read: str) -> BenchmarkVerdict:
    return BenchmarkVerdict(item.key, float(right), Decision.RULE, read)


def _comparable(text: str, case_sensitive: bool) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if case_sensitive else text.lower()


def _compare_number(item: BenchmarkItem, text: str) -> tuple[bool, str] | None:
    """Compares the number that an answer gives; None if it gives none, or several.

    A whole number is compared exactly, another after rounding to the item's decimals.
    """
    answer = read_number(text)
    if answer is None:
        return None
    value, gold = float(answer), float(item.gold)
    if item.answer_type is AnswerType.INTEGER:
        return value == gold, answer
    decimals = len(item.gold.partition(".")[2]) if item.precision is None else item.precision
    return isclose(round(value, decimals), round(gold, decimals)), answer


def _compare_list(item: BenchmarkItem, text: str) -> tuple[bool, str] | None:
    answer = read_list(text)
    if answer is None:
        return None
    values, golds = ast.literal_eval(answer), ast.literal_eval(item.gold)
    return len(values) == len(golds) and all(map(isclose, values, golds)), answer


def _compare_text(item: BenchmarkItem, text: str) -> tuple[bool, str] | None:
    """Finds the gold text as the whole answer, or after "the answer is"; another text may say the same."""
    for part in [*stated_parts(text), text]:
        if _bare(part) == _bare(item.gold):
            return True, part.strip()
    return None


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!\"'*")


_READERS: dict[AnswerType, Callable[[BenchmarkItem, str], tuple[bool, str] | None]] = {
    AnswerType.INTEGER: _compare_number,
    AnswerType.FLOAT: _compare_number,
    AnswerType.LIST: _compare_list,
    AnswerType.TEXT: _compare_text,
}
