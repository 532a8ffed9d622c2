"""Rotary position embeddings: (y, x) in the vision tower, M-RoPE (time, y, x) in the decoder.

Inverse frequencies are NumPy constants: an error of one ulp changes a cosine by 2e-4 at position 4,096.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

VISION_THETA = 10_000.0


def inverse_frequencies(size: int, theta: float) -> np.ndarray:
    """Returns `theta^(-2i/size)`, fp32 `[size / 2]`, rounded as PyTorch rounds it."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def vision_angles(coordinates: jax.Array, head_dim: int) -> jax.Array:
    """Computes the angles of patches: the first half of the frequencies for y, the second half for x.

    Args:
        coordinates: int `[..., 2]`, (y, x) of each patch.
        head_dim: size of a head.

    Returns:
        fp32 `[..., head_dim / 2]` radians.
    """
    angles = coordinates[..., None].astype(jnp.float32) * inverse_frequencies(head_dim // 2, VISION_THETA)
    return angles.reshape(*coordinates.shape[:-1], head_dim // 2)


def text_angles(positions: jax.Array, head_dim: int, theta: float, section: tuple[int, int, int]) -> jax.Array:
    """Computes M-RoPE angles: contiguous sections of the frequencies for time, y and x.

    Args:
        positions: int `[P, 3, ...]`, (time, y, x) of each token.
        head_dim: size of a head.
        theta: base of the frequencies.
        section: number of frequencies for each axis.

    Returns:
        fp32 `[P, ..., head_dim / 2]` radians.
    """
    axis = np.repeat(np.arange(3), section)
    frequency_positions = jnp.moveaxis(positions[:, axis], 1, -1)
    return frequency_positions.astype(jnp.float32) * inverse_frequencies(head_dim, theta)


def apply_rope(x: jax.Array, angles: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rotates each pair (i, i + head / 2) of the last axis by its angle.

    Args:
        x: `[..., heads, head]`, or with any number of head axes.
        angles: fp32 `[..., head / 2]` without the head axes.
        dtype: dtype of sines, cosines and products.
    """
    angles = jnp.expand_dims(angles, tuple(range(angles.ndim - 1, x.ndim - 1)))
    cos, sin = jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
