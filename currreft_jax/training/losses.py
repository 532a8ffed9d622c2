"""What training minimises: pure functions of rewards and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import AdvantageScale, Grpo, LossAverage
from currreft_jax.structs import Array

EPSILON = 1e-4  # beside a standard deviation
# What `grpo_loss` and the step tell as sums over learnt tokens.
PER_TOKEN = ("kl", "entropy", "clip_ratio/low", "clip_ratio/high", "sampling/logp_difference/mean")


def group_advantages(
    rewards: np.ndarray, scale: AdvantageScale = AdvantageScale.GROUP, batch: np.ndarray | None = None
) -> np.ndarray:
    """How much better each completion is than its group (equation 1): A = (r - mean) / (std + 1e-4), ddof 1.

    Where all rewards of a group are equal the advantages are exactly 0.

    Args:
        rewards: `[P, G]`.
        scale: whose standard deviation is taken.
        batch: all rewards of the step, of other hosts too; `rewards` where None.

    Returns:
        float64 `[P, G]`.
    """
    rewards = np.asarray(rewards, np.float64)
    equal = np.ptp(rewards, axis=1, keepdims=True) == 0
    centred = np.where(equal, 0.0, rewards - rewards.mean(axis=1, keepdims=True))
    if scale is AdvantageScale.NONE or equal.all():
        return centred
    if scale is AdvantageScale.BATCH:
        return centred / (np.std(rewards if batch is None else batch, ddof=1) + EPSILON)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + EPSILON)


def loss_counts(masks: Sequence[np.ndarray]) -> np.ndarray:
    """What a mean over a batch divides by: int64 `[2]`, its learnt tokens, and its sequences that have any.

    Counts of a batch's parts, on whatever host, add up.
    """
    tokens = sum(int(mask.sum()) for mask in masks)
    return np.array([tokens, sum(int(mask.any(axis=-1).sum()) for mask in masks)], np.int64)


def loss_weights(mask: np.ndarray, average: LossAverage, counts: np.ndarray, longest: int = 0) -> np.ndarray:
    """What each token counts in a mean over a batch.

    `SEQUENCE`: 1 / (N Lᵢ) for a token of sequence i, of N sequences. `TOKEN`: 1 / Σ L. `CONSTANT`: 1 / (N L_max). Over
    the whole batch the first two add up to 1.

    Args:
        mask: bool `[P, G, T]`, which tokens of a part of the batch are learnt.
        average: what counts alike.
        counts: of the whole batch; see `loss_counts`.
        longest: L_max, tokens that a completion may have.

    Returns:
        float32 `[P, G, T]`.
    """
    tokens, sequences = np.maximum(counts, 1)
    lengths = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    divisor = {
        LossAverage.SEQUENCE: sequences * lengths,
        LossAverage.TOKEN: tokens,
        LossAverage.CONSTANT: sequences * longest,
    }[average]
    return (mask / np.maximum(divisor, 1)).astype(np.float32)


def sft_loss(logprobs: Array, weights: Array) -> jax.Array:
    """Cross-entropy of the gold tokens (equation 9): L = -Σ w log p(y).

    Args:
        logprobs: `[P, G, T]`, of each gold token.
        weights: `[P, G, T]`, see `loss_weights`.
    """
    return -jnp.sum(weights * logprobs)


def kl_estimate(logprobs: Array, reference: Array) -> jax.Array:
    """k3 of Schulman: an unbiased estimate of KL(policy ‖ reference) per sampled token that is never negative.

    exp(d) - d - 1 with d = log π_ref - log π.
    """
    difference = reference - logprobs
    return jnp.exp(difference) - difference - 1


def grpo_loss(
    logprobs: Array,
    sampled: Array,
    reference: Array | None,
    advantages: Array,
    weights: Array,
    settings: Grpo,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-Σ w (min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) - β KL), with ρ = π / π_old per token.

    With one update for each rollout π_old is π itself, held constant; with more it is what the sampler drew from.

    Args:
        logprobs: `[P, G, T]`, of the policy at the sampling temperature, likewise the others.
        sampled: as the sampler reported them.
        reference: of the frozen reference; None without a KL penalty.
        advantages: `[P, G]`.
        weights: `[P, G, T]`, see `loss_weights`; tokens of weight 0 count for nothing, whatever their log-probs.
        settings: of the algorithm.

    Returns:
        The loss, and sums over the learnt tokens: `kl`, `clip_ratio/low`, `clip_ratio/high` (tokens whose gradient the
        clipping stopped), `sampling/logp_difference/mean` (absolute, sampler against trainer); and the largest such
        difference, `sampling/logp_difference/max`.
    """
    learnt = jnp.asarray(weights) > 0
    logprobs, sampled = jnp.where(learnt, logprobs, 0.0), jnp.where(learnt, sampled, 0.0)
    kept = jax.lax.stop_gradient(logprobs)
    old = sampled if settings.num_updates * settings.minibatches > 1 else kept
    ratio = jnp.exp(logprobs - old)
    advantage = jnp.asarray(advantages)[..., None]
    clipped = jnp.clip(ratio, 1 - settings.clip_epsilon_low, 1 + settings.clip_epsilon_high)
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    difference = jnp.abs(kept - sampled)
    told = {
        "clip_ratio/low": jnp.sum(learnt & (ratio < 1 - settings.clip_epsilon_low) & (advantage < 0)),
        "clip_ratio/high": jnp.sum(learnt & (ratio > 1 + settings.clip_epsilon_high) & (advantage > 0)),
        "sampling/logp_difference/mean": jnp.sum(difference),
    }
    if reference is not None:
        kl = kl_estimate(logprobs, jnp.where(learnt, reference, 0.0))
        gain -= settings.kl_coef * kl
        told["kl"] = jnp.sum(kl)
    told = {name: value.astype(jnp.float32) for name, value in told.items()}
    return -jnp.sum(weights * gain), {**told, "sampling/logp_difference/max": jnp.max(difference)}
