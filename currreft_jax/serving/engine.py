"""The engine: requests of any thread, completed by a sampler in the thread that calls `Engine.run`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from currreft_jax.sampling.continuous import SampledGroup, SampledTokens
from currreft_jax.serving.chat_request import ChatRequest
from currreft_jax.serving.choices import ChoiceDelta, GrowingChoice, TokenDecoder
from currreft_jax.serving.errors import ApiError
from currreft_jax.structs import Prompt, TokenSampling

_RETRY_AFTER_S = 1
_IDLE_WAIT_S = 0.2  # an idle engine looks for the end of the program so often


class StreamSampler(Protocol):
    """Samples one completion of each prompt: `sample_stream` with a model."""

    def __call__(
        self,
        prompts: Iterator[Prompt | None],
        token_sampling: Callable[[Prompt], TokenSampling],
        on_tokens: Callable[[SampledTokens], bool],
    ) -> Iterator[list[SampledGroup]]:
        """Yields groups as they end; see `sample_stream` for the arguments."""
        ...


@dataclass(eq=False, slots=True)
class ChatJob:
    """A request that is waiting or running.

    Attributes:
        request: the request.
        prompt: its prompt, of a name that no other has.
        notify: called with each delta, or with the error that ends the job, in the engine's thread.
        cancelled: whether nobody waits for the rest.
    """

    request: ChatRequest
    prompt: Prompt
    notify: Callable[[ChoiceDelta | ApiError], object]
    cancelled: bool = False


@dataclass(eq=False, slots=True)
class _Row:
    """A choice of a job, which takes a slot."""

    job: ChatJob
    choice: GrowingChoice
    prompt: Prompt


@dataclass(slots=True)
class Engine:
    """Queues requests, and completes them.

    Attributes:
        decoder: decodes tokens.
        max_waiting: completions that may wait for a slot.
        draining: whether new requests are refused, and `run` ends after the last one.
    """

    decoder: TokenDecoder
    max_waiting: int
    draining: bool = False
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _waiting: deque[_Row] = field(default_factory=deque)
    _running: dict[int, _Row] = field(default_factory=dict)
    _sampling: dict[str, TokenSampling] = field(default_factory=dict)

    def submit(self, job: ChatJob) -> None:
        """Queues the choices of a job.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        request = job.request
        rows = [
            _Row(
                job,
                GrowingChoice(index, self.decoder, request.max_tokens, request.stops),
                replace(job.prompt, first_sample=index),
            )
            for index in range(request.num_choices)
        ]
        with self._condition:
            if self.draining:
                raise ApiError(503, "the server is stopping", retry_after_s=_RETRY_AFTER_S)
            if len(rows) > self.max_waiting:
                raise ApiError(400, f"n = {len(rows)}, but {self.max_waiting} completions may wait here: lower n", "n")
            if len(self._waiting) + len(rows) > self.max_waiting:
                raise ApiError(429, "the queue is full: try again later", retry_after_s=_RETRY_AFTER_S)
            self._sampling[job.prompt.name] = request.sampling
            self._waiting += rows
            self._condition.notify()

    def cancel(self, job: ChatJob) -> None:
        """Frees the slots of a job within a segment, and its places in the queue at once."""
        with self._condition:
            job.cancelled = True
            self._waiting = deque(row for row in self._waiting if row.job is not job)
            self._forget(job)

    def drain(self) -> None:
        """Refuses new requests; `run` returns when the others have ended. Callable in a signal handler."""
        self.draining = True

    def run(self, sampler: StreamSampler) -> None:
        """Completes requests until the engine is drained. An exception of the sampler ends all jobs, and is raised."""
        try:
            for groups in sampler(self._prompts(), lambda prompt: self._sampling[prompt.name], self._grow):
                for group in groups:
                    self._finish(group)
        finally:
            self.drain()
            with self._condition:
                left = {row.job for row in (*self._waiting, *self._running.values()) if not row.job.cancelled}
                self._waiting.clear()
            for job in left:
                job.notify(ApiError(500, "the model has stopped; see the server's log"))

    def _prompts(self) -> Iterator[Prompt | None]:
        """Yields the next prompt, or None if none waits; an idle engine blocks."""
        number = 0
        while True:
            with self._condition:
                while not (self._waiting or self._running or self.draining):
                    self._condition.wait(_IDLE_WAIT_S)
                if not self._waiting and not self._running:
                    return
                row = self._waiting.popleft() if self._waiting else None
                if row:
                    self._running[number] = row
                    number += 1
            yield row and row.prompt

    def _grow(self, sampled: SampledTokens) -> bool:
        """Appends tokens to a choice; returns whether more are wanted."""
        row = self._running[sampled.number]
        if not row.job.cancelled:
            self._notify(row, sampled.tokens[0], sampled.logprobs[0])
        if row.job.cancelled or row.choice.finish_reason:
            self._remove(sampled.number)
            return False
        return True

    def _finish(self, group: SampledGroup) -> None:
        row = self._remove(group.number)
        known = row.choice.num_tokens
        if not row.job.cancelled:
            self._notify(row, group.tokens[0][known:], group.logprobs[0][known:])

    def _notify(self, row: _Row, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        delta = row.choice.extend(tokens.tolist(), logprobs.tolist())
        if delta.tokens or delta.finish_reason:
            row.job.notify(delta)

    def _remove(self, number: int) -> _Row:
        with self._condition:
            row = self._running.pop(number)
            self._forget(row.job)
        return row

    def _forget(self, job: ChatJob) -> None:
        """Drops the sampling settings of a job without rows."""
        if not any(row.job is job for row in (*self._waiting, *self._running.values())):
            self._sampling.pop(job.prompt.name, None)
