"""Keys and values kept between the tokens of a completion, as they are or in eight bits.

bf16 is kept as its bits in uint16: on CPUs, XLA would widen a cache of bf16 to fp32 and back for every token it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of one layer, heads in front, keys with their slots behind: so the products want them.

    Attributes:
        keys: `[P, K, head, L]` of prompts, `[P, K, G, head, T]` of completions; fp32, int8, or the bits of bf16.
        values: `[P, K, L, head]` and `[P, K, G, T, head]`.
        key_scale: fp32 `[P, K, L]` and `[P, K, G, T]`, what int8 keys are multiplied by; None for floats.
        value_scale: likewise.
    """

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None


SLOTS = (-1, -2, -1, -1)  # the axis of the slots in each array of a cache


def stored(keys: jax.Array, values: jax.Array, dtype: jnp.dtype) -> Cache:
    """A cache in `dtype`; for int8, each vector gets a scale that maps its largest value to 127.

    Args:
        keys: `[..., slots, head]`.
        values: likewise.
        dtype: fp32, int8, or bf16, which uint16 means too.
    """
    scales: tuple[jax.Array | None, ...] = (None, None)
    if dtype == jnp.int8:
        (keys, key_scale), (values, value_scale) = _eight_bits(keys), _eight_bits(values)
        scales = key_scale, value_scale
    elif dtype in (jnp.bfloat16, jnp.uint16):
        keys, values = bits(keys.astype(jnp.bfloat16)), bits(values.astype(jnp.bfloat16))
    else:
        keys, values = keys.astype(dtype), values.astype(dtype)
    return Cache(jnp.swapaxes(keys, -1, -2), values, *scales)


def bits(x: jax.Array) -> jax.Array:
    """Bf16 as uint16, bit for bit."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def numbers(x: jax.Array) -> jax.Array:
    """What a product takes: bf16 for its bits, other arrays as they are."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def written(cache: Cache, key: jax.Array, value: jax.Array, slot: jax.Array) -> Cache:
    """A cache of completions with one token's `[P, K, G, head]` at a slot."""
    token = stored(key[..., None, :], value[..., None, :], cache.keys.dtype)
    return _each(cache, lambda x, new, axis: jax.lax.dynamic_update_slice_in_dim(x, new, slot, axis), token)


def longer(cache: Cache, slots: int) -> Cache:
    """A cache of completions with empty slots behind."""

    def pad(x: jax.Array, _: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, slots)
        return jnp.pad(x, widths)

    return _each(cache, pad, cache)


def _each(cache: Cache, change: Callable[[jax.Array, jax.Array, int], jax.Array], other: Cache) -> Cache:
    """A cache whose arrays are made of two caches' and the axis of their slots."""
    together: Any = zip(cache, other, SLOTS, strict=True)
    arrays: Any = (None if x is None else change(x, y, axis) for x, y, axis in together)
    return Cache(*arrays)


def _eight_bits(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale
