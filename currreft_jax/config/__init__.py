"""Settings and their defaults, each in one place."""

from currreft_jax.config.batch_layout import BatchLayout, batch_layout, split_parts
from currreft_jax.config.data import Data, Handover, Kind, OnBadRow, Source, Stage, Task
from currreft_jax.config.model import Init, Lora, MeshShape, Pretrained, Remat
from currreft_jax.config.rewards import (
    DetectionScore,
    Length,
    Maths,
    Overlong,
    PartialCredit,
    Repetition,
    Rewards,
    validate_rewards,
)
from currreft_jax.config.sampling import (
    CacheType,
    Precision,
    Sampling,
    validate_sampling,
    validate_training_sampling,
)
from currreft_jax.config.training import (
    ELSEWHERE,
    AdvantageScale,
    Config,
    Grpo,
    Logging,
    LossAverage,
    Method,
    Optimizer,
    Reference,
    Rule,
    Schedule,
)
from currreft_jax.config.validation import validate

__all__ = [
    "ELSEWHERE",
    "AdvantageScale",
    "BatchLayout",
    "CacheType",
    "Config",
    "Data",
    "DetectionScore",
    "Grpo",
    "Handover",
    "Init",
    "Kind",
    "Length",
    "Logging",
    "Lora",
    "LossAverage",
    "Maths",
    "MeshShape",
    "Method",
    "OnBadRow",
    "Optimizer",
    "Overlong",
    "PartialCredit",
    "Precision",
    "Pretrained",
    "Reference",
    "Remat",
    "Repetition",
    "Rewards",
    "Rule",
    "Sampling",
    "Schedule",
    "Source",
    "Stage",
    "Task",
    "batch_layout",
    "split_parts",
    "validate",
    "validate_rewards",
    "validate_sampling",
    "validate_training_sampling",
]
