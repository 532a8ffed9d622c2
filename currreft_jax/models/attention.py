"""Attention as one softmax over the keys of one or more sources, with axes named by letters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from currreft_jax.models.layers import NEVER, einsum


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

    Queries, keys and values are brought into the order in which products make scores, forward and backward, so that
    scores, which are the largest arrays, are never moved.

    A query that may attend to nothing gets finite, meaningless values; only padding is such.

    Args:
        axes: letters of the query's axes, the last one `d`.
        query: in those axes.
        sources: what it attends to.

    Returns:
        An array like the query, in its dtype.
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
