"""What a run writes about itself: JSON lines, a progress bar and, if wanted, TensorBoard events."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Metrics:
    """The writer of one run; only the first host writes.

    A step is never written twice: lines behind `step` are dropped when a run goes on there.
    """

    def __init__(self, folder: Path, *, step: int, steps: int, tensorboard: bool, writes: bool):
        """Opens `metrics.jsonl`.

        Args:
            folder: the workdir.
            step: steps done already.
            steps: of the whole stage.
            tensorboard: also write events, to `tensorboard/`.
            writes: whether this host writes.

        Raises:
            ModuleNotFoundError: TensorBoard is wanted but tensorboardX is not installed.
            ValueError: a line of `metrics.jsonl` is damaged.
        """
        self._bar = tqdm(initial=step, total=steps, unit="step", disable=not writes, file=sys.stderr, mininterval=1)
        self._file = self._events = None
        if not writes:
            return
        path = folder / "metrics.jsonl"
        kept = _up_to(path, step)
        whole = path.with_name(f"{path.name}.partial")
        whole.write_text("".join(kept), "utf-8")
        whole.replace(path)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "logging.tensorboard needs tensorboardX: pip install 'currreft_jax[tensorboard]'"
                ) from error
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        self._bar.update()

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """One line."""
        line: dict[str, Any] = {"step": step, "stage": stage, **values}
        self._bar.set_postfix({name: f"{values[name]:.4g}" for name in ("loss", "grad_norm") if name in values})
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):  # of a run that was killed while it wrote
            break
        try:
            earlier = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: no line of metrics ({error}); mend or remove it") from error
        if earlier:
            kept.append(line)
    return kept
