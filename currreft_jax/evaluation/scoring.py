"""Rollouts scored by the rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from currreft_jax.data.examples import Example
from currreft_jax.rewards import score_completions
from currreft_jax.sampling.completions import Completions, decode_completions
from currreft_jax.session.session import Session
from currreft_jax.structs import Rollout, Scores


class ScoredRollout(NamedTuple):
    """This host's completions and the rewards that they earn."""

    completions: Completions
    scores: Scores


def score_rollout(session: Session, examples: Sequence[Example], rollout: Rollout) -> ScoredRollout:
    """Decodes and scores the completions of examples, their boxes measured in the frames that the model saw.

    Args:
        session: a session with a reward pool.
        examples: this host's; further prompts of the rollout only fill the batch, and are left out.
        rollout: rollout of the examples' prompts.
    """
    completions = decode_completions(session.processor, rollout)
    scores = score_completions(
        [example.row for example in examples],
        completions.texts[: len(examples)],
        session.config.rewards,
        frames=[example.frame for example in examples],
        pool=session.reward_pool,
    )
    return ScoredRollout(completions, scores)
