"""Progress of an evaluation with the time left. Loads no JAX."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

_SECONDS = 10.0  # between two lines


class Progress:
    """Counts answered rows, and logs a line every ten seconds and at the end of each part."""

    def __init__(self, total: int, log: Callable[[str], None], clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts the clock.

        Args:
            total: number of rows of all parts.
            log: called with each line.
            clock: seconds.
        """
        self._total, self._log, self._clock = total, log, clock
        self._done = self._answered = 0
        self._busy = 0.0  # seconds in which `self._answered` rows were answered
        self._logged = self._last = clock()
        self._parts: dict[str, tuple[int, int]] = {}  # rows, and those of them that are answered

    def begin(self, part: str, rows: int, done: int) -> None:
        """Begins a part, of which an earlier run has answered `done` rows; time before it does not count."""
        self._parts[part] = rows, done
        self._done += done
        self._last = self._clock()

    def add(self, part: str, rows: int = 1) -> None:
        """Counts rows of a part that were answered since the last call."""
        now = self._clock()
        self._busy, self._last = self._busy + now - self._last, now
        self._done, self._answered = self._done + rows, self._answered + rows
        total, done = self._parts[part]
        self._parts[part] = total, done + rows
        if now - self._logged >= _SECONDS or done + rows == total:
            self._logged = now
            rate = self._answered / max(self._busy, 1e-9)
            left = timedelta(seconds=round((self._total - self._done) / rate))
            self._log(f"{part}: {done + rows}/{total} rows, {rate:.1f} rows/s, {left} left in all")
