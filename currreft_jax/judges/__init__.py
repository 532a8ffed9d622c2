"""Judges of answers: the rewards' rules, or a model at an OpenAI-compatible server. Loads no JAX."""

from currreft_jax.judges.agreement import Agreement, Disagreement, compare_judges, length_correlation
from currreft_jax.judges.calibration import Calibration, PlantedFault, calibrate
from currreft_jax.judges.endpoint_judge import self_judging_warning, validate_judge
from currreft_jax.judges.judgement import (
    AnswerJudge,
    CriterionScores,
    Judged,
    Judgement,
    Unjudged,
    judge_name,
    overall_score,
)
from currreft_jax.judges.opening import open_judge
from currreft_jax.judges.rules import can_judge, verifying_rewards

__all__ = [
    "Agreement",
    "AnswerJudge",
    "Calibration",
    "CriterionScores",
    "Disagreement",
    "Judged",
    "Judgement",
    "PlantedFault",
    "Unjudged",
    "calibrate",
    "can_judge",
    "compare_judges",
    "judge_name",
    "length_correlation",
    "open_judge",
    "overall_score",
    "self_judging_warning",
    "validate_judge",
    "verifying_rewards",
]
