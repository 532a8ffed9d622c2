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
from currreft_jax.runtime.cores import own_cores, share_of_cores

MAX_WORKERS = 32  # where their number follows the machine: each holds 100 MB
_SCRIPT = Path(__file__).with_name("maths_worker.py")
_START_SECONDS = 120.0
_LOG = logging.getLogger(__name__)


class Outcome(Enum):
    """Result of a comparison; the values are the worker's replies."""

    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    UNPARSABLE = "unparsable"
    OVER_LIMIT = "over_limit"
    BAD_GOLD = "bad_gold"


class MathsPoolError(RuntimeError):
    """The workers cannot run on this machine."""


class MathsPool:
    """A pool of processes that run math-verify, to be used as a context manager.

    Processes are started by exec and never forked from this one, which JAX's threads would forbid. Every comparison
    runs in a child of its own with limits on CPU time and memory: a hostile answer costs its own verdict only, and no
    verdict depends on other comparisons or on the machine's load.
    """

    def __init__(self, limits: Maths, cores: int | None = None):
        """Starts the processes.

        Args:
            limits: limits of a comparison; where `workers` is 0 each core has a process, up to `MAX_WORKERS`.
            cores: number of cores; by default those that this process may use.
        """
        self._limits = limits
        workers = limits.workers or min(MAX_WORKERS, cores or share_of_cores(own_cores(), [own_cores()]))
        self._workers = [_Worker(limits) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the processes."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        """Returns the outcome of each comparison; equal ones run once.

        Raises:
            MathsPoolError: a worker does not start, or the pool is closed.
        """
        unique = list(dict.fromkeys(comparisons))
        outcomes = dict(zip(unique, self._run(unique), strict=True))
        return [outcomes[comparison] for comparison in comparisons]

    def can_parse(self, golds: Sequence[str]) -> list[bool]:
        """Returns for each gold answer whether math-verify can parse it within the limits."""
        return [outcome is Outcome.EQUAL for outcome in self.compare([Comparison(gold, None) for gold in golds])]

    def _run(self, comparisons: list[Comparison]) -> list[Outcome]:
        if not self._workers:
            raise MathsPoolError("this pool of maths workers is closed; open another")
        outcomes: dict[int, Outcome] = {}
        waiting = deque(enumerate(comparisons))
        running: dict[_Worker, int] = {}
        try:
            while waiting or running:
                for worker in self._workers:
                    if waiting and worker not in running:
                        running[worker], comparison = waiting.popleft()
                        worker.send(comparison)
                timeout = min(worker.deadline for worker in running) - time.monotonic()
                readable, _, _ = select.select(list(running), [], [], max(timeout, 0.0))
                for worker in list(running):
                    outcome = worker.receive() if worker in readable else worker.check_deadline()
                    if outcome:
                        outcomes[running.pop(worker)] = outcome
        finally:  # after an interrupt: no later call may receive a reply of this one
            for worker in running:
                worker.restart()
        return [outcomes[index] for index in range(len(comparisons))]


class _Worker:
    """One worker process, restarted when it dies."""

    def __init__(self, limits: Maths):
        self._limits = limits
        self._start()

    def fileno(self) -> int:
        """Returns the pipe of replies, for `select`."""
        return self._replies

    def send(self, comparison: Comparison) -> None:
        """Sends a comparison; its outcome must be received before the next one is sent."""
        line = f"{json.dumps(asdict(comparison))}\n".encode()
        self._wait_until_ready()
        try:
            os.write(self._requests, line)
        except BrokenPipeError:  # killed while it was idle
            self.restart()
            self._wait_until_ready()
            os.write(self._requests, line)
        self._gold_parsed, self._buffer = False, b""
        self.deadline = time.monotonic() + self._limits.wall_seconds

    def receive(self) -> Outcome | None:
        """Returns the outcome, or None if it has not arrived in full."""
        data = os.read(self._replies, 4096)
        if not data:
            return self._give_up()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line == b"gold":
                self._gold_parsed = True
            else:
                outcome = Outcome(line.decode())
                return outcome if self._gold_parsed else Outcome.BAD_GOLD
        return None

    def check_deadline(self) -> Outcome | None:
        """Stops a comparison beyond the wall-clock limit and return its outcome; None before."""
        if time.monotonic() <= self.deadline:
            return None
        _LOG.warning(
            "stopped a maths comparison after %s s on the clock: CPU time had not run out", self._limits.wall_seconds
        )
        return self._give_up()

    def kill(self) -> None:
        """Kills the process and the comparison it runs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        os.close(self._replies)
        os.close(self._errors)

    def restart(self) -> None:
        """Replaces the process, whatever it is doing."""
        self.kill()
        self._start()

    def _give_up(self) -> Outcome:
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
        readable, _, _ = select.select([self._replies], [], [], _START_SECONDS)
        if not readable or os.read(self._replies, len(b"ready\n")) != b"ready\n":
            os.killpg(self._process.pid, signal.SIGKILL)
            errors = os.read(self._errors, 1 << 16).decode(errors="replace").strip().rpartition("\n")[2]
            raise MathsPoolError(
                f"the process that runs math-verify did not start: {errors or 'it wrote nothing'}; "
                f"if it is not installed, `{sys.executable} -m pip install math-verify`"
            )
        self._ready = True
