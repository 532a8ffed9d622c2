"""Hours and disk of a whole config: all steps and evaluations, checkpoints and exported models."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from currreft_jax.config import Config, Logging, Stage
from currreft_jax.planning.devices import GB


@dataclass(frozen=True, slots=True)
class Budget:
    """Times and sizes of which a run is made.

    Attributes:
        config: all settings.
        checkpoint_bytes: bytes of a checkpoint: masters and optimizer state.
        export_bytes: bytes of an exported model.
        step_seconds: seconds of a step of any stage; None if the figures of the devices are unknown.
        evaluation_seconds: seconds of a batch of held-out rows.
    """

    config: Config
    checkpoint_bytes: int
    export_bytes: int
    step_seconds: float | None
    evaluation_seconds: float

    def __str__(self) -> str:
        config, stages = self.config, self.config.stages
        checkpoints = sum(_kept_checkpoints(stage, config.logging) for stage in stages)
        disk = checkpoints * self.checkpoint_bytes + len(stages) * self.export_bytes
        return (
            f"the whole config{self._time()} keeps {disk / GB:,.0f} GB on disk: {checkpoints} checkpoints of"
            f" {self.checkpoint_bytes / GB:.1f} GB, of which one more exists while it is written, and {len(stages)}"
            f" exported models of {self.export_bytes / GB:.1f} GB; assumed are steps of the largest batch, and no time"
            " for loading, compiling, scoring and saving"
        )

    def _time(self) -> str:
        if self.step_seconds is None:
            return ""
        steps, batches = sum(stage.steps for stage in self.config.stages), evaluation_batches(self.config)
        seconds = steps * self.step_seconds + batches * self.evaluation_seconds
        evaluations = f" and {batches} batches of held-out rows in {self.evaluation_seconds:.1f} s" if batches else ""
        return f" takes {seconds / 3600:.1f} h, {steps:,} steps in {self.step_seconds:.2f} s{evaluations}, and"


def evaluation_batches(config: Config) -> int:
    """Counts the batches of held-out rows in a run: once greedily and once sampled at its start and after each stage.

    The evaluations within a stage sample, and answer greedily too if a gate may promote the stage.
    """
    sets = sum(bool(stage.held_out) for stage in config.stages)
    batch_size = config.data.batch_size * config.sampling.group_size
    passes, every = 2, config.logging.evaluate_every
    for stage in config.stages:
        within = (stage.steps - 1) // every if every else 0
        passes += 2 + within * (2 if stage.promote_above < 1 else 1)
    return passes * sets * ceil(config.logging.evaluate_rows / batch_size)


def _kept_checkpoints(stage: Stage, logging: Logging) -> int:
    """Returns the number of checkpoints that a finished stage keeps: the latest, and that with the best evaluation."""
    intervals = [every for every in (logging.save_every, logging.evaluate_every) if every]
    saved = sum(
        step == stage.steps or any(step % every == 0 for every in intervals) for step in range(1, stage.steps + 1)
    )
    has_best = bool(stage.held_out) and logging.evaluate_every > 0
    return min(saved, logging.keep_last + has_best)
