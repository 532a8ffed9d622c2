"""Stage 1 of the curriculum alone: yes/no questions.

python -m currreft_jax.train --config=configs/stage1.py

`configs/curriculum.py` runs all three stages.
"""

from configs import common
from currreft_jax.config import Config, Kind

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("stage1", variant)
    config.stages = [common.stage(Kind.JUDGE, variant, 600, 80)]
    return config
