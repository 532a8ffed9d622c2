"""Attention as one softmax over the keys of one or more sources, with axes named by letters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from currreft_jax.models.layers import NEVER, einsum

SCORES = 1 << 18  # of a head that exist at a time: on CPUs more of them leave the cache


class Source(NamedTuple):
    """Keys and values to attend to.

    Attributes:
        axes: letters of the keys' axes; `s` runs over the keys, `d` over a head.
        keys: in those axes.
        values: likewise.
        mask_axes: letters of the mask's axes.
        mask: bool, true where a query may attend.
        key_scale: what the keys are multiplied by, in their axes without `d`; None for keys that are what they say.
        value_scale: likewise.
    """

    axes: str
    keys: jax.Array
    values: jax.Array
    mask_axes: str
    mask: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None


def attend(axes: str, query: jax.Array, *sources: Source) -> jax.Array:
    """Softmax in fp32 over all sources together.

    Where there are many scores, queries along `q` are taken in blocks, forward and backward: of each head of a prompt
    or an image about `SCORES` exist at a time. A query that may attend to nothing gets finite, meaningless values; only
    padding is such.

    Args:
        axes: letters of the query's axes, the last one `d`; `c` runs over a prompt's completions, `q` over a sequence.
        query: in those axes.
        sources: what it attends to.

    Returns:
        An array like the query, in its dtype.
    """
    sizes = dict(zip(axes, query.shape, strict=True))
    length, keys = sizes.get("q", 1), sum(it.keys.shape[it.axes.index("s")] for it in sources)
    blocks = min(length, sizes.get("c", 1) * length * keys // SCORES)
    if blocks <= 1:
        return _attended(axes, query, *sources)
    at, size = axes.index("q"), -(-length // blocks)

    def cut(x: jax.Array, axes: str) -> jax.Array:
        """`[..., q, ...] -> [blocks, ..., size, ...]`, strided: where a mesh splits `q`, it splits each block."""
        at = axes.index("q")
        padded = jnp.pad(x, [(0, blocks * size - length if axis == "q" else 0) for axis in axes])
        return jnp.moveaxis(padded.reshape(*x.shape[:at], size, blocks, *x.shape[at + 1 :]), at + 1, 0)

    # In fp32, since blocks add up their gradients in the dtype of what they share.
    shared = [it._replace(keys=it.keys.astype(jnp.float32), values=it.values.astype(jnp.float32)) for it in sources]

    @jax.checkpoint
    def block(inputs: tuple[jax.Array, list[jax.Array | None]]) -> jax.Array:
        query, masks = inputs
        own = [it if mask is None else it._replace(mask=mask) for it, mask in zip(shared, masks, strict=True)]
        return _attended(axes, query, *own)

    masks = [cut(it.mask, it.mask_axes) if "q" in it.mask_axes else None for it in sources]
    out = jnp.moveaxis(jax.lax.map(block, (cut(query, axes), masks)), 0, at + 1)
    return jax.lax.slice_in_dim(out.reshape(*query.shape[:at], -1, *query.shape[at + 1 :]), 0, length, axis=at)


def _attended(axes: str, query: jax.Array, *sources: Source) -> jax.Array:
    """`attend` to all queries at once.

    Queries, keys and values are brought into the order in which products make scores, forward and backward, so that
    scores, which are the largest arrays, are never moved.
    """
    shared = "".join(source.axes for source in sources)
    order = "".join(sorted(axes.replace("d", ""), key=shared.count, reverse=True))
    query = _moved(query, axes, f"{order}d")
    scale = query.shape[-1] ** -0.5
    scores, values = [], []
    for source in sources:
        batch = "".join(axis for axis in order if axis in source.axes)
        keys, value = (_moved(x, source.axes, f"{batch}sd") for x in (source.keys, source.values))
        score = einsum(f"{order}d,{batch}sd->{order}s", query, keys) * scale
        if source.key_scale is not None:
            score *= _expanded(source.key_scale, source.axes.replace("d", ""), f"{order}s")
        scores.append(jnp.where(_expanded(source.mask, source.mask_axes, f"{order}s"), score, NEVER))
        values.append((f"{order}s,{batch}sd->{order}d", value))

    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = jnp.zeros((), jnp.float32), 0
    for source, (equation, value) in zip(sources, values, strict=True):
        end = start + value.shape[-2]
        part = weights[..., start:end]
        if source.value_scale is not None:
            part *= _expanded(source.value_scale, source.axes.replace("d", ""), f"{order}s")
        out += einsum(equation, part.astype(query.dtype), value)
        start = end
    return _moved(out.astype(query.dtype), f"{order}d", axes)


def _moved(x: jax.Array, axes: str, wanted: str) -> jax.Array:
    return jnp.transpose(x, [axes.index(axis) for axis in wanted])


def _expanded(x: jax.Array, axes: str, scores_axes: str) -> jax.Array:
    """In the scores' order, with axes of size 1 where x lacks one of theirs."""
    x = _moved(x, axes, "".join(axis for axis in scores_axes if axis in axes))
    return x[tuple(slice(None) if axis in axes else None for axis in scores_axes)]
