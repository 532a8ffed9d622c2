"""How often each answer is the right one: where one is much more frequent, guessing it pays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.rewards import binary, choice, classify
from currreft_jax.structs import Row

_ANSWERS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Balance:
    """The right answers of one kind and task.

    Attributes:
        kind: of the rows.
        task: of the rows.
        rows: how many there are.
        counts: answer -> rows; a row of several right options counts for each.
        expected: the same, were all answers as frequent as each other; empty where they need not be.
    """

    kind: Kind
    task: Task
    rows: int
    counts: dict[str, int]
    expected: dict[str, float]

    @property
    def even(self) -> bool:
        """Whether chance explains the differences: within three deviations and one row in a hundred."""
        slack = 0.01 * self.rows
        return all(abs(self.counts.get(name, 0) - n) <= 3 * n**0.5 + slack for name, n in self.expected.items())

    def __str__(self) -> str:
        """The counts in one line, of many labels the most frequent."""
        shown = ", ".join(f"{name} {count}" for name, count in list(self.counts.items())[:_ANSWERS_SHOWN])
        more = len(self.counts) - _ANSWERS_SHOWN
        return f"{shown} and {more} more" if more > 0 else shown


def balances(rows: Sequence[Row]) -> list[Balance]:
    """Counts the answers of judge and choice rows and the labels of open ones, by kind and task.

    Raises:
        RowError: a gold answer cannot be read.
    """
    groups: dict[tuple[Kind, Task], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.kind, row.task].append(row)
    counted = []
    for (kind, task), group in groups.items():
        if kind is Kind.JUDGE:
            counted.append(Balance(kind, task, len(group), *_verdicts(group)))
        elif kind is Kind.CHOICE:
            counted.append(Balance(kind, task, len(group), *_letters(group)))
        elif (kind, task) == (Kind.OPEN, Task.CLASSIFY):
            counted.append(Balance(kind, task, len(group), _labels(group), {}))
    return counted


def _verdicts(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, float]]:
    yes = sum(binary.gold_yes_no(row) for row in rows)
    return {"yes": yes, "no": len(rows) - yes}, dict.fromkeys(("yes", "no"), len(rows) / 2)


def _letters(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, float]]:
    """Rows that list their options in the problem are taken to have as many as the last letter that is ever right."""
    golds = [choice.gold_letters(row) for row in rows]
    counts = Counter(letter for gold in golds for letter in gold)
    most = ascii_uppercase.index(max(counts)) + 1
    expected: dict[str, float] = defaultdict(float)
    for row, gold in zip(rows, golds, strict=True):
        offered = len(row.options) or most
        for letter in ascii_uppercase[:offered]:
            expected[letter] += len(gold) / offered
    return {letter: counts[letter] for letter in sorted(expected)}, dict(sorted(expected.items()))


def _labels(rows: Sequence[Row]) -> dict[str, int]:
    settings = Rewards()
    counts = Counter(label for row in rows for label in classify.gold_labels(row, settings))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
