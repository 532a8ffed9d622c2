"""Wrong answers to math questions, each verified by the maths scorer to be unequal to the right answer."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from fractions import Fraction

from currreft_jax.config import Maths
from currreft_jax.data.builders.hashed_rng import hash64, hash_shuffle
from currreft_jax.rewards import MathsPool, maths
from currreft_jax.rewards.answer import gold_text
from currreft_jax.rewards.maths import Comparison
from currreft_jax.rewards.maths_pool import Outcome
from currreft_jax.structs import Reason, Row

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")
_MAX_NEAR_MISSES = 12  # compared for a row, after the source's own wrong answers


def select_wrong_answers(
    rows: Sequence[Row], source_answers: Mapping[str, Sequence[str]], wanted: int, seed: int, pool: MathsPool
) -> dict[str, list[str]]:
    """Selects wrong answers for each row: the source's own first, then near misses.

    The scorer finds each one unequal to the gold answer and to the others.

    Args:
        rows: open math rows whose gold answers can be read.
        source_answers: row id -> wrong answers that the source offers.
        wanted: maximum number of answers for a row.
        seed: seed of all draws.
        pool: compares answers that need math-verify.

    Returns:
        Row id -> wrong answers.
    """
    golds = {row.id: gold_text(row) for row in rows}
    candidates = {row.id: deque(_candidates(row, source_answers.get(row.id, ()), wanted, seed)) for row in rows}
    selected: dict[str, list[str]] = {row.id: [] for row in rows}
    while True:  # one candidate per row and round: no comparison is made in vain
        tried = {
            row_id: answers.popleft()
            for row_id, answers in candidates.items()
            if answers and len(selected[row_id]) < wanted
        }
        if not tried:
            return selected
        pairs = [(known, answer) for row_id, answer in tried.items() for known in (golds[row_id], *selected[row_id])]
        verdicts = iter(compare_unequal(pairs, pool))
        for row_id, answer in tried.items():
            row_verdicts = [next(verdicts) for _ in (golds[row_id], *selected[row_id])]
            if all(row_verdicts):
                selected[row_id].append(answer)


def near_misses(gold: str, wanted: int, seed: int, row_id: str) -> list[str]:
    """Returns variants of the gold answer with one number changed; none if the answer holds no number.

    How many of the first `wanted` are below the gold is drawn uniformly from 0 to `wanted`: otherwise the right option
    would tend to be the median.
    """
    smaller: dict[str, None] = {}
    larger: dict[str, None] = {}
    for match in _NUMBER.finditer(gold):
        for value, text in _near_numbers(match[0]):
            side = smaller if value < Fraction(match[0]) else larger
            side[gold[: match.start()] + text + gold[match.end() :]] = None
    below = hash_shuffle(smaller, seed, row_id, "below")
    above = hash_shuffle(larger, seed, row_id, "above")
    count = hash64(seed, row_id, "below") % (wanted + 1)
    first = hash_shuffle(below[:count] + above[: wanted - count], seed, row_id, "first")
    return first + hash_shuffle([*below[count:], *above[wanted - count :]], seed, row_id)


def compare_unequal(pairs: Sequence[tuple[str, str]], pool: MathsPool) -> list[bool]:
    """Returns for each pair of gold and answer whether the scorer reads both and finds them unequal."""
    results = [_compare_fast(gold, answer) for gold, answer in pairs]
    outcomes = iter(pool.compare([result for result in results if isinstance(result, Comparison)]))
    return [next(outcomes) is Outcome.NOT_EQUAL if isinstance(result, Comparison) else result for result in results]


def _compare_fast(gold: str, answer: str) -> bool | Comparison:
    """Returns whether two answers are unequal, or the comparison that math-verify must make."""
    limits = Maths()
    first, second = maths.parse_expression(gold, limits), maths.parse_expression(answer, limits)
    if isinstance(first, Reason) or isinstance(second, Reason):
        return False
    verdict = maths.math_accuracy(first, second)
    return verdict if isinstance(verdict, Comparison) else verdict.value == 0


def _candidates(row: Row, source_answers: Sequence[str], wanted: int, seed: int) -> list[str]:
    offered = hash_shuffle((answer for answer in source_answers if answer.strip()), seed, row.id, "known")
    return list(dict.fromkeys([*offered, *near_misses(gold_text(row), wanted, seed, row.id)[:_MAX_NEAR_MISSES]]))


def _near_numbers(number: str) -> list[tuple[Fraction, str]]:
    """Returns numbers with as many decimals: a few units or tenfold units away, doubled, halved, digits swapped."""
    decimals = len(number.partition(".")[2])
    value, unit = Fraction(number), Fraction(1, 10**decimals)
    steps = [unit, 2 * unit, 10 * unit, *([Fraction(1), Fraction(2)] if decimals else [])]
    values = [value + step for step in steps] + [value - step for step in steps] + [2 * value, value / 2]
    if len(number) == 2 and not decimals:
        values.append(Fraction(number[::-1]))
    valid = {near for near in values if near >= 0 and near != value and (near / unit).denominator == 1}
    return [(near, f"{float(near):.{decimals}f}" if decimals else str(near)) for near in sorted(valid)]
