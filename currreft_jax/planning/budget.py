"""Hours and disk of a whole config: all steps and evaluations, checkpoints and exported models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from currreft_jax.config import Config, evaluation_batch_size, has_own_batches, stage_settings
from currreft_jax.planning.devices import GB


@dataclass(frozen=True, slots=True)
class Budget:
    """Times and sizes of which a run is made.

    Attributes:
        config: all settings.
        stage_index: index of the stage that was planned; stages that are batched in another way do not count.
        checkpoint_bytes: bytes of a checkpoint: masters and optimizer state.
        export_bytes: bytes of an exported model.
        step_seconds: seconds of a step; None if the figures of the devices are unknown.
        evaluation_seconds: seconds of a batch of held-out rows.
    """

    config: Config
    stage_index: int
    checkpoint_bytes: int
    export_bytes: int
    step_seconds: float | None
    evaluation_seconds: float

    def __str__(self) -> str:
        stages = self._stages
        checkpoints = sum(_kept_checkpoints(self.config, index) for index in stages)
        disk = checkpoints * self.checkpoint_bytes + len(stages) * self.export_bytes
        left_out = [stage.name for index, stage in enumerate(self.config.stages) if index not in stages]
        whole = f"the config without {', '.join(left_out)}" if left_out else "the whole config"
        return (
            f"{whole}{self._time()} keeps {disk / GB:,.0f} GB on disk: {checkpoints} checkpoints of"
            f" {self.checkpoint_bytes / GB:.1f} GB, of which one more exists while it is written, and {len(stages)}"
            f" exported models of {self.export_bytes / GB:.1f} GB; assumed are steps of the largest batch, and no time"
            " for loading, compiling, scoring and saving"
        )

    @property
    def _stages(self) -> list[int]:
        """Indices of the stages that are batched as the planned one."""
        if has_own_batches(self.config.stages[self.stage_index]):
            return [self.stage_index]
        return [index for index, stage in enumerate(self.config.stages) if not has_own_batches(stage)]

    def _time(self) -> str:
        if self.step_seconds is None:
            return ""
        steps = sum(self.config.stages[index].steps for index in self._stages)
        batches = evaluation_batches(self.config, self._stages)
        seconds = steps * self.step_seconds + batches * self.evaluation_seconds
        evaluations = f" and {batches} batches of held-out rows in {self.evaluation_seconds:.1f} s" if batches else ""
        return f" takes {seconds / 3600:.1f} h, {steps:,} steps in {self.step_seconds:.2f} s{evaluations}, and"


def evaluation_batches(config: Config, stage_indices: Sequence[int]) -> int:
    """Counts the batches of held-out rows in stages: once greedily and once sampled at a run's start and after each.

    The evaluations within a stage sample, and answer greedily too if a gate may promote the stage.
    """
    sets = sum(len(stage.evaluated) for stage in config.stages)
    batch_size = evaluation_batch_size(config)
    passes = 2 if 0 in stage_indices else 0
    for index in stage_indices:
        stage, every = config.stages[index], stage_settings(config, index).logging.evaluate_every
        within = (stage.steps - 1) // every if every else 0
        passes += 2 + within * (2 if stage.promote_above < 1 else 1)
    return passes * sets * ceil(config.logging.evaluate_rows / batch_size)


def _kept_checkpoints(config: Config, stage_index: int) -> int:
    """Returns the number of checkpoints that a finished stage keeps: the latest, and that with the best evaluation."""
    stage, logging = config.stages[stage_index], stage_settings(config, stage_index).logging
    intervals = [every for every in (logging.save_every, logging.evaluate_every) if every]
    saved = sum(
        step == stage.steps or any(step % every == 0 for every in intervals) for step in range(1, stage.steps + 1)
    )
    has_best = (bool(stage.held_out) or stage.forgetting_margin is not None) and logging.evaluate_every > 0
    return min(saved, logging.keep_last + has_best)
