"""Measurements of held-out rows, and a test for regressions. Loads no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from currreft_jax.config import SuiteDomain
from currreft_jax.evaluation.statistics import Z


@dataclass(frozen=True, slots=True)
class Measurement:
    """The answers to one stage's held-out rows at one step.

    Attributes:
        stage: the stage in training; empty before the first one.
        step: step number within that stage.
        held_out: the set of rows that was answered: the stage whose held-out rows they are, or `HeldOut.name`.
        rows: their number.
        reward: mean, at the sampling temperature.
        error: standard error of `reward`.
        accuracy: mean of the reward part; None where the part has no weight.
        format: mean of the reward part; None where the part has no weight.
        passed: rows with full accuracy; None where accuracy has no weight.
        greedy: mean reward of greedy answers; None where there are none.
        rewards: of each row, at the sampling temperature; None in files of earlier versions.
        domain: "in" or "out" of the domain of that stage.
        own: mean of each reward of one's own that applies to some of the rows, by name.
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
    rewards: tuple[float, ...] | None = None
    domain: str = SuiteDomain.IN.value
    own: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean reward."""
        return self.reward - Z * self.error, self.reward + Z * self.error


@dataclass(frozen=True, slots=True)
class LossMeasurement:
    """The loss on a stage's held-out rows with gold answers at one of its steps.

    Attributes:
        stage: the stage.
        step: step number within the stage.
        rows: number of rows.
        loss: averaged as in training.
    """

    stage: str
    step: int
    rows: int
    loss: float


def regressed_from(history: Sequence[Measurement], now: Measurement) -> Measurement | None:
    """Returns the best earlier measurement of the same rows if `now` is significantly below it (the "brick wall")."""
    same_rows = [earlier for earlier in history if earlier.held_out == now.held_out]
    best = max(same_rows, key=lambda measurement: measurement.reward, default=None)
    if best is None or best.reward - now.reward <= Z * sqrt(best.error**2 + now.error**2):
        return None
    return best
