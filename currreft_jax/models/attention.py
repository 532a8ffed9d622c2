"""Attention: one softmax over the keys of one or more sources. Axes are named by letters."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from currreft_jax.models.layers import MASK_VALUE, einsum
from currreft_jax.runtime.devices import device_memory
from currreft_jax.runtime.sharding import data_shards, local_device

BLOCK_SCORES = 1 << 18  # attention scores of one head held at a time on CPUs; a larger block falls out of the cache
LARGE_MEMORY = 40 * 10**9  # bytes of a device that holds blocks of `LARGE_BLOCK_BYTES`
LARGE_BLOCK_BYTES, SMALL_BLOCK_BYTES = 2 << 30, 1 << 28  # of a block's scores, on accelerators
BYTES_PER_SCORE = 12  # about three fp32 arrays of scores exist at once


class KVSource(NamedTuple):
    """Keys and values to attend to, with their mask.

    Attributes:
        axes: letters of the axes of `keys` and `values`: `s` for the keys, `d` for the head dimension.
        keys: array with these axes.
        values: array with these axes.
        mask_axes: letters of the mask's axes.
        mask: bool, true where a query may attend.
        key_scale: scale of each quantised key, axes as `keys` without `d`; None for floating-point keys.
        value_scale: scale of each quantised value, axes as `values` without `d`; None for floating-point values.
    """

    axes: str
    keys: jax.Array
    values: jax.Array
    mask_axes: str
    mask: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None


def block_scores(mesh: Mesh | None, num_heads: int, num_prompts: int) -> int:
    """Returns how many attention scores of one head of one prompt a device holds at a time.

    Args:
        mesh: the devices; None for CPUs.
        num_heads: query heads on a device.
        num_prompts: prompts, or packs of images, on a device.
    """
    if mesh is None or (device := local_device(mesh)).platform == "cpu":
        return BLOCK_SCORES
    large = (device_memory(device) or 0) >= LARGE_MEMORY
    return (LARGE_BLOCK_BYTES if large else SMALL_BLOCK_BYTES) // (BYTES_PER_SCORE * num_heads * num_prompts)


def attend(axes: str, query: jax.Array, *sources: KVSource, mesh: Mesh | None = None) -> jax.Array:
    """Computes attention with one fp32 softmax over the keys of all sources.

    Long queries are split into blocks along `q`, forward and backward, so that about `block_scores` scores of each head
    exist at a time. A fully masked query, which only padding is, gets finite, meaningless values.

    Args:
        axes: letters of the query's axes, prompts first and `d` last; `c` for the completions of a prompt, `q` for the
            sequence, `k`, `g` and `h` for heads.
        query: array with these axes.
        sources: keys and values to attend to.
        mesh: the devices, whose memory sets the size of a block; CPUs by default.

    Returns:
        An array with the shape and dtype of `query`.
    """
    sizes = dict(zip(axes, query.shape, strict=True))
    num_queries = sizes.get("q", 1)
    num_keys = sum(source.keys.shape[source.axes.index("s")] for source in sources)
    max_scores = block_scores(mesh, *_per_device(sizes, axes[0], mesh))
    num_blocks = min(num_queries, sizes.get("c", 1) * num_queries * num_keys // max_scores)
    if num_blocks <= 1:
        return _attend_at_once(axes, query, *sources)
    q_axis, block_size = axes.index("q"), -(-num_queries // num_blocks)

    def split(x: jax.Array, axes: str) -> jax.Array:
        """`[..., q, ...] -> [blocks, ..., block_size, ...]`, strided: a mesh that shards `q` shards every block."""
        axis = axes.index("q")
        padding = num_blocks * block_size - num_queries
        padded = jnp.pad(x, [(0, padding if letter == "q" else 0) for letter in axes])
        blocks = padded.reshape(*x.shape[:axis], block_size, num_blocks, *x.shape[axis + 1 :])
        return jnp.moveaxis(blocks, axis + 1, 0)

    # The gradients of keys and values are summed over blocks in the dtype of the inputs: make it fp32.
    shared = [
        source._replace(keys=source.keys.astype(jnp.float32), values=source.values.astype(jnp.float32))
        for source in sources
    ]

    @jax.checkpoint
    def attend_block(inputs: tuple[jax.Array, list[jax.Array | None]]) -> jax.Array:
        query, masks = inputs
        masked = [
            source if mask is None else source._replace(mask=mask) for source, mask in zip(shared, masks, strict=True)
        ]
        return _attend_at_once(axes, query, *masked)

    masks = [split(source.mask, source.mask_axes) if "q" in source.mask_axes else None for source in sources]
    out = jnp.moveaxis(jax.lax.map(attend_block, (split(query, axes), masks)), 0, q_axis + 1)
    out = out.reshape(*query.shape[:q_axis], -1, *query.shape[q_axis + 1 :])
    return jax.lax.slice_in_dim(out, 0, num_queries, axis=q_axis)


def _per_device(sizes: dict[str, int], prompt_axis: str, mesh: Mesh | None) -> tuple[int, int]:
    """Returns the heads and the prompts of a device; the tensor axis shards heads, or their queries."""
    num_heads = prod(size for letter, size in sizes.items() if letter in "kgh")
    if mesh is None:
        return num_heads, sizes[prompt_axis]
    tensor = mesh.shape["tensor"]
    is_sharded = "h" in sizes or sizes.get("k", 1) % tensor == 0
    return -(-num_heads // (tensor if is_sharded else 1)), -(-sizes[prompt_axis] // data_shards(mesh))


def _attend_at_once(axes: str, query: jax.Array, *sources: KVSource) -> jax.Array:
    """Computes `attend` without blocks.

    Queries, keys and values are transposed to the axis order of the batched matmuls, forward and backward, so that the
    scores, the largest arrays, are never transposed.
    """
    source_axes = "".join(source.axes for source in sources)
    order = "".join(sorted(axes.replace("d", ""), key=source_axes.count, reverse=True))
    query = _transpose(query, axes, f"{order}d")
    scale = query.shape[-1] ** -0.5
    scores, values = [], []
    for source in sources:
        batch = "".join(axis for axis in order if axis in source.axes)
        keys, value = (_transpose(x, source.axes, f"{batch}sd") for x in (source.keys, source.values))
        score = einsum(f"{order}d,{batch}sd->{order}s", query, keys) * scale
        if source.key_scale is not None:
            score *= _expand_dims(source.key_scale, source.axes.replace("d", ""), f"{order}s")
        scores.append(jnp.where(_expand_dims(source.mask, source.mask_axes, f"{order}s"), score, MASK_VALUE))
        values.append((f"{order}s,{batch}sd->{order}d", value))

    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = jnp.zeros((), jnp.float32), 0
    for source, (equation, value) in zip(sources, values, strict=True):
        end = start + value.shape[-2]
        source_weights = weights[..., start:end]
        if source.value_scale is not None:
            source_weights *= _expand_dims(source.value_scale, source.axes.replace("d", ""), f"{order}s")
        out += einsum(equation, source_weights.astype(query.dtype), value)
        start = end
    return _transpose(out.astype(query.dtype), f"{order}d", axes)


def _transpose(x: jax.Array, axes: str, new_axes: str) -> jax.Array:
    return jnp.transpose(x, [axes.index(axis) for axis in new_axes])


def _expand_dims(x: jax.Array, axes: str, new_axes: str) -> jax.Array:
    """Transposes `x` to the order of `new_axes`, with axes of size 1 for those it lacks."""
    x = _transpose(x, axes, "".join(axis for axis in new_axes if axis in axes))
    return x[tuple(slice(None) if axis in axes else None for axis in new_axes)]
