"""Rollouts scored by the rewards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from currreft_jax.data.examples import Example
from currreft_jax.rewards import score_completions
from currreft_jax.sampling.completions import Completions, decode_completions
from currreft_jax.session.session import Session
from currreft_jax.structs import RewardFailure, Rollout, Scores

_reported: set[tuple[str, str]] = set()  # reward and location of failures that were printed


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
    report_failures(scores.failures)
    session.failure_counts.add(scores)
    return ScoredRollout(completions, scores)


def report_failures(failures: Sequence[RewardFailure]) -> None:
    """Prints the first failure of each reward at each line of its code to standard error; metrics count all of them."""
    for failure in failures:
        if (failure.reward, failure.location) not in _reported:
            _reported.add((failure.reward, failure.location))
            print(f"rewards: counts as 0, as will more of its kind: {failure.message}", file=sys.stderr)
