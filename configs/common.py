"""What every config shares: the variants, and which one a machine gets."""

import sys
from glob import glob

from currreft_jax.config import Config, Data, Logging, MeshShape, Pretrained, Remat

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
_HUB = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}


def chosen(variant: str | None) -> str:
    """The variant asked for; without one 3b where the machine has an accelerator, else tiny.

    Raises:
        ValueError: there is no such variant, or it needs an accelerator that the machine lacks.
    """
    accelerated = any(glob(pattern) for pattern in _ACCELERATORS)
    if variant is None:
        variant = "3b" if accelerated else "tiny"
        has = "an" if accelerated else "no"
        print(f"config: variant {variant}, as this machine has {has} accelerator", file=sys.stderr)
    if variant not in ("tiny", *_HUB):
        raise ValueError(f"no variant {variant!r}; write tiny, 3b or 7b after the colon")
    if variant in _HUB and not accelerated:
        raise ValueError(
            f"variant {variant} needs an accelerator, and this machine has none: write :tiny, or on a GPU machine"
            " install with pip install 'currreft_jax[cuda12]'"
        )
    return variant


def base(name: str, variant: str) -> Config:
    """The settings that do not depend on what is learnt."""
    if variant == "tiny":
        return Config(
            name=f"{name}-{variant}",
            model=Pretrained(path="currreft_jax/world/base", dtype="float32", remat=Remat.NONE, max_pixels=0),
            mesh=MeshShape(data=-1, fsdp=1),
            data=Data(template="world", prompt_lengths=(64, 96, 128), completion_lengths=(32, 64), threads=2),
            logging=Logging(log_every=10, save_every=200),
        )
    return Config(name=f"{name}-{variant}", model=Pretrained(path=_HUB[variant]))
