"""Metrics of steps, left on the device until they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from currreft_jax.runtime.timing import CompilationCounter, StepTimer, peak_memory_gb
from currreft_jax.training.batches import Bucket
from currreft_jax.training.limits import NonFiniteError
from currreft_jax.training.losses import PER_TOKEN
from currreft_jax.training.mfu import Mfu
from currreft_jax.training.records import write_records


class _Step(NamedTuple):
    """A step whose metrics are not yet fetched."""

    number: int
    metrics: dict[str, Any]
    records: Callable[[], list[dict[str, Any]]]
    buckets: Sequence[Bucket]
    host_metrics: dict[str, float]
    seconds: Future[dict[str, float]]


class MetricsBuffer:
    """Collects metrics so that the device is asked for those of several steps at once.

    Attributes:
        timer: times the phases of the step in progress.
    """

    def __init__(self, stage_dir: Path, devices: Sequence[Any] = (), mfu: Mfu | None = None) -> None:
        """Makes an empty buffer.

        Args:
            stage_dir: folder of the stage.
            devices: devices whose memory is measured.
            mfu: utilization of a step; None if the devices' peak is unknown.
        """
        self._stage_dir, self._devices, self._mfu = stage_dir, devices, mfu
        self._steps: list[_Step] = []
        self._compilations = CompilationCounter()
        self.timer = StepTimer()

    def __enter__(self) -> MetricsBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.close()
        self._compilations.close()

    def restart_clock(self) -> None:
        """Leaves what has happened since the last step out of the next step's `step_time` and `compiles`."""
        self.timer.restart()
        self._compilations.take()

    def add(
        self,
        step: int,
        metrics: dict[str, Any],
        records: Callable[[], list[dict[str, Any]]],
        buckets: Sequence[Bucket] = (),
    ) -> None:
        """Ends a step; it lasts until its metrics are on the device.

        Args:
            step: step number.
            metrics: numbers, some of them on the device.
            records: makes the records of its rows.
            buckets: static shapes of its microbatches.
        """
        seconds = self.timer.finish(metrics)
        host_metrics = {"compiles": float(self._compilations.take())}
        if (peak := peak_memory_gb(self._devices)) is not None:
            host_metrics["memory/peak_gb"] = peak
        self._steps.append(_Step(step, metrics, records, buckets, host_metrics, seconds))

    def flush(self) -> tuple[list[dict[str, float]], NonFiniteError | None]:
        """Fetches the metrics of all steps since the last flush.

        Returns:
            A line of metrics for each step; and an error if a loss or gradient norm is not finite: the lines end with
            the step before it, and the records of that step are in the file that the error names.
        """
        fetched = jax.device_get([step.metrics for step in self._steps])
        lines = []
        for step, metrics in zip(self._steps, fetched, strict=True):
            if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
                path = write_records(self._stage_dir / "nonfinite" / f"{step.number}.jsonl", step.records())
                return lines, NonFiniteError(
                    f"step {step.number}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. Its rows and"
                    f" completions are in {path}; lower the learning rate, or look at those rows. Checkpoints are of"
                    " earlier steps"
                )
            lines.append({"step": step.number, **self._line(step, metrics)})
        self._steps = []
        self.restart_clock()
        return lines, None

    def _line(self, step: _Step, metrics: dict[str, Any]) -> dict[str, float]:
        """Returns a step's metrics, with means over tokens and with its costs."""
        passes = metrics.pop("passes")
        tokens = max(1.0, metrics["num_loss_tokens"] * passes)
        means = {name: metrics[name] / tokens for name in PER_TOKEN if name in metrics}
        values = {name: float(value) for name, value in {**metrics, **means}.items()}
        seconds = step.seconds.result()
        costs = {**step.host_metrics, **seconds, **throughput(values, passes, seconds)}
        if self._mfu:
            costs["mfu"] = self._mfu(step.buckets, values.get("num_completion_tokens", 0.0), seconds["step_time"])
        return {**values, **costs}


def throughput(metrics: Mapping[str, float], passes: float, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns tokens per second: of the whole step, and of sampling and updating alone where these were timed.

    Args:
        metrics: the numbers of tokens of the step.
        passes: updates that see each token.
        seconds: from `StepTimer.finish`.
    """
    rates = {"tokens_per_second": metrics["num_step_tokens"] / seconds["step_time"]}
    if "time/decode" in seconds:
        sampling = seconds["time/prefix"] + seconds["time/decode"]
        rates["tokens_per_second/sampled"] = metrics["num_completion_tokens"] / sampling
    if "time/update" in seconds:
        rates["tokens_per_second/trained"] = passes * metrics["num_step_tokens"] / seconds["time/update"]
    return rates
