"""Counts of the completions for which rewards of one's own failed."""

from collections import Counter

import numpy as np

from currreft_jax.config.wording import plural
from currreft_jax.rewards.registry import is_own
from currreft_jax.structs import Scores


class FailureCounts:
    """Counts this host's completions that rewards of one's own have scored, and those for which they failed."""

    def __init__(self) -> None:
        self._scored: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()  # by reward and location
        self._first_problems: dict[tuple[str, str], str] = {}

    def add(self, scores: Scores) -> None:
        """Counts the completions of a batch."""
        for name, values in scores.parts.items():
            if is_own(name):
                self._scored[name] += int(np.count_nonzero(~np.isnan(values)))
        for failure in scores.failures:
            key = failure.reward, failure.location
            self._failed[key] += 1
            self._first_problems.setdefault(key, failure.problem)

    def summary(self) -> list[str]:
        """Returns a line for each reward that failed, with the most frequent place and its first problem."""
        lines = []
        for name, scored in self._scored.items():
            failed = Counter({key: count for key, count in self._failed.items() if key[0] == name})
            if not failed:
                continue
            key, count = failed.most_common(1)[0]
            where = f" at {key[1]}" if key[1] else ""
            lines.append(
                f"reward {name!r} failed and counts as 0 for {failed.total()} of {plural(scored, 'completion')}:"
                f" {plural(count, 'time')}{where}, first with {self._first_problems[key]}"
            )
        return lines
