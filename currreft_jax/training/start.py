"""The start of a stage: its rows, the state it begins or resumes with, and the frozen reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from currreft_jax.config import Config, Handover, Init, Method, Reference
from currreft_jax.config.wording import plural
from currreft_jax.data import pipeline
from currreft_jax.data.buckets import ShapeBuckets
from currreft_jax.data.examples import Example
from currreft_jax.data.fields import LineError
from currreft_jax.data.mixture import Mixture, load_mixture
from currreft_jax.data.prompts import load_template
from currreft_jax.models import hf
from currreft_jax.models.folder import resolve
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.rewards import check_rows
from currreft_jax.runtime.checkpoint import MANIFEST, Checkpoints
from currreft_jax.runtime.multihost import same_on_all_hosts
from currreft_jax.runtime.workdir import CHECKPOINTS, EXPORT, saved_steps
from currreft_jax.session.session import Session
from currreft_jax.session.sources import load_masters
from currreft_jax.training.batches import layout_on, refuse_uneven_sampling
from currreft_jax.training.console import say
from currreft_jax.training.optimizer import StageOptimizer, restart_schedule
from currreft_jax.training.update import TrainState, abstract_state, init_state


def check_base_weights(config: Config, stage_dir: Path, previous_dir: Path | None) -> None:
    """Checks that the weights which a run begins with can be read, before anything is compiled for them.

    Raises:
        FileNotFoundError: the model's folder has none; the message says what to do.
    """
    folder = resolve(config.model.path)
    is_native = (folder / MANIFEST).exists()
    if not (is_native or previous_dir or saved_steps(stage_dir) or config.model.init is Init.RANDOM):
        hf.weight_files(folder)


def refuse_uneven_batch(session: Session) -> None:
    """Refuses a batch that does not spread over the mesh of training or of sampling.

    Raises:
        ValueError: naming settings that do.
    """
    layout = layout_on(session.config, session.model.mesh)
    if session.config.method is Method.GRPO:
        refuse_uneven_sampling(session.config, layout, session.model)


def read_rows(session: Session, stage_index: int, buckets: ShapeBuckets) -> Mixture:
    """Reads the rows of a stage.

    Raises:
        ValueError: hosts have different rows, or there are rows that cannot be used and that the config does not skip;
            the message names files and lines.
    """
    config = session.config
    rows = load_mixture(config.stages, stage_index, config.data, config.seed)
    rows = pipeline.drop_bad_rows(
        rows,
        session.processor,
        load_template(config.data.template),
        config.data,
        buckets,
        with_answer=config.method is Method.SFT,
    )
    if config.method is Method.GRPO:
        rows = rows.without(_unscorable_rows(rows, session), "gold answer unreadable", config.data)
    if not same_on_all_hosts(bytes.fromhex(rows.fingerprint())):
        raise ValueError("the hosts have different rows: give all of them the same files, and see what each left out")
    files = plural(len(rows.sources), "file")
    say(f"stage {config.stages[stage_index].name}: {plural(rows.num_rows, 'row')} of {files}")
    for line in layout_on(config, session.model.mesh).remarks(config):
        say(f"  {line}")
    for reason, count in rows.excluded.items():
        say(f"  {plural(count, 'row')} left out: {reason}")
    for error in rows.errors:
        say(f"  {error}")
    return rows


def _unscorable_rows(rows: Mixture, session: Session) -> dict[tuple[int, int], LineError]:
    """Returns the errors of the rows that no reward can score, by the indices of source and row."""
    refs = [(k, int(index)) for k, source in enumerate(rows.sources) for index in source.indices]
    all_rows = [rows.sources[k].file[index] for k, index in refs]
    ref_of = {id(row): ref for row, ref in zip(all_rows, refs, strict=True)}
    errors = {}
    for error in check_rows(all_rows, session.config.rewards, pool=session.reward_pool):
        k, index = ref_of[id(error.row)]
        errors[k, index] = LineError(rows.sources[k].file.location(index), error.problem)
    return errors


def example_batches(session: Session, rows: Mixture, buckets: ShapeBuckets, start: int) -> Iterator[list[Example]]:
    """Yields this host's examples of each step after `start`."""
    config = session.config
    source = pipeline.Pipeline(
        rows,
        session.processor,
        load_template(config.data.template),
        config.data,
        buckets,
        seed=config.seed,
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
        with_answer=config.method is Method.SFT,
    )
    return source.batches(start)


def start_state(
    session: Session,
    stage_index: int,
    optimizer: StageOptimizer,
    previous_dir: Path | None,
    checkpoints: Checkpoints,
    data_state: dict[str, Any],
) -> tuple[TrainState, int, bool]:
    """Restores the stage's latest checkpoint, or builds its initial state.

    Args:
        session: session of the run.
        stage_index: index of the stage.
        optimizer: optimizer of the stage.
        previous_dir: folder of the stage before it.
        checkpoints: checkpoints of the stage.
        data_state: identifies the rows and their order.

    Returns:
        The state, its step, and whether the stage has ended there.

    Raises:
        ValueError: the checkpoint was made with other rows, another batch size or seed.
    """
    config, model = session.config, session.model
    abstract = abstract_state(model, optimizer.transform)
    restored = checkpoints.restore(checkpoint_items(abstract))
    if restored:
        step, items, saved = restored
        if changed := [name for name in data_state if data_state[name] != saved[name]]:
            raise ValueError(
                f"{checkpoints.folder} was made with another {', '.join(changed)} of the data: put it back as it was,"
                " or take another workdir"
            )
        say(f"resuming from step {step}")
        return TrainState(items["params"], items["optimizer"]), step, bool(saved["ended"])
    state = init_state(model, optimizer.transform, start_params(config, stage_index, model, previous_dir))
    if previous_dir and config.stages[stage_index].moments is Handover.KEEP:
        last = _last_checkpoint(config, stage_index - 1, previous_dir, {"optimizer": abstract.optimizer})
        shardings = jax.tree.map(lambda x: x.sharding, abstract.optimizer)
        kept = jax.device_put(restart_schedule(last["optimizer"]), shardings)
        state = dataclasses.replace(state, optimizer=kept)
    return state, 0, False


def start_params(config: Config, stage_index: int, model: Model, previous_dir: Path | None) -> Parameters:
    """Loads the fp32 parameters that a stage starts with: those of the previous stage, or of the base model."""
    if previous_dir:
        params = {"params": model.abstract(jnp.float32)}
        return _last_checkpoint(config, stage_index - 1, previous_dir, params)["params"]
    if config.model.init is Init.RANDOM:
        return model.init(config.seed)
    return load_masters(config.model.path, model, config.seed)


def reference_params(config: Config, stage_index: int, model: Model, previous_dir: Path | None) -> Parameters:
    """Loads the fp32 parameters of the frozen reference."""
    if config.grpo.reference is Reference.STAGE:
        return start_params(config, stage_index, model, previous_dir)
    if config.grpo.reference_path:
        return load_masters(config.grpo.reference_path, model, config.seed)
    return start_params(config, 0, model, None)


def checkpoint_items(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint by name."""
    return {"params": state.params, "optimizer": state.optimizer}


def _last_checkpoint(config: Config, stage_index: int, stage_dir: Path, items: dict[str, Any]) -> dict[str, Any]:
    """Restores items of a finished stage's last checkpoint."""
    last = config.stages[stage_index].steps
    with Checkpoints(stage_dir / CHECKPOINTS, 1) as checkpoints:
        restored = checkpoints.restore(items)
    if not restored or not (restored[0] == last or restored[2]["ended"]):
        raise ValueError(
            f"{stage_dir / CHECKPOINTS} does not hold step {last}, which stage {config.stages[stage_index + 1].name}"
            f" starts from: remove {stage_dir / EXPORT}, and the same command trains the rest of that stage again"
        )
    return restored[1]
