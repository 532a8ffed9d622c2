"""Supervised fine-tuning, a baseline of the paper: gold answers of open rows, with the vision tower frozen.

python -m currreft_jax.train --config=configs/sft.py:3b --rows rows.jsonl more.jsonl
"""

from configs import common
from currreft_jax.config import Config, Kind, Source, Stage

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.base("sft", variant)
    config.stages = [Stage("sft", [Source("rows.jsonl")], steps=2100, kinds=(Kind.OPEN, Kind.CHAT))]
    config.data.batch_size = 32
    config.optimizer.learning_rate = 1e-6
    config.optimizer.freeze_vision = True
    if variant == "tiny":
        config.stages[0].steps = 200
        config.optimizer.learning_rate = 1e-4
    else:
        config.microbatches = 4
    return config
