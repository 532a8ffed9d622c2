"""Metrics of steps, left on the device until they are written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from currreft_jax.training.limits import NonFiniteError
from currreft_jax.training.losses import PER_TOKEN
from currreft_jax.training.records import write_records


class MetricsBuffer:
    """Collects metrics so that the device is asked for those of several steps at once."""

    def __init__(self, stage_dir: Path) -> None:
        self._stage_dir = stage_dir
        self._steps: list[tuple[int, dict[str, Any], Callable[[], list[dict[str, Any]]]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last flush out of `step_time`."""
        self._started = time.perf_counter()

    def add(self, step: int, metrics: dict[str, Any], records: Callable[[], list[dict[str, Any]]]) -> None:
        """Adds a step with its metrics and the maker of its records."""
        self._steps.append((step, metrics, records))

    def flush(self) -> tuple[list[dict[str, float]], NonFiniteError | None]:
        """Fetches the metrics of all steps since the last flush; `step_time` is their mean.

        Returns:
            A line of metrics for each step; and an error if a loss or gradient norm is not finite: the lines end with
            the step before it, and the records of that step are in the file that the error names.
        """
        fetched = jax.device_get([metrics for _, metrics, _ in self._steps])
        seconds = (time.perf_counter() - self._started) / len(fetched)
        lines = []
        for (step, _, records), metrics in zip(self._steps, fetched, strict=True):
            if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
                path = write_records(self._stage_dir / "nonfinite" / f"{step}.jsonl", records())
                return lines, NonFiniteError(
                    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. Its rows and"
                    f" completions are in {path}; lower the learning rate, or look at those rows. Checkpoints are of"
                    " earlier steps"
                )
            tokens = max(1.0, metrics["num_loss_tokens"] * metrics.pop("passes"))
            means = {name: metrics[name] / tokens for name in PER_TOKEN if name in metrics}
            values = {name: float(value) for name, value in {**metrics, **means}.items()}
            speed = {"step_time": seconds, "tokens_per_second": values["num_step_tokens"] / seconds}
            lines.append({"step": step, **values, **speed})
        self._steps = []
        self.restart_clock()
        return lines, None
