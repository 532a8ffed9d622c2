"""The arms of the comparison: what each is trained on, all with the same number of updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.paper.rows import BARE, KINDS, REASONED, PaperRows
from currreft_jax.config import Config, Kind, Method, Source, Stage

SELF_IMPROVEMENT_SHARE = 1 / 12  # of the updates of Curr-ReFT
CHECKPOINTS_PER_RUN = 6  # that figure 5 shows
PASS_RATES = "pass_rates"  # what the difficulty filter needs, and the folder of the runs that measures it


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What arms are made of.

    Attributes:
        curriculum: settings of Curr-ReFT: a stage of each kind, then self-improvement.
        sft: settings of supervised fine-tuning; rows, steps and batch are the comparison's.
        rows: rows of the world.
        steps: updates of every arm.
        seed: moves rows and draws.
        pass_rates: file of the base's pass rates on the open training rows.
    """

    curriculum: Config
    sft: Config
    rows: PaperRows
    steps: int
    seed: int
    pass_rates: Path


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm.

    Attributes:
        name: name of its runs.
        title: name on the page.
        trained_on: what it is, in words.
        build: makes its settings; None for the base.
        needs: `reasoned` for rows that a world may lack, `pass_rates` for the base's; empty otherwise.
        shuffles: whether every completion learns from the reward of another one.
    """

    name: str
    title: str
    trained_on: str
    build: Callable[[Ingredients], Config] | None
    needs: str = ""
    shuffles: bool = False


def split_steps(steps: int, weights: Sequence[int]) -> list[int]:
    """Splits steps in proportion to weights, each part at least 1; the last gets the rest."""
    parts = [max(1, round(steps * weight / sum(weights))) for weight in weights[:-1]]
    if sum(parts) >= steps:
        raise ValueError(f"--steps={steps}: at least {len(weights)} updates, one of each stage")
    return [*parts, steps - sum(parts)]


def stage_of_kinds(curriculum: Config) -> dict[Kind, Stage]:
    """Returns the curriculum's stage of each kind.

    Raises:
        ValueError: the config is no curriculum of the three kinds.
    """
    stages = {stage.kinds[0]: stage for stage in curriculum.stages if len(stage.kinds) == 1 and not stage.rejection}
    if missing := [kind.value for kind in KINDS if kind not in stages]:
        raise ValueError(f"--config has no stage of {missing[0]} rows alone; name a curriculum of judge, choice, open")
    return {kind: stages[kind] for kind in KINDS}


def curriculum_steps(curriculum: Config) -> int:
    """Returns the updates of the config's three stages, which are each arm's by default."""
    return sum(stage.steps for stage in stage_of_kinds(curriculum).values())


def stage_steps(curriculum: Config, steps: int) -> list[int]:
    """Returns the steps of the three stages where they make `steps` together."""
    return split_steps(steps, [stage.steps for stage in stage_of_kinds(curriculum).values()])


def _run(config: Config, stages: list[Stage], steps: int, seed: int, name: str) -> Config:
    """Returns settings with other stages, checkpoints for figure 5, and no test row in training."""
    logging = replace(
        config.logging,
        save_every=math.ceil(steps / CHECKPOINTS_PER_RUN),
        keep_last=steps,
        rollouts_every=0,
        evaluate_every=0,
        tensorboard=False,
    )
    return replace(config, name=name, stages=stages, seed=seed, logging=logging)


def _sft(parts: Ingredients, name: str, golds: str, pass_rates: str = "") -> Config:
    """Fine-tunes on as many answers an update as GRPO has completions."""
    batch_size = parts.curriculum.data.batch_size * parts.curriculum.sampling.group_size
    data = replace(parts.sft.data, batch_size=batch_size, pass_rates=pass_rates, world=parts.rows.world)
    kinds = (Kind.OPEN, Kind.CHAT)
    stage = Stage("sft", [replace(source) for source in parts.rows.golds[golds]], parts.steps, kinds=kinds)
    config = replace(parts.sft, data=data, model=_base(parts))
    return _run(config, [stage], parts.steps, parts.seed, name)


def _base(parts: Ingredients):
    return replace(parts.curriculum.model, path=parts.rows.model or parts.curriculum.model.path)


def _grpo(parts: Ingredients, name: str, stages: list[Stage]) -> Config:
    data = replace(parts.curriculum.data, world=parts.rows.world)
    config = replace(parts.curriculum, method=Method.GRPO, data=data, model=_base(parts))
    return _run(config, stages, parts.steps, parts.seed, name)


def _stages(parts: Ingredients, steps: int) -> list[Stage]:
    """Returns the curriculum's stages on the rows of the world."""
    by_kind = stage_of_kinds(parts.curriculum)
    return [
        replace(_untested(by_kind[kind]), sources=list(parts.rows.train[kind]), steps=count)
        for kind, count in zip(KINDS, stage_steps(parts.curriculum, steps), strict=True)
    ]


def _untested(stage: Stage) -> Stage:
    """Returns a stage without the rows that it is tested on, and without what depends on them."""
    return replace(stage, held_out=[], out_of_domain=[], promote_above=1.0, forgetting_margin=None, evaluate_every=None)


def _rl(parts: Ingredients) -> Config:
    return _grpo(parts, "rl", [replace(_stages(parts, parts.steps)[-1], steps=parts.steps)])


def _mixed(parts: Ingredients) -> Config:
    """Mixes the rows of all stages, each kind as often as in the curriculum."""
    stages = _stages(parts, parts.steps)
    sources = [
        replace(source, weight=source.weight * stage.steps / sum(other.weight for other in stage.sources))
        for stage in stages
        for source in stage.sources
    ]
    return _grpo(parts, "mixed", [Stage("mixed", sources, parts.steps, kinds=KINDS)])


def _curr_rl(parts: Ingredients) -> Config:
    return _grpo(parts, "curr_rl", _stages(parts, parts.steps))


def _reversed(parts: Ingredients) -> Config:
    return _grpo(parts, "reversed", _stages(parts, parts.steps)[::-1])


def _curr_reft(parts: Ingredients) -> Config:
    """Ends the curriculum earlier, and fine-tunes on its own best answers; no gate looks at test rows."""
    last = next((stage for stage in parts.curriculum.stages if stage.rejection), None)
    if last is None or last.rejection is None:
        raise ValueError("--config has no stage with rejected sampling, which the arm curr_reft ends with")
    steps = max(1, round(parts.steps * SELF_IMPROVEMENT_SHARE))
    rejection = replace(last.rejection, seed=parts.seed)
    if parts.rows.rejection is not None:
        rejection = replace(
            rejection,
            sources=list(parts.rows.rejection),
            suites=[replace(suite, sources=[Source(suite.sources[0].file)]) for suite in parts.rows.suites],
            world=parts.rows.world,
        )
    last = replace(_untested(last), steps=steps, rejection=rejection)
    return _grpo(parts, "curr_reft", [*_stages(parts, parts.steps - steps), last])


ARMS = (
    Arm("base", "Base", "nothing", None),
    Arm("sft", "SFT, bare golds", "gold answers of open rows", lambda parts: _sft(parts, "sft", BARE)),
    Arm("rl", "RL", "open rows", _rl),
    Arm("mixed", "RL, kinds mixed", "rows of all kinds in random order, as many of each as the curriculum", _mixed),
    Arm("curr_rl", "Curr-RL", "yes/no rows, then choices, then open rows", _curr_rl),
    Arm("curr_reft", "Curr-ReFT", "Curr-RL, then its own best answers", _curr_reft),
    Arm(
        "sft_reasoned",
        "SFT, reasoned golds",
        "gold answers of open rows, with the thoughts that lead to them",
        lambda parts: _sft(parts, "sft_reasoned", REASONED),
        needs=REASONED,
    ),
    Arm("reversed", "reversed order", "open rows, then choices, then yes/no rows", _reversed),
    Arm(
        "sft_filtered",
        "SFT, filtered",
        "bare golds of the open rows that the base answers right at times",
        lambda parts: _sft(parts, "sft_filtered", BARE, str(parts.pass_rates)),
        needs=PASS_RATES,
    ),
    Arm("shuffled", "shuffled rewards", "as Curr-RL, with the rewards of other completions", _curr_rl, shuffles=True),
)
ARM_BY_NAME = {arm.name: arm for arm in ARMS}
