"""How many rows of a source are answered next: what its quota is expected to need. Loads no JAX."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from currreft_jax.rejection.candidates import CandidateSource
from currreft_jax.rejection.records import Records
from currreft_jax.rejection.selection import KeepRule, best_answer, judged_answers


class QuotaProgress:
    """The rows of a source that are answered, wave after wave and round after round, until its quota is filled.

    A round gives a group of answers to every row that has no answer to keep yet. What is next depends on the judgements
    of the waves before it alone, so that a job that was stopped asks for the same rows in the same waves.

    Attributes:
        source: the source.
        round_index: number of the round.
        num_answered: rows of the round so far.
        passed: rows with an answer to keep.
    """

    def __init__(self, source: CandidateSource, num_rounds: int) -> None:
        self.source = source
        self.round_index = 0
        self.num_answered = 0
        self.passed: set[str] = set()
        self._num_rounds = num_rounds
        self._todo = list(source.places)
        self._passed_before = 0  # the round

    @property
    def num_rows(self) -> int:
        """The number of rows of the round."""
        return len(self._todo)

    @property
    def is_filled(self) -> bool:
        """True if the quota is filled; False without one."""
        return 0 < self.source.settings.quota <= len(self.passed)

    def next_rows(self, records: Records) -> list[str]:
        """Returns the rows of the next wave, in their order; none if the quota is filled or no row is left.

        They are as many as fill the quota at the acceptance of the round so far, and all without a quota. Until a
        round has answers every row is expected to pass. The acceptance of a few rows is known poorly: no wave doubles
        the rows of its round, unless more kept rows than that are missing.
        """
        if self.is_filled:
            return []
        if self.num_answered == len(self._todo):
            if self.round_index + 1 == self._num_rounds:
                return []
            self._begin_round(records)
        if not self.source.settings.quota:
            return self._todo[self.num_answered :]
        accepted = len(self.passed) - self._passed_before
        missing = self.source.settings.quota - len(self.passed)
        expected = ceil(missing * (self.num_answered + 1) / (accepted + 1))
        return self._todo[self.num_answered :][: min(expected, max(missing, self.num_answered))]

    def count(self, rows: Iterable[str], records: Records, rule: KeepRule) -> None:
        """Counts the judged rows of a wave."""
        for row in rows:
            self.num_answered += 1
            if best_answer(judged_answers(records, self.source.settings.name, row)[self.round_index], rule):
                self.passed.add(row)

    def _begin_round(self, records: Records) -> None:
        self.round_index += 1
        self.num_answered, self._passed_before = 0, len(self.passed)
        failed = {row for row in self._todo if self._has_failed(row, records)}
        self._todo = [row for row in self._todo if row not in self.passed and row not in failed]

    def _has_failed(self, row: str, records: Records) -> bool:
        groups = records.groups[self.source.settings.name, row]
        return any(group.failure for group in groups[: self.round_index])
