"""Settings of the rewards."""

from dataclasses import dataclass, field
from enum import Enum

from currreft_jax.config.checks import refuse, refuse_wrong_types


class PartialCredit(Enum):
    """Incomplete sets of options that earn `Rewards.partial_value` (equation 4).

    `SUBSET`: some of the right options and no wrong one. `OVERLAP`: at least one right option. `NONE`: none.
    """

    SUBSET = "subset"
    OVERLAP = "overlap"
    NONE = "none"


class DetectionScore(Enum):
    """Score of predicted boxes.

    `PAPER`: 1 if equation 6 exceeds `Rewards.accept_iou`, else 0. `F1`: F1 of the boxes matched at `Rewards.tau`.
    `SOFT_IOU`: sum of the matched IoUs, divided by the larger number of boxes.
    """

    PAPER = "paper"
    F1 = "f1"
    SOFT_IOU = "soft_iou"


class BoxReading(Enum):
    """Answers whose boxes have an accuracy; the format reward is for sound JSON in either case.

    `READABLE`: also damaged JSON and other layouts, if every box can be told. `JSON`: sound JSON alone.
    """

    READABLE = "readable"
    JSON = "json"


class OnRewardError(Enum):
    """What a completion does for which a reward of one's own fails, or returns an invalid verdict.

    `STOP`: it ends the run. `ZERO`: it earns 0 with the reason `reward_failed`, or the least value of a reward that
    gives no more than 0; such completions are counted and reported.
    """

    STOP = "stop"
    ZERO = "zero"


@dataclass(slots=True)
class Maths:
    """Limits of one comparison by math-verify. An answer beyond a limit scores 0 with reason `timeout`.

    Attributes:
        workers: number of worker processes per host; 0 for one on each of its cores, 32 at most. A core that several
            processes of the run may use counts for each in part.
        cpu_seconds: CPU time of a comparison; wall time would make verdicts depend on the machine's load.
        wall_seconds: wall time of a comparison, for one that waits instead of computing.
        memory_mb: address space of a comparison, MiB. If math-verify catches the refused allocation itself, the reason
            is `unparsable` or `not_equal`.
        max_characters: length of an answer.
        max_nesting: depth of brackets in an answer.
    """

    workers: int = 0
    cpu_seconds: float = 2.0
    wall_seconds: float = 30.0
    memory_mb: int = 1024
    max_characters: int = 1000
    max_nesting: int = 32


@dataclass(slots=True)
class Length:
    """Reward part `length`: -1 / `max_tokens` for each token, down to -1.

    Attributes:
        max_tokens: tokens that cost 1.
    """

    max_tokens: int = 1024


@dataclass(slots=True)
class Repetition:
    """Reward part `repetition`: minus the share of `ngram`-word sequences that repeat an earlier one.

    Attributes:
        ngram: words of a sequence.
    """

    ngram: int = 4


@dataclass(slots=True)
class Overlong:
    """Reward part `overlong`: 0 up to `max_tokens - buffer_tokens`, then falling linearly to -1 at `max_tokens`.

    Attributes:
        max_tokens: tokens at which it is -1.
        buffer_tokens: tokens before, over which it falls.
    """

    max_tokens: int = 512
    buffer_tokens: int = 128


def _weights() -> dict[str, float]:
    return {"accuracy": 1.0, "format": 1.0, "length": 0.0, "repetition": 0.0, "overlong": 0.0}


@dataclass(slots=True)
class Rewards:
    """Rewards of completions.

    Attributes:
        weights: part -> weight in the total; a part of weight 0 is not computed. Other keys are rewards of one's own,
            by registered name or by import path, `package.module:function`.
        on_error: what a completion does for which a reward of one's own fails.
        partial_credit: which incomplete sets of options earn `partial_value`.
        partial_value: reward of an incomplete set (equation 4).
        detection: score of predicted boxes.
        box_reading: answers whose boxes have an accuracy.
        tau: least IoU of a valid match (equation 6).
        accept_iou: mean IoU above which equation 7 pays.
        aliases: label -> the label it stands for, both in lower case with single spaces.
        maths: limits of math-verify.
        length: settings of the part.
        repetition: settings of the part.
        overlong: settings of the part.
    """

    weights: dict[str, float] = field(default_factory=_weights)
    on_error: OnRewardError = OnRewardError.STOP
    partial_credit: PartialCredit = PartialCredit.SUBSET
    partial_value: float = 0.2
    detection: DetectionScore = DetectionScore.PAPER
    box_reading: BoxReading = BoxReading.READABLE
    tau: float = 0.5
    accept_iou: float = 0.5
    aliases: dict[str, str] = field(default_factory=dict)
    maths: Maths = field(default_factory=Maths)
    length: Length = field(default_factory=Length)
    repetition: Repetition = field(default_factory=Repetition)
    overlong: Overlong = field(default_factory=Overlong)


def validate_rewards(rewards: Rewards) -> None:
    """Refuses impossible settings.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("rewards", rewards, Rewards)
    maths, overlong, labels = rewards.maths, rewards.overlong, [*rewards.aliases, *rewards.aliases.values()]
    demands = [
        (any(rewards.weights.values()), "weights", rewards.weights, "at least one weight other than 0"),
        (0 <= rewards.partial_value < 1, "partial_value", rewards.partial_value, "a number in [0, 1)"),
        (0 < rewards.tau <= 1, "tau", rewards.tau, "an IoU in (0, 1]"),
        # Below one half, a guess next to every right box would pay: see rewards.detection.
        (0.5 <= rewards.accept_iou < 1, "accept_iou", rewards.accept_iou, "an IoU in [0.5, 1)"),
        (
            all(label == " ".join(label.casefold().split()) for label in labels),
            "aliases",
            rewards.aliases,
            "labels in lower case with single spaces",
        ),
        (maths.workers >= 0, "maths.workers", maths.workers, "0, for the machine's cores, or more"),
        (maths.cpu_seconds > 0, "maths.cpu_seconds", maths.cpu_seconds, "a positive number of seconds"),
        (
            maths.wall_seconds > maths.cpu_seconds,
            "maths.wall_seconds",
            maths.wall_seconds,
            f"more than maths.cpu_seconds ({maths.cpu_seconds})",
        ),
        (maths.memory_mb >= 256, "maths.memory_mb", maths.memory_mb, "256 or more: math-verify itself needs 100"),
        (1 <= maths.max_characters <= 4000, "maths.max_characters", maths.max_characters, "1 to 4000"),
        (1 <= maths.max_nesting <= 100, "maths.max_nesting", maths.max_nesting, "1 to 100"),
        (rewards.length.max_tokens >= 1, "length.max_tokens", rewards.length.max_tokens, "1 or more"),
        (rewards.repetition.ngram >= 1, "repetition.ngram", rewards.repetition.ngram, "1 or more"),
        (
            1 <= overlong.buffer_tokens <= overlong.max_tokens,
            "overlong.buffer_tokens",
            overlong.buffer_tokens,
            f"1 to overlong.max_tokens ({overlong.max_tokens})",
        ),
    ]
    refuse("rewards", demands)
