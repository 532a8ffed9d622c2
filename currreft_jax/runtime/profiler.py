"""Traces of some steps, for xprof and Perfetto."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

PROFILE = "profile"


class ProfileSteps(NamedTuple):
    """Steps to trace.

    Attributes:
        first: the first one, from 1.
        last: the last one.
    """

    first: int
    last: int


def parse_profile_steps(text: str) -> ProfileSteps:
    """Parses `FROM:TO`.

    Raises:
        ValueError: it is malformed.
    """
    numbers = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text, re.ASCII)
    steps = ProfileSteps(*map(int, numbers.groups())) if numbers else ProfileSteps(1, 0)
    if steps.first > steps.last:
        raise ValueError("it takes FROM:TO, the first and the last step to trace, from 1, such as 11:12")
    return steps


class StepProfiler:
    """Traces the wanted steps of a stage; every host writes its own trace.

    The host waits for the devices before the first of these steps and after the last, so that the trace holds the
    programs of these steps and no others.
    """

    def __init__(self, stage_dir: Path, steps: ProfileSteps | None, say: Callable[[str], None]) -> None:
        """Makes a profiler.

        Args:
            stage_dir: folder of the stage; traces are written to `profile` in it.
            steps: steps to trace; None for none.
            say: prints a message.
        """
        several = jax.process_count() > 1
        self._folder = stage_dir / PROFILE / (f"host-{jax.process_index()}" if several else "")
        self._steps, self._say = steps, say
        self._running = self._traced = False

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the stage ended earlier
            self._stop()
        elif self._steps and not self._traced:
            self._say(f"none of the steps {self._steps.first} to {self._steps.last} was taken; there is no trace")

    def before_step(self, step: int, state: Any) -> None:
        """Starts the trace if this step is wanted.

        Args:
            step: step number.
            state: arrays that the step starts with.
        """
        if self._steps and not self._running and self._steps.first <= step <= self._steps.last:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's frames would slow the step, and hide the programs
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def after_step(self, step: int, state: Any) -> None:
        """Ends the trace after its last step.

        Args:
            step: step number.
            state: arrays that the step ends with.
        """
        if self._running and self._steps and step == self._steps.last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        self._running, self._traced = False, True
        jax.profiler.stop_trace()
        self._say(
            f"trace in {self._folder}: `pip install xprof`, then `xprof --logdir={self._folder}`; or open its"
            " *.trace.json.gz at https://ui.perfetto.dev"
        )
