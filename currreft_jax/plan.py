"""Check whether a config fits devices that need not be attached, and estimate the seconds of a step.

  python -m currreft_jax.plan --config=configs/stage3.py:3b --topology=a800:1x8
  python -m currreft_jax.plan --config=configs/sft.py:7b --topology=a800:2x8 --config.data.batch_size=64 --search

Compiles the programs that `train` runs with the devices' own compiler, for abstract arrays of the largest shape that
the settings allow. A GPU topology is HOSTSxGPUS, a TPU topology the shape of the slice; `here` is this machine's
devices. Stages that are batched alike are planned once. The last line says whether the config fits, how many hours and
how much disk it takes, and what was assumed. Exits with 1 if a program does not fit, and prints settings that do.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
from absl import app, flags

from currreft_jax.config import ELSEWHERE, Config, Remat, Shapes, stage_settings, validate
from currreft_jax.config.flags import define_config, flags_parser, refuse_command_line
from currreft_jax.config.wording import plural
from currreft_jax.planning.budget import StageCosts, stages_to_plan, verdict
from currreft_jax.planning.compiled import Efficiency, compile_programs, evaluation_seconds, step_seconds
from currreft_jax.planning.devices import DEVICES, GB, Topology, attached_topology, topology_by_name
from currreft_jax.planning.fit import fits
from currreft_jax.planning.search import Search
from currreft_jax.planning.spec import ModelSpec, model_spec
from currreft_jax.planning.tables import format_summary, format_tables
from currreft_jax.rewards.registry import validate_reward_names
from currreft_jax.runtime.compilation_cache import enable_compilation_cache
from currreft_jax.runtime.programs import StepProgram
from currreft_jax.training.programs import StagePrograms, fit_remat, stage_programs

_HERE = "here"


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
        _log(f"{result.program.name} {result.program.shape}: {result.compile_seconds:.1f} s")
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


def _log(line: str) -> None:
    print(f"plan: {line}", file=sys.stderr)


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
    """Plans one stage, or all of those that are not batched alike, and prints the verdict; returns true if all fit.

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


def define_flags() -> None:
    """Defines the program's flags, only when it runs: `train` has a flag of the same name."""
    defaults = Efficiency()
    define_config()
    flags.DEFINE_string("topology", None, f"devices, such as a800:2x8 or v5e:2x4, of {', '.join(DEVICES)}; or here")
    flags.DEFINE_integer("stage", None, "index of a stage, from 0, to plan alone; by default all are planned")
    flags.DEFINE_bool("all", False, "compile every shape that a batch may take, not the largest alone (hours)")
    flags.DEFINE_bool("search", False, "search for the fastest settings that fit, even if the given ones do")
    flags.DEFINE_float("compute_share", defaults.compute, "achieved fraction of the bf16 peak")
    flags.DEFINE_float("memory_share", defaults.memory, "achieved fraction of the memory bandwidth")
    flags.DEFINE_float("link_share", defaults.links, "achieved fraction of the link bandwidth")
    flags.DEFINE_float("network_gbs", defaults.network / GB, "achieved GB/s from each device to other hosts")
    flags.DEFINE_float("latency_us", defaults.latency * 1e6, "microseconds of a collective within a host or slice")
    flags.DEFINE_float("network_latency_us", defaults.network_latency * 1e6, "microseconds of a collective of hosts")


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    args = flags.FLAGS
    try:
        validate_reward_names(args.config.rewards)
    except ValueError as error:
        refuse_command_line("plan", str(error))
    if args.topology is None:
        refuse_command_line("plan", "--topology is missing, such as --topology=a800:1x8")
    if args.stage is not None and not 0 <= args.stage < len(args.config.stages):
        refuse_command_line("plan", f"--stage={args.stage}: it takes 0 to {len(args.config.stages) - 1}")
    shares = {"compute_share": args.compute_share, "memory_share": args.memory_share, "link_share": args.link_share}
    for name, share in shares.items():
        if not 0 < share <= 1:
            refuse_command_line("plan", f"--{name}={share}: it takes a share in (0, 1]")
    if not 0 < args.network_gbs < math.inf:
        refuse_command_line("plan", f"--network_gbs={args.network_gbs}: it takes a positive number")
    for name, latency in {"latency_us": args.latency_us, "network_latency_us": args.network_latency_us}.items():
        if not 0 <= latency < math.inf:
            refuse_command_line("plan", f"--{name}={latency}: it takes 0 or a positive number")
    if args.topology == _HERE:
        enable_compilation_cache()  # `train` loads what is compiled here
    else:
        jax.config.update("jax_platforms", "cpu")  # leaves the attached devices free
    efficiency = Efficiency(
        args.compute_share,
        args.memory_share,
        args.link_share,
        args.network_gbs * GB,
        args.latency_us * 1e-6,
        args.network_latency_us * 1e-6,
    )
    try:
        topology = attached_topology() if args.topology == _HERE else topology_by_name(args.topology)
        fit = plan_stages(args.config, topology, efficiency, args.stage, all_shapes=args.all, search=args.search)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # what the package raises for bad input
        sys.exit(f"plan: {error}")
    sys.exit(0 if fit else 1)


if __name__ == "__main__":
    os.environ[ELSEWHERE] = "1"  # read when the config file is loaded, before `main`
    define_flags()
    app.run(main, flags_parser=flags_parser("plan"))
