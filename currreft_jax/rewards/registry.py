"""Reward functions: the built-in penalties and users' own, by name or import path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from currreft_jax.config import Rewards
from currreft_jax.config.names import nearest
from currreft_jax.rewards.penalties import length_penalty, overlong_penalty, repetition_penalty
from currreft_jax.structs import Completion, Frame, Reason, Row, Verdict

RULE_REWARDS = ("accuracy", "format")  # computed by the rule of a row's kind and task

RewardFunction = Callable[[Row, Completion, str | None, Frame | None], Verdict]


class RewardError(Exception):
    """A reward function failed or returned an invalid verdict; the message names it, the row and the completion."""


@dataclass(frozen=True, slots=True)
class BoundedReward:
    """A reward function and the range of its values, both ends included."""

    function: RewardFunction
    low: float
    high: float


_REGISTERED: dict[str, BoundedReward] = {}


def register(name: str, *, low: float = 0.0, high: float = 1.0) -> Callable[[RewardFunction], RewardFunction]:
    """Returns a decorator that registers a reward function, for use in `Rewards.weights`.

    Args:
        name: key in `Rewards.weights`.
        low: least value that the function returns.
        high: greatest value that the function returns.

    Raises:
        ValueError: the name is taken or the range is empty.
    """
    if name in _REGISTERED or name in Rewards().weights:
        raise ValueError(f"a reward named {name!r} exists already; register this one under another name")
    if not low < high:
        raise ValueError(f"reward {name!r} declares the range {low} to {high}; low must be less than high")

    def add(function: RewardFunction) -> RewardFunction:
        _REGISTERED[name] = BoundedReward(function, low, high)
        return function

    return add


def find_reward(name: str, settings: Rewards) -> BoundedReward:
    """Returns the reward of a name in `Rewards.weights`: a penalty, a registered one or `package.module:function`.

    Raises:
        ValueError: there is none of that name.
    """
    penalties: dict[str, RewardFunction] = {
        "length": lambda row, completion, *_: length_penalty(_num_tokens(completion), settings.length),
        "overlong": lambda row, completion, *_: overlong_penalty(_num_tokens(completion), settings.overlong),
        "repetition": lambda row, completion, *_: repetition_penalty(completion, settings.repetition),
    }
    if name in penalties:
        return BoundedReward(penalties[name], -1.0, 0.0)
    if name in _REGISTERED:
        return _REGISTERED[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = sorted({*settings.weights, *Rewards().weights, *_REGISTERED} - {name})
        near = f"; nearest: {', '.join(names)}" if (names := nearest(name, known)) else ""
        raise ValueError(
            f"rewards.weights names {name!r}; write package.module:function, or one of {', '.join(known)}{near}"
        )
    try:
        functions = vars(import_module(module))
    except ImportError as error:
        raise ValueError(f"rewards.weights names {name!r}, but {module} cannot be imported: {error}") from error
    if attribute not in functions:
        raise ValueError(f"rewards.weights names {name!r}, but {module} defines no {attribute!r}")
    function = functions[attribute]
    registered = (reward for reward in _REGISTERED.values() if reward.function is function)
    return next(registered, BoundedReward(function, 0.0, 1.0))


def validate_reward_names(settings: Rewards) -> None:
    """Refuses names in `Rewards.weights` that stand for no reward.

    Raises:
        ValueError: naming it and the nearest.
    """
    for name, weight in settings.weights.items():
        if weight and name not in RULE_REWARDS:
            find_reward(name, settings)


def call_reward(
    name: str, reward: BoundedReward, row: Row, completion: Completion, answer: str | None, frame: Frame | None
) -> Verdict:
    """Calls a reward function and check its verdict.

    Raises:
        RewardError: the function raises, or returns anything but a `Verdict` within its range and with a reason for
            every value of 0 or less that could have been more.
    """
    call = f"reward {name!r}, row {row.id}, completion {completion.text[:200]!r}"
    try:
        verdict = reward.function(row, completion, answer, frame)
    except Exception as error:
        raise RewardError(f"{call}: {type(error).__name__}: {error}") from error
    if not isinstance(verdict, Verdict) or not isinstance(verdict.value, int | float):
        raise RewardError(f"{call}: returned {verdict!r}; return Verdict(value, reason) with a plain number")
    if not (math.isfinite(verdict.value) and reward.low <= verdict.value <= reward.high):
        raise RewardError(f"{call}: value {verdict.value} is outside its range {reward.low} to {reward.high}")
    needs_reason = verdict.value <= 0 < reward.high
    if not isinstance(verdict.reason, Reason) and (verdict.reason is not None or needs_reason):
        raise RewardError(
            f"{call}: value {verdict.value} with reason {verdict.reason!r}; give a Reason, or Reason.UNREWARDED"
        )
    return verdict


def _num_tokens(completion: Completion) -> int:
    if completion.num_tokens is None:
        raise ValueError("the completion's num_tokens is unknown; give it, or set the weight of this reward to 0")
    return completion.num_tokens
