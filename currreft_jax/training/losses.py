"""Objectives of training: pure functions of rewards and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import AdvantageScale, Grpo, LossAverage
from currreft_jax.structs import Array

STD_EPSILON = 1e-4  # added to a standard deviation, as TRL does
# Metrics of `grpo_loss` and of a step that are sums over the tokens of the loss.
PER_TOKEN = (
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "sampling/sampling_logp_difference/mean",
    "sampling/importance_sampling_ratio/mean",
)


def group_advantages(
    rewards: np.ndarray, scale: AdvantageScale = AdvantageScale.GROUP, batch_rewards: np.ndarray | None = None
) -> np.ndarray:
    """Computes group-relative advantages (equation 1): A = (r - mean) / (std + 1e-4), std with ddof 1.

    Groups of equal rewards get exactly 0.

    >>> group_advantages(np.array([[0.0, 1.0], [2.0, 2.0]])).round(3)
    array([[-0.707,  0.707],
           [ 0.   ,  0.   ]])

    Args:
        rewards: `[P, G]`.
        scale: the standard deviation of the group, of the batch, or none.
        batch_rewards: rewards of all hosts, for `BATCH`; `rewards` where None.

    Returns:
        float64 `[P, G]`.
    """
    rewards = np.asarray(rewards, np.float64)
    constant = np.ptp(rewards, axis=1, keepdims=True) == 0
    centred = np.where(constant, 0.0, rewards - rewards.mean(axis=1, keepdims=True))
    if scale is AdvantageScale.NONE or constant.all():
        return centred
    if scale is AdvantageScale.BATCH:
        return centred / (np.std(rewards if batch_rewards is None else batch_rewards, ddof=1) + STD_EPSILON)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + STD_EPSILON)


def loss_counts(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Counts the tokens of the loss, and the sequences that have any: int64 `[2]`, the divisors of `loss_weights`.

    Counts of microbatches and of hosts add up to those of the batch.

    Args:
        masks: bool `[P, G, T]` each.
    """
    tokens = sum(int(mask.sum()) for mask in masks)
    return np.array([tokens, sum(int(mask.any(axis=-1).sum()) for mask in masks)], np.int64)


def loss_weights(mask: np.ndarray, average: LossAverage, counts: np.ndarray, max_length: int = 0) -> np.ndarray:
    """Weights the tokens of a microbatch so that the batch's loss is a plain sum.

    `SEQUENCE`: 1 / (N Lᵢ) for a token of sequence i, of N sequences. `TOKEN`: 1 / Σ L. `CONSTANT`: 1 / (N L_max). The
    weights of a batch add up to 1 in the first two.

    Args:
        mask: bool `[P, G, T]`, the microbatch's tokens of the loss.
        average: how the loss is averaged.
        counts: counts of the whole batch, from `loss_counts`.
        max_length: L_max, the token limit of a completion.

    Returns:
        float32 `[P, G, T]`.
    """
    tokens, sequences = np.maximum(counts, 1)
    lengths = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    divisor = {
        LossAverage.SEQUENCE: sequences * lengths,
        LossAverage.TOKEN: tokens,
        LossAverage.CONSTANT: sequences * max_length,
    }[average]
    return (mask / np.maximum(divisor, 1)).astype(np.float32)


def sft_loss(logprobs: Array, weights: Array) -> jax.Array:
    """Computes the cross-entropy of gold tokens (equation 9): L = -Σ w log p(y).

    Args:
        logprobs: `[P, G, T]`, of the gold tokens.
        weights: `[P, G, T]`, from `loss_weights`.
    """
    return -jnp.sum(weights * logprobs)


def kl_estimate(logprobs: Array, ref_logprobs: Array) -> jax.Array:
    """Estimates KL(π ‖ π_ref) per sampled token by Schulman's k3: exp(d) - d - 1 with d = log π_ref - log π.

    The estimate is unbiased and never negative.
    """
    difference = ref_logprobs - logprobs
    return jnp.exp(difference) - difference - 1


def grpo_loss(
    logprobs: Array,
    old_logprobs: Array,
    ref_logprobs: Array | None,
    advantages: Array,
    weights: Array,
    settings: Grpo,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes -Σ w (min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) - β KL), with ρ = π / π_old per token.

    The loss is that of arXiv 2402.03300, with the two clip bounds of arXiv 2503.14476. With one update per rollout,
    π_old is π under stop_gradient; with several, it is the sampler's distribution. A positive `importance_cap` C
    corrects one update for a sampler that differs from the trainer: as in TRL, the minimum is multiplied by
    min(π / π_sampler, C) under stop_gradient.

    >>> loss, metrics = grpo_loss(
    ...     logprobs=jnp.zeros((1, 2, 1)), old_logprobs=jnp.zeros((1, 2, 1)), ref_logprobs=None,
    ...     advantages=jnp.array([[1.0, -1.0]]), weights=jnp.array([[[0.75], [0.25]]]), settings=Grpo(kl_coef=0.0))
    >>> float(loss)
    -0.5

    Args:
        logprobs: `[P, G, T]`, of the policy, at the sampling temperature as all log-probs here.
        old_logprobs: `[P, G, T]`, as the sampler reported them.
        ref_logprobs: `[P, G, T]`, of the frozen reference; None without a KL penalty.
        advantages: `[P, G]`.
        weights: `[P, G, T]`, from `loss_weights`; tokens of weight 0 are left out, whatever their log-probs.
        settings: GRPO settings.

    Returns:
        The loss, and its metrics by TRL's names: sums over tokens of `kl`, of `clip_ratio/low_mean` and
        `clip_ratio/high_mean` (tokens whose gradient is clipped), and of `sampling/sampling_logp_difference/mean`
        (absolute, sampler against trainer); and the largest such difference, `sampling/sampling_logp_difference/max`.
        With a cap, also of the factors: `sampling/importance_sampling_ratio/mean` (a sum), `/min` and `/max`.
    """
    loss_mask = jnp.asarray(weights) > 0
    logprobs, old_logprobs = (jnp.where(loss_mask, x, 0.0) for x in (logprobs, old_logprobs))
    current = jax.lax.stop_gradient(logprobs)
    several_updates = settings.num_updates * settings.minibatches > 1
    ratio = jnp.exp(logprobs - (old_logprobs if several_updates else current))
    advantage = jnp.asarray(advantages)[..., None]
    clipped_ratio = jnp.clip(ratio, 1 - settings.clip_epsilon_low, 1 + settings.clip_epsilon_high)
    objective = jnp.minimum(ratio * advantage, clipped_ratio * advantage)
    difference = jnp.abs(current - old_logprobs)
    metrics = {
        "clip_ratio/low_mean": jnp.sum(loss_mask & (ratio < 1 - settings.clip_epsilon_low) & (advantage < 0)),
        "clip_ratio/high_mean": jnp.sum(loss_mask & (ratio > 1 + settings.clip_epsilon_high) & (advantage > 0)),
        "sampling/sampling_logp_difference/mean": jnp.sum(difference),
    }
    extremes = {"sampling/sampling_logp_difference/max": jnp.max(difference)}
    if settings.importance_cap:
        factors = jnp.minimum(jnp.exp(current - old_logprobs), settings.importance_cap)
        objective *= factors
        metrics["sampling/importance_sampling_ratio/mean"] = jnp.sum(factors, where=loss_mask)
        extremes |= _range_of("sampling/importance_sampling_ratio", factors, loss_mask, settings.importance_cap)
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, jnp.where(loss_mask, ref_logprobs, 0.0))
        objective -= settings.kl_coef * kl
        metrics["kl"] = jnp.sum(kl)
    return -jnp.sum(weights * objective), {**jax.tree.map(jnp.float32, metrics), **extremes}


def _range_of(name: str, values: jax.Array, mask: jax.Array, largest: float) -> dict[str, jax.Array]:
    """Returns the smallest and the largest of the values in [0, largest] that a mask selects."""
    return {
        f"{name}/min": jnp.min(values, where=mask, initial=largest),
        f"{name}/max": jnp.max(values, where=mask, initial=0.0),
    }
