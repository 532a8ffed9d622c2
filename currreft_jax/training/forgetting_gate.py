"""The forgetting gate: the model of a stage in which held-out rows have fallen is that of a better checkpoint.

Loads no JAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from currreft_jax.evaluation.measurement import Measurement
from currreft_jax.evaluation.statistics import CONFIDENCE, Interval, paired_difference


@dataclass(frozen=True, slots=True)
class RewardChange:
    """The change of a set of held-out rows since the start of a stage, paired by row.

    Attributes:
        held_out: the stage whose held-out rows they are.
        difference: of the mean rewards, now minus then.
        interval: its 95% interval; None for fewer than ten images, or differences that are all equal.
        fallen: whether the difference is beyond the margin, and significant.
    """

    held_out: str
    difference: float
    interval: Interval | None
    fallen: bool

    def __str__(self) -> str:
        low_high = f" ({self.interval.low:+.3f} to {self.interval.high:+.3f})" if self.interval else ""
        return f"{self.held_out} {self.difference:+.3f}{low_high}{', fallen' if self.fallen else ''}"


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Which model of a stage is kept.

    Attributes:
        stage: name of the stage.
        last_step: its last step.
        kept_step: the step whose model is kept; 0 for the start.
        margin: see `Stage.forgetting_margin`.
        changes: from the start to the last step.
    """

    stage: str
    last_step: int
    kept_step: int
    margin: float
    changes: tuple[RewardChange, ...]

    @classmethod
    def from_json(cls, keys: dict[str, Any]) -> GateDecision:
        """Reads a decision from its JSON object."""
        changes = tuple(
            RewardChange(**{**change, "interval": change["interval"] and Interval(*change["interval"])})
            for change in keys["changes"]
        )
        return cls(**{**keys, "changes": changes})

    def __str__(self) -> str:
        changes = "; ".join(map(str, self.changes))
        kept = "its start" if self.kept_step == 0 else f"step {self.kept_step}"
        verdict = "no set has fallen" if self.kept_step == self.last_step else f"the model is that of {kept}"
        return f"forgetting gate of {self.stage}, step {self.last_step} against its start: {changes}: {verdict}"


def reward_change(before: Measurement, now: Measurement, margin: float, images: Sequence[str] = ()) -> RewardChange:
    """Compares two measurements of the same held-out rows, sampled with the same keys.

    The set has fallen if the difference of the means is below -`margin`, and its 95% interval below 0; where there is
    no interval, if the p-value of no difference is below 5%.

    Args:
        before: with the reward of each row.
        now: with the reward of each row.
        margin: in units of the reward.
        images: key of each row's images, see `paired_difference`.
    """
    first, second = np.array(before.rewards, float), np.array(now.rewards, float)
    low = min(first.min(), second.min())
    size = float(max(first.max(), second.max()) - low)
    if not size:
        return RewardChange(now.held_out, 0.0, None, False)
    found = paired_difference((first - low) / size, (second - low) / size, images)  # a reward may exceed [0, 1]
    interval = found.interval and Interval(found.interval.low * size, found.interval.high * size)
    difference = float((second - first).mean())
    significant = interval.high < 0 if interval else found.p_value < 1 - CONFIDENCE
    return RewardChange(now.held_out, difference, interval, bool(difference < -margin and significant))


def mean_reward(measurements: Sequence[Measurement]) -> float:
    """Returns the mean over sets of their mean rewards."""
    return sum(measured.reward for measured in measurements) / len(measurements)


def start_measurements(history: Sequence[Measurement], stage: str) -> list[Measurement]:
    """Returns the measurements of the model that a stage starts with: of its step 0, or the last before the stage.

    Empty if there are none with the reward of each row.
    """
    own = [measured for measured in history if measured.stage == stage and measured.step == 0]
    earlier = own or [measured for measured in history if measured.stage != stage]
    last = [one for one in earlier if (one.stage, one.step) == (earlier[-1].stage, earlier[-1].step)]
    return last if all(measured.rewards is not None for measured in last) else []


def decide(
    history: Sequence[Measurement],
    stage: str,
    margin: float,
    saved_steps: Sequence[int],
    images: Mapping[str, Sequence[str]],
) -> GateDecision:
    """Decides which model of a finished stage is kept.

    That is the last step's if no set has fallen there. Else it is the one with the highest mean reward, over sets, of
    the start and of the evaluated and saved steps at which no set has fallen; the earliest of several.

    Args:
        history: all measurements of the run.
        stage: name of the stage.
        margin: see `Stage.forgetting_margin`.
        saved_steps: steps of the stage that have a checkpoint.
        images: keys of the images of each set's rows.
    """
    start = {measured.held_out: measured for measured in start_measurements(history, stage)}

    def changes_at(step: int) -> tuple[RewardChange, ...]:
        return tuple(
            reward_change(start[now.held_out], now, margin, images[now.held_out])
            for now in history
            if (now.stage, now.step) == (stage, step)
        )

    steps = sorted({measured.step for measured in history if measured.stage == stage and measured.step})
    changes = changes_at(steps[-1])
    kept = steps[-1]
    if any(change.fallen for change in changes):
        rewards = {0: mean_reward(list(start.values()))}
        for step in steps[:-1]:
            if step in saved_steps and not any(change.fallen for change in changes_at(step)):
                rewards[step] = mean_reward([one for one in history if (one.stage, one.step) == (stage, step)])
        kept = max(rewards, key=rewards.__getitem__)
    return GateDecision(stage, steps[-1], kept, margin, changes)
