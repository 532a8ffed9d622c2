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
from currreft_jax.rewards.registry import find_reward, own_rewards
from currreft_jax.session.session import Session
from currreft_jax.structs import Completion, Reason, Row, Scores
from currreft_jax.training.console import say

_MAX_ROWS = 100  # of a source, among which one is looked for that a reward applies to
_remarked: set[tuple[str, ...]] = set()  # what was said: each stage tries the rows of all later ones


def try_rewards(session: Session, config: Config, stage_index: int) -> None:
    """Calls the rewards of one's own for the first row that they apply to of each source of this stage and later ones.

    A failure ends the run or is printed, as `Rewards.on_error` says. A line names a reward that pays nothing for a gold
    answer, and one that applies to none of the rows.

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
    template, untried = load_template(config.data.template), []
    for index in range(stage_index, len(config.stages)):
        if stage_settings(config, index).method is not Method.GRPO:
            continue
        with closing(load_mixture(config.stages, index, config.data, config.seed)) as mixture:
            for source in mixture.sources:
                untried.append(try_on(session, measured_examples(source, session.processor, template)))
    for name in own_rewards(config.rewards):
        if untried and all(name in names for names in untried):
            _say_once(
                f"reward {name!r} returned None for the first rows of each source, {_MAX_ROWS} at most, and counts for"
                " none of them; does it lack a return?",
                name,
            )


def try_on(session: Session, examples: Iterable[Example]) -> list[str]:
    """Calls the rewards of one's own for the gold answer and an empty one, until each applied to one of the rows.

    Returns:
        The rewards that applied to none.

    Raises:
        RewardError: a reward failed, and `Rewards.on_error` is stop.
    """
    rewards, untried = session.config.rewards, own_rewards(session.config.rewards)
    for example in islice(examples, _MAX_ROWS):
        if not untried:
            break
        completions = [[Completion(gold_completion(example.row), 1), Completion("", 1)]]
        try:
            scores = score_completions(
                [example.row], completions, rewards, frames=[example.frame], pool=session.reward_pool
            )
        except RowError:  # its gold answer: told with all such rows
            continue
        report_failures(scores.failures)
        for name in untried:
            if find_reward(name, rewards).high > 0:
                _remark_gold(name, example.row, scores)
        untried = [name for name in untried if np.isnan(scores.parts[name]).all()]
    return untried


def _remark_gold(name: str, row: Row, scores: Scores) -> None:
    """Says so if a reward pays nothing for the gold answer: it misreads it, or is not meant for this kind of row."""
    value, reason = scores.parts[name][0, 0], scores.reasons[name][0, 0]
    if value <= 0 and reason != Reason.REWARD_FAILED:
        _say_once(
            f"reward {name!r} pays {value:g} ({reason}) for the gold answer {row.solution[:80]!r} of row {row.id}; for"
            " rows that it is not meant for, return None",
            *(name, reason, row.kind.value, row.task.value),
        )


def _say_once(text: str, *key: str) -> None:
    if key not in _remarked:
        _remarked.add(key)
        say(text)


def gold_completion(row: Row) -> str:
    """Writes the gold answer as a model should; a chat's is its last turn."""
    if row.messages:
        return row.messages[-1].text
    answer = row.solution if "<answer>" in row.solution else f"<answer>{row.solution}</answer>"
    return f"<think> </think> {answer}"
