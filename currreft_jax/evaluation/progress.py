"""Progress of an evaluation with the time left. Loads no JAX."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

_SECONDS = 10.0  # between two lines
_MEASURED = 1.0  # seconds from which on a rate is told


class Progress:
    """Counts answered rows, and logs a line every ten seconds and at the end of each part.

    The rate is that of the rows after the first one, which waits for all that an answer needs once.
    """

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
        self._logged = clock()
        self._last: float | None = None  # when a row was answered last; None before the first one of a model
        self._parts: dict[str, tuple[int, int]] = {}  # rows, and those of them that are answered

    def begin(self, part: str, rows: int, done: int) -> None:
        """Begins a part, of which an earlier run has answered `done` rows; time before its first answer is left out."""
        self._parts[part] = rows, done
        self._done += done
        self._last = None

    def add(self, part: str, rows: int = 1) -> None:
        """Counts rows of a part that were answered since the last call."""
        now = self._clock()
        if self._last is not None:
            self._busy, self._answered = self._busy + now - self._last, self._answered + rows
        self._last, self._done = now, self._done + rows
        total, done = self._parts[part]
        self._parts[part] = total, done + rows
        if now - self._logged >= _SECONDS or done + rows == total:
            self._logged = now
            self._log(f"{part}: {done + rows}/{total} rows{self._describe_rate()}")

    def _describe_rate(self) -> str:
        """Returns rows a second and the time left; nothing before they are known."""
        if self._busy < _MEASURED:
            return ""
        rate = self._answered / self._busy
        left = timedelta(seconds=round((self._total - self._done) / rate))
        return f", {rate:.1f} rows/s, {left} left in all"
