"""Pretraining of the embedded base: a small Qwen2.5-VL trained from scratch in the world.

The first stage trains on captions, the second on questions and text-only drills, the third on careful answers to
composed questions as well, the fourth on two ways of answering: hasty answers, which are frequent, and careful ones.
`make base` runs all four, in about 40 minutes on two CPU cores;
`make base SEED=1` generates another world and trains another base.
"""

from configs import common
from currreft_jax.config import Config, Init, Schedule, Shapes, Source, Stage


def get_config(seed: str | None = None) -> Config:
    """Returns the settings for the world in `runs/world-SEED`."""
    if not (seed or "0").isdecimal():
        raise ValueError(f"no seed {seed!r}: write a number after the colon, or nothing for 0")
    world = f"runs/world-{seed or 0}"
    config = common.base("world_base", "tiny")
    config.name = f"world_base-{seed or 0}"
    config.seed = int(seed or 0)
    config.model.path = f"{world}/model"
    config.model.init = Init.RANDOM
    config.model.max_pixels = 112 * 112  # the world's images are 84 x 84; photographs are shrunk to about their size
    config.stages = [
        Stage("captions", [Source(f"{world}/captions.jsonl")], steps=1200),
        Stage("questions", [Source(f"{world}/base.jsonl"), Source(f"{world}/drills.jsonl", weight=0.3)], steps=3500),
        Stage("composed", [Source(f"{world}/composed.jsonl")], steps=1200, learning_rate=7e-4),
        Stage("answers", [Source(f"{world}/answers.jsonl")], steps=150, learning_rate=5e-4),
    ]
    for stage in config.stages[2:]:
        stage.batch_size, stage.microbatches = 16, 1
    config.data.batch_size = 32
    config.microbatches = 2
    config.data.shapes = Shapes.BUCKETS  # prompts are shorter than the multiples of fitted lengths
    config.data.prompt_lengths = (24, 32, 48, 80)
    config.data.completion_lengths = (12, 16, 28, 48, 80)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.98
    config.optimizer.schedule = Schedule.COSINE
    config.optimizer.warmup = 0.05
    config.logging.log_every = 50
    config.logging.save_every = 500
    return config
