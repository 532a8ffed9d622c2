"""What a completion earns: one table of rules, one scorer, and users' own rewards.

A completion's total is the weighted sum of its parts. `accuracy` and `format` come from `TABLE`; `length`, `repetition`
and `overlong` are penalties of one formula each; every other part is a user's reward, a function

    (row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict

registered with `register` or named by import path. This package loads no JAX.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from currreft_jax.config import Kind, Rewards, Task, validate_rewards
from currreft_jax.rewards import binary, choice, classify, detection, format, maths, parts
from currreft_jax.rewards.answer import RowError, extract
from currreft_jax.rewards.maths_pool import MathsPool, MathsPoolError, Outcome
from currreft_jax.structs import Completion, Frame, Reason, Row, Scores, Verdict

__all__ = [
    "TABLE",
    "MathsPool",
    "MathsPoolError",
    "RewardError",
    "RowError",
    "check_rows",
    "register",
    "score_completions",
]

Reward = Callable[[Row, Completion, str | None, Frame | None], Verdict]


@dataclass(frozen=True, slots=True)
class Rule:
    """How the answers to one kind of row are read and compared.

    Attributes:
        gold: (row, frame, settings) -> the gold answer, or raises `RowError`.
        read: (answer, row, frame, settings) -> what the answer says, or why it is none of this kind. The format part
            wants an answer that can be read, so that the two parts never disagree on what an answer is.
        accuracy: (gold, read answer, settings) -> the verdict, or the comparison that the maths workers must make.
    """

    gold: Callable[[Row, Frame | None, Rewards], Any]
    read: Callable[[str, Row, Frame | None, Rewards], Any]
    accuracy: Callable[[Any, Any, Rewards], Verdict | maths.Comparison]


_YES_OR_NO = Rule(
    lambda row, frame, settings: binary.gold(row),
    lambda answer, row, frame, settings: binary.read(answer),
    lambda gold, answer, settings: binary.accuracy(gold, answer),
)
_LETTERS = Rule(
    lambda row, frame, settings: choice.gold(row),
    lambda answer, row, frame, settings: choice.read(answer, row),
    choice.accuracy,
)

TABLE: dict[tuple[Kind, Task], Rule] = {
    (Kind.JUDGE, Task.DETECTION): _YES_OR_NO,
    (Kind.JUDGE, Task.CLASSIFY): _YES_OR_NO,
    (Kind.JUDGE, Task.MATH): _YES_OR_NO,
    (Kind.CHOICE, Task.DETECTION): _LETTERS,
    (Kind.CHOICE, Task.CLASSIFY): _LETTERS,
    (Kind.CHOICE, Task.MATH): _LETTERS,
    (Kind.OPEN, Task.DETECTION): Rule(
        lambda row, frame, settings: detection.gold(row, frame),
        lambda answer, row, frame, settings: detection.read(answer, row, frame),
        detection.accuracy,
    ),
    (Kind.OPEN, Task.CLASSIFY): Rule(
        lambda row, frame, settings: classify.gold(row, settings),
        lambda answer, row, frame, settings: classify.read(answer, settings),
        lambda gold, answer, settings: classify.accuracy(gold, answer),
    ),
    (Kind.OPEN, Task.MATH): Rule(
        lambda row, frame, settings: maths.gold(row, settings.maths),
        lambda answer, row, frame, settings: maths.read(answer, settings.maths),
        lambda gold, answer, settings: maths.accuracy(gold, answer),
    ),
}

_VERDICTS = {
    Outcome.EQUAL: Verdict(1.0),
    Outcome.NOT_EQUAL: Verdict(0.0, Reason.NOT_EQUAL),
    Outcome.UNPARSABLE: Verdict(0.0, Reason.UNPARSABLE),
    Outcome.OVER_LIMIT: Verdict(0.0, Reason.TIMEOUT),
}


class RewardError(Exception):
    """A reward function failed or broke its promise; the message names it, the row and the completion."""


@dataclass(frozen=True, slots=True)
class _Part:
    function: Reward
    low: float
    high: float


_REGISTERED: dict[str, _Part] = {}


def register(name: str, *, low: float = 0.0, high: float = 1.0) -> Callable[[Reward], Reward]:
    """Decorator that makes a reward function known under a name, for use in `Rewards.weights`.

    Args:
        name: of the part.
        low: the least value that the function returns.
        high: the greatest.

    Raises:
        ValueError: for a name that is taken, or an empty range.
    """
    if name in _REGISTERED or name in Rewards().weights:
        raise ValueError(f"a reward named {name!r} exists already; register this one under another name")
    if not low < high:
        raise ValueError(f"reward {name!r} declares the range {low} to {high}; low must be less than high")

    def keep(function: Reward) -> Reward:
        _REGISTERED[name] = _Part(function, low, high)
        return function

    return keep


def score_completions(
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    settings: Rewards | None = None,
    *,
    frames: Sequence[Frame | None] | None = None,
    pool: MathsPool | None = None,
) -> Scores:
    """Score G completions of each of P rows.

    Args:
        rows: `[P]`.
        completions: `[P][G]`.
        settings: the defaults where None.
        frames: `[P]`, the resized frame in which the model saw each row's image; None for the row's own frame.
        pool: workers for answers that only math-verify can compare; None opens one for this call if it is needed.

    Raises:
        RowError: for a row whose gold answer cannot be read.
        RewardError: for a reward function that fails, or returns what it may not.
        ValueError: for settings or lengths that make no sense.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    group = len(completions[0]) if completions else 0
    if len(rows) != len(completions) or any(len(row) != group for row in completions):
        sizes = sorted({len(row) for row in completions})
        raise ValueError(
            f"{len(rows)} rows with {len(completions)} groups of sizes {sizes}; give each row G completions"
        )
    if frames is not None and len(frames) != len(rows):
        raise ValueError(f"{len(rows)} rows with {len(frames)} frames; give each row one, or None")
    active = {name: weight for name, weight in settings.weights.items() if weight}
    others = {name: _part(name, settings) for name in active if name not in ("accuracy", "format")}
    values = {name: np.zeros((len(rows), group)) for name in active}
    reasons = {name: np.full((len(rows), group), None, object) for name in active}
    undecided: dict[tuple[int, int], maths.Comparison] = {}

    for p, row in enumerate(rows):
        frame = frames[p] if frames else None
        rule = _rule(row) if len(others) < len(active) else None
        gold = rule and rule.gold(row, frame, settings)
        for g, completion in enumerate(completions[p]):
            answer = extract(completion)
            verdicts = {}
            if rule:
                read = answer if isinstance(answer, Reason) else rule.read(answer, row, frame, settings)
                if isinstance(read, Reason):
                    verdicts["accuracy"] = verdicts["format"] = Verdict(0.0, read)
                else:
                    verdicts["accuracy"] = rule.accuracy(gold, read, settings)
                    verdicts["format"] = format.layout(completion.text)
            for name, part in others.items():
                found = None if isinstance(answer, Reason) else answer
                verdicts[name] = _call(name, part, row, completion, found, frame)
            for name in active:
                verdict = verdicts[name]
                if isinstance(verdict, maths.Comparison):
                    undecided[p, g] = verdict
                else:
                    values[name][p, g], reasons[name][p, g] = verdict.value, verdict.reason

    if undecided:
        with nullcontext(pool) if pool else MathsPool(settings.maths) as workers:
            outcomes = workers.compare(list(undecided.values()))
        for (p, g), outcome in zip(undecided, outcomes, strict=True):
            if outcome is Outcome.BAD_GOLD:
                raise _unreadable(rows[p])
            verdict = _VERDICTS[outcome]
            values["accuracy"][p, g], reasons["accuracy"][p, g] = verdict.value, verdict.reason
    total = sum((weight * values[name] for name, weight in active.items()), np.zeros((len(rows), group)))
    return Scores(total, values, reasons)


def check_rows(
    rows: Sequence[Row], settings: Rewards | None = None, *, pool: MathsPool | None = None
) -> list[RowError]:
    """What is wrong with the rows' gold answers, to be asked when rows are loaded; empty when all can be scored.

    Raises:
        ValueError: for settings that make no sense, such as a part that nobody knows.
    """
    settings = settings or Rewards()
    validate_rewards(settings)
    active = [name for name, weight in settings.weights.items() if weight]
    ruled = [name for name in active if name in ("accuracy", "format")]
    for name in active:
        if name not in ruled:
            _part(name, settings)
    errors, unsure = [], []
    for row in rows if ruled else ():
        try:
            gold = _rule(row).gold(row, None, settings)
        except RowError as error:
            errors.append(error)
        else:
            if isinstance(gold, maths.Expression) and maths.needs_parser(gold):
                unsure.append((row, gold.text))
    if unsure:
        with nullcontext(pool) if pool else MathsPool(settings.maths) as workers:
            readable = workers.readable([text for _, text in unsure])
        errors += [_unreadable(row) for (row, _), known in zip(unsure, readable, strict=True) if not known]
    return errors


def _rule(row: Row) -> Rule:
    if (row.kind, row.task) not in TABLE:
        raise RowError(row, f"no rule scores {row.kind.value} rows; let a judge score it, or leave it to SFT")
    return TABLE[row.kind, row.task]


def _unreadable(row: Row) -> RowError:
    return RowError(
        row, f"solution {row.solution!r} is an expression that math-verify cannot read; rewrite it as LaTeX"
    )


def _part(name: str, settings: Rewards) -> _Part:
    builtin = {
        "length": _Part(partial(_counted, parts.length, settings.length), -1.0, 0.0),
        "overlong": _Part(partial(_counted, parts.overlong, settings.overlong), -1.0, 0.0),
        "repetition": _Part(lambda row, it, answer, frame: parts.repetition(it, settings.repetition), -1.0, 0.0),
    }
    if name in builtin:
        return builtin[name]
    if name in _REGISTERED:
        return _REGISTERED[name]
    path, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(sorted({*settings.weights, *Rewards().weights, *_REGISTERED} - {name}))
        raise ValueError(f"rewards.weights names {name!r}; write package.module:function, or one of {known}")
    try:
        functions = vars(import_module(path))
    except ImportError as error:
        raise ValueError(f"rewards.weights names {name!r}, but {path} cannot be imported: {error}") from error
    if attribute not in functions:
        raise ValueError(f"rewards.weights names {name!r}, but {path} defines no {attribute!r}")
    function = functions[attribute]
    return next((part for part in _REGISTERED.values() if part.function is function), _Part(function, 0.0, 1.0))


def _counted(
    penalty: Callable[[int, Any], Verdict],
    settings: Any,
    row: Row,
    completion: Completion,
    answer: str | None,
    frame: Frame | None,
) -> Verdict:
    if completion.num_tokens is None:
        raise ValueError("the completion's num_tokens is unknown; give it, or set the weight of this part to 0")
    return penalty(completion.num_tokens, settings)


def _call(name: str, part: _Part, row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    where = f"reward {name!r}, row {row.id}, completion {completion.text[:200]!r}"
    try:
        verdict = part.function(row, completion, answer, frame)
    except Exception as error:
        raise RewardError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(verdict, Verdict) or not isinstance(verdict.value, int | float):
        raise RewardError(f"{where}: returned {verdict!r}; return Verdict(value, reason) with a plain number")
    if not (math.isfinite(verdict.value) and part.low <= verdict.value <= part.high):
        raise RewardError(f"{where}: value {verdict.value} is outside its range {part.low} to {part.high}")
    if not isinstance(verdict.reason, Reason) and (verdict.reason is not None or verdict.value <= 0 < part.high):
        raise RewardError(
            f"{where}: value {verdict.value} with reason {verdict.reason!r}; give a Reason, or Reason.UNREWARDED"
        )
    return verdict
