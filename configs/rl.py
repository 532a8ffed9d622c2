"""Reinforcement learning without a curriculum, a baseline of the paper: open answers from the first step on.

python -m currreft_jax.train --config=configs/rl.py
"""

from configs import common
from currreft_jax.config import Config, Kind

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("rl", variant)
    config.stages = [common.stage(Kind.OPEN, variant, 2500, 240)]
    return config
