"""The optimizer of a stage: schedule, clipping, rule, and which parameters it trains."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from currreft_jax.config import Config, Method, Optimizer, Rule, Schedule
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.sharding import path_of

_ADAPTER = re.compile("/lora_[ab]$")
_MERGER = re.compile("visual/merger/")
_TOWER = re.compile("visual/(?!merger/)")
_NO_DECAY = re.compile("/(bias|scale)$")  # biases, and the scales of norms


class StageOptimizer(NamedTuple):
    """The optimizer of a stage.

    Attributes:
        settings: with the stage's own learning rate.
        transform: from `make_optimizer`.
        schedule: learning rate of each update.
        updates_per_step: optimizer updates in a training step.
    """

    settings: Optimizer
    transform: optax.GradientTransformation
    schedule: optax.Schedule
    updates_per_step: int


def stage_optimizer(config: Config, stage_index: int) -> StageOptimizer:
    """Makes the optimizer of a stage; its schedule spans the stage."""
    stage = config.stages[stage_index]
    updates_per_step = config.grpo.num_updates * config.grpo.minibatches if config.method is Method.GRPO else 1
    settings = replace(config.optimizer, learning_rate=stage.learning_rate or config.optimizer.learning_rate)
    num_updates = stage.steps * updates_per_step
    return StageOptimizer(
        settings=settings,
        transform=make_optimizer(settings, num_updates),
        schedule=learning_rate_schedule(settings, num_updates),
        updates_per_step=updates_per_step,
    )


def learning_rate_schedule(settings: Optimizer, num_updates: int) -> optax.Schedule:
    """Warms up linearly from `learning_rate / warmup`, then stays constant or decays to 0 after the last update."""
    warmup = round(settings.warmup * num_updates)
    rest = max(1, num_updates - warmup)
    after_warmup = {
        Schedule.CONSTANT: optax.constant_schedule(settings.learning_rate),
        Schedule.LINEAR: optax.linear_schedule(settings.learning_rate, 0.0, rest),
        Schedule.COSINE: optax.cosine_decay_schedule(settings.learning_rate, rest),
    }[settings.schedule]
    rising = optax.linear_schedule(settings.learning_rate / max(1, warmup), settings.learning_rate, max(1, warmup - 1))
    return optax.join_schedules([rising, after_warmup], [warmup])


def make_optimizer(settings: Optimizer, num_updates: int) -> optax.GradientTransformation:
    """Clips by the global norm, then applies AdamW or Adafactor, each with decoupled weight decay.

    The decay is multiplied by the learning rate, in Adafactor too, unlike in `optax.adafactor`.

    `init` takes all parameters, `update` the trainable ones: frozen parameters have no gradient and no optimizer state,
    and do not count in the norm.
    """
    scaling = (
        (optax.scale_by_adam(settings.b1, settings.b2, settings.eps, mu_dtype=settings.moments),)
        if settings.rule is Rule.ADAMW
        else (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(settings, num_updates))
    rule = optax.chain(*scaling, _weight_decay(settings.weight_decay), rate)
    chain = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), rule)
    return optax.GradientTransformation(lambda params: chain.init(trainable_params(settings, params)), chain.update)


def _weight_decay(decay: float) -> optax.GradientTransformation:
    """Makes weight decay that leaves biases and norms out, as Hugging Face's trainer does.

    Unlike `optax.add_decayed_weights` with a mask it has the state of the unmasked decay, which is empty: checkpoints
    of either kind can be read.
    """

    def add_decay(path: tuple[Any, ...], update: jax.Array, weight: jax.Array) -> jax.Array:
        return update if _NO_DECAY.search(path_of(path)) else update + decay * weight

    return optax.stateless(partial(jax.tree_util.tree_map_with_path, add_decay))


def restart_schedule(optimizer_state: Any) -> Any:
    """Sets the learning-rate schedule of an optimizer state back to its start; the moments stay."""

    def is_schedule(path: tuple[Any, ...], _: Any) -> bool:
        return any(isinstance(key, optax.tree_utils.NamedTupleKey) and "Schedule" in key.tuple_name for key in path)

    return optax.tree_utils.tree_set(optimizer_state, is_schedule, count=jnp.int32(0))


def is_trainable(settings: Optimizer, params: Parameters) -> Any:
    """Returns a tree of bools, true for trainable parameters: only the adapters where there are any."""
    names = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    has_adapters = any(map(_ADAPTER.search, names))

    def trainable(path: tuple[Any, ...], _: Any) -> bool:
        name = path_of(path)
        frozen = (
            (has_adapters and not _ADAPTER.search(name))
            or (settings.freeze_vision and _TOWER.search(name))
            or (settings.freeze_merger and _MERGER.search(name))
        )
        return not frozen

    return jax.tree_util.tree_map_with_path(trainable, params)


def trainable_params(settings: Optimizer, params: Parameters) -> Parameters:
    """Replaces the frozen parameters by None: the tree of gradients and moments."""
    return jax.tree.map(lambda trainable, x: x if trainable else None, is_trainable(settings, params), params)


def partition(params: Parameters, trainable: Parameters) -> tuple[Parameters, Parameters]:
    """Splits parameters into trainable and frozen ones, each tree with None where the other has an array.

    Args:
        params: all parameters.
        trainable: a tree with None at each frozen parameter, such as a gradient.
    """
    frozen = jax.tree.map(lambda leaf, x: x if leaf is None else None, trainable, params, is_leaf=_is_none)
    return jax.tree.map(lambda leaf, x: None if leaf is None else x, trainable, params, is_leaf=_is_none), frozen


def combine(trainable: Parameters, frozen: Parameters) -> Parameters:
    """Inverts `partition`."""
    return jax.tree.map(lambda x, y: y if x is None else x, trainable, frozen, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None
