"""The curriculum: yes/no questions, then choices, then open answers; each stage starts from the end of the last one.

python -m currreft_jax.train --config=configs/curriculum.py

The variant :tiny takes about ten minutes on two CPU cores; the README has the results of five seeds. The variants :3b
and :7b have not been run yet.

The learning rate is the paper's, 2e-5. The authors' scripts set none and so ran TRL's 1e-6, with a KL weight of 0.04
and 256 new tokens. `--config.optimizer.learning_rate=1e-6` sets their rate.
"""

from configs import common
from currreft_jax.config import Config, Kind


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("curriculum", variant)
    config.stages = [
        common.stage(Kind.JUDGE, variant, 600, 80),
        common.stage(Kind.CHOICE, variant, 500, 80),
        common.stage(Kind.OPEN, variant, 2500, 80),
    ]
    return config
