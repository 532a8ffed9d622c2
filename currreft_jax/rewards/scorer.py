"""Scores completions by the rules, the penalties and users' reward functions."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from currreft_jax.config import Rewards, validate_rewards
from currreft_jax.rewards.answer import RowError, extract_answer
from currreft_jax.rewards.format import format_reward
from currreft_jax.rewards.maths import Comparison, Expression, gold_expression, needs_math_verify, unreadable_part
from currreft_jax.rewards.maths_pool import MathsPool, Outcome
from currreft_jax.rewards.registry import call_reward, find_reward
from currreft_jax.rewards.rules import AnswerScorer, rule_of
from currreft_jax.structs import Completion, Frame, Reason, Row, Scores, Verdict

_RULE_REWARDS = ("accuracy", "format")

_VERDICTS = {
    Outcome.EQUAL: Verdict(1.0),
    Outcome.NOT_EQUAL: Verdict(0.0, Reason.NOT_EQUAL),
    Outcome.UNPARSABLE: Verdict(0.0, Reason.UNPARSABLE),
    Outcome.OVER_LIMIT: Verdict(0.0, Reason.TIMEOUT),
}


def score_completions(
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    settings: Rewards | None = None,
    *,
    frames: Sequence[Frame | None] | None = None,
    pool: MathsPool | None = None,
) -> Scores:
    """Scores G completions of each of P rows.

    Args:
        rows: `[P]`.
        completions: `[P][G]`.
        settings: defaults where None.
        frames: `[P]`, the resized frame in which the model saw the row's image; None for the row's own frame.
        pool: math-verify workers; where None, a pool is opened for this call if an answer needs one.

    Raises:
        RowError: a row has no rule, or its gold answer cannot be parsed.
        RewardError: a reward function fails or returns an invalid verdict.
        ValueError: invalid settings, or lengths that do not match.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    shape = _group_shape(rows, completions, frames)
    weights = _active_weights(settings)
    functions = {name: find_reward(name, settings) for name in weights if name not in _RULE_REWARDS}
    values = {name: np.zeros(shape) for name in weights}
    reasons = {name: np.full(shape, None, object) for name in weights}
    comparisons: dict[tuple[int, int], Comparison] = {}

    for p, row in enumerate(rows):
        frame = frames[p] if frames else None
        needs_rule = len(functions) < len(weights)
        score_answer = rule_of(row).answer_scorer(row, frame, settings) if needs_rule else None
        for g, completion in enumerate(completions[p]):
            answer = extract_answer(completion)
            verdicts = _rule_verdicts(score_answer, answer, completion) if score_answer else {}
            text = None if isinstance(answer, Reason) else answer
            for name, function in functions.items():
                verdicts[name] = call_reward(name, function, row, completion, text, frame)
            for name in weights:
                verdict = verdicts[name]
                if isinstance(verdict, Comparison):
                    comparisons[p, g] = verdict
                else:
                    values[name][p, g], reasons[name][p, g] = verdict.value, verdict.reason

    for (p, g), verdict in _decide(comparisons, rows, settings, pool).items():
        values["accuracy"][p, g], reasons["accuracy"][p, g] = verdict.value, verdict.reason
    total = sum((weight * values[name] for name, weight in weights.items()), np.zeros(shape))
    return Scores(total, values, reasons)


def check_rows(
    rows: Sequence[Row], settings: Rewards | None = None, *, pool: MathsPool | None = None
) -> list[RowError]:
    """Returns one error for each row that cannot be scored; call this when rows are loaded.

    Raises:
        ValueError: invalid settings, such as an unknown reward.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    weights = _active_weights(settings)
    for name in weights:
        if name not in _RULE_REWARDS:
            find_reward(name, settings)
    if not any(name in weights for name in _RULE_REWARDS):
        return []
    errors: list[RowError] = []
    unverified: list[tuple[Row, str]] = []
    for row in rows:
        try:
            gold = rule_of(row).gold(row, None, settings)
        except RowError as error:
            errors.append(error)
        else:
            if isinstance(gold, Expression) and needs_math_verify(gold):
                unverified.append((row, gold.text))
    if unverified:
        with nullcontext(pool) if pool else MathsPool(settings.maths) as workers:
            parsable = workers.can_parse([text for _, text in unverified])
        errors += [_unparsable_gold(row, settings) for (row, _), ok in zip(unverified, parsable, strict=True) if not ok]
    return errors


def _active_weights(settings: Rewards) -> dict[str, float]:
    return {name: weight for name, weight in settings.weights.items() if weight}


def _group_shape(
    rows: Sequence[Row], completions: Sequence[Sequence[Completion]], frames: Sequence[Frame | None] | None
) -> tuple[int, int]:
    """Returns (P, G), or raise a ValueError if rows, groups and frames do not match."""
    group_size = len(completions[0]) if completions else 0
    if len(rows) != len(completions) or any(len(group) != group_size for group in completions):
        sizes = sorted({len(group) for group in completions})
        raise ValueError(
            f"{len(rows)} rows with {len(completions)} groups of sizes {sizes}; give each row G completions"
        )
    if frames is not None and len(frames) != len(rows):
        raise ValueError(f"{len(rows)} rows with {len(frames)} frames; give each row one, or None")
    return len(rows), group_size


def _rule_verdicts(
    score_answer: AnswerScorer, answer: str | Reason, completion: Completion
) -> dict[str, Verdict | Comparison]:
    """Returns accuracy and format of one completion; a malformed answer earns no format."""
    if isinstance(answer, Reason):
        return dict.fromkeys(_RULE_REWARDS, Verdict(0.0, answer))
    accuracy, flaw = score_answer(answer)
    return {"accuracy": accuracy, "format": Verdict(0.0, flaw) if flaw else format_reward(completion.text)}


def _decide(
    comparisons: dict[tuple[int, int], Comparison], rows: Sequence[Row], settings: Rewards, pool: MathsPool | None
) -> dict[tuple[int, int], Verdict]:
    """Decides the comparisons of (p, g) with math-verify."""
    if not comparisons:
        return {}
    with nullcontext(pool) if pool else MathsPool(settings.maths) as workers:
        outcomes = dict(zip(comparisons, workers.compare(list(comparisons.values())), strict=True))
    for (p, _), outcome in outcomes.items():
        if outcome is Outcome.BAD_GOLD:
            raise _unparsable_gold(rows[p], settings)
    return {key: _VERDICTS[outcome] for key, outcome in outcomes.items()}


def _unparsable_gold(row: Row, settings: Rewards) -> RowError:
    part = unreadable_part(gold_expression(row, settings.maths))
    return RowError(row, f"solution {row.solution!r}: math-verify cannot read {part!r}; rewrite it as LaTeX")
