"""Decisions of the curriculum: when a stage has learnt enough, and when what was learnt before is lost again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

Z = 1.96  # of a 95% interval


@dataclass(frozen=True, slots=True)
class Measurement:
    """How one stage's held-out rows were answered.

    Attributes:
        stage: that was trained; empty before the first one.
        step: of that stage.
        held_out: name of the stage whose rows they are.
        rows: their number.
        reward: mean, at the sampling temperature.
        error: its standard error.
        accuracy: mean of that part, likewise `format`; None where it has no weight and so is not computed.
        passed: rows with full accuracy; None likewise.
        greedy: mean reward of the likeliest answers; None where they were not drawn.
    """

    stage: str
    step: int
    held_out: str
    rows: int
    reward: float
    error: float
    accuracy: float | None
    format: float | None
    passed: int | None
    greedy: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%, around the mean reward."""
        return self.reward - Z * self.error, self.reward + Z * self.error


def pass_interval(passed: int, rows: int) -> tuple[float, float]:
    """Wilson's 95% interval of a pass rate."""
    rate, spread = passed / rows, Z * Z / rows
    middle = (rate + spread / 2) / (1 + spread)
    half = Z * sqrt(rate * (1 - rate) / rows + spread / rows / 4) / (1 + spread)
    return middle - half, middle + half


def promoted(seen: Measurement, above: float) -> bool:
    """Whether the pass rate is above a threshold with 97.5% confidence; an unknown one is not."""
    return seen.passed is not None and pass_interval(seen.passed, seen.rows)[0] > above


def fallen(earlier: Sequence[Measurement], now: Measurement) -> Measurement | None:
    """The best earlier measurement of the same rows, if `now` has fallen below it beyond chance ("brick wall")."""
    same = [it for it in earlier if it.held_out == now.held_out]
    best = max(same, key=lambda it: it.reward, default=None)
    if best is None or best.reward - now.reward <= Z * sqrt(best.error**2 + now.error**2):
        return None
    return best


class Matrix:
    """The forgetting matrix of a run, kept in a JSON file: every measurement, in the order in which they were made."""

    def __init__(self, path: Path, *, writes: bool):
        """Reads what is there.

        Raises:
            ValueError: the file is damaged.
        """
        self._path, self._writes = path, writes
        self._seen: list[Measurement] = []
        if path.exists():
            try:
                self._seen = [Measurement(**it) for it in json.loads(path.read_text("utf-8"))["measured"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}): mend or remove it") from error

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def seen(self) -> tuple[Measurement, ...]:
        """All measurements."""
        return tuple(self._seen)

    def has(self, stage: str, step: int) -> bool:
        """Whether the held-out rows were looked at then."""
        return any((it.stage, it.step) == (stage, step) for it in self._seen)

    def go_on_from(self, stage: str, step: int) -> None:
        """Forgets what was measured behind a step of a stage, which is trained again from there."""
        self._seen = [it for it in self._seen if it.stage != stage or it.step <= step]

    def add(self, seen: Sequence[Measurement]) -> None:
        """Adds measurements and writes the file."""
        self._seen += seen
        if self._writes:
            whole = self._path.with_name(f"{self._path.name}.partial")
            described = {"measured": [dataclasses.asdict(it) for it in self._seen]}
            whole.write_text(json.dumps(described, indent=1) + "\n", "utf-8")
            whole.replace(self._path)

    def table(self) -> str:
        """One line for each time, one column for each stage's held-out rows."""
        times = list(dict.fromkeys((it.stage, it.step) for it in self._seen))
        names = list(dict.fromkeys(it.held_out for it in self._seen))
        cells = {(it.stage, it.step, it.held_out): it for it in self._seen}
        lines = [f"{'after':<20}" + "".join(f"{name:>40}" for name in names)]
        for stage, step in times:
            found = [cells.get((stage, step, name)) for name in names]
            label = f"{stage} {step}" if stage else "base"
            lines.append(f"{label:<20}" + "".join(f"{_cell(it):>40}" for it in found))
        return "\n".join([*lines, "reward ± half its interval (greedy), format at the sampling temperature"])


def _cell(it: Measurement | None) -> str:
    if it is None:
        return "-"
    greedy = "" if it.greedy is None else f" ({it.greedy:.3f})"
    form = "-" if it.format is None else f"{it.format:.2f}"
    return f"{it.reward:.3f} ± {Z * it.error:.3f}{greedy}, {form}"
