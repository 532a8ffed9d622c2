"""Judges of answers: the rewards' rules, or a model at an OpenAI-compatible server. Loads no JAX."""

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
    "verifying_rewards",
]
