"""Plans of a config's stages: compiled programs, their memory and speed, and settings that fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import jax

from currreft_jax.config import Config, Remat, Shapes, stage_settings, validate
from currreft_jax.config.wording import plural
from currreft_jax.planning.budget import StageCosts, stages_to_plan, verdict
from currreft_jax.planning.compiled import Efficiency, compile_programs, evaluation_seconds, step_seconds
from currreft_jax.planning.devices import Topology
from currreft_jax.planning.fit import fits
from currreft_jax.planning.search import Search
from currreft_jax.planning.spec import ModelSpec, model_spec
from currreft_jax.planning.tables import format_summary, format_tables
from currreft_jax.runtime.programs import StepProgram
from currreft_jax.training.programs import StagePrograms, fit_remat, stage_programs


def compile_stage(
    config: Config, topology: Topology, efficiency: Efficiency, stage_index: int = 0, *, all_shapes: bool = False
) -> StageCosts:
    """Compiles the programs of a stage for a topology, prints their memory and speed, and returns its costs.

    Args:
        config: all settings.
        topology: the devices.
        efficiency: achieved fraction of their figures.
        stage_index: index of the stage.
        all_shapes: compile every shape, not the largest alone.

    Raises:
        ValueError: impossible settings, or a batch that does not spread over the devices.
        FileNotFoundError: the shape of the model is unknown.
    """
    validate(config)
    spec = model_spec(config)

    def programs_with(remat: Remat) -> StagePrograms:
        model = replace(config.model, remat=remat)
        own = replace(config, model=model)
        return stage_programs(own, stage_index, spec, topology.devices, topology.usable_bytes)

    stage = fit_remat(config.model.remat, programs_with, topology, _log)
    print(
        format_summary(stage.config, stage_index, stage.model, stage.layout, stage.resident, topology, efficiency),
        flush=True,
    )
    buckets = stage.buckets() if all_shapes else stage.buckets()[-1:]
    programs = (program for bucket in buckets for program in stage.step(bucket))
    compiled = []
    for result in compile_programs(programs, topology):
        name = f"{result.program.name} {result.program.shape}".rstrip()
        _log(f"{name}: {result.compile_seconds:.1f} s")
        compiled.append(result)
    largest = compiled[-len(list(stage.step(buckets[-1]))) :] if all_shapes else compiled
    print(format_tables(compiled, largest, topology, efficiency))
    seconds = sum(result.compile_seconds for result in compiled)
    when = "before its first step" if config.data.shapes is Shapes.AUTO else "as batches need them"
    print(
        f"compiled {plural(len(compiled), 'program')} in {seconds:.0f} s; a run compiles up to"
        f" {stage.max_programs():,}, {when}"
    )
    has_figures = topology.spec is not None
    return StageCosts(
        stage_index,
        compiled,
        checkpoint_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stage.state)),
        export_bytes=stage.model.merged.num_parameters * stage.model.dtype.itemsize,
        step_seconds=step_seconds(largest, topology, efficiency) if has_figures else None,
        evaluation_seconds=evaluation_seconds(largest, topology, efficiency) if has_figures else 0.0,
    )


def remedy(config: Config, stage_index: int, spec: ModelSpec, topology: Topology, efficiency: Efficiency) -> str:
    """Returns the fastest settings that fit as flags, or other remedies if none do."""

    def largest_step(config: Config) -> Iterator[StepProgram]:
        stage = stage_programs(config, stage_index, spec, topology.devices, topology.usable_bytes)
        return stage.step(stage.buckets()[-1])

    own = f"stages[{stage_index}]." if config.stages[stage_index].microbatches else ""
    config = stage_settings(config, stage_index)
    if found := Search(config, largest_step, topology, efficiency, _log).run():
        flags = found.flags.replace("--config.microbatches", f"--config.{own}microbatches")
        return f"fits, in {found.seconds:.2f} s a step: {flags}"
    return (
        "no setting of microbatches, remat, mesh and sampling.mesh fits. Use more devices; or store less per parameter"
        " (--config.optimizer.moments=bfloat16, --config.optimizer.rule=ADAFACTOR, --config.model.lora.rank=16,"
        " --config.grpo.kl_coef=0); or shrink the batch (--config.data.batch_size, --config.data.prompt_lengths,"
        " --config.sampling.max_new_tokens, --config.model.max_pixels)"
    )


def plan_stages(
    config: Config,
    topology: Topology,
    efficiency: Efficiency,
    stage_index: int | None = None,
    *,
    all_shapes: bool = False,
    search: bool = False,
) -> bool:
    """Plans one stage, or all of those that are not alike, and prints the verdict; returns true if all fit.

    Args:
        config: all settings.
        topology: the devices.
        efficiency: achieved fraction of their figures.
        stage_index: index of the stage; None for all.
        all_shapes: compile every shape, not the largest alone.
        search: search for the fastest settings even if the given ones fit.

    Raises:
        ValueError: impossible settings, or a batch that does not spread over the devices.
        FileNotFoundError: the shape of the model is unknown.
    """
    costs = []
    for index in stages_to_plan(config) if stage_index is None else [stage_index]:
        costs.append(compile_stage(config, topology, efficiency, index, all_shapes=all_shapes))
        fit = fits(costs[-1].programs, topology)
        if not fit:
            print("does not fit", flush=True)
        if not fit or search:
            print(remedy(config, index, model_spec(config), topology, efficiency), flush=True)
        print()
    print(verdict(config, costs, topology))
    return all(fits(cost.programs, topology) for cost in costs)


def _log(line: str) -> None:
    print(f"plan: {line}", file=sys.stderr)
