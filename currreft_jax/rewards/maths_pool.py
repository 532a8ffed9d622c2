"""Worker processes that compare expressions by math-verify and can be killed."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from currreft_jax.config import Maths
from currreft_jax.rewards.maths import Comparison

_SCRIPT = Path(__file__).with_name("maths_worker.py")
_START_SECONDS = 120.0
_LOG = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of a comparison; the values are the worker's words."""

    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    UNPARSABLE = "unparsable"
    OVER_LIMIT = "over_limit"
    BAD_GOLD = "bad_gold"


class MathsPoolError(RuntimeError):
    """The workers cannot run here."""


class MathsPool:
    """Processes that run math-verify, from opening to closing.

    They are started by exec, never forked from this process, so JAX's threads do not matter to them. Every comparison
    has a process of its own with limits on CPU time and memory: whatever an answer does, it costs that answer alone,
    and its verdict depends neither on its neighbours nor on how busy the machine is.
    """

    def __init__(self, limits: Maths):
        self._limits = limits
        self._workers = [_Worker(limits) for _ in range(limits.workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        """The outcome of each; equal comparisons are made once.

        Raises:
            MathsPoolError: when a worker does not start, or the pool is closed.
        """
        questions = list(dict.fromkeys(comparisons))
        outcomes = dict(zip(questions, self._ask(questions), strict=True))
        return [outcomes[question] for question in comparisons]

    def readable(self, golds: Sequence[str]) -> list[bool]:
        """Whether math-verify can read each gold answer, within the limits."""
        return [outcome is Outcome.EQUAL for outcome in self.compare([Comparison(gold, None) for gold in golds])]

    def _ask(self, questions: list[Comparison]) -> list[Outcome]:
        if not self._workers:
            raise MathsPoolError("this pool of maths workers is closed; open another")
        outcomes: dict[int, Outcome] = {}
        waiting = deque(enumerate(questions))
        asked: dict[_Worker, int] = {}
        try:
            while waiting or asked:
                for worker in self._workers:
                    if waiting and worker not in asked:
                        asked[worker], question = waiting.popleft()
                        worker.ask(question)
                patience = min(worker.deadline for worker in asked) - time.monotonic()
                heard, _, _ = select.select(list(asked), [], [], max(patience, 0.0))
                for worker in list(asked):
                    outcome = worker.hear() if worker in heard else worker.overdue()
                    if outcome:
                        outcomes[asked.pop(worker)] = outcome
        finally:  # an interrupted call leaves no reply for the next one to hear
            for worker in asked:
                worker.restart()
        return [outcomes[index] for index in range(len(questions))]


class _Worker:
    """One process, restarted when it dies."""

    def __init__(self, limits: Maths):
        self._limits = limits
        self._start()

    def fileno(self) -> int:
        """What `select` waits for."""
        return self._replies

    def ask(self, question: Comparison) -> None:
        """Send a question; its outcome is to be heard before the next one."""
        line = f"{json.dumps(asdict(question))}\n".encode()
        self._wait_until_ready()
        try:
            os.write(self._requests, line)
        except BrokenPipeError:  # killed while it was idle
            self.restart()
            self._wait_until_ready()
            os.write(self._requests, line)
        self._gold_read, self._text = False, b""
        self.deadline = time.monotonic() + self._limits.wall_seconds

    def hear(self) -> Outcome | None:
        """The outcome, or None while there is none yet."""
        data = os.read(self._replies, 4096)
        if not data:
            return self._lost()
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            if line == b"gold":
                self._gold_read = True
            else:
                outcome = Outcome(line.decode())
                return outcome if self._gold_read else Outcome.BAD_GOLD
        return None

    def overdue(self) -> Outcome | None:
        """The outcome of a comparison beyond the wall-clock limit, None before."""
        if time.monotonic() <= self.deadline:
            return None
        _LOG.warning(
            "stopped a maths comparison after %s s on the clock: CPU time had not run out", self._limits.wall_seconds
        )
        return self._lost()

    def kill(self) -> None:
        """End the process and the comparison it runs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        os.close(self._replies)
        os.close(self._errors)

    def restart(self) -> None:
        """Start afresh, whatever the process is doing."""
        self.kill()
        self._start()

    def _lost(self) -> Outcome:
        self.restart()
        return Outcome.OVER_LIMIT

    def _start(self) -> None:
        self._errors, errors = os.pipe()
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), str(self._limits.cpu_seconds), str(self._limits.memory_mb << 20)],
            stdin=requests,
            stdout=replies,
            stderr=errors,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # the order of a set may change what sympy does
            start_new_session=True,
        )
        os.close(requests)
        os.close(replies)
        os.close(errors)
        self._ready = False

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        heard, _, _ = select.select([self._replies], [], [], _START_SECONDS)
        if not heard or os.read(self._replies, len(b"ready\n")) != b"ready\n":
            os.killpg(self._process.pid, signal.SIGKILL)
            errors = os.read(self._errors, 1 << 16).decode(errors="replace").strip().rpartition("\n")[2]
            raise MathsPoolError(
                f"the process that runs math-verify did not start: {errors or 'it wrote nothing'}; "
                f"if it is not installed, `{sys.executable} -m pip install math-verify`"
            )
        self._ready = True
