"""Reward functions: the built-in penalties and users' own, by name or import path."""

import inspect
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from currreft_jax.config import Config, Rewards
from currreft_jax.config.names import nearest
from currreft_jax.config.own_code import import_module_of
from currreft_jax.rewards.penalties import length_penalty, overlong_penalty, repetition_penalty
from currreft_jax.structs import MAX_REASON, Completion, Frame, Reason, RewardFailure, Row, Verdict

RULE_REWARDS = ("accuracy", "format")  # computed by the rule of a row's kind and task

RewardFunction = Callable[[Row, Completion, str | None, Frame | None], Verdict | None]


class RewardError(Exception):
    """A reward function failed or returned an invalid verdict.

    Attributes:
        failure: names the function, its file and line, the row and the completion.
    """

    def __init__(self, failure: RewardFailure):
        super().__init__(failure.message)
        self.failure = failure


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
        ValueError: the range is empty, or the name is that of a built-in reward, or of another function.
    """
    taken = f"a reward named {name!r} exists already; register this one under another name"
    if name in Rewards().weights:
        raise ValueError(taken)
    if not low < high:
        raise ValueError(f"reward {name!r} declares the range {low} to {high}; low must be less than high")

    def add(function: RewardFunction) -> RewardFunction:
        if name in _REGISTERED and not _is_newer(function, _REGISTERED[name].function):
            raise ValueError(taken)
        _REGISTERED[name] = BoundedReward(function, low, high)
        return function

    return add


def _is_newer(function: RewardFunction, registered: RewardFunction) -> bool:
    """Says whether a function takes the place of another: its notebook's cell ran again, or its module was reloaded."""
    if not (inspect.isfunction(function) and inspect.isfunction(registered)):
        return False
    return (function.__module__, function.__qualname__) == (registered.__module__, registered.__qualname__)


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
        functions = import_module_of(name)
    except ValueError as error:
        raise ValueError(f"rewards.weights names {name!r}, but {error}") from error
    if attribute not in functions:
        near = f"; nearest: {', '.join(names)}" if (names := nearest(attribute, list(functions))) else ""
        raise ValueError(f"rewards.weights names {name!r}, but {module} defines no {attribute!r}{near}")
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


def validate_run_rewards(config: Config) -> None:
    """Refuses names that stand for no reward in a run's weights, and in those of its stages' rejected sampling.

    Raises:
        ValueError: naming it and the nearest.
    """
    validate_reward_names(config.rewards)
    for index, stage in enumerate(config.stages):
        if stage.rejection:
            try:
                validate_reward_names(stage.rejection.rewards)
            except ValueError as error:
                raise ValueError(f"config.stages[{index}].rejection.rewards.weights: {error}") from error


def is_own(name: str) -> bool:
    """Returns whether a name in `Rewards.weights` is that of a user's reward."""
    return name not in Rewards().weights


def own_rewards(settings: Rewards) -> list[str]:
    """Lists the users' rewards that have a weight."""
    return [name for name, weight in settings.weights.items() if weight and is_own(name)]


def call_reward(
    name: str, reward: BoundedReward, row: Row, completion: Completion, answer: str | None, frame: Frame | None
) -> Verdict | None:
    """Calls a reward function and checks its verdict; None if it does not apply to the row.

    Raises:
        RewardError: the function raises, or returns anything but None or a `Verdict` within its range and with a reason
            for every value of 0 or less that could have been more.
    """
    try:
        verdict = reward.function(row, completion, answer, frame)
    except Exception as error:
        location, problem = _raised_at(error) or defined_at(reward.function), f"{type(error).__name__}: {error}"
        raise RewardError(_failure(name, location, row, completion, problem)) from error
    if problem := _invalidity(verdict, reward):
        raise RewardError(_failure(name, defined_at(reward.function), row, completion, problem))
    return verdict


def failed_verdict(reward: BoundedReward) -> Verdict:
    """Returns the verdict of a completion for which the reward failed, under `OnRewardError.ZERO`."""
    return Verdict(0.0 if reward.high > 0 else reward.low, Reason.REWARD_FAILED)


def _failure(name: str, location: str, row: Row, completion: Completion, problem: str) -> RewardFailure:
    where = f"{location}: " if location else ""
    message = f"{where}reward {name!r}, row {row.id}, completion {completion.text[:200]!r}: {problem}"
    return RewardFailure(name, location, problem, message)


def _invalidity(verdict: object, reward: BoundedReward) -> str:
    """Returns what is wrong with the value that a reward function returned; empty if nothing is."""
    if verdict is None:
        return ""
    if not isinstance(verdict, Verdict) or not isinstance(verdict.value, int | float):
        return f"returned {verdict!r}; return Verdict(value, reason) with a plain number, or None for no reward"
    if not (math.isfinite(verdict.value) and reward.low <= verdict.value <= reward.high):
        return (
            f"value {verdict.value} is outside its range {reward.low} to {reward.high}, which"
            " @register(name, low=…, high=…) sets"
        )
    reason = verdict.reason
    is_text = isinstance(reason, str) and 0 < len(reason) <= MAX_REASON and reason.isprintable()
    if is_text or (reason is None and not verdict.value <= 0 < reward.high):
        return ""
    if reason is None:
        return f"value {verdict.value} without a reason; 0 or less needs one, as in Verdict(0.0, 'far off')"
    return f"value {verdict.value} with reason {reason!r}; a reason is a line of 1 to {MAX_REASON} characters"


def _raised_at(error: Exception) -> str:
    """Returns the last line in the reward's own file that an exception passed; empty if none was reached."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # after `call_reward`
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{_short_path(own[-1].filename)}:{own[-1].lineno}" if own else ""


def defined_at(function: Callable[..., object]) -> str:
    """Returns file and line of a function, method or callable object; empty for one that is not written in Python."""
    function = inspect.unwrap(function)
    while isinstance(function, partial):
        function = inspect.unwrap(function.func)
    written = function if inspect.isroutine(function) else type(function).__call__
    if inspect.ismethod(written):
        written = written.__func__
    if not inspect.isfunction(written):
        return ""
    return f"{_short_path(written.__code__.co_filename)}:{written.__code__.co_firstlineno}"


def _short_path(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _num_tokens(completion: Completion) -> int:
    if completion.num_tokens is None:
        raise ValueError("the completion's num_tokens is unknown; give it, or set the weight of this reward to 0")
    return completion.num_tokens
