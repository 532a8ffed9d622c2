"""Settings of training: GRPO, logging; and of a whole run."""

from dataclasses import dataclass, field
from enum import Enum

from currreft_jax.config.data import Data
from currreft_jax.config.method import LossAverage, Method, Optimizer
from currreft_jax.config.model import MeshShape, Pretrained
from currreft_jax.config.rewards import Rewards
from currreft_jax.config.sampling import Sampling
from currreft_jax.config.stage import Stage

ELSEWHERE = "CURRREFT_JAX_ELSEWHERE"  # environment variable: the configured run is for another machine


class AdvantageScale(Enum):
    """Divisor of rewards minus their group's mean (equation 1).

    `GROUP`: the group's standard deviation. `BATCH`: that of all rewards of the step. `NONE`: 1.
    """

    GROUP = "group"
    BATCH = "batch"
    NONE = "none"


class Reference(Enum):
    """Frozen reference of the KL penalty: the model at the start of the run, or at the start of the stage."""

    BASE = "base"
    STAGE = "stage"


@dataclass(slots=True)
class Grpo:
    """Group-relative policy optimisation.

    Attributes:
        advantage_scale: divisor of the advantages.
        kl_coef: β, weight of the KL penalty; at 0 no reference is loaded.
        reference: frozen reference of the KL penalty.
        reference_path: a hub id or a folder used as the base; `model.path` where empty.
        clip_epsilon_low: ratios are clipped below 1 - ε_low.
        clip_epsilon_high: ratios are clipped above 1 + ε_high.
        num_updates: passes over the completions of a step.
        minibatches: optimizer updates per pass.
        importance_cap: weights each token's objective by its probability in the trainer over that in the sampler, at
            most this (truncated importance sampling); TRL's value is 2, 0 turns it off. For one update per rollout:
            with several, ratios are to the sampler's probabilities already.
        mask_truncated: leave completions that hit the token limit out of the loss.
        max_kl: a higher mean KL from the reference pauses the run; 0 for no limit.
        min_entropy: a lower mean entropy, in nats, pauses the run; 0 for no limit.
        max_truncated: a higher share of truncated completions pauses the run; 0 for no limit.
    """

    advantage_scale: AdvantageScale = AdvantageScale.GROUP
    kl_coef: float = 0.04
    reference: Reference = Reference.BASE
    reference_path: str = ""
    clip_epsilon_low: float = 0.2
    clip_epsilon_high: float = 0.2
    num_updates: int = 1
    minibatches: int = 1
    importance_cap: float = 0.0
    mask_truncated: bool = False
    max_kl: float = 0.0
    min_entropy: float = 0.0
    max_truncated: float = 0.0


@dataclass(slots=True)
class Logging:
    """Output of a run.

    Attributes:
        log_every: fetch metrics from the device every N steps; every step is still logged.
        save_every: steps between checkpoints. The last step is always saved, and so is an evaluated step whose held-out
            reward is the highest of the stage so far.
        keep_last: latest checkpoints to keep, besides the one with the highest held-out reward.
        tensorboard: also write TensorBoard events.
        wandb: also log to Weights & Biases.
        rollouts_every: steps between rollout files, from step 1, and a file for a stage's last step; 0 writes none.
        evaluate_every: steps between evaluations of held-out rows; 0 evaluates only at the end of each stage.
        evaluate_rows: held-out rows per stage.
    """

    log_every: int = 10
    save_every: int = 100
    keep_last: int = 2
    tensorboard: bool = True
    wandb: bool = False
    rollouts_every: int = 10
    evaluate_every: int = 0
    evaluate_rows: int = 200


@dataclass(slots=True)
class Config:
    """All settings of a run.

    Attributes:
        name: name of the run, and of its default workdir.
        seed: seed of all randomness.
        method: SFT or GRPO.
        loss_average: average of the loss over a batch.
        microbatches: parts of a minibatch, one after the other; fewer where one would leave a data shard empty.
        model: the model to start from.
        mesh: axes of the device mesh.
        stages: stages of the curriculum.
        data: batches of rows.
        optimizer: optimizer settings.
        grpo: settings of GRPO.
        sampling: settings for sampling completions.
        rewards: settings for rewarding completions.
        logging: output.
        plan_first: compile the largest programs before anything is loaded, and refuse a batch that the devices cannot
            hold; no effect where their memory is unknown, as on CPUs.
    """

    name: str = "run"
    seed: int = 0
    method: Method = Method.SFT
    loss_average: LossAverage = LossAverage.TOKEN
    microbatches: int = 1
    model: Pretrained = field(default_factory=Pretrained)
    mesh: MeshShape = field(default_factory=MeshShape)
    stages: list[Stage] = field(default_factory=list)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    grpo: Grpo = field(default_factory=Grpo)
    sampling: Sampling = field(default_factory=Sampling)
    rewards: Rewards = field(default_factory=Rewards)
    logging: Logging = field(default_factory=Logging)
    plan_first: bool = True
