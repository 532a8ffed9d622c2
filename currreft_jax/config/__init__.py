"""Settings and their defaults, each in one place."""

from currreft_jax.config.batch_layout import BatchLayout, batch_layout, split_parts
from currreft_jax.config.data import Data, Kind, OnBadRow, Shapes, Source, Task
from currreft_jax.config.endpoint import EndpointLimits, ImageEncoding
from currreft_jax.config.evaluation import (
    BenchmarkName,
    EvaluatedModel,
    Evaluation,
    Extraction,
    ImageCondition,
    ScorerName,
    Suite,
    SuiteDomain,
    validate_evaluation,
)
from currreft_jax.config.judge import Judge, JudgeKind
from currreft_jax.config.method import LossAverage, Method, Optimizer, Rule, Schedule
from currreft_jax.config.model import AttentionKernel, Init, Lora, MeshShape, Pretrained, Remat
from currreft_jax.config.rejection import (
    QuotaSource,
    Rejection,
    as_evaluation,
    source_suites,
    validate_rejection,
)
from currreft_jax.config.rewards import (
    BoxReading,
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
from currreft_jax.config.stage import REJECT, Handover, Stage
from currreft_jax.config.stage_settings import evaluation_batch_size, has_own_batches, stage_settings
from currreft_jax.config.training import (
    ELSEWHERE,
    AdvantageScale,
    Config,
    Grpo,
    Logging,
    Reference,
)
from currreft_jax.config.validation import validate

__all__ = [
    "ELSEWHERE",
    "REJECT",
    "AdvantageScale",
    "AttentionKernel",
    "BatchLayout",
    "BenchmarkName",
    "BoxReading",
    "CacheType",
    "Config",
    "Data",
    "DetectionScore",
    "EndpointLimits",
    "EvaluatedModel",
    "Evaluation",
    "Extraction",
    "Grpo",
    "Handover",
    "ImageCondition",
    "ImageEncoding",
    "Init",
    "Judge",
    "JudgeKind",
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
    "QuotaSource",
    "Reference",
    "Rejection",
    "Remat",
    "Repetition",
    "Rewards",
    "Rule",
    "Sampling",
    "Schedule",
    "ScorerName",
    "Shapes",
    "Source",
    "Stage",
    "Suite",
    "SuiteDomain",
    "Task",
    "as_evaluation",
    "batch_layout",
    "evaluation_batch_size",
    "has_own_batches",
    "source_suites",
    "split_parts",
    "stage_settings",
    "validate",
    "validate_evaluation",
    "validate_rejection",
    "validate_rewards",
    "validate_sampling",
    "validate_training_sampling",
]
