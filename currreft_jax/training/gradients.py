"""Gradients of a microbatch: the model's forward pass, the loss, and the sum with the microbatches before it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from currreft_jax.config import Grpo
from currreft_jax.models.logprobs import VocabMask
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.structs import Array, GroupBatch, GrpoTargets
from currreft_jax.training.losses import grpo_loss, sft_loss
from currreft_jax.training.optimizer import combine, partition

Metrics = dict[str, jax.Array]
Gradient = Callable[..., tuple[Parameters, Metrics]]  # `sft_gradient`, or `grpo_gradient` with its settings bound


def grpo_gradient(
    model: Model,
    params: Parameters,
    total: Parameters,
    batch: GroupBatch,
    weights: Array,
    targets: GrpoTargets,
    *,
    settings: Grpo,
    temperature: float,
) -> tuple[Parameters, Metrics]:
    """Adds the gradient of `grpo_loss` on a microbatch to `total`.

    A prompt is read once, and its gradient is that of its whole group.

    Args:
        model: the policy's model.
        params: fp32 masters.
        total: the sum so far; a parameter with None here is frozen and costs no gradient.
        batch: prompts and their completions.
        weights: `[P, G, T]`, from `loss_weights`.
        targets: advantages and log-probs of the completions.
        settings: GRPO settings.
        temperature: sampling temperature.

    Returns:
        The new sum; and the microbatch's share of the `loss`, with the metrics of `grpo_loss` and the sum of `entropy`.
    """

    def loss(params: Parameters) -> tuple[jax.Array, Metrics]:
        module = model.bind(params)
        hidden = module.forward(batch.prompts, batch.tokens)
        logprobs, entropy = module.logprobs(hidden, batch.tokens, temperature)
        value, metrics = grpo_loss(
            logprobs, targets.old_logprobs, targets.ref_logprobs, targets.advantages, weights, settings
        )
        return value, {**metrics, "entropy": jnp.sum(jnp.where(weights > 0, entropy, 0.0))}

    trainable, frozen = partition(params, total)
    value_and_grad = jax.value_and_grad(lambda trainable: loss(combine(trainable, frozen)), has_aux=True)
    (value, metrics), gradient = value_and_grad(trainable)
    return jax.tree.map(jnp.add, total, gradient), {"loss": value, **metrics}


def sft_gradient(
    model: Model, params: Parameters, total: Parameters, batch: GroupBatch, weights: Array
) -> tuple[Parameters, Metrics]:
    """Adds the gradient of `sft_loss` on a microbatch to `total`.

    Args:
        model: the model to fine-tune.
        params: fp32 masters.
        total: the sum so far; a parameter with None here is frozen and costs no gradient.
        batch: gold completions, G = 1.
        weights: `[P, 1, T]`, from `loss_weights`.

    Returns:
        The new sum, and the microbatch's share of the `loss`.
    """
    trainable, frozen = partition(params, total)
    value, gradient = jax.value_and_grad(
        lambda trainable: gold_loss(model, combine(trainable, frozen), batch, weights)
    )(trainable)
    return jax.tree.map(jnp.add, total, gradient), {"loss": value}


def gold_loss(model: Model, params: Parameters, batch: GroupBatch, weights: Array) -> jax.Array:
    """Computes `sft_loss` of a microbatch.

    Args:
        model: how to compute.
        params: its parameters.
        batch: gold completions, G = 1.
        weights: `[P, 1, T]`, from `loss_weights`.
    """
    whole_vocabulary = VocabMask(model.config.vocab_size, ())  # tokens that are never sampled must become unlikely, too
    module = model.bind(params)
    hidden = module.forward(batch.prompts, batch.tokens)
    return sft_loss(module.logprobs(hidden, batch.tokens, vocab_mask=whole_vocabulary)[0], weights)
