"""Budgets: of a ledger in calls and tokens, and of a job with several ledgers in calls."""

from __future__ import annotations

import asyncio
from threading import Lock


class BudgetSpent(Exception):
    """The next call would exceed the budget."""


class JobBudget:
    """Counts the calls of a job, whose endpoints have ledgers and threads of their own.

    Attributes:
        max_calls: calls at most.
        calls: calls so far.
    """

    def __init__(self, max_calls: int, calls: int) -> None:
        self.max_calls = max_calls
        self.calls = calls
        self._lock = Lock()

    def take(self) -> None:
        """Counts a call.

        Raises:
            BudgetSpent: the call would exceed the budget.
        """
        with self._lock:
            if self.calls >= self.max_calls:
                raise BudgetSpent(f"the job's budget of {self.max_calls:,} calls is spent: raise budget")
            self.calls += 1


class CallBudget:
    """Counts calls and tokens; a call's estimate is reserved before it goes out.

    Attributes:
        calls: calls so far.
        tokens: tokens so far, without those reserved.
    """

    def __init__(self, max_calls: float, max_tokens: float, calls: int, tokens: int, job: JobBudget | None = None):
        self.calls = calls
        self.tokens = tokens
        self._job = job
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._reserved: list[int] = []
        self._settled = asyncio.Condition()

    @property
    def is_spent(self) -> bool:
        """Whether no call is left, of the ledger or of the job."""
        return self.calls >= self._max_calls or (self._job is not None and self._job.calls >= self._job.max_calls)

    async def reserve(self, tokens: int) -> None:
        """Counts a call and reserves its estimate; waits while only reservations of other calls are in its way.

        Raises:
            BudgetSpent: the call would exceed the budget.
        """
        async with self._settled:
            while True:
                if self.calls >= self._max_calls or self.tokens + tokens > self._max_tokens:
                    raise BudgetSpent(
                        f"{self.calls:,} calls and {self.tokens:,} tokens are spent, the next call may take {tokens:,}"
                        f" tokens: raise max_calls, which is {self._max_calls:,},"
                        f" or max_tokens, which is {self._max_tokens:,}"
                    )
                if self.tokens + sum(self._reserved) + tokens <= self._max_tokens:
                    break
                await self._settled.wait()
            if self._job:
                self._job.take()
            self.calls += 1
            self._reserved.append(tokens)

    async def all_settled(self) -> None:
        """Waits until no call is in flight."""
        async with self._settled:
            await self._settled.wait_for(lambda: not self._reserved)

    async def settle(self, estimate: int, tokens: int) -> None:
        """Replaces a reservation by the tokens that the call took."""
        self._reserved.remove(estimate)
        self.tokens += tokens
        async with self._settled:
            self._settled.notify_all()
