"""Stage 2 of the curriculum alone: single and multiple choice, with partial credit.

python -m currreft_jax.train --config=configs/stage2.py

It starts from the exported model of stage 1; its reference is the base model. `configs/curriculum.py` runs all three
stages.
"""

from configs import common
from currreft_jax.config import Config, Kind

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("stage2", variant)
    config.stages = [common.stage(Kind.CHOICE, variant, 500, 80)]
    config.grpo.reference_path = config.model.path
    config.model.path = f"runs/stage1-{variant}/model"
    return config
