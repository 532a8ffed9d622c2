"""KV caches for decoding: fp32, bf16 or int8.

bf16 is stored as its bits in uint16: on CPUs, XLA converts a whole bf16 cache to fp32 and back for every token written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of one layer, with the axis order of the decoding matmuls.

    Attributes:
        keys: `[P, K, head, L]` for prompts, `[P, K, G, head, T]` for completions; fp32, int8 or the bits of bf16.
        values: `[P, K, L, head]` for prompts, `[P, K, G, T, head]` for completions; same dtype.
        key_scale: fp32 `[P, K, L]` or `[P, K, G, T]`, scale of each int8 key; None for floating-point caches.
        value_scale: the same for values.
    """

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None


TOKEN_AXES = (-1, -2, -1, -1)  # token axis of each field of `Cache`


def init_cache(keys: jax.Array, values: jax.Array, dtype: jnp.dtype) -> Cache:
    """Makes a cache from keys and values; int8 scales each vector so that its largest value becomes 127.

    Args:
        keys: `[..., tokens, head]`.
        values: `[..., tokens, head]`.
        dtype: fp32, int8 or bf16; uint16, the storage of bf16, means bf16 too.
    """
    scales: tuple[jax.Array | None, ...] = (None, None)
    if dtype == jnp.int8:
        (keys, key_scale), (values, value_scale) = _quantize(keys), _quantize(values)
        scales = key_scale, value_scale
    elif dtype in (jnp.bfloat16, jnp.uint16):
        keys, values = bitcast_to_uint16(keys.astype(jnp.bfloat16)), bitcast_to_uint16(values.astype(jnp.bfloat16))
    else:
        keys, values = keys.astype(dtype), values.astype(dtype)
    return Cache(jnp.swapaxes(keys, -1, -2), values, *scales)


def bitcast_to_uint16(x: jax.Array) -> jax.Array:
    """Reinterprets bf16 as uint16."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def bitcast_to_bfloat16(x: jax.Array) -> jax.Array:
    """Reinterprets uint16 as bf16; returns arrays of other dtypes unchanged."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def update_cache(cache: Cache, key: jax.Array, value: jax.Array, place: jax.Array) -> Cache:
    """Writes one token's key and value, `[P, K, G, head]`, at `place` of a completion cache, modulo its length."""
    token = init_cache(key[..., None, :], value[..., None, :], cache.keys.dtype)
    place %= cache.values.shape[3]
    return _map_arrays(cache, lambda x, new, axis: jax.lax.dynamic_update_slice_in_dim(x, new, place, axis), token)


def ring_mask(place: jax.Array, token_index: jax.Array, length: int) -> jax.Array:
    """Returns which of the places of a completion cache hold the tokens of a completion: bool `[P, T]`.

    All completions write their tokens at the same place, one after another and round and round. So the tokens of one
    are the latest: `token_index` of them, and the one that has just been written.

    Args:
        place: int32 scalar, place of the latest tokens, counted on from round to round.
        token_index: int32 `[P]`, index of that token in the completions of a prompt; less than `length`.
        length: T, number of places.
    """
    age = (place - jnp.arange(length)) % length
    return age <= token_index[:, None]


def roll_cache(cache: Cache, num_places: jax.Array) -> Cache:
    """Rotates the tokens of a completion cache by `num_places` places to the front."""
    return _map_arrays(cache, lambda x, _, axis: jnp.roll(x, -num_places, axis), cache)


def last_tokens(cache: Cache, num_tokens: int) -> Cache:
    """Returns the last `num_tokens` places of a cache."""
    return _map_arrays(
        cache, lambda x, _, axis: jax.lax.slice_in_dim(x, x.shape[axis] - num_tokens, None, axis=axis), cache
    )


def grow_cache(cache: Cache, num_tokens: int) -> Cache:
    """Appends room for `num_tokens` tokens to a cache."""

    def pad(x: jax.Array, _: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, num_tokens)
        return jnp.pad(x, widths)

    return _map_arrays(cache, pad, cache)


def _map_arrays(cache: Cache, function: Callable[[jax.Array, jax.Array, int], jax.Array], other: Cache) -> Cache:
    """Applies `function` to each pair of arrays of two caches and its token axis."""
    fields: Any = zip(cache, other, TOKEN_AXES, strict=True)
    arrays: Any = (None if x is None else function(x, y, axis) for x, y, axis in fields)
    return Cache(*arrays)


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns int8 values and the fp32 scale of each vector."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale
