"""Rewards of completions; loads no JAX.

The total of a completion is the weighted sum of its rewards. `accuracy` and `format` follow `RULES`; `length`,
`repetition` and `overlong` are penalties; every other reward is a user's function

    (row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict | None

that is registered with `register` or named by import path. `answer` is None for a completion without exactly one closed
`<answer>` element, and for one that the token limit cut off. None as verdict means that the reward does not apply to
the row. Rows that no rule scores, such as open ones of task `other`, have no accuracy; their format is the layout.
"""

from currreft_jax.rewards.answer import RowError
from currreft_jax.rewards.maths_pool import MathsPool, MathsPoolError
from currreft_jax.rewards.registry import RewardError, register
from currreft_jax.rewards.rules import RULES, has_rule
from currreft_jax.rewards.scorer import check_rows, score_completions

__all__ = [
    "RULES",
    "MathsPool",
    "MathsPoolError",
    "RewardError",
    "RowError",
    "check_rows",
    "has_rule",
    "register",
    "score_completions",
]
