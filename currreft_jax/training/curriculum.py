"""The curriculum's memory and gate: the forgetting matrix, and when a stage is promoted. Loads no JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.evaluation.measurement import Measurement
from currreft_jax.evaluation.statistics import Z, wilson_interval


def is_promoted(measurement: Measurement, promote_above: float) -> bool:
    """Returns true if the pass rate is above the gate with 97.5% confidence; without accuracy there is no pass rate."""
    if measurement.passed is None:
        return False
    return wilson_interval(measurement.passed, measurement.rows).low > promote_above


class ForgettingMatrix:
    """All measurements of a run in the order in which they were made, kept in a JSON file."""

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
        if path.exists():
            try:
                records = json.loads(path.read_text("utf-8"))["measured"]
                self._measurements = [Measurement(**measurement) for measurement in records]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}): mend or remove it") from error

    def __len__(self) -> int:
        return len(self._measurements)

    @property
    def history(self) -> tuple[Measurement, ...]:
        """All measurements."""
        return tuple(self._measurements)

    def has(self, stage: str, step: int) -> bool:
        """Returns true if there are measurements of this step."""
        return any((measurement.stage, measurement.step) == (stage, step) for measurement in self._measurements)

    def resume_from(self, stage: str, step: int) -> None:
        """Drops measurements of later steps of a stage, which is trained again from `step`; in the file, too."""
        kept = [
            measurement for measurement in self._measurements if measurement.stage != stage or measurement.step <= step
        ]
        if len(kept) < len(self._measurements):
            self._measurements = kept
            self._write()

    def add(self, measurements: Sequence[Measurement]) -> None:
        """Appends measurements and writes the file."""
        self._measurements += measurements
        self._write()

    def _write(self) -> None:
        if self._writes:
            partial = self._path.with_name(f"{self._path.name}.partial")
            records = {"measured": [dataclasses.asdict(measurement) for measurement in self._measurements]}
            partial.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
            partial.replace(self._path)

    def table(self) -> str:
        """Formats a line for each evaluated step, with a column for each stage's held-out rows."""
        steps = list(dict.fromkeys((measurement.stage, measurement.step) for measurement in self._measurements))
        columns = list(dict.fromkeys(measurement.held_out for measurement in self._measurements))
        cells = {(cell.stage, cell.step, cell.held_out): cell for cell in self._measurements}
        lines = [f"{'after':<20}" + "".join(f"{name:>40}" for name in columns)]
        for stage, step in steps:
            row = [cells.get((stage, step, name)) for name in columns]
            label = f"{stage} {step}" if stage else "base"
            lines.append(f"{label:<20}" + "".join(f"{_format_cell(cell):>40}" for cell in row))
        return "\n".join([*lines, "reward ± half its interval (greedy), format at the sampling temperature"])


def _format_cell(cell: Measurement | None) -> str:
    if cell is None:
        return "-"
    greedy = "" if cell.greedy is None else f" ({cell.greedy:.3f})"
    form = "-" if cell.format is None else f"{cell.format:.2f}"
    return f"{cell.reward:.3f} ± {Z * cell.error:.3f}{greedy}, {form}"
