"""Rewards of completions; loads no JAX.

The total of a completion is the weighted sum of its rewards. `accuracy` and `format` follow `RULES`; `length`,
`repetition` and `overlong` are penalties; every other reward is a user's function

    (row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict

that is registered with `register` or named by import path.
"""

from currreft_jax.rewards.answer import RowError
from currreft_jax.rewards.maths_pool import MathsPool, MathsPoolError
from currreft_jax.rewards.registry import RewardError, register
from currreft_jax.rewards.rules import RULES
from currreft_jax.rewards.scorer import check_rows, score_completions

__all__ = [
    "RULES",
    "MathsPool",
    "MathsPoolError",
    "RewardError",
    "RowError",
    "check_rows",
    "register",
    "score_completions",
]
