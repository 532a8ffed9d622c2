"""Rewards of one's own, called before anything is compiled: a mistake in one is told at the start of the run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import islice

import numpy as np

from currreft_jax.config import Config, Method, stage_settings
from currreft_jax.data.examples import Example
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.pipeline import measured_examples
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation.scoring import report_failures
from currreft_jax.rewards import RowError, score_completions
from currreft_jax.rewards.registry import own_rewards
from currreft_jax.session.session import Session
from currreft_jax.structs import Completion, Row

_MAX_ROWS = 100  # of a source, among which one is looked for that a reward applies to


def try_rewards(session: Session, config: Config, stage_index: int) -> None:
    """Calls the rewards of one's own for the first row that they apply to of each source of this stage and later ones.

    A failure ends the run or is printed, as `Rewards.on_error` says.

    Args:
        session: session of the stage.
        config: settings of the run.
        stage_index: index of the stage.

    Raises:
        RewardError: a reward failed.
        MixtureError: a row of a source cannot be read.
    """
    if not own_rewards(config.rewards):
        return
    template = load_template(config.data.template)
    for index in range(stage_index, len(config.stages)):
        if stage_settings(config, index).method is not Method.GRPO:
            continue
        with closing(load_mixture(config.stages, index, config.data, config.seed)) as mixture:
            for source in mixture.sources:
                try_on(session, measured_examples(source, session.processor, template))


def try_on(session: Session, examples: Iterable[Example]) -> None:
    """Calls the rewards of one's own for the gold answer and an empty one, until each applied to one of the rows.

    Raises:
        RewardError: a reward failed, and `Rewards.on_error` is stop.
    """
    rewards, untried = session.config.rewards, own_rewards(session.config.rewards)
    for example in islice(examples, _MAX_ROWS):
        if not untried:
            return
        completions = [[Completion(gold_completion(example.row), 1), Completion("", 1)]]
        try:
            scores = score_completions(
                [example.row], completions, rewards, frames=[example.frame], pool=session.reward_pool
            )
        except RowError:  # its gold answer: told with all such rows
            continue
        report_failures(scores.failures)
        untried = [name for name in untried if np.isnan(scores.parts[name]).all()]


def gold_completion(row: Row) -> str:
    """Writes the gold answer as a model should; a chat's is its last turn."""
    if row.messages:
        return row.messages[-1].text
    answer = row.solution if "<answer>" in row.solution else f"<answer>{row.solution}</answer>"
    return f"<think> </think> {answer}"
