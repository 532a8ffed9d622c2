"""The settings of one stage: the run's, with the stage's own in their place."""

from __future__ import annotations

from dataclasses import replace

from currreft_jax.config.stage import Stage
from currreft_jax.config.training import Config


def stage_settings(config: Config, stage_index: int) -> Config:
    """Returns the settings that a stage is trained with.

    The overrides of the stage become settings of the run, and None in the stage: what reads a config need not know of
    them.

    Args:
        config: all settings.
        stage_index: index of the stage.
    """
    stage = config.stages[stage_index]
    evaluate_every = config.logging.evaluate_every if stage.evaluate_every is None else stage.evaluate_every
    plain = replace(
        stage, method=None, loss_average=None, microbatches=None, batch_size=None, optimizer=None, evaluate_every=None
    )
    return replace(
        config,
        stages=[*config.stages[:stage_index], plain, *config.stages[stage_index + 1 :]],
        method=stage.method or config.method,
        loss_average=stage.loss_average or config.loss_average,
        microbatches=stage.microbatches or config.microbatches,
        data=replace(config.data, batch_size=stage.batch_size or config.data.batch_size),
        optimizer=stage.optimizer or config.optimizer,
        logging=replace(config.logging, evaluate_every=evaluate_every),
    )


def evaluation_batch_size(config: Config) -> int:
    """Returns the held-out rows that are answered at once in all stages: as many as a step of the run samples."""
    return config.data.batch_size * config.sampling.group_size


def has_own_batches(stage: Stage) -> bool:
    """Returns true for a stage whose batches may differ from the run's, or whose rows are not there when it starts."""
    return any((stage.method, stage.microbatches, stage.batch_size, stage.rejection))
