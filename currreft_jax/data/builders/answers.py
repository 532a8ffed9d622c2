"""Wrong answers to mathematical questions, each of which the scorer itself finds unequal to the right one."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from fractions import Fraction

from currreft_jax.config import Maths
from currreft_jax.data.builders.keyed import digest, shuffled
from currreft_jax.rewards import MathsPool, maths
from currreft_jax.rewards.answer import gold_text
from currreft_jax.rewards.maths import Comparison
from currreft_jax.rewards.maths_pool import Outcome
from currreft_jax.structs import Reason, Row

_LITERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")
_NEAR = 12  # near misses that are tried beside the source's own wrong answers


def wrong_answers(
    rows: Sequence[Row], known: Mapping[str, Sequence[str]], wanted: int, seed: int, pool: MathsPool
) -> dict[str, list[str]]:
    """Row id -> up to `wanted` wrong answers, no two of them equal under the scorer.

    The source's own wrong answers come first, then near misses.

    Args:
        rows: open rows of mathematics whose gold answers can be read.
        known: row id -> the source's own wrong answers.
        wanted: for each row.
        seed: of the choice.
        pool: compares what needs math-verify.
    """
    golds = {row.id: gold_text(row) for row in rows}
    waiting = {row.id: deque(_candidates(row, known.get(row.id, ()), wanted, seed)) for row in rows}
    chosen: dict[str, list[str]] = {row.id: [] for row in rows}
    while True:  # a candidate a row and round, so that no more is compared than is needed
        tried = {row_id: texts.popleft() for row_id, texts in waiting.items() if texts and len(chosen[row_id]) < wanted}
        if not tried:
            return chosen
        pairs = [(before, text) for row_id, text in tried.items() for before in (golds[row_id], *chosen[row_id])]
        verdicts = iter(unequal(pairs, pool))
        for row_id, text in tried.items():
            different = [next(verdicts) for _ in (golds[row_id], *chosen[row_id])]
            if all(different):
                chosen[row_id].append(text)


def near_misses(gold: str, wanted: int, seed: int, row_id: str) -> list[str]:
    """The answer with one of its numbers slightly or plausibly wrong; none where it holds no number.

    How many of the first `wanted` are too small is drawn evenly: else the right option would tend to be the middle one.
    """
    small: dict[str, None] = {}
    large: dict[str, None] = {}
    for match in _LITERAL.finditer(gold):
        for value, text in _neighbours(match[0]):
            side = small if value < Fraction(match[0]) else large
            side[gold[: match.start()] + text + gold[match.end() :]] = None
    below = shuffled(small, seed, row_id, "below")
    above = shuffled(large, seed, row_id, "above")
    count = digest(seed, row_id, "below") % (wanted + 1)
    first = below[:count] + above[: wanted - count]
    return shuffled(first, seed, row_id, "first") + shuffled([*below[count:], *above[wanted - count :]], seed, row_id)


def unequal(pairs: Sequence[tuple[str, str]], pool: MathsPool) -> list[bool]:
    """Whether the scorer reads both answers of each pair and finds the second unequal to the first."""
    found = [_compared(gold, answer) for gold, answer in pairs]
    outcomes = iter(pool.compare([it for it in found if isinstance(it, Comparison)]))
    return [next(outcomes) is Outcome.NOT_EQUAL if isinstance(it, Comparison) else it for it in found]


def _compared(gold: str, answer: str) -> bool | Comparison:
    """Whether two answers differ, or the comparison that tells."""
    limits = Maths()
    first, second = maths.parse_expression(gold, limits), maths.parse_expression(answer, limits)
    if isinstance(first, Reason) or isinstance(second, Reason):
        return False
    verdict = maths.math_accuracy(first, second)
    return verdict if isinstance(verdict, Comparison) else verdict.value == 0


def _candidates(row: Row, known: Sequence[str], wanted: int, seed: int) -> list[str]:
    offered = shuffled((text for text in known if text.strip()), seed, row.id, "known")
    return list(dict.fromkeys([*offered, *near_misses(gold_text(row), wanted, seed, row.id)[:_NEAR]]))


def _neighbours(number: str) -> list[tuple[Fraction, str]]:
    """Other numbers with as many decimals: a step away, a slip of a digit away, half and double."""
    digits = len(number.partition(".")[2])
    value, unit = Fraction(number), Fraction(1, 10**digits)
    steps = [unit, 2 * unit, 10 * unit, *([Fraction(1), Fraction(2)] if digits else [])]
    values = [value + step for step in steps] + [value - step for step in steps] + [2 * value, value / 2]
    if len(number) == 2 and not digits:
        values.append(Fraction(number[::-1]))
    sound = {it for it in values if it >= 0 and it != value and (it / unit).denominator == 1}
    return [(it, f"{float(it):.{digits}f}" if digits else str(it)) for it in sorted(sound)]
