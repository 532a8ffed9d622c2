"""Refusal of impossible settings, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from currreft_jax.config.checks import Demand, is_mesh, is_range, is_rising, refuse, refuse_wrong_types
from currreft_jax.config.evaluation import EvaluatedModel
from currreft_jax.config.method import LossAverage, Method
from currreft_jax.config.rejection import Rejection, validate_rejection
from currreft_jax.config.rewards import validate_rewards
from currreft_jax.config.sampling import CacheType, validate_sampling, validate_training_sampling
from currreft_jax.config.stage import REJECT, Handover, Stage
from currreft_jax.config.stage_settings import stage_settings
from currreft_jax.config.training import Config

_PRECISIONS = ("bfloat16", "float32")


def validate(config: Config) -> None:
    """Refuses impossible settings of a run.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("config", config, Config)
    refuse("config", [*_run(config), *_model(config), *_data(config), *_optimizer(config), *_logging(config)])
    refuse("config", _grpo(config))
    validate_sampling(config.sampling)
    validate_rewards(config.rewards)
    if config.method is Method.GRPO:
        validate_training_sampling(config.sampling)
        refuse("config", _grpo_batch(config))
    for stage_index in range(len(config.stages)):
        _validate_stage(config, stage_index)


def _run(config: Config) -> list[Demand]:
    return [
        (_is_folder_name(config.name), "name", repr(config.name), "the name of a folder"),
        # JAX takes a seed modulo 2^32, so a larger one would equal a smaller; Grain adds the index of the source.
        (0 <= config.seed < 2**31, "seed", config.seed, "0 to 2147483647"),
        (bool(config.stages), "stages", config.stages, "at least one stage"),
        (config.microbatches >= 1, "microbatches", config.microbatches, "1 or more"),
        (
            config.method is Method.GRPO or config.loss_average is not LossAverage.CONSTANT,
            "loss_average",
            config.loss_average.value,
            "token or sequence in supervised training: gold answers have no token limit",
        ),
    ]


def _model(config: Config) -> list[Demand]:
    model, mesh = config.model, config.mesh
    return [
        (bool(model.path), "model.path", repr(model.path), "a hub id or a folder"),
        (
            is_mesh((mesh.data or 1, mesh.fsdp, mesh.tensor)),
            "mesh",
            (mesh.data, mesh.fsdp, mesh.tensor),
            "sizes (data, fsdp, tensor) from 1, of which one may be -1; data may be 0, to be chosen",
        ),
        (model.min_pixels >= 0, "model.min_pixels", model.min_pixels, "0, for the checkpoint's own, or more"),
        (
            model.max_pixels == 0 or model.max_pixels >= max(1, model.min_pixels),
            "model.max_pixels",
            model.max_pixels,
            f"0, for the checkpoint's own, or at least model.min_pixels ({model.min_pixels})",
        ),
        (model.dtype in _PRECISIONS, "model.dtype", model.dtype, "bfloat16 or float32"),
        (model.lora.rank >= 0, "model.lora.rank", model.lora.rank, "0, for no adapters, or more"),
        (model.lora.alpha > 0, "model.lora.alpha", model.lora.alpha, "a positive number"),
    ]


def _data(config: Config) -> list[Demand]:
    data = config.data
    return [
        (data.batch_size >= 1, "data.batch_size", data.batch_size, "1 or more"),
        (
            data.batch_size % max(1, config.microbatches) == 0,
            "microbatches",
            config.microbatches,
            f"a divisor of data.batch_size ({data.batch_size})",
        ),
        (is_rising(data.prompt_lengths), "data.prompt_lengths", data.prompt_lengths, "rising lengths"),
        (is_rising(data.completion_lengths), "data.completion_lengths", data.completion_lengths, "rising lengths"),
        (not data.slots or is_rising(data.slots), "data.slots", data.slots, "rising numbers of slots"),
        (data.max_bad_rows >= 0, "data.max_bad_rows", data.max_bad_rows, "0 or more"),
        (is_range(data.keep_pass_rates), "data.keep_pass_rates", data.keep_pass_rates, "two rising shares"),
        (
            bool(data.pass_rates) or data.keep_pass_rates == (0.0, 1.0),
            "data.keep_pass_rates",
            data.keep_pass_rates,
            "(0.0, 1.0) without data.pass_rates: it has no effect",
        ),
        (data.threads >= 1, "data.threads", data.threads, "1 or more"),
        (data.prefetch >= 1, "data.prefetch", data.prefetch, "1 or more"),
    ]


def _optimizer(config: Config) -> list[Demand]:
    optimizer = config.optimizer
    return [
        (optimizer.moments in _PRECISIONS, "optimizer.moments", optimizer.moments, "bfloat16 or float32"),
        (optimizer.learning_rate > 0, "optimizer.learning_rate", optimizer.learning_rate, "a positive number"),
        (0 <= optimizer.warmup < 1, "optimizer.warmup", optimizer.warmup, "a share in [0, 1)"),
        (optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "0 or more"),
        (0 <= optimizer.b1 < 1, "optimizer.b1", optimizer.b1, "a decay in [0, 1)"),
        (0 <= optimizer.b2 < 1, "optimizer.b2", optimizer.b2, "a decay in [0, 1)"),
        (optimizer.eps > 0, "optimizer.eps", optimizer.eps, "a positive number"),
        (optimizer.max_grad_norm > 0, "optimizer.max_grad_norm", optimizer.max_grad_norm, "a positive number"),
    ]


def _logging(config: Config) -> list[Demand]:
    logging = config.logging
    return [
        (logging.log_every >= 1, "logging.log_every", logging.log_every, "1 or more"),
        (logging.save_every >= 1, "logging.save_every", logging.save_every, "1 or more"),
        (logging.keep_last >= 1, "logging.keep_last", logging.keep_last, "1 or more"),
        (logging.rollouts_every >= 0, "logging.rollouts_every", logging.rollouts_every, "0 or more"),
        (logging.evaluate_every >= 0, "logging.evaluate_every", logging.evaluate_every, "0 or more"),
        (logging.evaluate_rows >= 2, "logging.evaluate_rows", logging.evaluate_rows, "2 or more"),
    ]


def _grpo(config: Config) -> list[Demand]:
    grpo = config.grpo
    return [
        (grpo.kl_coef >= 0, "grpo.kl_coef", grpo.kl_coef, "0 or more"),
        (0 < grpo.clip_epsilon_low <= 1, "grpo.clip_epsilon_low", grpo.clip_epsilon_low, "a number in (0, 1]"),
        (grpo.clip_epsilon_high > 0, "grpo.clip_epsilon_high", grpo.clip_epsilon_high, "a positive number"),
        (grpo.num_updates >= 1, "grpo.num_updates", grpo.num_updates, "1 or more"),
        (grpo.minibatches >= 1, "grpo.minibatches", grpo.minibatches, "1 or more"),
        (grpo.importance_cap >= 0, "grpo.importance_cap", grpo.importance_cap, "0, for no correction, or more"),
        (grpo.max_kl >= 0, "grpo.max_kl", grpo.max_kl, "0, for no limit, or more"),
        (
            not grpo.max_kl or bool(grpo.kl_coef),
            "grpo.max_kl",
            grpo.max_kl,
            "0 without grpo.kl_coef: no reference is loaded from which a KL is measured",
        ),
        (grpo.min_entropy >= 0, "grpo.min_entropy", grpo.min_entropy, "0, for no limit, or more"),
        (0 <= grpo.max_truncated <= 1, "grpo.max_truncated", grpo.max_truncated, "0, for no limit, or a share up to 1"),
    ]


def _grpo_batch(config: Config) -> list[Demand]:
    group_size, batch_size, minibatches = config.sampling.group_size, config.data.batch_size, config.grpo.minibatches
    several_updates = config.grpo.num_updates * minibatches > 1
    cap, cache = config.grpo.importance_cap, config.sampling.cache
    return [
        (
            not (cap and several_updates),
            "grpo.importance_cap",
            cap,
            "0 with several updates per rollout: their ratios are to the sampler's probabilities already",
        ),
        (
            cache is not CacheType.INT8 or bool(cap) or several_updates,
            "sampling.cache",
            cache.value,
            "bfloat16 or float32 in training, or int8 with grpo.importance_cap above 0: int8 changes the distribution"
            " that is sampled from",
        ),
        (group_size >= 2, "sampling.group_size", group_size, "2 or more: a completion is compared with its group"),
        (
            batch_size % (minibatches * config.microbatches) == 0,
            "grpo.minibatches",
            minibatches,
            f"a number that, times microbatches, divides data.batch_size ({batch_size})",
        ),
    ]


def _validate_stage(config: Config, stage_index: int) -> None:
    prefix, stage = f"config.stages[{stage_index}]", config.stages[stage_index]
    refuse(prefix, [*_stage(config, stage_index), *_stage_overrides(stage)])
    if stage.rejection:
        _validate_stage_rejection(prefix, stage.rejection)
        refuse(f"{prefix}.rejection", _rejection_pixels(config, stage.rejection))
    settings = stage_settings(config, stage_index)
    refuse(prefix, [*_run(settings), *_data(settings), *_optimizer(settings), *_logging(settings)])
    refuse(prefix, [*_stage_method(config, stage_index), *_promotion(settings, stage_index)])
    if settings.method is Method.GRPO:
        validate_training_sampling(settings.sampling)
        refuse(prefix, _grpo_batch(settings))
    for name, sources in (
        ("sources", stage.sources),
        ("held_out", stage.held_out),
        ("out_of_domain", stage.out_of_domain),
        ("held_out_loss", stage.held_out_loss),
    ):
        for index, source in enumerate(sources):
            demands = [
                (bool(source.file), "file", source.file, "a path"),
                (source.weight > 0, "weight", source.weight, "a positive number"),
            ]
            refuse(f"{prefix}.{name}[{index}]", demands)


def _validate_stage_rejection(prefix: str, rejection: Rejection) -> None:
    model = rejection.model if rejection.model.path else EvaluatedModel("the model of the stage before")
    try:
        validate_rejection(replace(rejection, model=model))
    except ValueError as error:
        raise ValueError(f"{prefix}.rejection{str(error).removeprefix('config')}") from error


def _rejection_pixels(config: Config, rejection: Rejection) -> list[Demand]:
    """Demands that kept answers are trained on with images of the size that they were sampled with.

    A bound of 0 is that of the model that answers, which the stages before have made; a server has none.
    """
    model, takes_own = config.model, not rejection.model.endpoint
    demands = []
    for name, bound, trained in (
        ("min_pixels", rejection.min_pixels, model.min_pixels),
        ("max_pixels", rejection.max_pixels, model.max_pixels),
    ):
        wanted = f"{trained}, as model.{name}{', or 0' if trained and takes_own else ''}"
        why = "boxes of kept answers are in pixels of the images that were seen"
        demands.append((bound == trained or (takes_own and bound == 0), name, bound, f"{wanted}: {why}"))
    return demands


def _stage(config: Config, stage_index: int) -> list[Demand]:
    stage, names = config.stages[stage_index], [stage.name for stage in config.stages]
    return [
        (bool(stage.sources or stage.rejection), "sources", stage.sources, "at least one source"),
        (stage.steps >= 1, "steps", stage.steps, "1 or more"),
        (_is_folder_name(stage.name), "name", repr(stage.name), "the name of a folder"),
        (names.count(stage.name) == 1, "name", stage.name, "a name of its own"),
        (stage.name != REJECT, "name", stage.name, "another name: this is the folder of rejected sampling"),
        (
            not stage.rejection or not any(other.rejection for other in config.stages[:stage_index]),
            "rejection",
            "that of a second stage",
            "None: one stage of a run has it",
        ),
        (0 <= stage.replay < 1, "replay", stage.replay, "a share in [0, 1)"),
        (not stage.replay or stage_index > 0, "replay", stage.replay, "0 in the first stage"),
        (stage.learning_rate >= 0, "learning_rate", stage.learning_rate, "0, for the optimizer's, or more"),
        (0 < stage.promote_above <= 1, "promote_above", stage.promote_above, "a share in (0, 1]"),
    ]


def _stage_overrides(stage: Stage) -> list[Demand]:
    return [
        (stage.microbatches is None or stage.microbatches >= 1, "microbatches", stage.microbatches, "1 or more"),
        (stage.batch_size is None or stage.batch_size >= 1, "batch_size", stage.batch_size, "1 or more"),
        (
            stage.evaluate_every is None or stage.evaluate_every >= 0,
            "evaluate_every",
            stage.evaluate_every,
            "0, for the end of the stage alone, or more",
        ),
        (
            stage.forgetting_margin is None or stage.forgetting_margin >= 0,
            "forgetting_margin",
            stage.forgetting_margin,
            "0 or more",
        ),
    ]


def _stage_method(config: Config, stage_index: int) -> list[Demand]:
    """Demands that depend on the method of a stage, and on the stages beside it."""
    stage, settings = config.stages[stage_index], stage_settings(config, stage_index)
    is_sft, is_last = settings.method is Method.SFT, stage_index == len(config.stages) - 1
    optimizers = [stage_settings(config, index).optimizer for index in range(max(0, stage_index - 1), stage_index + 1)]
    return [
        (is_sft or not stage.rejection, "method", settings.method.value, "sft with rejection: no rule scores its rows"),
        (
            is_sft or not stage.held_out_loss,
            "held_out_loss",
            stage.held_out_loss,
            "no rows in GRPO: it learns from no gold answers",
        ),
        (
            stage.forgetting_margin is None or is_last,
            "forgetting_margin",
            stage.forgetting_margin,
            "none in a stage that another one follows, which would start from the end in any case",
        ),
        (
            stage.forgetting_margin is None or any(other.held_out for other in config.stages),
            "forgetting_margin",
            stage.forgetting_margin,
            "none without held_out rows in any stage",
        ),
        (
            stage.moments is Handover.RESET or optimizers[0] == optimizers[-1],
            "moments",
            stage.moments.value,
            "reset in a stage whose optimizer is not that of the stage before it",
        ),
    ]


def _promotion(config: Config, stage_index: int) -> list[Demand]:
    stage = config.stages[stage_index]
    has_gate = stage.promote_above != 1
    return [
        (
            not has_gate or (bool(stage.held_out) and config.logging.evaluate_every > 0),
            "promote_above",
            stage.promote_above,
            "1, or a share with held_out rows and logging.evaluate_every",
        ),
        (
            not has_gate or bool(config.rewards.weights.get("accuracy")),
            "promote_above",
            stage.promote_above,
            "1 where accuracy has no weight among the rewards",
        ),
    ]


def _is_folder_name(name: str) -> bool:
    return bool(name) and name.isprintable() and "/" not in name and name not in (".", "..")
