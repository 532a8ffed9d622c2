"""Stage 2 of the curriculum alone: single and multiple choice, with partial credit.

python -m currreft_jax.train --config=configs/stage2.py

`configs/curriculum.py` runs all three in one go; this one goes on from the export of
stage 1, and its reference is the base.
"""

from configs import common
from currreft_jax.config import Config, Kind


def get_config(variant: str | None = None) -> Config:
    """The settings of a variant: tiny, 3b or 7b."""
    variant = common.chosen(variant)
    config = common.grpo("stage2", variant)
    config.stages = [common.stage(Kind.CHOICE, variant, 500, 80)]
    config.grpo.reference_path = config.model.path
    config.model.path = f"runs/stage1-{variant}/model"
    return config
