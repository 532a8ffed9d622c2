"""Variants and settings that the configs share."""

import os
import sys
from glob import glob
from pathlib import Path

from currreft_jax.config import (
    ELSEWHERE,
    CacheType,
    Config,
    Data,
    Kind,
    Logging,
    LossAverage,
    MeshShape,
    Method,
    Optimizer,
    Precision,
    Pretrained,
    Remat,
    Sampling,
    Source,
    Stage,
)
from currreft_jax.config.names import refuse_unknown_variant

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# Absolute: a config is the same in whatever folder a program runs.
_BASE = str(Path(__file__).resolve().parent.parent / "currreft_jax/world/base")
# Drawn by the first run that trains on it, for all later ones.
WORLD = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "currreft_jax" / "world")
ROWS = "rows/paper"  # `dataset build --recipe paper --out rows/paper`, as in docs/data.md
TASKS = ("detection", "classify", "math")
VARIANTS = {
    "tiny": "the small model of the package, in the world of coloured shapes: any machine, no download",
    "3b": "Qwen2.5-VL-3B-Instruct, for GPUs and TPUs",
    "7b": "Qwen2.5-VL-7B-Instruct, for GPUs and TPUs",
}
_HUB = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}


def resolve_variant(variant: str | None) -> str:
    """Resolves a variant; None is 3b with an accelerator, attached or planned for, and tiny without one.

    Raises:
        ValueError: no such variant, or this machine lacks the accelerator that the variant needs.
    """
    accelerated = ELSEWHERE in os.environ or any(glob(pattern) for pattern in _ACCELERATORS)
    if variant is None:
        variant = "3b" if accelerated else "tiny"
        reason = f"this machine has {'an' if accelerated else 'no'} accelerator"
        if ELSEWHERE in os.environ:
            reason = "the devices are accelerators"
        print(f"config: variant {variant}, because {reason}", file=sys.stderr)
    refuse_unknown_variant(variant, VARIANTS)
    if variant in _HUB and not accelerated:
        raise ValueError(
            f"variant {variant} needs an accelerator, and this machine has none: write :tiny, or on a GPU machine"
            " install with pip install -e '.[cuda12]'; `python -m currreft_jax.plan` checks its settings on any machine"
        )
    return variant


def base(name: str, variant: str) -> Config:
    """Makes the settings that all methods share."""
    if variant == "tiny":
        return Config(
            name=f"{name}-{variant}",
            model=Pretrained(path=_BASE, dtype="float32", remat=Remat.NONE, max_pixels=0),
            mesh=MeshShape(data=-1, fsdp=1),
            data=Data(template="world", prompt_lengths=(64, 96, 128), completion_lengths=(32, 64), threads=2),
            logging=Logging(log_every=10, save_every=200),
        )
    return Config(name=f"{name}-{variant}", model=Pretrained(path=_HUB[variant]))


def grpo(name: str, variant: str) -> Config:
    """Makes the settings that all GRPO stages share: the paper's, or small ones for the world."""
    config = base(name, variant)
    config.method = Method.GRPO
    config.loss_average = LossAverage.SEQUENCE
    if variant == "tiny":
        config.data.world = WORLD
        config.data.batch_size = 16
        config.data.prompt_lengths = (48, 80)
        config.optimizer.learning_rate = 1e-4
        config.sampling = Sampling(
            group_size=8,
            max_new_tokens=48,
            segment=24,
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
        )
        config.logging.evaluate_rows = 300
        return config
    config.data.batch_size = 8
    config.optimizer.learning_rate = 2e-5
    config.sampling = Sampling(group_size=4, max_new_tokens=512)
    return config


def stage(kind: Kind, variant: str, steps: int, tiny_steps: int) -> Stage:
    """Makes a stage of the curriculum: rows of one kind, all three tasks."""
    name = {Kind.JUDGE: "stage1", Kind.CHOICE: "stage2", Kind.OPEN: "stage3"}[kind]
    if variant != "tiny":
        sources = [Source(f"{ROWS}/train/{kind.value}-{task}.jsonl") for task in TASKS]
        of_kind = "" if kind is Kind.OPEN else f"{kind.value}-"
        held_out = [Source(f"{ROWS}/test/in-{of_kind}{task}.jsonl") for task in TASKS]
        return Stage(name, sources, steps, kinds=(kind,), held_out=held_out)
    return Stage(
        name,
        [Source(f"{WORLD}/train_{kind.value}.jsonl")],
        tiny_steps,
        kinds=(kind,),
        held_out=[Source(f"{WORLD}/test_{kind.value}.jsonl")],
    )


def curriculum(variant: str) -> list[Stage]:
    """Makes the three stages of the curriculum."""
    return [
        stage(Kind.JUDGE, variant, 600, 80),
        stage(Kind.CHOICE, variant, 500, 80),
        stage(Kind.OPEN, variant, 2500, 80),
    ]


def self_improve(variant: str) -> Stage:
    """Makes the stage that fine-tunes on the kept answers: the authors' settings, or small ones for the world.

    Its 2,000 steps of 32 rows are 42 passes over the 1,520 rows of the authors.
    """
    is_tiny = variant == "tiny"
    return Stage(
        "self_improve",
        steps=20 if is_tiny else 2000,
        method=Method.SFT,
        loss_average=LossAverage.TOKEN,
        batch_size=32,
        microbatches=1 if is_tiny else 4,
        optimizer=Optimizer(learning_rate=2e-5 if is_tiny else 2e-7, warmup=0.05),
        evaluate_every=10 if is_tiny else 250,
        forgetting_margin=0.05,
    )
