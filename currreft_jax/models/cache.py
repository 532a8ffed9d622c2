"""Keys and values kept between the tokens of a completion, as they are or in eight bits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of one layer, heads in front: `[P, K, L, head]` of prompts, `[P, K, G, T, head]` of completions.

    Attributes:
        keys: rotated.
        values: as many.
        key_scale: fp32, what int8 keys are multiplied by, in their axes without `head`; None for floats.
        value_scale: likewise.
    """

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None


def stored(keys: jax.Array, values: jax.Array, dtype: jnp.dtype) -> Cache:
    """A cache of floats in `dtype`; for int8, each vector gets a scale that maps its largest value to 127."""
    if dtype != jnp.int8:
        return Cache(keys.astype(dtype), values.astype(dtype))
    (keys, key_scale), (values, value_scale) = _eight_bits(keys), _eight_bits(values)
    return Cache(keys, values, key_scale, value_scale)


def written(cache: Cache, key: jax.Array, value: jax.Array, slot: jax.Array) -> Cache:
    """The cache `[P, K, G, T, head]` with one token's `[P, K, G, head]` at a slot."""
    token = stored(key, value, cache.keys.dtype)
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, slot, 3), cache, token)


def longer(cache: Cache, slots: int) -> Cache:
    """The cache `[P, K, G, T, head]` with empty slots behind."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, slots)] + [(0, 0)] * (x.ndim - 4)), cache)


def _eight_bits(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale
