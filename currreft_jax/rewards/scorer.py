"""Scores completions by the rules, the penalties and users' reward functions."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np

from currreft_jax.config import OnRewardError, Rewards, validate_rewards
from currreft_jax.rewards.answer import RowError, extract_answer
from currreft_jax.rewards.format import format_reward
from currreft_jax.rewards.maths import Comparison, Expression, gold_expression, needs_math_verify, unreadable_part
from currreft_jax.rewards.maths_pool import MathsPool, Outcome
from currreft_jax.rewards.registry import (
    RULE_REWARDS,
    BoundedReward,
    RewardError,
    call_reward,
    defined_at,
    failed_verdict,
    find_reward,
    is_own,
    validate_reward_names,
)
from currreft_jax.rewards.rules import AnswerScorer, has_rule, rule_of
from currreft_jax.structs import Completion, Frame, Reason, RewardFailure, Row, Scores, Verdict

RewardCall = tuple[Row, Completion, str | None, Frame | None]  # the arguments of a reward function

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
        RowError: a row has neither a rule nor a reward of one's own, or its gold answer cannot be parsed.
        RewardError: a reward function fails or returns an invalid verdict, or none applies to a row without a rule.
        ValueError: invalid settings, or lengths that do not match.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    shape = _group_shape(rows, completions, frames)
    weights = _active_weights(settings)
    functions = {name: find_reward(name, settings) for name in weights if name not in RULE_REWARDS}
    values = {name: np.full(shape, np.nan) for name in weights}
    reasons = {name: np.full(shape, None, object) for name in weights}
    comparisons: dict[tuple[int, int], Comparison] = {}
    failures: list[RewardFailure] = []
    needs_rule = len(functions) < len(weights)

    for p, row in enumerate(rows):
        frame = frames[p] if frames else None
        score_answer = _answer_scorer(row, frame, settings) if needs_rule else None
        has_accuracy = has_rule(row) and "accuracy" in weights
        for g, completion in enumerate(completions[p]):
            answer = extract_answer(completion)
            verdicts = _rule_verdicts(score_answer, has_accuracy, answer, completion) if score_answer else {}
            text = None if isinstance(answer, Reason) else answer
            for name, function in functions.items():
                call = (row, completion, text, frame or row.frame)
                verdicts[name] = _own_verdict(name, function, call, settings, failures)
            _refuse_unscored(row, verdicts, functions)
            for name in weights:
                verdict = verdicts[name]
                if isinstance(verdict, Comparison):
                    comparisons[p, g] = verdict
                elif verdict is not None:
                    values[name][p, g], reasons[name][p, g] = verdict.value, verdict.reason

    for (p, g), verdict in _decide(comparisons, rows, settings, pool).items():
        values["accuracy"][p, g], reasons["accuracy"][p, g] = verdict.value, verdict.reason
    total = sum((weight * np.nan_to_num(values[name]) for name, weight in weights.items()), np.zeros(shape))
    return Scores(total, values, reasons, tuple(failures))


def check_rows(
    rows: Sequence[Row], settings: Rewards | None = None, *, pool: MathsPool | None = None
) -> list[RowError]:
    """Returns one error for each row that cannot be scored; call this when rows are loaded.

    Gold answers are read only where `accuracy` has a weight: a reward of one's own reads its gold itself.

    Raises:
        ValueError: invalid settings, such as an unknown reward.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    validate_reward_names(settings)
    weights = _active_weights(settings)
    if not any(name in weights for name in RULE_REWARDS):
        return []
    errors: list[RowError] = []
    unverified: list[tuple[Row, str]] = []
    scored_by_own = any(map(is_own, weights))
    for row in rows:
        if scored_by_own and not has_rule(row):
            continue
        try:
            rule = rule_of(row)
            gold = rule.gold(row, None, settings) if "accuracy" in weights else None
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


def _answer_scorer(row: Row, frame: Frame | None, settings: Rewards) -> AnswerScorer:
    """Returns the function that scores an answer by the row's rule; its accuracy is None where that is not wanted.

    Raises:
        RowError: the row has neither a rule nor a reward of one's own, or its gold answer cannot be parsed.
    """
    weights = _active_weights(settings)
    if not has_rule(row) and any(map(is_own, weights)):
        return lambda answer: (None, None if answer else Reason.EMPTY_ANSWER)
    rule = rule_of(row)
    if "accuracy" in weights:
        return rule.answer_scorer(row, frame, settings)
    return lambda answer: (None, rule.flaw(answer, row, frame, settings))


def _rule_verdicts(
    score_answer: AnswerScorer, has_accuracy: bool, answer: str | Reason, completion: Completion
) -> dict[str, Verdict | Comparison | None]:
    """Returns accuracy and format of one completion; a malformed answer earns no format."""
    if isinstance(answer, Reason):
        return {"accuracy": Verdict(0.0, answer) if has_accuracy else None, "format": Verdict(0.0, answer)}
    accuracy, flaw = score_answer(answer)
    return {"accuracy": accuracy, "format": Verdict(0.0, flaw) if flaw else format_reward(completion.text)}


def _own_verdict(
    name: str, reward: BoundedReward, call: RewardCall, settings: Rewards, failures: list[RewardFailure]
) -> Verdict | None:
    """Returns the verdict of a reward function; adds a failure that `Rewards.on_error` lets pass to `failures`."""
    try:
        return call_reward(name, reward, *call)
    except RewardError as error:
        if settings.on_error is OnRewardError.STOP or not is_own(name):
            raise
        failures.append(error.failure)
        return failed_verdict(reward)


def _refuse_unscored(row: Row, verdicts: Mapping[str, object], functions: Mapping[str, BoundedReward]) -> None:
    """Refuses a row whose answer no reward scores: it would be trained on its format alone."""
    names = [name for name in verdicts if name == "accuracy" or is_own(name)]
    own = list(filter(is_own, names))
    if own and all(verdicts[name] is None for name in names):
        location = defined_at(functions[own[0]].function)
        problem = (
            f"{', '.join(own)} returned None, and no rule scores its answer: nothing but its format would count;"
            " return Verdict(value, reason) for such rows"
        )
        where = f"{location}: " if location else ""
        raise RewardError(RewardFailure(own[0], location, problem, f"{where}row {row.id}: {problem}"))


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
    cause = "math-verify cannot read a solution"
    return RowError(row, f"solution {row.solution!r}: math-verify cannot read {part!r}; rewrite it as LaTeX", cause)
