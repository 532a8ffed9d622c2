"""Rows of one's own in place of those of a training config: `--rows` and `--held-out`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from currreft_jax.config.data import Source
from currreft_jax.config.evaluation import Suite
from currreft_jax.config.file_flags import name_files
from currreft_jax.config.rejection import QuotaSource, Rejection
from currreft_jax.config.sampling import Sampling
from currreft_jax.config.stage import Stage
from currreft_jax.config.training import Config


def use_rows(config: Config, rows: Sequence[str], held_out: Sequence[str]) -> Config:
    """Returns a config whose stages train on files of one's own, and are measured on others.

    Every stage takes the rows of its kinds and tasks from all files. Held-out rows of a config belong to its own rows:
    without files of others there are none, and no gate that needs them.

    Args:
        config: all settings.
        rows: files to train on; if there are none, those of the config stay.
        held_out: files to measure on.

    Raises:
        ValueError: a file is to be trained on and held out.
    """
    trained = {Path(file).resolve() for file in rows}
    if shared := [file for file in held_out if Path(file).resolve() in trained]:
        raise ValueError(f"{shared[0]} is in --rows and in --held-out: rows that are trained on measure nothing")
    return replace(config, stages=[_with_rows(stage, rows, held_out) for stage in config.stages])


def _with_rows(stage: Stage, rows: Sequence[str], held_out: Sequence[str]) -> Stage:
    measured = replace(stage, held_out=[Source(file) for file in held_out])
    if not rows:
        return measured
    measured.out_of_domain = []
    if not held_out:
        measured = replace(measured, forgetting_margin=None, promote_above=1.0)
    if stage.rejection:
        return replace(measured, rejection=_rejection_of(stage.rejection, rows, held_out))
    return replace(measured, sources=[Source(file) for file in rows], held_out_loss=[])


def _rejection_of(rejection: Rejection, rows: Sequence[str], held_out: Sequence[str]) -> Rejection:
    """Spreads the quotas evenly over the files; a quota of 0 keeps all that pass.

    The config's bucket sizes fit its own rows: prompts of others may be as long as by default.
    """
    lengths = {*rejection.sampling.prompt_lengths, *Sampling().prompt_lengths}
    quotas = [source.quota for source in rejection.sources]
    quota = ceil(sum(quotas) / len(rows)) if all(quotas) else 0
    return replace(
        rejection,
        sources=[QuotaSource(name, Source(file), quota) for name, file in zip(name_files(rows), rows, strict=True)],
        world="",  # not drawn for rows of another set
        suites=[Suite(name, [Source(file)]) for name, file in zip(name_files(held_out), held_out, strict=True)],
        sampling=replace(rejection.sampling, prompt_lengths=tuple(sorted(lengths))),
    )
