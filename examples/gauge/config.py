"""Reading gauges by GRPO, with a reward of its own.

python examples/gauge/make_rows.py --out rows/gauge
python -m currreft_jax.train --config=examples/gauge/config.py
"""

from configs import common
from currreft_jax.config import Config, Source, Stage

ROWS = "rows/gauge"


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("gauge", variant)
    config.stages = [
        Stage("gauge", [Source(f"{ROWS}/train.jsonl")], steps=40, held_out=[Source(f"{ROWS}/test.jsonl")]),
    ]
    config.data.template = f"examples.gauge.template:{'TINY' if variant == 'tiny' else 'GAUGE'}"
    config.rewards.weights["examples.gauge.reward:within_tolerance"] = 1.0
    return config
