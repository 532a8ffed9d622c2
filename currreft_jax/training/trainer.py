"""The training loop: stages in order, and the steps of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from currreft_jax.config import Config, Method, Remat, Shapes, evaluation_batch_size, stage_settings, validate
from currreft_jax.config.output import local_path
from currreft_jax.data import world_rows
from currreft_jax.data.buckets import ShapeBuckets
from currreft_jax.data.examples import Example
from currreft_jax.evaluation.held_out import held_out_rows
from currreft_jax.models import hf
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.planning.devices import attached_topology
from currreft_jax.planning.fit import refuse_too_large
from currreft_jax.rewards.registry import validate_run_rewards
from currreft_jax.runtime import distributed
from currreft_jax.runtime.agreement import refuse_differing_files, refuse_differing_settings
from currreft_jax.runtime.checkpoint import Checkpoints, restore_item
from currreft_jax.runtime.metrics import Metrics
from currreft_jax.runtime.profiler import ProfileSteps, StepProfiler
from currreft_jax.runtime.workdir import (
    CHECKPOINTS,
    EXPORT,
    HELD_OUT,
    MATRIX,
    ROLLOUTS,
    only_run,
    refuse_changed_settings,
    refuse_other_run,
    saved_steps,
    stage_folder,
    with_kept_rows,
    write_config,
)
from currreft_jax.session.session import Session, least_memory, open_session
from currreft_jax.session.sources import to_compute_dtype, to_policy
from currreft_jax.training.batches import StageContext
from currreft_jax.training.console import say
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.evaluator import Evaluator
from currreft_jax.training.grpo import grpo_step
from currreft_jax.training.held_out_loss import read_loss_rows
from currreft_jax.training.interrupt import Interrupt
from currreft_jax.training.limits import LimitReached, reached_limit
from currreft_jax.training.metrics_buffer import MetricsBuffer
from currreft_jax.training.mfu import make_mfu
from currreft_jax.training.optimizer import StageOptimizer, stage_optimizer
from currreft_jax.training.programs import StagePrograms, compile_ahead, fit_remat, session_programs
from currreft_jax.training.records import drop_records, write_records
from currreft_jax.training.rejected_samples import announce_judges, keep_samples, refuse_missing_rows, validate_servers
from currreft_jax.training.reward_trial import try_on, try_rewards
from currreft_jax.training.sft import sft_step
from currreft_jax.training.shapes import fit_run_buckets
from currreft_jax.training.start import (
    check_base_weights,
    checkpoint_items,
    example_batches,
    read_rows,
    reference_params,
    refuse_uneven_batch,
    start_params,
    start_state,
)
from currreft_jax.training.update import TrainState, UpdatePrograms, gradient_function, update_programs


def run(config: Config, workdir: str | Path, *, profile: ProfileSteps | None = None) -> Path | None:
    """Trains every unfinished stage, each from the end of the one before it.

    Args:
        config: all settings.
        workdir: where everything is written; with several stages, each has a folder of its own in it.
        profile: steps of every stage to trace.

    Returns:
        The last stage's model, a Hugging Face folder; None if a signal stopped the run, which was saved.

    Raises:
        ValueError: a setting, a row or a file is wrong, or differs between hosts, or the workdir is an address; the
            message names it.
        NonFiniteError: the loss or the gradient is not finite.
        LimitReached: a limit of `config.grpo` was reached.
    """
    refuse_differing_settings(config)
    validate(config)
    validate_run_rewards(config)
    validate_servers(config)
    if profile and profile.first > (longest := max(stage.steps for stage in config.stages)):
        raise ValueError(f"profile begins at step {profile.first}, and no stage has more than {longest}")
    workdir = local_path(workdir)
    previous_dir = None
    is_main = distributed.is_main()
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(only_run(workdir))
        refuse_other_run(config, workdir)
        if world_rows.is_used(config):
            draw_world(Path(config.data.world))
        interrupt = stack.enter_context(Interrupt())
        refuse_missing_rows(config)
        refuse_differing_files(config)
        announce_judges(config, workdir)
        matrix = ForgettingMatrix(workdir / MATRIX, writes=is_main)
        for stage_index, stage in enumerate(config.stages):
            stage_dir = stage_folder(config, stage_index, workdir)
            refuse_changed_settings(config, stage_index, stage_dir)
            if (stage_dir / EXPORT).exists():
                say(f"stage {stage.name} is finished: {stage_dir / EXPORT}")
            else:
                finished = train_stage(
                    config, stage_index, previous_dir, stage_dir, workdir, interrupt, matrix, profile=profile
                )
                if not finished or (interrupt.requested and stage is not config.stages[-1]):
                    say(f"stopped and saved in {stage_dir}; run the same command to resume")
                    return None
            previous_dir = stage_dir
    assert previous_dir is not None
    if len(matrix):
        say(f"held-out reward at temperature {config.sampling.temperature:g}, with 95% intervals\n{matrix.table()}")
    return previous_dir / EXPORT


def draw_world(folder: Path) -> None:
    """Draws the embedded world unless it is there; the first host does, and others whose machines do not share it."""
    if distributed.is_main():
        world_rows.ensure_world(folder, say)
    distributed.barrier("the world is drawn", 0, 1800)
    if not distributed.is_main():
        world_rows.ensure_world(folder, say)


def train_stage(
    config: Config,
    stage_index: int,
    previous_dir: Path | None,
    stage_dir: Path,
    workdir: Path,
    interrupt: Interrupt,
    matrix: ForgettingMatrix,
    *,
    profile: ProfileSteps | None = None,
) -> bool:
    """Trains a stage from its latest checkpoint or its start, and exports its model.

    Args:
        config: all settings.
        stage_index: index of the stage.
        previous_dir: folder of the stage before it, whose parameters it starts with.
        stage_dir: folder of the stage.
        workdir: folder of the run.
        interrupt: asked after every step.
        matrix: receives the measurements of held-out rows.
        profile: steps to trace.

    Returns:
        False if the run was asked to stop before the last step.
    """
    if not keep_samples(config, stage_index, previous_dir, stage_dir, workdir, interrupt):
        return False
    with open_stage(config, stage_index, previous_dir, stage_dir, workdir, interrupt, matrix, profile) as stage:
        state = train_steps(stage, interrupt)
        if state is None:
            return False
    params, model = kept_params(stage, state, previous_dir), stage.context.model
    hf.export(model.merged, to_policy(model)(params), stage.context.processor, stage_dir / EXPORT)
    return True


def kept_params(stage: OpenStage, state: TrainState, previous_dir: Path | None) -> Parameters:
    """Returns the masters of a finished stage's model: those of its end, unless its forgetting gate keeps others."""
    context = stage.context
    decision = stage.evaluator.decide(saved_steps(stage.folder))
    if decision is None or decision.kept_step == decision.last_step:
        return state.params
    if decision.kept_step == 0:
        return start_params(context.config, context.stage_index, context.model, previous_dir)
    folder = stage.folder / CHECKPOINTS / str(decision.kept_step)
    return restore_item(folder, "params", context.model.abstract(jnp.float32))


@dataclass(slots=True)
class OpenStage:
    """A stage ready to train.

    Attributes:
        context: processor, model, reward pool, reference.
        folder: the stage's output folder.
        optimizer: optimizer of the stage.
        programs: the jitted programs of an update.
        state: the initial state; `train_steps` sets it to None and donates it.
        step: step of the state, 0 at the start.
        ended: whether the stage had ended at this step.
        data_state: identifies the rows and their order, for checkpoints.
        batches: this host's examples of each further step.
        checkpoints: checkpoints of the stage.
        evaluator: evaluator of held-out rows.
        metrics: where metrics go.
        buffer: metrics of steps that are not yet written.
        profiler: traces the wanted steps.
        reward_thread: an executor with one worker; scores completions.
    """

    context: StageContext
    folder: Path
    optimizer: StageOptimizer
    programs: UpdatePrograms
    state: TrainState | None
    step: int
    ended: bool
    data_state: dict[str, Any]
    batches: Iterator[list[Example]]
    checkpoints: Checkpoints
    evaluator: Evaluator
    metrics: Metrics
    buffer: MetricsBuffer
    profiler: StepProfiler
    reward_thread: ThreadPoolExecutor


@contextmanager
def open_stage(
    config: Config,
    stage_index: int,
    previous_dir: Path | None,
    stage_dir: Path,
    workdir: Path,
    interrupt: Interrupt,
    matrix: ForgettingMatrix,
    profile: ProfileSteps | None,
) -> Iterator[OpenStage]:
    """Opens everything that a stage's steps need, in the order in which mistakes are cheapest to find."""
    run_config, config = config, with_kept_rows(stage_settings(config, stage_index), workdir)
    stage, is_main = config.stages[stage_index], distributed.is_main()
    with ExitStack() as stack:
        session = stack.enter_context(open_session(config))
        stack.callback(say_failures, session)
        check_base_weights(config, stage_dir, previous_dir)
        refuse_uneven_batch(session)
        try_rewards(session, run_config, stage_index)
        buckets = fit_run_buckets(session, run_config, stage_index, workdir, stage_dir)
        rows = stack.enter_context(closing(read_rows(session, stage_index, buckets)))
        held_out, loss_rows = held_out_rows(session), read_loss_rows(session, stage)
        for one in held_out:
            try_on(session, one.examples)
        optimizer = stage_optimizer(config, stage_index)
        stage_programs = open_programs(session, optimizer, buckets, evaluation_batch_size(run_config))
        session = replace(session, config=stage_programs.config, model=stage_programs.model)
        model, programs, devices = session.model, stage_programs.update, list(session.model.mesh.devices.flat)
        prepare_programs(config, stage_programs, devices, interrupt)
        data_state = {"fingerprint": rows.fingerprint(), "batch_size": config.data.batch_size, "seed": config.seed}
        checkpoints = stack.enter_context(Checkpoints(stage_dir / CHECKPOINTS, config.logging.keep_last))
        state, step, ended = start_state(session, stage_index, optimizer, previous_dir, checkpoints, data_state)
        context = stage_context(session, stage_index, buckets, previous_dir)
        if is_main:
            write_config(run_config, stage_dir)
            for folder in (ROLLOUTS, HELD_OUT):
                drop_records(stage_dir / folder, after=step)
        evaluator = Evaluator(evaluated_context(context, run_config), held_out, matrix, stage_dir, loss_rows)
        evaluator.begin(to_policy(model)(state.params), step)
        metrics = stack.enter_context(
            Metrics(stage_dir, config.logging, name=config.name, step=step, steps=stage.steps, writes=is_main)
        )
        buffer = stack.enter_context(MetricsBuffer(stage_dir, devices, make_mfu(stage_programs)))
        profiler = stack.enter_context(StepProfiler(stage_dir, profile, say))
        batches = example_batches(session, rows, buckets, step)
        reward_thread = stack.enter_context(ThreadPoolExecutor(1, "rewards"))
        yield OpenStage(
            context,
            stage_dir,
            optimizer,
            programs,
            state,
            step,
            ended,
            data_state,
            batches,
            checkpoints,
            evaluator,
            metrics,
            buffer,
            profiler,
            reward_thread,
        )


def say_failures(session: Session) -> None:
    """Sums up the failures of rewards of one's own."""
    for line in session.failure_counts.summary():
        say(line)


def open_programs(
    session: Session, optimizer: StageOptimizer, buckets: ShapeBuckets, held_out_prompts: int
) -> StagePrograms:
    """Makes the programs of a stage, with the rematerialisation that fits where the setting leaves it open."""

    def programs_with(remat: Remat) -> StagePrograms:
        config = replace(session.config, model=replace(session.config.model, remat=remat))
        own = replace(session, config=config, model=replace(session.model, remat=remat))
        update = update_programs(own.model, optimizer.transform, optimizer.settings, gradient_function(config))
        return session_programs(own, optimizer, update, buckets, held_out_prompts)

    topology = replace(attached_topology(list(session.model.mesh.devices.flat)), usable_bytes=least_memory())
    return fit_remat(session.config.model.remat, programs_with, topology, say)


def prepare_programs(config: Config, programs: StagePrograms, devices: list[Any], interrupt: Interrupt) -> None:
    """Refuses a batch that the devices cannot hold, and compiles all programs where their shapes are known."""
    if config.plan_first:
        refuse_too_large(programs.step(programs.buckets()[-1]), devices)
    if config.data.shapes is Shapes.AUTO:
        compile_ahead(programs.every_program(), interrupt)
    else:
        say(f"up to {programs.max_programs():,} programs are compiled as batches need them: such steps take longer")


def evaluated_context(context: StageContext, run_config: Config) -> StageContext:
    """Returns the context of held-out rows: merged parameters, and the run's batches in a stage of other ones, too."""
    return replace(context, model=context.model.merged, config=replace(context.config, data=run_config.data))


def stage_context(session: Session, stage_index: int, buckets: ShapeBuckets, previous_dir: Path | None) -> StageContext:
    """Makes the context of a stage; loads the reference where there is a KL penalty."""
    config, model, ref_params = session.config, session.model, None
    if config.method is Method.GRPO and config.grpo.kl_coef:
        ref_params = to_compute_dtype(model)(reference_params(config, stage_index, model, previous_dir))
    return StageContext(
        config=config,
        processor=session.processor,
        model=model,
        reward_pool=session.reward_pool,
        failure_counts=session.failure_counts,
        stage_index=stage_index,
        buckets=buckets,
        ref_params=ref_params,
    )


def train_steps(stage: OpenStage, interrupt: Interrupt) -> TrainState | None:
    """Takes the remaining steps of a stage: trains, logs, evaluates and saves.

    Returns:
        The state after the last step; None if the run was asked to stop before it.
    """
    context, logging = stage.context, stage.context.config.logging
    stage_name, last_step = context.stage.name, context.stage.steps
    state, stage.state = stage.state, None  # the first step donates its arrays
    assert state is not None
    stage.buffer.restart_clock()
    for step in range(stage.step + 1, 1 if stage.ended else last_step + 1):
        stage.profiler.before_step(step, state)
        state = take_step(stage, state, next(stage.batches), step)
        stage.profiler.after_step(step, state)
        stage.metrics.advance()
        distributed.reached(step)

        stop = interrupt.after_step(stage.checkpoints)
        evaluates = step == last_step or _is_due(logging.evaluate_every, step)
        saves = stop or step == last_step or _is_due(logging.save_every, step)
        if not (saves or evaluates or _is_due(logging.log_every, step) or step == stage.step + 1):
            continue
        lines, error = stage.buffer.flush()
        ended, score = False, None
        if evaluates and not error:
            with stage.metrics.paused_bar():
                held_out_metrics, ended, score = stage.evaluator.evaluate(to_policy(context.model)(state.params), step)
            lines[-1].update(held_out_metrics)
        write_metrics(stage, lines)
        if error:
            raise error
        limit = reached_limit(context.config, lines)
        if saves or ended or limit or (score is not None and stage.checkpoints.is_best(score)):
            metadata = {**stage.data_state, "ended": ended}
            save = partial(stage.checkpoints.save, step, checkpoint_items(state), metadata, score=score)
            with stage.metrics.paused_bar():
                stage.buffer.timer.call("save", save)
        if limit:
            raise LimitReached(f"stage {stage_name}, step {step}: {limit}; it is saved in {stage.folder}")
        if stop and step < last_step:
            return None
        if ended:
            break
        stage.buffer.restart_clock()
    return state


def take_step(stage: OpenStage, state: TrainState, examples: Sequence[Example], step: int) -> TrainState:
    """Takes one step of the config's method; `state` is donated."""
    context, logging, timer = stage.context, stage.context.config.logging, stage.buffer.timer
    if context.config.method is Method.SFT:
        result = sft_step(context, stage.programs, state, examples, timer)
        stage.buffer.add(step, result.metrics, result.records, result.buckets)
        return result.state
    result = grpo_step(context, stage.programs, stage.reward_thread, state, examples, step, timer)
    stage.buffer.add(step, result.metrics, result.records, result.buckets)
    if _writes_rollouts(step, context.stage.steps, logging.rollouts_every):
        write_records(stage.folder / ROLLOUTS / f"{step}.jsonl", result.records())
    return result.state


def write_metrics(stage: OpenStage, lines: Sequence[dict[str, float]]) -> None:
    """Writes lines of metrics, each with the stage and the learning rate of its step's first update."""
    optimizer = stage.optimizer
    for line in lines:
        rate = float(np.asarray(optimizer.schedule(optimizer.updates_per_step * (line["step"] - 1))))
        stage.metrics.write({"stage": stage.context.stage.name, **line, "learning_rate": rate})


def _writes_rollouts(step: int, last_step: int, every: int) -> bool:
    """Returns true for steps 1, 1 + every, 1 + 2 * every and so on, and for the last step."""
    return bool(every) and (step == last_step or _is_due(every, step - 1))


def _is_due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0
