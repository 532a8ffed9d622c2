"""Judges of answers: the rewards' rules, or a model at an OpenAI-compatible server. Loads no JAX."""

from currreft_jax.judges.endpoint_judge import self_judging_warning, validate_judge
from currreft_jax.judges.judgement import AnswerJudge, Judged, Judgement, Scores, Unjudged, overall_score
from currreft_jax.judges.opening import open_judge
from currreft_jax.judges.rules import has_rule, verifying_rewards

__all__ = [
    "AnswerJudge",
    "Judged",
    "Judgement",
    "Scores",
    "Unjudged",
    "has_rule",
    "open_judge",
    "overall_score",
    "self_judging_warning",
    "validate_judge",
    "verifying_rewards",
]
