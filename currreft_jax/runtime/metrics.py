"""Metrics of a run: JSON lines, a progress bar and, if wanted, TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from currreft_jax.config import Logging
from currreft_jax.structs import Reason

METRICS = "metrics.jsonl"
MAX_OWN_REASONS = 20  # that have a metric each
OTHER_REASONS = "parse/other"
_OUR_REASONS = frozenset(f"parse/{reason}" for reason in Reason)
# Metrics on the progress bar, and their short names there.
_ON_THE_BAR = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "length",
    "tokens_per_second": "tokens/s",
}


class Metrics:
    """Writes the metrics of a stage, on one host.

    No step is written twice: a resumed stage drops the lines after its step.
    """

    def __init__(self, folder: Path, settings: Logging, *, name: str, step: int, steps: int, writes: bool):
        """Opens `metrics.jsonl`.

        Args:
            folder: stage folder.
            settings: logging settings.
            name: run name.
            step: number of steps taken already.
            steps: number of steps of the stage.
            writes: whether this host writes.

        Raises:
            ModuleNotFoundError: Weights & Biases is wanted but not installed.
            ValueError: a line of `metrics.jsonl` is damaged.
        """
        self._bar = progress_bar(step, steps, shows=writes)
        self._first_step = step + 1
        self._file = self._events = self._wandb = None
        self._own_reasons: set[str] = set()
        if not writes:
            return
        path = folder / METRICS
        lines = [(line, values) for line, values in _lines(path) if values["step"] <= step]
        kept = [line for line, _ in lines]
        self._own_reasons = {name for _, values in lines for name in values if _is_own_reason(name)}
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(kept), "utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        if settings.tensorboard:
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if settings.wandb:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("logging.wandb needs wandb: pip install -e '.[wandb]'") from error
            run_id = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
            self._wandb = wandb.init(project="currreft_jax", name=name, id=run_id, resume="allow", dir=str(folder))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()

    def advance(self) -> None:
        """Moves the progress bar by one step; the first one, which may compile, does not count in the time left."""
        if self._bar.n != self._first_step - 1:
            self._bar.update()
            return
        shows, self._bar.leave = not self._bar.disable, False
        self._bar.close()
        self._bar = progress_bar(self._first_step, self._bar.total, shows=shows)

    @contextmanager
    def paused_bar(self) -> Iterator[None]:
        """Leaves the block's time out of the progress bar's: its rate is that of steps alone."""
        begun = time.perf_counter()
        yield
        if not self._bar.disable:
            seconds = time.perf_counter() - begun
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line: a step, its stage, and its metrics.

        Of the reasons of users' rewards the first `MAX_OWN_REASONS` have a metric each, and the others one together: a
        reason that holds a number would make a metric of every value.
        """
        line = self._bounded(line)
        step = line["step"]
        values = {name: value for name, value in line.items() if name not in ("step", "stage")}
        shown = {short: f"{values[name]:.4g}" for name, short in _ON_THE_BAR.items() if name in values}
        self._bar.set_postfix(shown, refresh=False)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def _bounded(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Sums up the shares of the reasons that are too many; the most frequent of new ones come first."""
        own = {name: share for name, share in line.items() if _is_own_reason(name)}
        new = sorted(own.keys() - self._own_reasons, key=lambda name: (-own[name], name))
        self._own_reasons |= set(new[: max(0, MAX_OWN_REASONS - len(self._own_reasons))])
        others = [share for name, share in own.items() if name not in self._own_reasons]
        kept = {name: value for name, value in line.items() if name not in own or name in self._own_reasons}
        return kept | ({OTHER_REASONS: kept.get(OTHER_REASONS, 0.0) + sum(others)} if others else {})


def _is_own_reason(name: str) -> bool:
    """Returns true for the metric of a reason that only users' rewards give."""
    return name.startswith("parse/") and name != OTHER_REASONS and name not in _OUR_REASONS


def progress_bar(step: int, steps: int, *, shows: bool) -> tqdm[Any]:
    """Returns a bar on standard error, whose time left is that of the steps from now on."""
    return tqdm(initial=step, total=steps, unit="step", disable=not shows, file=sys.stderr, mininterval=1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`: each line has a step, its stage, and numbers.

    Raises:
        ValueError: a line is damaged.
    """
    return [values for _, values in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # being written, or left by a killed run
            return
        try:
            values = json.loads(line)
            if type(values["step"]) is not int:
                raise TypeError('"step" is no whole number')
            if wrong := [name for name, value in values.items() if type(value) not in (int, float) and name != "stage"]:
                raise TypeError(f'"{wrong[0]}" is no number')
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: no line of metrics ({error}); mend or remove it") from error
        yield line.decode(), values
