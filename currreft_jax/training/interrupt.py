"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from threading import Thread
from types import FrameType
from typing import Any

import jax

from currreft_jax.runtime.checkpoint import Checkpoints

AFTER_STEP = "saving after this step, or after the first one if none has begun, then stopping"
AT_PROGRESS = "stopping at the next line of progress; the answers so far are kept"

AGAIN = "SIGINT again: stopped at once, without saving; the same command goes on from the last checkpoint"


class Interrupt:
    """Listens for SIGTERM, SIGUSR1 and Ctrl-C; a second Ctrl-C ends the process.

    With several hosts JAX's runtime watches for SIGTERM and tells all of them; the other signals are passed on as
    SIGTERM. Where SIGINT is ignored, as in a background process of a script, it stays so: the script passes Ctrl-C on.

    A thread answers the signals. Python runs its handlers in the main thread and between two instructions, so that they
    would wait until the program that is being compiled is ready.

    Attributes:
        requested: whether a signal has come.
        response: what is said of the first one: when the run stops, and what it saves.
    """

    def __init__(self) -> None:
        self.requested, self.response = False, AFTER_STEP
        self._steps = 0
        self._several = jax.process_count() > 1
        handled = [signal.SIGUSR1] if self._several else [signal.SIGUSR1, signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            handled.append(signal.SIGINT)
        self._previous: dict[int, Any] = {number: signal.signal(number, self._request) for number in handled}
        self._received, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup)
        self._thread = Thread(target=self._answer, args=(handled,), name="signals", daemon=True)
        self._thread.start()

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._wakeup)
        self._thread.join()
        os.close(self._received)

    def after_step(self, checkpoints: Checkpoints) -> bool:
        """Returns true if the run should save and stop. Every host calls it once per step and gets the same answer."""
        self._steps += 1
        self.requested = self.requested or checkpoints.preempted(self._steps)
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._several:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = True

    def _answer(self, handled: Collection[int]) -> None:
        """Prints a line for each signal, and ends the process at the second Ctrl-C.

        Args:
            handled: signals to answer; Python writes the number of each one that comes to the pipe.
        """
        interrupted = False
        while numbers := os.read(self._received, 64):
            for number in filter(handled.__contains__, numbers):
                if number == signal.SIGINT and interrupted:
                    _print(AGAIN)
                    os._exit(128 + signal.SIGINT)
                interrupted |= number == signal.SIGINT
                again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
                _print(f"{signal.Signals(number).name}: {self.response}{again}")


def _print(text: str) -> None:
    os.write(sys.stderr.fileno(), f"\ntrain: {text}\n".encode())
