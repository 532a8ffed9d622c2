"""Costs of a step, measured without making the device or the training loop wait: seconds, compilations, memory."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import current_thread, main_thread
from typing import Any, ParamSpec, TypeVar

import jax

from currreft_jax.config.wording import plural

_GB = 10**9
_SECONDS_BETWEEN_LINES = 10.0
_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class StepTimer:
    """Times the phases of a step on the devices.

    A dispatched program returns before it has run. A thread waits for the results of each phase and notes when they are
    ready, as a CUDA event would; the loop goes on dispatching. A phase begins when the phase before it is ready, or at
    the latest `start`, whichever is later. The phases of a step are thus disjoint, and within its `step_time`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "timer")
        self._phases: dict[str, Future[float]] = {}
        self._host_seconds: dict[str, float] = {}
        self._ready = self._step_ready = 0.0  # belong to the thread
        self.restart()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def restart(self) -> None:
        """Leaves the time since the last step out of the next step's `step_time`."""
        self._restarted = time.perf_counter()
        self.start()

    def start(self) -> None:
        """Marks that the next phase is about to be dispatched: the devices may have been idle until now."""
        self._started = time.perf_counter()

    def record(self, phase: str, results: Any) -> None:
        """Notes, in the thread, when the results of a phase's last programs are ready; without arrays does nothing.

        Args:
            phase: name of the metric below `time/`.
            results: a tree of arrays, which must not be donated later.
        """
        if jax.tree.leaves(results):
            self._phases[f"time/{phase}"] = self._thread.submit(self._phase_seconds, self._started, results)

    def call(
        self, phase: str, function: Callable[_Args, _Result], /, *args: _Args.args, **kwargs: _Args.kwargs
    ) -> _Result:
        """Calls a function of the host, and adds its seconds to the step in progress, or else to the next one."""
        begun = time.perf_counter()
        result = function(*args, **kwargs)
        self._host_seconds[f"time/{phase}"] = time.perf_counter() - begun
        return result

    def finish(self, results: Any) -> Future[dict[str, float]]:
        """Ends a step, which lasts until `results` are ready; returns its `step_time` and `time/PHASE` in seconds."""
        phases, self._phases = self._phases, {}
        seconds, self._host_seconds = self._host_seconds, {}
        return self._thread.submit(self._step_seconds, self._restarted, results, phases, seconds)

    def _phase_seconds(self, started: float, results: Any) -> float:
        begun = max(started, self._ready)
        jax.block_until_ready(results)
        self._ready = time.perf_counter()
        return self._ready - begun

    def _step_seconds(
        self, restarted: float, results: Any, phases: dict[str, Future[float]], seconds: dict[str, float]
    ) -> dict[str, float]:
        begun = max(restarted, self._step_ready)
        jax.block_until_ready(results)
        self._ready = self._step_ready = time.perf_counter()
        return {
            "step_time": self._step_ready - begun,
            **{name: phase.result() for name, phase in phases.items()},
            **seconds,
        }


class CompilationCounter:
    """Counts the programs that this process compiles, or loads from JAX's compilation cache."""

    def __init__(self, on_program: Callable[[], None] | None = None) -> None:
        """Begins to count.

        Args:
            on_program: called when a program is ready.
        """
        self._count, self._on_program = 0, on_program
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Ends the counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def take(self) -> int:
        """Returns the number of programs since the last call."""
        count, self._count = self._count, 0
        return count

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event != _BACKEND_COMPILE:
            return
        self._count += 1
        if self._on_program:
            self._on_program()


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: jaxlib may drop an exception that is raised while it compiles, or crash."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def log_compilations(
    log: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> Iterator[Callable[[], str]]:
    """Logs how many programs were compiled, at most every ten seconds; Ctrl-C ends the process meanwhile.

    Args:
        log: called with each line.
        clock: seconds.

    Yields:
        The function that says how many programs there are, and how long they took.
    """
    count, begun = 0, clock()
    logged = begun

    def describe() -> str:
        return f"{plural(count, 'program')} in {clock() - begun:.0f} s"

    def add() -> None:
        nonlocal count, logged
        count += 1
        if clock() - logged >= _SECONDS_BETWEEN_LINES:
            logged = clock()
            log(f"compiling; {describe()} so far")

    with closing(CompilationCounter(add)), ended_by_ctrl_c():
        yield describe


def peak_memory_gb(devices: Sequence[Any]) -> float | None:
    """Returns the highest peak of memory in use since the process began, in GB of 10^9 bytes.

    Args:
        devices: of these, this host's are asked.

    Returns:
        None on devices that do not report it, such as CPUs.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in own]
    known = [peak for peak in peaks if peak is not None]
    return max(known) / _GB if known else None


def memory_limit(devices: Sequence[Any]) -> int | None:
    """Returns the bytes available to arrays on each device.

    Args:
        devices: of these, this host's are asked.

    Returns:
        None on devices that do not report it, such as CPUs.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    return min(
        (stats["bytes_limit"] for device in own if "bytes_limit" in (stats := device.memory_stats() or {})),
        default=None,
    )
