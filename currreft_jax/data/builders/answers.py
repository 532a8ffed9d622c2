"""Wrong answers to mathematical questions, each of which the scorer itself finds unequal to the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.builders.keyed import shuffled
from currreft_jax.rewards import MathsPool, check_rows, score_completions
from currreft_jax.rewards.answer import gold_text
from currreft_jax.structs import Completion, Reason, Row

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
    candidates = {
        row.id: list(
            dict.fromkeys(
                [
                    *shuffled(known.get(row.id, ()), seed, row.id, "known"),
                    *near_misses(gold_text(row), seed, row.id)[:_NEAR],
                ]
            )
        )
        for row in rows
    }
    asked = [(row, text) for row in rows for text in candidates[row.id] if text.strip()]
    alone = [replace(row, solution=text) for row, text in asked]
    unreadable = {id(error.row) for error in check_rows(alone, pool=pool)}
    asked = [pair for pair, row in zip(asked, alone, strict=True) if id(row) not in unreadable]
    differ = unequal([(gold_text(row), text) for row, text in asked], pool)
    fit: dict[str, list[str]] = {row.id: [] for row in rows}
    for (row, text), different in zip(asked, differ, strict=True):
        if different:
            fit[row.id].append(text)
    return _distinct(fit, wanted, pool)


def near_misses(gold: str, seed: int, row_id: str) -> list[str]:
    """The answer with one of its numbers slightly or plausibly wrong; none where it holds no number."""
    found = []
    for match in _LITERAL.finditer(gold):
        for text in _neighbours(match[0]):
            found.append(gold[: match.start()] + text + gold[match.end() :])
    return shuffled(dict.fromkeys(found), seed, row_id, "near")


def unequal(pairs: Sequence[tuple[str, str]], pool: MathsPool) -> list[bool]:
    """Whether the scorer reads both answers of each pair and finds the second unequal to the first."""
    if not pairs:
        return []
    settings = Rewards(weights={"accuracy": 1.0})
    rows = [_asking(gold) for gold, _ in pairs]
    answers = [[Completion(f"<think>-</think><answer>{answer}</answer>")] for _, answer in pairs]
    scores = score_completions(rows, answers, settings, pool=pool)
    return [reason is Reason.NOT_EQUAL for reason in scores.reasons["accuracy"][:, 0]]


def _distinct(fit: Mapping[str, list[str]], wanted: int, pool: MathsPool) -> dict[str, list[str]]:
    """The first `wanted` of each list that differ from all before them; one comparison a row and round."""
    chosen = {row_id: texts[:1] for row_id, texts in fit.items()}
    place = dict.fromkeys(fit, 1)
    while True:
        open_ids = [it for it in fit if len(chosen[it]) < wanted and place[it] < len(fit[it])]
        if not open_ids:
            return chosen
        pairs = [(before, fit[it][place[it]]) for it in open_ids for before in chosen[it]]
        verdicts = iter(unequal(pairs, pool))
        for row_id in open_ids:
            different = [next(verdicts) for _ in chosen[row_id]]
            if all(different):
                chosen[row_id].append(fit[row_id][place[row_id]])
            place[row_id] += 1


def _asking(gold: str) -> Row:
    return Row("comparison", Task.MATH, Kind.OPEN, "-", gold)


def _neighbours(number: str) -> list[str]:
    digits = len(number.partition(".")[2])
    value, unit = Fraction(number), Fraction(1, 10**digits)
    steps = [unit, 2 * unit, 10 * unit, *([Fraction(1), Fraction(2)] if digits else [])]
    values = [value + step for step in steps] + [value - step for step in steps]
    values += [2 * value, value / 2]
    swapped = number[::-1] if len(number) == 2 and not digits else number
    values.append(Fraction(swapped))
    sound = {it for it in values if it > 0 and it != value and (it / unit).denominator == 1}
    return [f"{float(it):.{digits}f}" if digits else str(it) for it in sorted(sound)]
