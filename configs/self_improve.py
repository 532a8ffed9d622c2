"""Self-improvement alone: fine-tuning of stage 3's model on the answers that `configs/reject.py` has kept.

python -m currreft_jax.reject --config=configs/reject.py
python -m currreft_jax.train --config=configs/self_improve.py

The authors' settings: learning rate 2e-7, warm-up over 5% of the steps, the vision tower trained, 32 rows a step. Their
2,000 steps are 42 passes over their 1,520 rows. The loss of held-out answers tells when more passes only memorise:
`--config.stages[0].steps=480` makes ten. Held-out rows of all three stages are one set here, measured before and after;
if it falls, the better checkpoint is the run's model. `configs/curriculum.py` runs everything, and has a set for each
stage.
"""

from dataclasses import replace

from configs import common, reject
from currreft_jax.config import Config, Source

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.base("self_improve", variant)
    rejection = reject.get_config(variant)
    config.grpo.reference_path = config.model.path  # for a plan, where the run below is not: a model of the same shape
    config.model.path = f"{rejection.model.path}/model"
    folder = f"runs/{rejection.name}"
    config.stages = [
        replace(
            common.self_improve(variant),
            sources=[Source(f"{folder}/kept.jsonl")],
            held_out=[source for stage in common.curriculum(variant) for source in stage.held_out],
            held_out_loss=[Source(f"{folder}/held_out.jsonl")],
        )
    ]
    config.sampling = common.grpo("self_improve", variant).sampling
    if variant == "tiny":
        config.data.world = common.WORLD
        config.logging.evaluate_rows = 900
    return config
