"""What a run writes about itself: JSON lines, a progress bar and, if wanted, TensorBoard events."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from currreft_jax.config import Logging

METRICS = "metrics.jsonl"
_SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "length",
    "tokens_per_second": "tokens/s",
}


class Metrics:
    """The writer of one run; only the first host writes.

    A step is never written twice: lines behind `step` are dropped when a run goes on there.
    """

    def __init__(self, folder: Path, settings: Logging, *, name: str, step: int, steps: int, writes: bool):
        """Opens `metrics.jsonl`.

        Args:
            folder: the workdir.
            settings: what is written.
            name: of the run.
            step: steps done already.
            steps: of the whole stage.
            writes: whether this host writes.

        Raises:
            ModuleNotFoundError: Weights & Biases is wanted but not installed.
            ValueError: a line of `metrics.jsonl` is damaged.
        """
        self._bar = tqdm(initial=step, total=steps, unit="step", disable=not writes, file=sys.stderr, mininterval=1)
        self._file = self._events = self._wandb = None
        if not writes:
            return
        path = folder / METRICS
        kept = _up_to(path, step)
        whole = path.with_name(f"{path.name}.partial")
        whole.write_text("".join(kept), "utf-8")
        whole.replace(path)
        self._file = path.open("a", encoding="utf-8")
        if settings.tensorboard:
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if settings.wandb:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("logging.wandb needs wandb: pip install 'currreft_jax[wandb]'") from error
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
        """Moves the progress bar by one step."""
        self._bar.update()

    def write(self, line: Mapping[str, Any]) -> None:
        """One line: a step, its stage, and its metrics."""
        step = line["step"]
        values = {name: value for name, value in line.items() if name not in ("step", "stage")}
        shown = {short: f"{values[name]:.4g}" for name, short in _SHOWN.items() if name in values}
        self._bar.set_postfix(shown, refresh=False)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`: of each a step, its stage, and numbers.

    Raises:
        ValueError: a line is damaged.
    """
    return [values for _, values in _lines(path)]


def _up_to(path: Path, step: int) -> list[str]:
    return [line for line, values in _lines(path) if values["step"] <= step]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # of a run that writes it, or was killed while it did
            return
        try:
            values = json.loads(line)
            if type(values["step"]) is not int:
                raise TypeError('"step" is no whole number')
            if wrong := [name for name, it in values.items() if type(it) not in (int, float) and name != "stage"]:
                raise TypeError(f'"{wrong[0]}" is no number')
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: no line of metrics ({error}); mend or remove it") from error
        yield line.decode(), values
