"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import jax

from currreft_jax.runtime.checkpoint import Checkpoints


class Interrupt:
    """Listens for SIGTERM, SIGUSR1 and a first Ctrl-C.

    With several hosts JAX's runtime watches for SIGTERM and tells all of them; the other signals are passed on as
    SIGTERM. Where SIGINT is ignored, as in a background process of a script, it stays so: the script passes Ctrl-C on.

    Attributes:
        requested: whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._steps = 0
        self._several = jax.process_count() > 1
        handled = [signal.SIGUSR1] if self._several else [signal.SIGUSR1, signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            handled.append(signal.SIGINT)
        self._previous: dict[int, Any] = {number: signal.signal(number, self._request) for number in handled}

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after_step(self, checkpoints: Checkpoints) -> bool:
        """Returns true if the run should save and stop. Every host calls it once per step and gets the same answer."""
        self._steps += 1
        self.requested = self.requested or checkpoints.preempted(self._steps)
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        again = ""
        if number == signal.SIGINT:
            # With several hosts an exception would first wait for the others.
            signal.signal(number, signal.SIG_DFL if self._several else self._previous[number])
            again = "; press Ctrl-C again to stop at once"
        text = f"\ntrain: {signal.Signals(number).name}: saving after this step, then stopping{again}\n"
        os.write(sys.stderr.fileno(), text.encode())
        if self._several:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = True
