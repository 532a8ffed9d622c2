"""What training minimises: pure functions of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import LossAverage
from currreft_jax.structs import Array


def loss_counts(masks: Sequence[np.ndarray]) -> np.ndarray:
    """What a mean over a batch divides by: int64 `[2]`, its learnt tokens, and its sequences that have any.

    Counts of a batch's parts, on whatever host, add up.
    """
    tokens = sum(int(mask.sum()) for mask in masks)
    return np.array([tokens, sum(int(mask.any(axis=-1).sum()) for mask in masks)], np.int64)


def loss_weights(mask: np.ndarray, average: LossAverage, counts: np.ndarray) -> np.ndarray:
    """What each token counts in a mean over a batch; over the whole batch the weights add up to 1.

    `TOKEN`: 1 / Σ L. `SEQUENCE`: 1 / (N Lᵢ) for a token of sequence i, of N sequences.

    Args:
        mask: bool `[P, G, T]`, which tokens of a part of the batch are learnt.
        average: what counts alike.
        counts: of the whole batch; see `loss_counts`.

    Returns:
        float32 `[P, G, T]`.
    """
    tokens, sequences = np.maximum(counts, 1)
    if average is LossAverage.TOKEN:
        return (mask / tokens).astype(np.float32)
    lengths = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    return (mask / lengths / sequences).astype(np.float32)


def sft_loss(logprobs: Array, weights: Array) -> jax.Array:
    """Cross-entropy of the gold tokens (equation 9): L = -Σ w log p(y).

    Args:
        logprobs: `[P, G, T]`, of each gold token.
        weights: `[P, G, T]`, see `loss_weights`.
    """
    return -jnp.sum(weights * logprobs)
