"""Settings and their defaults, each in this one place."""

import math
from dataclasses import dataclass, field
from enum import Enum

ELSEWHERE = "CURRREFT_JAX_ELSEWHERE"  # a variable of the environment: what is configured runs on another machine


class Remat(Enum):
    """What the backward pass recomputes instead of keeping.

    `NONE` keeps everything, `DOTS` keeps the matrix products of a block, `BLOCK` keeps only a block's input.
    """

    NONE = "none"
    DOTS = "dots"
    BLOCK = "block"


class Task(Enum):
    """What a row asks about its image; `OTHER` is what conversations are about, and no rule scores it."""

    DETECTION = "detection"
    CLASSIFY = "classify"
    MATH = "math"
    OTHER = "other"


class Kind(Enum):
    """How a row wants its answer: the paper's three stages, and conversations that no rule scores.

    `JUDGE` asks for yes or no, `CHOICE` for option letters, `OPEN` for the answer itself.
    """

    JUDGE = "judge"
    CHOICE = "choice"
    OPEN = "open"
    CHAT = "chat"


class PartialCredit(Enum):
    """Which incomplete sets of options earn `Rewards.partial_value` (equation 4).

    `SUBSET`: some of the right options and no wrong one. `OVERLAP`: at least one right option. `NONE`: never.
    """

    SUBSET = "subset"
    OVERLAP = "overlap"
    NONE = "none"


class DetectionScore(Enum):
    """How predicted boxes are scored.

    `PAPER`: 1 when equation 6 exceeds `Rewards.accept_iou`, else 0. `F1`: F1 of the boxes matched at `Rewards.tau`.
    `SOFT_IOU`: the matched IoU, shared out over the larger number of boxes.
    """

    PAPER = "paper"
    F1 = "f1"
    SOFT_IOU = "soft_iou"


@dataclass(slots=True)
class Maths:
    """Limits of one comparison by math-verify. An answer beyond one of them scores 0, as `timeout`.

    Attributes:
        workers: processes that compare at the same time.
        cpu_seconds: CPU time of a comparison; CPU time and not wall time, so that a busy machine changes no verdict.
        wall_seconds: backstop for a comparison that waits instead of computing.
        memory_mb: address space of a comparison, MiB. Where math-verify itself takes the refusal of memory for an
            answer that it cannot read or prove, the reason is `unparsable` or `not_equal`.
        max_characters: length of an answer.
        max_nesting: depth of its brackets.
    """

    workers: int = 2
    cpu_seconds: float = 2.0
    wall_seconds: float = 30.0
    memory_mb: int = 1024
    max_characters: int = 1000
    max_nesting: int = 32


@dataclass(slots=True)
class Length:
    """The part `length`: every token costs `1 / max_tokens`, down to -1."""

    max_tokens: int = 1024


@dataclass(slots=True)
class Repetition:
    """The part `repetition`: minus the share of a completion's `ngram`-word sequences that repeat an earlier one."""

    ngram: int = 4


@dataclass(slots=True)
class Overlong:
    """The part `overlong`: 0 up to `max_tokens - buffer_tokens`, then linearly down to -1 at `max_tokens`."""

    max_tokens: int = 512
    buffer_tokens: int = 128


def _weights() -> dict[str, float]:
    return {"accuracy": 1.0, "format": 1.0, "length": 0.0, "repetition": 0.0, "overlong": 0.0}


@dataclass(slots=True)
class Rewards:
    """What a completion earns.

    Attributes:
        weights: part -> weight in the total; a part of weight 0 is not computed. Further parts are users' rewards, by
            the name they are registered under or by import path, `package.module:function`.
        partial_credit: reading of equation 4.
        partial_value: what equation 4 pays for an incomplete set.
        detection: how boxes are scored.
        tau: least IoU of a valid match (equation 6).
        accept_iou: equation 7 pays above this mean IoU.
        aliases: label -> the label it stands for, both in lower case and with single spaces, as labels are compared.
        maths: limits of math-verify.
        length: settings of the part of that name; likewise `repetition` and `overlong`.
    """

    weights: dict[str, float] = field(default_factory=_weights)
    partial_credit: PartialCredit = PartialCredit.SUBSET
    partial_value: float = 0.2
    detection: DetectionScore = DetectionScore.PAPER
    tau: float = 0.5
    accept_iou: float = 0.5
    aliases: dict[str, str] = field(default_factory=dict)
    maths: Maths = field(default_factory=Maths)
    length: Length = field(default_factory=Length)
    repetition: Repetition = field(default_factory=Repetition)
    overlong: Overlong = field(default_factory=Overlong)


class Precision(Enum):
    """Of the decoding copy of the weights, of its activations and products."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class CacheType(Enum):
    """What keys and values are kept in while sampling; `INT8` gives each vector a scale."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    INT8 = "int8"


@dataclass(slots=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        group_size: G, completions of each prompt.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: what logits are divided by; 0 takes the likeliest token, and its log-probs are those at 1.
        top_k: draw among the k likeliest tokens; 0 for all. Not for training.
        top_p: draw among the likeliest tokens that together have this probability; 1 for all. Not for training.
        mesh: parts along (data, tensor), over the devices of the model's mesh; one may be -1: what the other leaves.
        precision: of the decoding copy.
        cache: of keys and values.
        segment: completions grow by so many slots at a time; each length is compiled once, and T is a multiple of it.
        ladder: shares of the batch to which it shrinks, between segments, when no more prompts have work left.
        prompt_lengths: L, the buckets of prompt lengths.
    """

    group_size: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    mesh: tuple[int, int] = (-1, 1)
    precision: Precision = Precision.BFLOAT16
    cache: CacheType = CacheType.BFLOAT16
    segment: int = 128
    ladder: tuple[float, ...] = (0.5, 0.25)
    prompt_lengths: tuple[int, ...] = (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096)


def validate_sampling(sampling: Sampling) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    parts, ladder, lengths = sampling.mesh, sampling.ladder, sampling.prompt_lengths
    demands = [
        (sampling.group_size >= 1, "group_size", sampling.group_size, "1 or more"),
        (sampling.max_new_tokens >= 1, "max_new_tokens", sampling.max_new_tokens, "1 or more"),
        (
            0 <= sampling.temperature < math.inf,
            "temperature",
            sampling.temperature,
            "0, for the likeliest token, or a positive number",
        ),
        (sampling.top_k >= 0, "top_k", sampling.top_k, "0, for all tokens, or a number of tokens"),
        (0 < sampling.top_p <= 1, "top_p", sampling.top_p, "a probability in (0, 1]; 1 keeps all tokens"),
        (
            sampling.temperature > 0 or (sampling.top_k == 0 and sampling.top_p == 1),
            "temperature",
            sampling.temperature,
            "a positive number beside top_k or top_p: at 0 they choose nothing",
        ),
        (
            len(parts) == 2 and all(part >= 1 or part == -1 for part in parts) and parts != (-1, -1),
            "mesh",
            sampling.mesh,
            "(data, tensor), of which one may be -1",
        ),
        (sampling.segment >= 1, "segment", sampling.segment, "1 or more"),
        (
            all(0 < share < 1 for share in ladder) and list(ladder) == sorted(set(ladder), reverse=True),
            "ladder",
            sampling.ladder,
            "falling shares in (0, 1); () never shrinks the batch",
        ),
        (
            bool(lengths) and lengths[0] >= 1 and list(lengths) == sorted(set(lengths)),
            "prompt_lengths",
            sampling.prompt_lengths,
            "rising lengths, at least one",
        ),
    ]
    _refuse("sampling", demands)


def validate_training_sampling(sampling: Sampling) -> None:
    """Refuse, beyond `validate_sampling`, what would train on log-probs of another distribution than was drawn from.

    Raises:
        ValueError: naming the setting and the value it takes.
    """
    validate_sampling(sampling)
    why = "in training: what is trained on must be the distribution that was drawn from"
    positive = "a positive number in training: greedy completions of a group are all the same"
    demands = [
        (sampling.temperature > 0, "temperature", sampling.temperature, positive),
        (sampling.top_k == 0, "top_k", sampling.top_k, f"0 {why}"),
        (sampling.top_p == 1, "top_p", sampling.top_p, f"1 {why}"),
    ]
    _refuse("sampling", demands)


def validate_rewards(rewards: Rewards) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    maths, overlong = rewards.maths, rewards.overlong
    demands = [
        (any(rewards.weights.values()), "weights", rewards.weights, "at least one weight other than 0"),
        (all(map(math.isfinite, rewards.weights.values())), "weights", rewards.weights, "finite numbers"),
        (0 <= rewards.partial_value < 1, "partial_value", rewards.partial_value, "a number in [0, 1)"),
        (0 < rewards.tau <= 1, "tau", rewards.tau, "an IoU in (0, 1]"),
        # Below one half, a guess beside every right box would pay: see rewards.detection.
        (0.5 <= rewards.accept_iou < 1, "accept_iou", rewards.accept_iou, "an IoU in [0.5, 1)"),
        (
            all(name == " ".join(name.casefold().split()) for pair in rewards.aliases.items() for name in pair),
            "aliases",
            rewards.aliases,
            "labels in lower case with single spaces",
        ),
        (maths.workers >= 1, "maths.workers", maths.workers, "1 or more"),
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
    _refuse("rewards", demands)


class Method(Enum):
    """What a training step does: learn gold answers by heart, or learn from the rewards of what was sampled."""

    SFT = "sft"
    GRPO = "grpo"


class AdvantageScale(Enum):
    """What rewards less their group's mean are divided by (equation 1).

    `GROUP`: the group's standard deviation. `BATCH`: that of all rewards of the step. `NONE`: nothing.
    """

    GROUP = "group"
    BATCH = "batch"
    NONE = "none"


class Reference(Enum):
    """What the KL penalty holds the policy to: the model that the run starts from, or that its stage starts from."""

    BASE = "base"
    STAGE = "stage"


class Handover(Enum):
    """What becomes of the optimizer's moments where a stage follows another."""

    RESET = "reset"
    KEEP = "keep"


class Init(Enum):
    """Where the parameters come from: the checkpoint at `Pretrained.path`, or a random generator."""

    CHECKPOINT = "checkpoint"
    RANDOM = "random"


class OnBadRow(Enum):
    """What happens to a row that cannot be read: the run stops, or the row is left out, counted and reported."""

    ERROR = "error"
    SKIP = "skip"


class Schedule(Enum):
    """How the learning rate goes on behind the warm-up: as it is, or down to zero linearly or along a cosine."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class LossAverage(Enum):
    """What a mean over a batch counts.

    `SEQUENCE`: all sequences alike, as in GRPO. `TOKEN`: all learnt tokens alike, as in DAPO and fine-tuning.
    `CONSTANT`: a token of a sequence as 1 / `max_new_tokens`, however many the sequence has, as in Dr. GRPO.
    """

    TOKEN = "token"
    SEQUENCE = "sequence"
    CONSTANT = "constant"


@dataclass(slots=True)
class Grpo:
    """Group-relative policy optimisation.

    Attributes:
        advantage_scale: what advantages are scaled by.
        kl_coef: weight of the KL penalty; at 0 no reference is loaded.
        reference: what it holds the policy to.
        reference_path: a hub id or a folder that stands for the base; `model.path` where empty.
        clip_epsilon_low: ratios below 1 minus this are clipped.
        clip_epsilon_high: ratios above 1 plus this are clipped.
        num_updates: passes over the completions of a step.
        minibatches: moves of the optimizer in a pass.
        mask_truncated: leave completions that the token limit cut off out of the loss.
        max_kl: a mean KL above it pauses the run; 0 never does.
        min_entropy: a mean entropy below it does, in nats.
        max_truncated: a share of truncated completions above it does.
    """

    advantage_scale: AdvantageScale = AdvantageScale.GROUP
    kl_coef: float = 0.04
    reference: Reference = Reference.BASE
    reference_path: str = ""
    clip_epsilon_low: float = 0.2
    clip_epsilon_high: float = 0.2
    num_updates: int = 1
    minibatches: int = 1
    mask_truncated: bool = False
    max_kl: float = 0.0
    min_entropy: float = 0.0
    max_truncated: float = 1.0


@dataclass(slots=True)
class Lora:
    """Low-rank adapters beside the decoder's linear layers (Hu et al. 2021); nothing else moves then.

    Attributes:
        rank: of `A B`, which is added to each kernel; 0 for no adapters.
        alpha: the product is scaled by `alpha / rank`.
    """

    rank: int = 0
    alpha: float = 16.0


@dataclass(slots=True)
class Pretrained:
    """The model that training starts from.

    Attributes:
        path: a hub id or a folder, Hugging Face's or converted.
        init: whether its weights are read; with `RANDOM` the folder needs only `config.json` and the tokenizer.
        dtype: of activations and products; masters and optimizer are fp32.
        remat: what the backward pass recomputes.
        min_pixels: area that smaller images are enlarged to; 0 for the checkpoint's own.
        max_pixels: area that larger images are shrunk to; 0 for the checkpoint's own.
        lora: what is trained in place of the weights.
    """

    path: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    init: Init = Init.CHECKPOINT
    dtype: str = "bfloat16"
    remat: Remat = Remat.BLOCK
    min_pixels: int = 0
    max_pixels: int = 401_408
    lora: Lora = field(default_factory=Lora)


@dataclass(slots=True)
class MeshShape:
    """How devices are laid out; one of the three may be -1, the devices that the others leave.

    Attributes:
        data: copies of the parameters.
        fsdp: parts of the parameters and the optimizer.
        tensor: parts of each product.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(slots=True)
class Source:
    """One file of rows in a mixture.

    Attributes:
        file: JSON lines, a JSON list, or the authors' YAML that lists such files.
        weight: share of the batches relative to the other sources.
        sample: which of its rows: all, first:N, end:N or random:N, with N a number or a percentage such as 10%.
        image_root: what image paths start from; the file's folder where empty.
        kind: of rows that name none.
        task: of rows that name none.
    """

    file: str = ""
    weight: float = 1.0
    sample: str = "all"
    image_root: str = ""
    kind: Kind | None = None
    task: Task | None = None


@dataclass(slots=True)
class Stage:
    """One part of the curriculum.

    Attributes:
        name: of its folder and its metrics.
        sources: what it mixes.
        steps: batches.
        kinds: the kinds of rows that it takes from them; all where empty.
        tasks: likewise.
        replay: share of the batches that comes from the sources of the stages before it.
        held_out: rows that the stage is judged by, during its own training and that of the stages behind it.
        moments: of the optimizer, where a stage stands before it.
        learning_rate: instead of the optimizer's; 0 for that.
        promote_above: the stage ends early when the share of full accuracy on `held_out` is above it with 97.5%
            confidence; 1 never ends it.
    """

    name: str = "train"
    sources: list[Source] = field(default_factory=list)
    steps: int = 1000
    kinds: tuple[Kind, ...] = ()
    tasks: tuple[Task, ...] = ()
    replay: float = 0.0
    held_out: list[Source] = field(default_factory=list)
    moments: Handover = Handover.RESET
    learning_rate: float = 0.0
    promote_above: float = 1.0


@dataclass(slots=True)
class Data:
    """How rows become batches.

    Attributes:
        batch_size: prompts of a step, over all hosts.
        template: the prompts' wording: a name of `data.prompts.TEMPLATES`, or `package.module:NAME`.
        prompt_lengths: the lengths that prompts are padded to; a batch takes the smallest that fits.
        completion_lengths: likewise, for gold completions.
        slots: likewise, image slots of a data shard; where empty, a ladder with steps of a quarter up to what images
            of `max_pixels` need, one for each prompt.
        on_bad_row: what happens to rows that cannot be read, shown or padded to these lengths.
        max_bad_rows: more of them stop the run all the same.
        pass_rates: a JSON lines file of `{"id", "pass_rate"}`; rows outside `keep_pass_rates` are left out, as they
            teach nothing. None where empty.
        keep_pass_rates: least and greatest pass rate, both excluded.
        world: folder of the embedded world, which is drawn there if it is missing; none where empty.
        threads: that read and cut images, on each host.
        prefetch: batches that are read ahead.
    """

    batch_size: int = 8
    template: str = "paper"
    prompt_lengths: tuple[int, ...] = (256, 512, 768, 1024, 2048)
    completion_lengths: tuple[int, ...] = (64, 256, 512, 1024)
    slots: tuple[int, ...] = ()
    on_bad_row: OnBadRow = OnBadRow.ERROR
    max_bad_rows: int = 100
    pass_rates: str = ""
    keep_pass_rates: tuple[float, float] = (0.0, 1.0)
    world: str = ""
    threads: int = 4
    prefetch: int = 2


class Rule(Enum):
    """How a gradient becomes a move: by two moments of each parameter, or by rows and columns of squares alone."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


@dataclass(slots=True)
class Optimizer:
    """Moves fp32 masters.

    Attributes:
        rule: how.
        moments: precision of the first moment of AdamW, bfloat16 or float32.
        learning_rate: after the warm-up.
        schedule: behind it.
        warmup: its share of the steps.
        weight_decay: decoupled.
        b1: decay of the first moment of AdamW.
        b2: decay of the second.
        eps: beside the root of the second.
        max_grad_norm: global norm that gradients are scaled down to.
        freeze_vision: leave the vision tower as it is, its merger excepted.
        freeze_merger: leave the merger as it is.
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


@dataclass(slots=True)
class Logging:
    """What is written, and how often.

    Attributes:
        log_every: steps from one asking of the device for its metrics to the next; each step has a line of its own.
        save_every: steps from one checkpoint to the next; the last step is always saved.
        keep_last: newest checkpoints that are kept, besides the one whose step had most reward or least loss.
        tensorboard: also write TensorBoard events.
        wandb: also send metrics to Weights & Biases.
        rollouts_every: steps from one file of completions to the next, from step 1 on, and of the last; 0 writes none.
        evaluate_every: steps from one look at the held-out rows to the next; at 0 only the ends of stages have one.
        evaluate_rows: held-out rows of a stage that are looked at.
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
    """A whole run.

    Attributes:
        name: of the run, and of its default workdir.
        seed: of all randomness.
        method: what a step does.
        loss_average: how its loss is averaged.
        microbatches: parts that a step's prompts are computed in, one after the other.
        model: what it starts from.
        mesh: how devices are laid out.
        stages: what it learns from.
        data: how rows become batches.
        optimizer: how parameters move.
        grpo: how completions' rewards become a loss.
        sampling: how completions are drawn.
        rewards: what they earn.
        logging: what is written.
        plan_first: compile the largest programs before anything is loaded, and refuse what the devices cannot hold;
            where nobody knows their memory, as on CPUs, nothing happens.
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


def validate(config: Config) -> None:
    """Refuse settings that cannot be meant, before anything is loaded.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    data, optimizer, logging = config.data, config.optimizer, config.logging
    _refuse(
        "config",
        [
            (config.seed >= 0, "seed", config.seed, "0 or more"),
            (bool(config.stages), "stages", config.stages, "at least one stage"),
            (config.microbatches >= 1, "microbatches", config.microbatches, "1 or more"),
            (
                config.method is Method.GRPO or config.loss_average is not LossAverage.CONSTANT,
                "loss_average",
                config.loss_average.value,
                "token or sequence in supervised training: gold answers have no token limit",
            ),
            (config.model.dtype in ("bfloat16", "float32"), "model.dtype", config.model.dtype, "bfloat16 or float32"),
            (config.model.lora.rank >= 0, "model.lora.rank", config.model.lora.rank, "0, for no adapters, or more"),
            (config.model.lora.alpha > 0, "model.lora.alpha", config.model.lora.alpha, "a positive number"),
            (data.batch_size >= 1, "data.batch_size", data.batch_size, "1 or more"),
            (
                data.batch_size % max(1, config.microbatches) == 0,
                "microbatches",
                config.microbatches,
                f"a divisor of data.batch_size ({data.batch_size})",
            ),
            (_rising(data.prompt_lengths), "data.prompt_lengths", data.prompt_lengths, "rising lengths"),
            (_rising(data.completion_lengths), "data.completion_lengths", data.completion_lengths, "rising lengths"),
            (not data.slots or _rising(data.slots), "data.slots", data.slots, "rising numbers of slots"),
            (data.max_bad_rows >= 0, "data.max_bad_rows", data.max_bad_rows, "0 or more"),
            (_range(data.keep_pass_rates), "data.keep_pass_rates", data.keep_pass_rates, "two rising shares"),
            (data.threads >= 1, "data.threads", data.threads, "1 or more"),
            (data.prefetch >= 1, "data.prefetch", data.prefetch, "1 or more"),
            (
                optimizer.moments in ("bfloat16", "float32"),
                "optimizer.moments",
                optimizer.moments,
                "bfloat16 or float32",
            ),
            (optimizer.learning_rate > 0, "optimizer.learning_rate", optimizer.learning_rate, "a positive number"),
            (0 <= optimizer.warmup < 1, "optimizer.warmup", optimizer.warmup, "a share in [0, 1)"),
            (optimizer.max_grad_norm > 0, "optimizer.max_grad_norm", optimizer.max_grad_norm, "a positive number"),
            (logging.log_every >= 1, "logging.log_every", logging.log_every, "1 or more"),
            (logging.save_every >= 1, "logging.save_every", logging.save_every, "1 or more"),
            (logging.keep_last >= 1, "logging.keep_last", logging.keep_last, "1 or more"),
            (logging.rollouts_every >= 0, "logging.rollouts_every", logging.rollouts_every, "0 or more"),
            (logging.evaluate_every >= 0, "logging.evaluate_every", logging.evaluate_every, "0 or more"),
            (logging.evaluate_rows >= 2, "logging.evaluate_rows", logging.evaluate_rows, "2 or more"),
        ],
    )
    if config.method is Method.GRPO:
        validate_grpo(config)
    elif any(stage.held_out for stage in config.stages):
        validate_sampling(config.sampling)
        validate_rewards(config.rewards)
    for number in range(len(config.stages)):
        _validate_stage(config, number)


def _validate_stage(config: Config, number: int) -> None:
    stage, names = config.stages[number], [stage.name for stage in config.stages]
    _refuse(
        f"config.stages[{number}]",
        [
            (bool(stage.sources), "sources", stage.sources, "at least one source"),
            (_members(stage.kinds, Kind), "kinds", stage.kinds, "members of Kind, in the config's file"),
            (_members(stage.tasks, Task), "tasks", stage.tasks, "members of Task, in the config's file"),
            (stage.steps >= 1, "steps", stage.steps, "1 or more"),
            (names.count(stage.name) == 1, "name", stage.name, "a name of its own"),
            (0 <= stage.replay < 1, "replay", stage.replay, "a share in [0, 1)"),
            (not stage.replay or number > 0, "replay", stage.replay, "0 in the first stage"),
            (stage.learning_rate >= 0, "learning_rate", stage.learning_rate, "0, for the optimizer's, or more"),
            (0 < stage.promote_above <= 1, "promote_above", stage.promote_above, "a share in (0, 1]"),
            (
                stage.promote_above == 1 or (bool(stage.held_out) and config.logging.evaluate_every > 0),
                "promote_above",
                stage.promote_above,
                "1, or a share beside held_out rows and logging.evaluate_every",
            ),
            (
                stage.promote_above == 1 or bool(config.rewards.weights.get("accuracy")),
                "promote_above",
                stage.promote_above,
                "1 where accuracy has no weight among the rewards",
            ),
        ],
    )
    named = {"sources": stage.sources, "held_out": stage.held_out}
    for where, source in [
        (f"config.stages[{number}].{name}[{place}]", source)
        for name, sources in named.items()
        for place, source in enumerate(sources)
    ]:
        _refuse(
            where,
            [
                (bool(source.file), "file", source.file, "a path"),
                (source.weight > 0, "weight", source.weight, "a positive number"),
            ],
        )


def validate_grpo(config: Config) -> None:
    """Refuse settings of reinforcement learning that cannot be meant.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    validate_training_sampling(config.sampling)
    validate_rewards(config.rewards)
    grpo, group = config.grpo, config.sampling.group_size
    parts = grpo.minibatches * config.microbatches
    _refuse(
        "config",
        [
            (group >= 2, "sampling.group_size", group, "2 or more: a completion is compared with its group"),
            (grpo.kl_coef >= 0, "grpo.kl_coef", grpo.kl_coef, "0 or more"),
            (0 < grpo.clip_epsilon_low <= 1, "grpo.clip_epsilon_low", grpo.clip_epsilon_low, "a number in (0, 1]"),
            (grpo.clip_epsilon_high > 0, "grpo.clip_epsilon_high", grpo.clip_epsilon_high, "a positive number"),
            (grpo.num_updates >= 1, "grpo.num_updates", grpo.num_updates, "1 or more"),
            (grpo.minibatches >= 1, "grpo.minibatches", grpo.minibatches, "1 or more"),
            (
                config.data.batch_size % max(1, parts) == 0,
                "grpo.minibatches",
                grpo.minibatches,
                f"a number that, times microbatches, divides data.batch_size ({config.data.batch_size})",
            ),
            (grpo.max_kl >= 0, "grpo.max_kl", grpo.max_kl, "0, for no limit, or more"),
            (grpo.min_entropy >= 0, "grpo.min_entropy", grpo.min_entropy, "0, for no limit, or more"),
            (0 < grpo.max_truncated <= 1, "grpo.max_truncated", grpo.max_truncated, "a share in (0, 1]"),
        ],
    )


def _members(values: tuple[object, ...], of: type[Enum]) -> bool:
    return all(isinstance(value, of) for value in values)


def _range(values: tuple[float, ...]) -> bool:
    return len(values) == 2 and 0 <= values[0] < values[1] <= 1


def _rising(values: tuple[int, ...]) -> bool:
    return bool(values) and values[0] >= 1 and list(values) == sorted(set(values))


def _refuse(prefix: str, demands: list[tuple[bool, str, object, str]]) -> None:
    for met, name, value, wanted in demands:
        if not met:
            raise ValueError(f"{prefix}.{name} is {value}; it takes {wanted}")
