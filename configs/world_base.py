"""The embedded base: a small Qwen2.5-VL trained from scratch in the world, captions first and then questions.

python -m currreft_jax.dataset build world --out runs/world
python -m currreft_jax.train --config=configs/world_base.py --workdir=runs/world_base
"""

from configs import common
from currreft_jax.config import Config, Init, Schedule, Source, Stage

WORLD = "runs/world"


def get_config(variant: str | None = None) -> Config:
    """The settings; `tiny` is the only variant."""
    if variant not in (None, "tiny"):
        raise ValueError(f"no variant {variant!r}: the world's base is tiny")
    config = common.base("world_base", "tiny")
    config.model.path = f"{WORLD}/model"
    config.model.init = Init.RANDOM
    config.stages = [
        Stage("captions", [Source(f"{WORLD}/captions.jsonl")], steps=250),
        Stage("questions", [Source(f"{WORLD}/base.jsonl")], steps=1250),
    ]
    config.data.batch_size = 64
    config.microbatches = 4
    config.data.prompt_lengths = (24, 32, 48, 80)
    config.data.completion_lengths = (12, 16, 24, 48, 80)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.b2 = 0.98
    config.optimizer.schedule = Schedule.COSINE
    config.optimizer.warmup = 0.05
    config.logging.log_every = 50
    config.logging.save_every = 500
    return config
