"""Difficulty-filtered fine-tuning, a baseline: gold answers of the open rows that the base answers right at times.

python -m currreft_jax.evaluate --config=configs/eval.py --model=MODEL --rows=FILES --samples=8 --out=runs/pass_rates
cat runs/pass_rates/*/*.jsonl > runs/pass_rates.jsonl
python -m currreft_jax.train --config=configs/filtered_sft.py

The first two lines measure the pass rate of each training row with the base model: docs/baselines.md has them in full.
Rows whose eight answers are all right or all wrong are left out; the rest is trained on as by `configs/sft.py`.
"""

from configs import common, sft
from currreft_jax.config import Config, Kind

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = sft.get_config(variant)
    config.name = f"filtered_sft-{variant}"
    stage = common.stage(Kind.OPEN, variant, 0, 0)
    config.stages[0].sources, config.stages[0].held_out = stage.sources, stage.held_out
    config.data.pass_rates = "runs/pass_rates.jsonl"
    config.sampling = common.grpo("filtered_sft", variant).sampling
    if variant == "tiny":
        config.data.world = common.WORLD
    return config
