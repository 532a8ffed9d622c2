"""The verdict of a plan: whether a config fits, and the hours and the disk of its whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from currreft_jax.config import Config, Rule, evaluation_batch_size, has_own_batches, stage_settings
from currreft_jax.config.wording import plural
from currreft_jax.planning.compiled import CompiledProgram
from currreft_jax.planning.devices import GB, GIB, Topology


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What a planned stage costs, and every other one that has its programs.

    Attributes:
        stage_index: index of the stage.
        programs: its compiled programs.
        checkpoint_bytes: bytes of a checkpoint: masters and optimizer state.
        export_bytes: bytes of an exported model.
        step_seconds: seconds of a step; None if the figures of the devices are unknown.
        evaluation_seconds: seconds of a batch of held-out rows.
    """

    stage_index: int
    programs: Sequence[CompiledProgram]
    checkpoint_bytes: int
    export_bytes: int
    step_seconds: float | None
    evaluation_seconds: float


def alike_stages(config: Config, stage_index: int) -> list[int]:
    """Returns the indices of the stages with the programs of one: batched as it is, with the same optimizer state."""
    if has_own_batches(config.stages[stage_index]):
        return [stage_index]
    return [
        index
        for index, stage in enumerate(config.stages)
        if not has_own_batches(stage) and _optimizer_state(config, index) == _optimizer_state(config, stage_index)
    ]


def stages_to_plan(config: Config) -> list[int]:
    """Returns the first index of each set of stages that are alike."""
    return sorted({alike_stages(config, index)[0] for index in range(len(config.stages))})


def _optimizer_state(config: Config, stage_index: int) -> tuple[Rule, str, bool, bool]:
    """Returns the settings of a stage that decide which parameters are trained, and what is stored for each."""
    optimizer = stage_settings(config, stage_index).optimizer
    return optimizer.rule, optimizer.moments, optimizer.freeze_vision, optimizer.freeze_merger


def verdict(config: Config, costs: Sequence[StageCosts], topology: Topology) -> str:
    """Returns one sentence: whether the stages fit, hours and disk of the config, and what was assumed.

    Args:
        config: all settings.
        costs: of planned stages; stages that none of them is alike to are named as left out.
        topology: the devices.
    """
    stages = [alike_stages(config, cost.stage_index) for cost in costs]
    planned = {index for indices in stages for index in indices}
    left_out = [stage.name for index, stage in enumerate(config.stages) if index not in planned]
    whole = f"the config without {', '.join(left_out)}" if left_out else "the whole config"
    assumed = "steps of the largest batch"
    if topology.spec:
        assumed += " at the shares of the devices' figures above"
    extra = ", rejected sampling" if any(config.stages[index].rejection for index in planned) else ""
    return (
        f"{_fit_text(config, costs, topology)}; {whole} {_hours_text(config, costs)}keeps {_disk_text(config, costs)};"
        f" assumed are {assumed}, and no time for loading, compiling, scoring{extra} and saving"
    )


def _fit_text(config: Config, costs: Sequence[StageCosts], topology: Topology) -> str:
    if topology.usable_bytes is None:
        return f"whether it fits {topology.name} is unknown, as the memory of its devices is"
    usable = topology.usable_bytes / GIB
    largest, stage_index = max(
        ((program, cost.stage_index) for cost in costs for program in cost.programs),
        key=lambda pair: pair[0].peak_bytes,
    )
    peak = largest.peak_bytes / GIB
    if peak <= usable:
        return f"fits {topology.name}, with {usable - peak:.1f} of {usable:.1f} GiB per device to spare"
    name = f"{largest.program.name} of stage {config.stages[stage_index].name}"
    return f"does not fit {topology.name}: {name} needs {peak:.1f} of {usable:.1f} GiB per device"


def _hours_text(config: Config, costs: Sequence[StageCosts]) -> str:
    """Returns the hours with their parts, and `and`; nothing if the figures of the devices are unknown."""
    hours, parts = 0.0, []
    for cost in costs:
        if cost.step_seconds is None:
            return ""
        stages = alike_stages(config, cost.stage_index)
        steps = sum(config.stages[index].steps for index in stages)
        batches = evaluation_batches(config, stages)
        hours += (steps * cost.step_seconds + batches * cost.evaluation_seconds) / 3600
        parts.append(f"{plural(steps, 'step')} in {cost.step_seconds:.2f} s")
        if batches:
            parts.append(f"{batches} batches of held-out rows in {cost.evaluation_seconds:.1f} s")
    return f"takes {hours:.1f} h ({', '.join(parts)}) and "


def _disk_text(config: Config, costs: Sequence[StageCosts]) -> str:
    total, parts = 0, []
    for cost in costs:
        stages = alike_stages(config, cost.stage_index)
        checkpoints = sum(_kept_checkpoints(config, index) for index in stages)
        total += checkpoints * cost.checkpoint_bytes + len(stages) * cost.export_bytes
        parts.append(
            f"{plural(checkpoints, 'checkpoint')} of {_size_text(cost.checkpoint_bytes)} and"
            f" {plural(len(stages), 'exported model')} of {_size_text(cost.export_bytes)}"
        )
    return f"{_size_text(total)} on disk ({', '.join(parts)}; one more checkpoint while it is written)"


def _size_text(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / 1e6:.0f} MB"


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
