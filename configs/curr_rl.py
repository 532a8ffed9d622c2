"""Curr-RL, a baseline of the paper: the three stages of the curriculum, without self-improvement.

python -m currreft_jax.train --config=configs/curr_rl.py
"""

from configs import common
from currreft_jax.config import Config

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("curr_rl", variant)
    config.stages = common.curriculum(variant)
    return config
