"""One draw from the vocabulary for each completion."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from currreft_jax.models.layers import NEVER
from currreft_jax.structs import Array

BLOCK = 128
_NOTHING = -200.0  # its exponential is 0 in fp32, and unlike that of -inf their product is 0, too


def draw(
    scores: jax.Array, keys: Array, slot: Array, temperature: float, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws a token of each row, with its log-probability and the distribution's entropy before top-k and top-p.

    Args:
        scores: fp32 `[P, G, V]`, the distribution's logits; forbidden tokens have `NEVER`.
        keys: uint32 `[P, G, 2]`, key data of each completion.
        slot: int32, where the token stands in its completion.
        temperature: already in the scores; 0 takes the likeliest.
        top_k: draw among so many; 0 for all.
        top_p: draw among the likeliest that have this probability together; 1 for all.

    Returns:
        int32 and twice fp32 `[P, G]`, in nats.
    """
    blocks = _blocks(scores)
    peak, mass = _masses(blocks)
    if temperature == 0:
        token, score = _likeliest(blocks)
    else:
        filtered, filtered_mass = blocks, mass
        if top_k or top_p < 1:
            filtered = _blocks(_top_p(_top_k(scores, top_k), top_p))
            filtered_mass = _masses(filtered)[1]
        token = _gumbel_max(filtered, filtered_mass, keys, slot)
        score = jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0]
    total = jnp.sum(mass, axis=-1)
    relative = jnp.maximum(blocks - peak[..., None, None], _NOTHING)
    entropy = jnp.log(total) - jnp.sum(jnp.exp(relative) * relative, axis=(-2, -1)) / total
    return token.astype(jnp.int32), score - peak - jnp.log(total), entropy


def _blocks(scores: jax.Array) -> jax.Array:
    """`[P, G, V] -> [P, G, blocks, BLOCK]`, filled up with what is never drawn."""
    missing = -scores.shape[-1] % BLOCK
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, missing)), constant_values=NEVER)
    return padded.reshape(*scores.shape[:2], -1, BLOCK)


def _masses(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest score `[P, G]`, and the exponentials' sum of each block relative to it."""
    peak = jnp.max(blocks, axis=(-2, -1))
    return peak, jnp.sum(jnp.exp(blocks - peak[..., None, None]), axis=-1)


def _likeliest(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first of the largest scores. In two steps, since an argmax over a whole vocabulary is slow on CPUs."""
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = _inside(blocks, block)
    return block * BLOCK + jnp.argmax(inside, axis=-1), jnp.max(inside, axis=-1)


def _gumbel_max(blocks: jax.Array, mass: jax.Array, keys: Array, slot: Array) -> jax.Array:
    """First the block, by its mass, then the token in it, by its score.

    The noise of two maxima costs `V / BLOCK + BLOCK` random numbers, where one over the vocabulary costs V.
    """
    count = mass.shape[-1]

    def bits(key: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(jax.random.wrap_key_data(key), slot), (count + BLOCK,))

    noise = _gumbel(jax.vmap(jax.vmap(bits))(keys))
    block = jnp.argmax(jnp.log(mass) + noise[..., :count], axis=-1)
    return block * BLOCK + jnp.argmax(_inside(blocks, block) + noise[..., count:], axis=-1)


def _inside(blocks: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]


def _gumbel(bits: jax.Array) -> jax.Array:
    """Standard Gumbel noise of 32 random bits.

    The bits count from the upper tail, where fp32 is fine, so that events of probability 1e-8 are drawn as often as
    they should be.
    """
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


def _top_k(scores: jax.Array, k: int) -> jax.Array:
    """The k largest; those that equal the last of them stay too."""
    if not 0 < k < scores.shape[-1]:
        return scores
    least = jax.lax.top_k(scores, k)[0][..., -1:]
    return jnp.where(scores >= least, scores, NEVER)


def _top_p(scores: jax.Array, p: float) -> jax.Array:
    """The fewest largest whose probabilities sum to p; those that equal the last of them stay too."""
    if p >= 1:
        return scores
    falling = jnp.flip(jnp.sort(scores, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(falling, axis=-1)
    wanted = jnp.cumsum(probabilities, axis=-1) - probabilities < p
    least = jnp.min(falling, axis=-1, where=wanted, initial=jnp.inf, keepdims=True)
    return jnp.where(scores >= least, scores, NEVER)
