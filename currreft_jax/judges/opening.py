"""Opens the judge that settings describe. Loads no JAX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from currreft_jax.config import Judge, JudgeKind, Rewards
from currreft_jax.data.prompts import load_template
from currreft_jax.endpoint import JobBudget
from currreft_jax.judges.endpoint_judge import EndpointJudge, validate_judge
from currreft_jax.judges.judgement import AnswerJudge
from currreft_jax.judges.rules import RulesJudge
from currreft_jax.rewards import MathsPool


def open_judge(
    judge: Judge,
    rewards: Rewards,
    *,
    ledger: Path,
    pool: MathsPool,
    log: Callable[[str], None],
    template: str = "paper",
    budget: JobBudget | None = None,
) -> AnswerJudge:
    """Opens a judge; the caller closes it, such as by `contextlib.closing`.

    Args:
        judge: its settings.
        rewards: settings of the rules.
        ledger: file of the calls; two judges need two.
        pool: compares mathematical answers.
        log: called with a line for people.
        template: prompt template of the questions that the answers were given to.
        budget: calls of all servers of a job; None for no limit but the judge's own.

    Raises:
        ValueError: a setting is impossible, or the ledger cannot be used.
        OSError: the ledger cannot be opened.
    """
    validate_judge(judge)
    if judge.kind is JudgeKind.RULES:
        return RulesJudge(rewards, pool)
    return EndpointJudge(judge, load_template(template), ledger, log, budget)
