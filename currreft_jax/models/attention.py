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
        mask_axes: letters of the mask's axes, in the order of the query's and ending with `s`.
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

    Scores have the axes that queries and keys share in front, as products make them: no score is ever moved.

    A query that may attend to nothing gets finite, meaningless values; only padding is such.

    Args:
        axes: letters of the query's axes, the last one `d`.
        query: in those axes.
        sources: what it attends to.

    Returns:
        An array like the query, in its dtype.
    """
    shared = "".join(source.axes for source in sources)
    scores_axes = "".join(sorted(axes.replace("d", ""), key=shared.count, reverse=True)) + "s"
    scale = query.shape[-1] ** -0.5

    def score(source: Source) -> jax.Array:
        scores = einsum(f"{axes},{source.axes}->{scores_axes}", query, source.keys) * scale
        if source.key_scale is not None:
            scores *= _expanded(source.key_scale, source.axes.replace("d", ""), scores_axes)
        return jnp.where(_expanded(source.mask, source.mask_axes, scores_axes), scores, NEVER)

    weights = jax.nn.softmax(jnp.concatenate([score(source) for source in sources], axis=-1), axis=-1)
    out, start = jnp.zeros((), jnp.float32), 0
    for source in sources:
        end = start + source.keys.shape[source.axes.index("s")]
        part = weights[..., start:end]
        if source.value_scale is not None:
            part *= _expanded(source.value_scale, source.axes.replace("d", ""), scores_axes)
        out += einsum(f"{scores_axes},{source.axes}->{axes}", part.astype(query.dtype), source.values)
        start = end
    return out.astype(query.dtype)


def _expanded(x: jax.Array, axes: str, scores_axes: str) -> jax.Array:
    """Axes of size 1 where x lacks one of the scores'."""
    return x[tuple(slice(None) if axis in axes else None for axis in scores_axes)]
