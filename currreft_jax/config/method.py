"""Settings of how a step learns: the method, the average of its loss, the optimizer."""

from dataclasses import dataclass
from enum import Enum


class Method(Enum):
    """Training method: supervised fine-tuning on gold answers, or GRPO."""

    SFT = "sft"
    GRPO = "grpo"


class LossAverage(Enum):
    """Average of the loss over a batch.

    `SEQUENCE`: over sequences of their means, as in GRPO. `TOKEN`: over tokens, as in DAPO and in fine-tuning.
    `CONSTANT`: over sequences, each token counting 1 / `max_new_tokens`, as in Dr. GRPO.
    """

    TOKEN = "token"
    SEQUENCE = "sequence"
    CONSTANT = "constant"


class Schedule(Enum):
    """Learning rate after the warm-up: constant, or falling to zero linearly or along a cosine."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Rule(Enum):
    """Optimizer: AdamW or Adafactor."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


@dataclass(slots=True)
class Optimizer:
    """Optimizer of the fp32 masters.

    Attributes:
        rule: AdamW or Adafactor.
        moments: precision of AdamW's first moment, bfloat16 or float32.
        learning_rate: after the warm-up.
        schedule: after the warm-up.
        warmup: share of the updates.
        weight_decay: decoupled, times the learning rate; biases and norms do not decay.
        b1: decay of AdamW's first moment.
        b2: decay of AdamW's second moment.
        eps: added to the root of AdamW's second moment.
        max_grad_norm: global norm to which gradients are clipped.
        freeze_vision: freeze the vision tower, except its merger.
        freeze_merger: freeze the merger.
    """

    rule: Rule = Rule.ADAMW
    moments: str = "float32"
    learning_rate: float = 1e-6
    schedule: Schedule = Schedule.LINEAR
    warmup: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    freeze_vision: bool = False
    freeze_merger: bool = False
