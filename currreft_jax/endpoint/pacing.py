"""When calls go out: adaptive concurrency, rates, back-off and the pauses that a server asks for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_EPISODE_S = 15.0  # rate limits within this time are one episode, and shrink the limit once
_GROWTH, _SHRINKAGE = 0.05, 0.8


class AdaptiveConcurrency:
    """A limit of calls in flight that follows the server's rate limits (AIMD); an asynchronous context manager.

    It doubles after every round of first-time successes until the first rate limit, then grows by 5% a round; a rate
    limit shrinks it by a fifth. Other errors start the round again.

    Attributes:
        limit: calls in flight at most; its whole part counts.
        active: calls in flight.
    """

    def __init__(self, initial: int, maximum: int):
        self.limit = float(initial)
        self.active = 0
        self._maximum = maximum
        self._successes = 0
        self._doubling = True
        self._shrunk_at = -_EPISODE_S
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.active < int(self.limit))
            self.active += 1

    async def __aexit__(self, *_: object) -> None:
        self.active -= 1
        async with self._changed:
            self._changed.notify_all()

    def succeeded(self) -> None:
        """Counts a call that was answered at the first attempt."""
        self._successes += 1
        if self._successes >= int(self.limit):
            self._successes = 0
            growth = self.limit if self._doubling else max(1.0, _GROWTH * self.limit)
            self.limit = min(float(self._maximum), self.limit + growth)

    def erred(self) -> None:
        """Counts an error that is no rate limit: the limit does not grow this round."""
        self._successes = 0

    def rate_limited(self, now: float) -> None:
        """Counts a rate limit.

        Args:
            now: seconds on any clock that does not go back.
        """
        self._successes = 0
        self._doubling = False
        if now - self._shrunk_at >= _EPISODE_S:
            self._shrunk_at = now
            self.limit = max(1.0, _SHRINKAGE * self.limit)


class Pace:
    """Spreads calls evenly over a minute, and holds all of them while the server asks for a pause."""

    def __init__(self, calls_per_minute: float, tokens_per_minute: float):
        self._calls_per_s = calls_per_minute / 60
        self._tokens_per_s = tokens_per_minute / 60
        self._next_call = 0.0
        self._paused_until = 0.0

    def reserve(self, tokens: int, now: float) -> float:
        """Returns the seconds to wait before the next call, of `tokens` tokens, and takes its place."""
        start = max(now, self._next_call)
        self._next_call = start + max(1 / self._calls_per_s, tokens / self._tokens_per_s)
        return start - now

    def pause(self, seconds: float, now: float) -> None:
        """Holds all calls for some seconds."""
        self._paused_until = max(self._paused_until, now + seconds)

    async def wait(self, tokens: int) -> None:
        """Waits until a call of `tokens` tokens may go out."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.reserve(tokens, loop.time()))
        while (seconds := self._paused_until - loop.time()) > 0:
            # Spread over a tenth more, so that not all calls end the pause together.
            await asyncio.sleep(seconds * random.uniform(1.0, 1.1))


def backoff_s(attempt: int, base_s: float, max_s: float) -> float:
    """Draws the pause after the n-th attempt, uniform in 0 to base_s * 2^(n - 1) ("full jitter"), at most max_s."""
    return random.uniform(0.0, min(max_s, base_s * 2.0 ** (attempt - 1)))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Returns the pause that a response asks for, in seconds; None if it names none that can be read.

    `retry-after-ms` goes before `Retry-After`, which is a number of seconds or a date.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
