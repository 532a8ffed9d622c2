"""The training state, and the jitted programs of an update: gradients of microbatches, summed, then applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import Config, Grpo, Method, Optimizer
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.sharding import parameter_sharding, path_of
from currreft_jax.training.gradients import Gradient, Metrics, grpo_gradient, sft_gradient
from currreft_jax.training.optimizer import combine, partition, trainable_params

Microbatch = tuple[Any, ...]  # arguments of a gradient function after (model, params, total)
Minibatch = Sequence[Microbatch]


@dataclass(frozen=True)
class TrainState:
    """The arrays that training changes.

    Attributes:
        params: fp32 masters.
        optimizer: state of the optimizer for the trainable parameters.
    """

    params: Parameters
    optimizer: Any


jax.tree_util.register_dataclass(TrainState, ["params", "optimizer"], [])


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Describes shapes and shardings of the state, without memory; moments are sharded as their parameters."""
    params = model.abstract(jnp.float32)
    replicated = NamedSharding(model.mesh, P())

    def with_sharding(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = parameter_sharding(path_of(path), x.shape, model.mesh) if x.ndim else replicated
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return TrainState(params, jax.tree_util.tree_map_with_path(with_sharding, jax.eval_shape(optimizer.init, params)))


def init_state(model: Model, optimizer: optax.GradientTransformation, params: Parameters) -> TrainState:
    """Makes the state before the first step."""
    shardings = _shardings(abstract_state(model, optimizer))
    return TrainState(params, jax.jit(optimizer.init, out_shardings=shardings.optimizer)(params))


class UpdatePrograms(NamedTuple):
    """The jitted programs of an update; the first two are the same in all stages.

    Their results are sharded as their arguments: left to XLA, axes of size 1 would vanish from the shardings, and every
    program would compile twice.

    Attributes:
        zero_gradient: makes fp32 zeros for the trainable parameters.
        add_gradient: adds the gradient of a microbatch to the sum, which is donated.
        apply_gradients: applies the sum to the state, which is donated.
        combine_metrics: joins the metrics of microbatches.
    """

    zero_gradient: Any
    add_gradient: Any
    apply_gradients: Any
    combine_metrics: Any


def update_programs(
    model: Model, optimizer: optax.GradientTransformation, settings: Optimizer, gradient: Gradient
) -> UpdatePrograms:
    """Makes the programs of an update.

    Args:
        model: the model to train.
        optimizer: from `make_optimizer`.
        settings: optimizer settings.
        gradient: from `gradient_function`.
    """
    zeros, add_gradient = gradient_programs(model, gradient, settings.freeze_vision, settings.freeze_merger)
    shardings = _shardings(abstract_state(model, optimizer))
    return UpdatePrograms(
        zero_gradient=zeros,
        add_gradient=add_gradient,
        apply_gradients=jax.jit(partial(apply_gradients, optimizer), donate_argnums=0, out_shardings=(shardings, None)),
        combine_metrics=jax.jit(combine_metrics),
    )


@lru_cache(maxsize=8)
def gradient_programs(model: Model, gradient: Gradient, freeze_vision: bool, freeze_merger: bool) -> tuple[Any, Any]:
    """Makes `zero_gradient` and `add_gradient` of `UpdatePrograms`.

    The same settings give the same jitted functions, so that a stage compiles nothing that an earlier one has compiled.

    Args:
        model: the model to train.
        gradient: from `gradient_function`.
        freeze_vision: as in `Optimizer`.
        freeze_merger: as in `Optimizer`.
    """
    settings = Optimizer(freeze_vision=freeze_vision, freeze_merger=freeze_merger)
    total_sharding = _shardings(trainable_params(settings, model.abstract(jnp.float32)))
    add_gradient = jax.jit(partial(gradient, model), donate_argnums=1, out_shardings=(total_sharding, None))
    return zero_gradient(model, settings), add_gradient


def gradient_function(config: Config) -> Gradient:
    """Returns the gradient function of the config's method; the same settings give the same function."""
    if config.method is Method.SFT:
        return sft_gradient
    return _bound_grpo_gradient(config.sampling.temperature, *dataclasses.astuple(config.grpo))


@lru_cache(maxsize=8)
def _bound_grpo_gradient(temperature: float, *grpo: Any) -> Gradient:
    return partial(grpo_gradient, settings=Grpo(*grpo), temperature=temperature)


def zero_gradient(model: Model, settings: Optimizer) -> Any:
    """Makes the jitted function that returns fp32 zeros for the trainable parameters."""
    abstract = trainable_params(settings, model.abstract(jnp.float32))
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    return jax.jit(lambda: zeros(), out_shardings=_shardings(abstract))


def loss_and_gradient(
    programs: UpdatePrograms, params: Parameters, microbatches: Iterable[Microbatch]
) -> tuple[Parameters, list[Metrics]]:
    """Sums the gradients of a minibatch over its microbatches; metrics stay on the device."""
    total, metrics = programs.zero_gradient(), []
    for microbatch in microbatches:
        total, of_microbatch = programs.add_gradient(params, total, *microbatch)
        metrics.append(of_microbatch)
    return total, metrics


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: Parameters
) -> tuple[TrainState, jax.Array]:
    """Updates the trainable parameters and the optimizer state.

    Returns:
        The new state, and the gradient's global norm before clipping.
    """
    trainable, frozen = partition(state.params, gradient)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, trainable)
    params = combine(optax.apply_updates(trainable, updates), frozen)  # pyright: ignore[reportArgumentType]
    return TrainState(params, optimizer_state), optax.tree.norm(gradient)


def combine_metrics(microbatches: Sequence[Metrics], grad_norms: Sequence[jax.Array]) -> Metrics:
    """Joins the metrics of a step's microbatches and the norms of its updates.

    Returns:
        `loss` and `grad_norm` as means over updates, names that end in `/min` and `/max` as minima and maxima, all
        others as sums.
    """
    joiners = {"min": jnp.min, "max": jnp.max}
    joined = {
        name: joiners.get(name.split("/")[-1], jnp.sum)(jnp.stack([metrics[name] for metrics in microbatches]))
        for name in microbatches[0]
    }
    return {**joined, "loss": joined["loss"] / len(grad_norms), "grad_norm": jnp.mean(jnp.stack(grad_norms))}


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)
