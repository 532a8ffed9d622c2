"""Counts of correct answers, which show whether guessing the most frequent one pays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.rewards import binary, choice, classify
from currreft_jax.structs import Row

_MAX_ANSWERS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class AnswerBalance:
    """How often each answer is correct among the rows of one kind and task.

    Attributes:
        kind: kind of the rows.
        task: task of the rows.
        rows: number of rows.
        counts: answer -> number of rows; a row with several correct options counts for each.
        expected: the counts if all answers were equally frequent; empty where they need not be.
    """

    kind: Kind
    task: Task
    rows: int
    counts: dict[str, int]
    expected: dict[str, float]

    @property
    def is_balanced(self) -> bool:
        """Whether every count is within three standard deviations plus 1% of the rows of its expectation."""
        slack = 0.01 * self.rows
        return all(abs(self.counts.get(name, 0) - n) <= 3 * n**0.5 + slack for name, n in self.expected.items())

    def __str__(self) -> str:
        """Returns the most frequent answers on one line."""
        shown = ", ".join(f"{name} {count}" for name, count in list(self.counts.items())[:_MAX_ANSWERS_SHOWN])
        more = len(self.counts) - _MAX_ANSWERS_SHOWN
        return f"{shown} and {more} more" if more > 0 else shown


def answer_balances(rows: Sequence[Row]) -> list[AnswerBalance]:
    """Counts the answers of judge and choice rows and the labels of open ones, by kind and task.

    Raises:
        RowError: a gold answer is malformed.
    """
    groups: dict[tuple[Kind, Task], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.kind, row.task].append(row)
    balances = []
    for (kind, task), group in groups.items():
        if kind is Kind.JUDGE:
            balances.append(AnswerBalance(kind, task, len(group), *_count_verdicts(group)))
        elif kind is Kind.CHOICE:
            balances.append(AnswerBalance(kind, task, len(group), *_count_letters(group)))
        elif (kind, task) == (Kind.OPEN, Task.CLASSIFY):
            balances.append(AnswerBalance(kind, task, len(group), _count_labels(group), {}))
    return balances


def _count_verdicts(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, float]]:
    num_yes = sum(binary.gold_yes_no(row) for row in rows)
    return {"yes": num_yes, "no": len(rows) - num_yes}, dict.fromkeys(("yes", "no"), len(rows) / 2)


def _count_letters(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, float]]:
    """Counts correct letters. Rows that list their options in the problem get as many as the last correct letter."""
    golds = [choice.gold_letters(row) for row in rows]
    counts = Counter(letter for gold in golds for letter in gold)
    default_num_options = ascii_uppercase.index(max(counts)) + 1
    expected: dict[str, float] = defaultdict(float)
    for row, gold in zip(rows, golds, strict=True):
        num_options = len(row.options) or default_num_options
        for letter in ascii_uppercase[:num_options]:
            expected[letter] += len(gold) / num_options
    return {letter: counts[letter] for letter in sorted(expected)}, dict(sorted(expected.items()))


def _count_labels(rows: Sequence[Row]) -> dict[str, int]:
    settings = Rewards()
    counts = Counter(label for row in rows for label in classify.gold_labels(row, settings))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
