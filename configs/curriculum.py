"""The curriculum: yes-or-no questions, then choices, then open answers, each stage from where the last one ended.

python -m currreft_jax.train --config=configs/curriculum.py

As :tiny about ten minutes on two CPU cores; the README has what five seeds learnt. Not yet run as :3b or :7b.

The authors' scripts set no learning rate and so ran TRL's 1e-6 with a KL weight of 0.04 and 256 new tokens; the paper
says 2e-5. `--config.optimizer.learning_rate=1e-6` is what they ran.
"""

from configs import common
from currreft_jax.config import Config, Kind


def get_config(variant: str | None = None) -> Config:
    """The settings of a variant: tiny, 3b or 7b."""
    variant = common.chosen(variant)
    config = common.grpo("curriculum", variant)
    config.stages = [
        common.stage(Kind.JUDGE, variant, 600, 80),
        common.stage(Kind.CHOICE, variant, 500, 80),
        common.stage(Kind.OPEN, variant, 2500, 80),
    ]
    return config
