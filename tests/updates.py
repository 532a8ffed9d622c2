"""Whole updates, from the programs that training runs."""

from collections.abc import Callable, Sequence

import optax

from currreft_jax.config import Optimizer
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.training.gradients import Gradient, Metrics
from currreft_jax.training.update import Minibatch, TrainState, loss_and_gradient, update_programs


def make_update(
    model: Model, optimizer: optax.GradientTransformation, settings: Optimizer, gradient: Gradient
) -> Callable[[TrainState, Sequence[Minibatch]], tuple[TrainState, Metrics]]:
    """A function of the state, which is donated, and minibatches; it returns the new state and the metrics."""
    programs = update_programs(model, optimizer, settings, gradient)

    def update(state: TrainState, minibatches: Sequence[Minibatch]) -> tuple[TrainState, Metrics]:
        metrics, grad_norms = [], []
        for minibatch in minibatches:
            total, of_minibatch = loss_and_gradient(programs, state.params, minibatch)
            state, grad_norm = programs.apply_gradients(state, total)
            metrics += of_minibatch
            grad_norms.append(grad_norm)
        return state, programs.combine_metrics(metrics, grad_norms)

    return update
