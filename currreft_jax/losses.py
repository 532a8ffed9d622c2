"""What training minimises: pure functions of log-probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from currreft_jax.config import LossAverage
from currreft_jax.structs import Array


def loss_weights(mask: Array, average: LossAverage) -> jax.Array:
    """What each token counts in a mean over a batch.

    `TOKEN`: 1 / Σ mask. `SEQUENCE`: 1 / (N Lᵢ) for a token of sequence i, of N sequences with any learnt token.

    Args:
        mask: bool `[P, G, T]`, which tokens are learnt; of the whole batch, so that its parts add up.
        average: what counts alike.

    Returns:
        float32 `[P, G, T]`, which sums to 1; to 0 where nothing is learnt.
    """
    learnt = jnp.asarray(mask, jnp.float32)
    if average is LossAverage.TOKEN:
        return learnt / jnp.maximum(jnp.sum(learnt), 1)
    lengths = jnp.sum(learnt, axis=-1, keepdims=True)
    return learnt / jnp.maximum(lengths, 1) / jnp.maximum(jnp.sum(lengths > 0), 1)


def sft_loss(logprobs: Array, weights: Array) -> jax.Array:
    """Cross-entropy of the gold tokens (equation 9): L = -Σ w log p(y).

    Args:
        logprobs: `[P, G, T]`, of each gold token.
        weights: `[P, G, T]`, see `loss_weights`.
    """
    return -jnp.sum(weights * logprobs)
