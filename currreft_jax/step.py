"""One training step: gradients of a microbatch, added up, and the optimizer's move."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import Config, Grpo, Method, Optimizer, Pretrained, Rule, Schedule
from currreft_jax.losses import grpo_loss, sft_loss
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.logprobs import Choices
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.sharding import parameter_sharding, path_of
from currreft_jax.structs import Array, GroupBatch, Sampled

Told = dict[str, jax.Array]
Updates = Sequence[Sequence[tuple[Any, ...]]]
Gradient = Callable[..., tuple[Parameters, Told]]

_ADAPTER = re.compile("/lora_[ab]$")
_MERGER = re.compile("visual/merger/")
_TOWER = re.compile("visual/(?!merger/)")


@dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
        params: fp32 masters.
        optimizer: the moments of what is not frozen.
    """

    params: Parameters
    optimizer: Any


jax.tree_util.register_dataclass(TrainState, ["params", "optimizer"], [])


class Learning(NamedTuple):
    """How the parameters of a stage move.

    Attributes:
        moves: of the optimizer in a step.
        settings: of the optimizer, with the stage's own learning rate.
        optimizer: from `make_optimizer`.
        rates: the learning rate of every move.
        gradient: `sft_gradient`, or `grpo_gradient` with its settings bound.
    """

    moves: int
    settings: Optimizer
    optimizer: optax.GradientTransformation
    rates: optax.Schedule
    gradient: Gradient


def learning(config: Config, number: int) -> Learning:
    """How the parameters of stage `number` move."""
    stage, grpo = config.stages[number], config.method is Method.GRPO
    moves = config.grpo.num_updates * config.grpo.minibatches if grpo else 1
    rule = replace(config.optimizer, learning_rate=stage.learning_rate or config.optimizer.learning_rate)
    gradient = partial(grpo_gradient, settings=config.grpo, temperature=config.sampling.temperature)
    return Learning(
        moves=moves,
        settings=rule,
        optimizer=make_optimizer(rule, stage.steps * moves),
        rates=learning_rate(rule, stage.steps * moves),
        gradient=gradient if grpo else sft_gradient,
    )


def trained_model(settings: Pretrained, shape: ModelConfig, mesh: Mesh, tokenizer_size: int | None) -> Model:
    """The model as it is trained."""
    lora = settings.lora
    return Model(shape, mesh, jnp.dtype(settings.dtype), settings.remat, tokenizer_size, lora.rank, lora.alpha)


@lru_cache
def caster(model: Model) -> Any:
    """The program that makes the copy of the masters that the model computes with."""
    layouts = jax.tree.map(lambda x: x.sharding, model.abstract(model.dtype))
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(model.dtype), tree), out_shardings=layouts)


def learning_rate(settings: Optimizer, steps: int) -> optax.Schedule:
    """The rate of every step: linear warm-up from 0, then the schedule, which ends at 0 behind the last step."""
    warmup = round(settings.warmup * steps)
    rest = max(1, steps - warmup)
    behind = {
        Schedule.CONSTANT: optax.constant_schedule(settings.learning_rate),
        Schedule.LINEAR: optax.linear_schedule(settings.learning_rate, 0.0, rest),
        Schedule.COSINE: optax.cosine_decay_schedule(settings.learning_rate, rest),
    }[settings.schedule]
    rising = optax.linear_schedule(settings.learning_rate / max(1, warmup), settings.learning_rate, max(1, warmup - 1))
    return optax.join_schedules([rising, behind], [warmup])


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """The rule behind global-norm clipping; frozen parameters neither move nor have moments, nor count in the norm.

    It starts from all parameters, and updates those that move.
    """
    rate, decay = learning_rate(settings, steps), settings.weight_decay
    rule = (
        optax.adamw(rate, settings.b1, settings.b2, settings.eps, mu_dtype=settings.moments, weight_decay=decay)
        if settings.rule is Rule.ADAMW
        else _adafactor(rate, decay)
    )
    moving = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), rule)
    return optax.GradientTransformation(lambda params: moving.init(moving_part(settings, params)), moving.update)


def _adafactor(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """`optax.adafactor` with absolute rates, but decay is multiplied by the rate, as in AdamW."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    )


def labels(settings: Optimizer, params: Parameters) -> Any:
    """`frozen` or `moving` for every parameter; beside adapters all others are frozen."""
    names = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    adapted = any(map(_ADAPTER.search, names))

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_of(path)
        frozen = (
            (adapted and not _ADAPTER.search(name))
            or (settings.freeze_vision and _TOWER.search(name))
            or (settings.freeze_merger and _MERGER.search(name))
        )
        return "frozen" if frozen else "moving"

    return jax.tree_util.tree_map_with_path(label, params)


def moving_part(settings: Optimizer, params: Parameters) -> Parameters:
    """The parameters that move, and None in the others' places: the tree of their gradient and of their moments."""
    return jax.tree.map(lambda label, x: x if label == "moving" else None, labels(settings, params), params)


def split(params: Parameters, moving: Parameters) -> tuple[Parameters, Parameters]:
    """The parameters in two trees, each with None where the other has one: those that `moving` has, and the rest."""
    frozen = jax.tree.map(lambda it, x: x if it is None else None, moving, params, is_leaf=_absent)
    return jax.tree.map(lambda it, x: None if it is None else x, moving, params, is_leaf=_absent), frozen


def merge(moving: Parameters, frozen: Parameters) -> Parameters:
    """What was `split`."""
    return jax.tree.map(lambda x, y: y if x is None else x, moving, frozen, is_leaf=_absent)


class UpdatePrograms(NamedTuple):
    """Jitted functions of an update, made once.

    Attributes:
        zeros: makes the sum of gradients before the first microbatch.
        add: adds the gradient of a microbatch to it; the sum is donated.
        move: applies it; the state is donated.
        combine: what the microbatches told, as that of the step.
    """

    zeros: Any
    add: Any
    move: Any
    combine: Any


def update_programs(
    model: Model, optimizer: optax.GradientTransformation, settings: Optimizer, gradient: Gradient
) -> UpdatePrograms:
    """The programs of an update, each compiled once.

    What they return is laid out as it was taken: left to XLA it comes back without the mesh's axes of size 1, which
    is another layout to `jax.jit`, and each program is compiled twice.

    Args:
        model: how to compute.
        optimizer: from `make_optimizer`.
        settings: of the optimizer.
        gradient: `sft_gradient`, or `grpo_gradient` with its settings bound.
    """
    layouts = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer))
    total_layout = moving_part(settings, layouts.params)
    return UpdatePrograms(
        zeros=zero_gradient(model, settings),
        add=jax.jit(partial(gradient, model), donate_argnums=1, out_shardings=(total_layout, None)),
        move=jax.jit(partial(apply_gradient, optimizer), donate_argnums=0, out_shardings=(layouts, None)),
        combine=jax.jit(_combined),
    )


def make_update(
    model: Model, optimizer: optax.GradientTransformation, settings: Optimizer, gradient: Gradient
) -> Callable[[TrainState, Updates], tuple[TrainState, Told]]:
    """`updating` by programs of its own."""
    return updating(update_programs(model, optimizer, settings, gradient))


def updating(programs: UpdatePrograms) -> Callable[[TrainState, Updates], tuple[TrainState, Told]]:
    """What a step does to the state, which is donated.

    Returns:
        A function of the state and, for each move of the optimizer, the arguments of its microbatches. It returns the
        new state and what the microbatches told, on the device: `loss` and `grad_norm` as means over the moves, names
        that end in `/max` as the largest, and the others added up.
    """

    def update(state: TrainState, updates: Updates) -> tuple[TrainState, Told]:
        told, norms = [], []
        for microbatches in updates:
            total = programs.zeros()
            for microbatch in microbatches:
                total, share = programs.add(state.params, total, *microbatch)
                told.append(share)
            state, norm = programs.move(state, total)
            norms.append(norm)
        return state, programs.combine(told, norms)

    return update


def _combined(told: Sequence[Told], norms: Sequence[jax.Array]) -> Told:
    values = {
        name: (jnp.max if name.endswith("/max") else jnp.sum)(jnp.stack([share[name] for share in told]))
        for name in told[0]
    }
    return {**values, "loss": values["loss"] / len(norms), "grad_norm": jnp.mean(jnp.stack(norms))}


def zero_gradient(model: Model, settings: Optimizer) -> Callable[[], Parameters]:
    """Makes the sum before the first microbatch: fp32 zeros for what moves."""
    abstract = moving_part(settings, model.abstract(jnp.float32))
    layouts = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract), out_shardings=layouts)


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and layouts of the state, without memory: moments lie as their parameters do."""
    params = model.abstract(jnp.float32)
    whole = NamedSharding(model.mesh, P())

    def laid_out(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = parameter_sharding(path_of(path), x.shape, model.mesh) if x.ndim else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    moments = jax.tree_util.tree_map_with_path(laid_out, jax.eval_shape(optimizer.init, params))
    return TrainState(params, moments)


def init_state(model: Model, optimizer: optax.GradientTransformation, params: Parameters) -> TrainState:
    """The state before the first step."""
    layouts = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer))
    moments = jax.jit(optimizer.init, out_shardings=layouts.optimizer)(params)
    return TrainState(params, moments)


def moments_for_a_new_stage(moments: Any) -> Any:
    """The moments of a stage that has ended, with the schedule of the learning rate at its start again."""

    def of_schedule(path: tuple[Any, ...], _: Any) -> bool:
        return any(isinstance(part, optax.tree_utils.NamedTupleKey) and "Schedule" in part.tuple_name for part in path)

    return optax.tree_utils.tree_set(moments, of_schedule, count=jnp.int32(0))


def sft_gradient(
    model: Model, params: Parameters, total: Parameters, batch: GroupBatch, weights: Array
) -> tuple[Parameters, Told]:
    """Adds the gradient of a microbatch to those before it.

    Args:
        model: how to compute.
        params: masters.
        total: the sum so far; where it has None, the parameter is frozen and costs no gradient.
        batch: gold completions, G = 1.
        weights: `[P, 1, T]`, what each token counts in the whole batch; see `loss_weights`.

    Returns:
        The new sum, and the microbatch's share of the `loss`.
    """
    every = Choices(model.config.vocab_size, ())  # the plain softmax: what is never sampled is learnt to be unlikely

    def loss(params: Parameters) -> jax.Array:
        module = model.bind(jax.tree.map(lambda x: x.astype(model.dtype), params))
        hidden = module.prefix_extend(batch.prompts, batch.tokens)
        return sft_loss(module.logprobs(hidden, batch.tokens, choices=every)[0], weights)

    moving, frozen = split(params, total)
    value, gradient = jax.value_and_grad(lambda moving: loss(merge(moving, frozen)))(moving)
    return jax.tree.map(jnp.add, total, gradient), {"loss": value}


def grpo_gradient(
    model: Model,
    params: Parameters,
    total: Parameters,
    batch: GroupBatch,
    weights: Array,
    sampled: Sampled,
    *,
    settings: Grpo,
    temperature: float,
) -> tuple[Parameters, Told]:
    """Adds the gradient of a microbatch to those before it.

    Args:
        model: how to compute.
        params: masters.
        total: the sum so far, of their shapes.
        batch: prompts and their completions; a prompt is read once, and its gradient is that of the whole group.
        weights: `[P, G, T]`, what each token counts in the whole batch; see `loss_weights`.
        sampled: what the completions earned, and their log-probs.
        settings: of the algorithm.
        temperature: that completions were drawn with.

    Returns:
        The new sum, and the microbatch's share of the `loss` beside the sums of `grpo_loss` and of `entropy`.
    """

    def loss(params: Parameters) -> tuple[jax.Array, Told]:
        module = model.bind(jax.tree.map(lambda x: x.astype(model.dtype), params))
        hidden = module.prefix_extend(batch.prompts, batch.tokens)
        logprobs, entropy = module.logprobs(hidden, batch.tokens, temperature)
        value, told = grpo_loss(logprobs, sampled.logprobs, sampled.reference, sampled.advantages, weights, settings)
        return value, {**told, "entropy": jnp.sum(jnp.where(weights > 0, entropy, 0.0))}

    moving, frozen = split(params, total)
    (value, told), gradient = jax.value_and_grad(lambda moving: loss(merge(moving, frozen)), has_aux=True)(moving)
    return jax.tree.map(jnp.add, total, gradient), {"loss": value, **told}


def apply_gradient(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: Parameters
) -> tuple[TrainState, jax.Array]:
    """Moves the parameters that have a gradient.

    Returns:
        The new state, and the gradient's global norm before clipping.
    """
    moving, frozen = split(state.params, gradient)
    updates, moments = optimizer.update(gradient, state.optimizer, moving)
    params = merge(optax.apply_updates(moving, updates), frozen)  # pyright: ignore[reportArgumentType]
    return TrainState(params, moments), optax.tree.norm(gradient)


def _absent(x: Any) -> bool:
    return x is None
