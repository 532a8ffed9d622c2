"""Sampling of one token for each completion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from currreft_jax.models.layers import MASK_VALUE
from currreft_jax.runtime.sharding import BATCH, constrain
from currreft_jax.structs import Array

BLOCK_SIZE = 128  # tokens of a vocabulary block
_EXP_UNDERFLOW = -200.0  # exp of it is 0 in fp32, and so is its product with that; for -inf the product is NaN


def sample_token(
    logits: jax.Array,
    keys: Array,
    token_index: Array,
    temperature: float,
    top_k: int,
    top_p: float,
    num_padded: int = 0,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples a token for each row, with its log-probability and the entropy, both before top-k and top-p.

    The shards of the vocabulary exchange sums and maxima of their blocks and the block of the token, not the logits;
    only top-k and top-p gather these. Tokens are the same with any number of shards.

    Args:
        logits: fp32 `[P, G, V]`, masked and divided by the temperature.
        keys: uint32 `[P, G, 2]`, PRNG key data of each completion.
        token_index: int32 scalar or `[P]`, the token's index in the completions of each prompt; folded into the keys.
        temperature: 0 for greedy decoding; any other value is already in the logits.
        top_k: number of tokens to sample from; 0 for all.
        top_p: cumulative probability of the tokens to sample from; 1 for all.
        num_padded: masked columns behind the vocabulary, included in V.
        mesh: splits rows over data x fsdp and V over tensor, in whole blocks; None where neither is split.

    Returns:
        Tokens, int32 `[P, G]`; log-probabilities and entropies in nats, fp32 `[P, G]` each.
    """
    num_blocks = -(-(logits.shape[-1] - num_padded) // BLOCK_SIZE)
    blocks = _split_blocks(logits)
    max_logit, sumexp = _block_sumexp(blocks, num_blocks, mesh)
    if temperature == 0:
        block, column = _argmax(blocks, mesh)
    else:
        filtered, filtered_sumexp = blocks, sumexp
        if top_k or top_p < 1:
            filtered = _split_blocks(_top_p(_top_k(logits, top_k), top_p))
            filtered_sumexp = _block_sumexp(filtered, num_blocks, mesh)[1]
        block, column = _gumbel_max(filtered, filtered_sumexp, keys, token_index)
    token_logit = jnp.take_along_axis(_take_block(blocks, block), column[..., None], axis=-1)[..., 0]
    total = jnp.sum(sumexp, axis=-1)
    shifted = jnp.maximum(blocks - max_logit[..., None, None], _EXP_UNDERFLOW)
    entropy = jnp.log(total) - jnp.sum(jnp.exp(shifted) * shifted, axis=(-2, -1)) / total
    token = block * BLOCK_SIZE + column
    return token.astype(jnp.int32), token_logit - max_logit - jnp.log(total), entropy


def _split_blocks(logits: jax.Array) -> jax.Array:
    """`[P, G, V] -> [P, G, blocks, BLOCK_SIZE]`, padded with masked logits."""
    padding = -logits.shape[-1] % BLOCK_SIZE
    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, padding)), constant_values=MASK_VALUE)
    return padded.reshape(*logits.shape[:2], -1, BLOCK_SIZE)


def _gather_blocks(values: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Gives every shard of the vocabulary the values of all blocks, `[P, G, blocks]`."""
    return constrain(values, mesh, BATCH) if mesh else values


def _block_sumexp(blocks: jax.Array, num_blocks: int, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Returns the largest logit `[P, G]`, and each block's sum of exponentials relative to it, `[P, G, num_blocks]`."""
    max_logit = jnp.max(blocks, axis=(-2, -1))
    sumexp = jnp.sum(jnp.exp(blocks - max_logit[..., None, None]), axis=-1)
    return max_logit, _gather_blocks(sumexp, mesh)[..., :num_blocks]


def _argmax(blocks: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Returns the block of the first largest logit and its column, `[P, G]` each.

    In two steps: an argmax of a whole vocabulary is slow on CPUs.
    """
    block = jnp.argmax(_gather_blocks(jnp.max(blocks, axis=-1), mesh), axis=-1)
    return block, jnp.argmax(_take_block(blocks, block), axis=-1)


def _gumbel_max(blocks: jax.Array, sumexp: jax.Array, keys: Array, token_index: Array) -> tuple[jax.Array, jax.Array]:
    """Samples a block by its probability, then a column of it, `[P, G]` each.

    Two Gumbel-max draws need `V / BLOCK_SIZE + BLOCK_SIZE` random numbers; one over the vocabulary needs V.
    """
    num_blocks = sumexp.shape[-1]

    def random_bits(key: jax.Array, index: jax.Array) -> jax.Array:
        token_key = jax.random.fold_in(jax.random.wrap_key_data(key), index)
        return jax.random.bits(token_key, (num_blocks + BLOCK_SIZE,))

    indices = jnp.broadcast_to(jnp.asarray(token_index), keys.shape[:1])
    noise = _gumbel(jax.vmap(jax.vmap(random_bits, in_axes=(0, None)))(keys, indices))
    block = jnp.argmax(jnp.log(sumexp) + noise[..., :num_blocks], axis=-1)
    return block, jnp.argmax(_take_block(blocks, block) + noise[..., num_blocks:], axis=-1)


def _take_block(blocks: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]


def _gumbel(bits: jax.Array) -> jax.Array:
    """Returns standard Gumbel noise from 32 random bits.

    Bits are counted from the upper tail, where fp32 is dense, so that events of probability 1e-8 keep their frequency.
    """
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


def _top_k(logits: jax.Array, k: int) -> jax.Array:
    """Masks all but the k largest logits; ties with the smallest of them are kept."""
    if not 0 < k < logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits >= threshold, logits, MASK_VALUE)


def _top_p(logits: jax.Array, p: float) -> jax.Array:
    """Masks all but the fewest largest logits whose probabilities sum to p; ties with the smallest are kept."""
    if p >= 1:
        return logits
    descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < p
    threshold = jnp.min(descending, axis=-1, where=kept, initial=jnp.inf, keepdims=True)
    return jnp.where(logits >= threshold, logits, MASK_VALUE)
