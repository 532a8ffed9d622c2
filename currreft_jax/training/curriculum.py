"""The curriculum's memory and gate: the forgetting matrix, and when a stage is promoted. Loads no JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from currreft_jax.config import SuiteDomain
from currreft_jax.evaluation.measurement import LossMeasurement, Measurement
from currreft_jax.evaluation.statistics import Z, wilson_interval
from currreft_jax.training.forgetting_gate import GateDecision


def is_promoted(measurement: Measurement, promote_above: float) -> bool:
    """Returns true if the pass rate is above the gate with 97.5% confidence; without accuracy there is no pass rate."""
    if measurement.passed is None:
        return False
    return wilson_interval(measurement.passed, measurement.rows).low > promote_above


class ForgettingMatrix:
    """All measurements of a run in the order in which they were made, kept in a JSON file.

    Attributes:
        losses: of held-out rows with gold answers.
        decisions: of forgetting gates.
    """

    def __init__(self, path: Path, *, writes: bool):
        """Reads the file if it exists.

        Args:
            path: path of the file.
            writes: whether this host writes it.

        Raises:
            ValueError: the file is damaged.
        """
        self._path, self._writes = path, writes
        self._measurements: list[Measurement] = []
        self.losses: list[LossMeasurement] = []
        self.decisions: list[GateDecision] = []
        if path.exists():
            try:
                content = json.loads(path.read_text("utf-8"))
                self._measurements = [_read_measurement(keys) for keys in content["measured"]]
                self.losses = [LossMeasurement(**keys) for keys in content.get("losses", [])]
                self.decisions = [GateDecision.from_json(keys) for keys in content.get("decisions", [])]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}): mend or remove it") from error

    def __len__(self) -> int:
        return len(self._measurements)

    @property
    def history(self) -> tuple[Measurement, ...]:
        """All measurements."""
        return tuple(self._measurements)

    @property
    def in_domain(self) -> tuple[Measurement, ...]:
        """The measurements of rows of the stages' domains, by which gates decide."""
        return tuple(one for one in self._measurements if one.domain == SuiteDomain.IN.value)

    def has(self, stage: str, step: int) -> bool:
        """Returns true if there are measurements of this step."""
        return any((measurement.stage, measurement.step) == (stage, step) for measurement in self._measurements)

    def resume_from(self, stage: str, step: int) -> None:
        """Drops measurements of later steps of a stage, which is trained again from `step`; in the file, too."""
        kept = [one for one in self._measurements if one.stage != stage or one.step <= step]
        losses = [one for one in self.losses if one.stage != stage or one.step <= step]
        if (kept, losses) != (self._measurements, self.losses):
            self._measurements, self.losses = kept, losses
            self._write()

    def add(self, measurements: Sequence[Measurement]) -> None:
        """Appends measurements and writes the file."""
        self._measurements += measurements
        self._write()

    def add_loss(self, loss: LossMeasurement) -> None:
        """Appends a loss and writes the file."""
        self.losses.append(loss)
        self._write()

    def decide(self, decision: GateDecision) -> None:
        """Puts a decision in the place of the stage's earlier one and writes the file."""
        self.decisions = [*(other for other in self.decisions if other.stage != decision.stage), decision]
        self._write()

    def _write(self) -> None:
        if self._writes:
            partial = self._path.with_name(f"{self._path.name}.partial")
            lists = {"measured": self._measurements, "losses": self.losses, "decisions": self.decisions}
            partial.write_text(f"{{{', '.join(_json_list(name, items) for name, items in lists.items())}}}\n", "utf-8")
            partial.replace(self._path)

    def table(self) -> str:
        """Formats a line for each evaluated step, with a column for each stage's held-out rows."""
        steps = list(dict.fromkeys((measurement.stage, measurement.step) for measurement in self._measurements))
        columns = list(dict.fromkeys(measurement.held_out for measurement in self._measurements))
        cells = {(cell.stage, cell.step, cell.held_out): cell for cell in self._measurements}
        lines = [f"{'after':<20}" + "".join(f"{name:>40}" for name in columns)]
        for stage, step in steps:
            row = [cells.get((stage, step, name)) for name in columns]
            lines.append(f"{_label(stage, step):<20}" + "".join(f"{_format_cell(cell):>40}" for cell in row))
        lines.append("reward ± half its interval (greedy), format at the sampling temperature")
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> list[str]:
        """Lists a line for the losses of each stage, for each reward of one's own, and for each decision of a gate."""
        own: dict[tuple[str, str], list[str]] = {}
        for one in self._measurements:
            for name, mean in one.own.items():
                own.setdefault((name, one.held_out), []).append(f"{mean:.3f} after {_label(one.stage, one.step)}")
        losses: dict[str, list[str]] = {}
        for one in self.losses:
            losses.setdefault(one.stage, []).append(f"{one.loss:.4f} at step {one.step}")
        lines = [f"loss of the held-out rows of {stage}: {', '.join(steps)}" for stage, steps in losses.items()]
        lines += [f"{name} of the held-out rows of {rows}: {', '.join(means)}" for (name, rows), means in own.items()]
        return [*lines, *map(str, self.decisions)]


def _label(stage: str, step: int) -> str:
    return f"{stage} {step}" if stage else "base"


def _read_measurement(keys: dict[str, Any]) -> Measurement:
    rewards = keys.get("rewards")
    return Measurement(**{**keys, "rewards": None if rewards is None else tuple(rewards)})


def _json_list(name: str, items: Sequence[Any]) -> str:
    """Formats a list with a line for each item."""
    lines = ",\n ".join(json.dumps(dataclasses.asdict(one)) for one in items)
    return f"{json.dumps(name)}: [\n {lines}\n]" if items else f"{json.dumps(name)}: []"


def _format_cell(cell: Measurement | None) -> str:
    if cell is None:
        return "-"
    greedy = "" if cell.greedy is None else f" ({cell.greedy:.3f})"
    form = "-" if cell.format is None else f"{cell.format:.2f}"
    return f"{cell.reward:.3f} ± {Z * cell.error:.3f}{greedy}, {form}"
