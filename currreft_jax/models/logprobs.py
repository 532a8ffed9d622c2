"""Log-probabilities of given tokens, computed block by block of the vocabulary.

The logits of a batch would be its largest array by far. The head is read in blocks of the vocabulary instead, under a
running logsumexp forward and once more backward. Blocks of the vocabulary rather than of tokens: a sharded head is then
gathered once, a block at a time, and its gradient reduced once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from currreft_jax.models.layers import MASK_VALUE, einsum_no_vjp
from currreft_jax.runtime.sharding import BATCH, constrain, data_shards, rounded
from currreft_jax.structs import Array

BLOCK_LOGITS = 2**26  # logits of a data shard held at a time: 256 MB in fp32


class VocabMask(NamedTuple):
    """The tokens that a completion may contain; the same mask for sampling, training and scoring.

    Attributes:
        tokenizer_size: number of ids that the tokenizer knows; further rows of the embedding have no token.
        forbidden: smaller ids that are never sampled, such as image placeholders.
    """

    tokenizer_size: int
    forbidden: tuple[int, ...]

    def allowed(self, tokens: Array) -> jax.Array:
        """Returns true for each token that may be sampled, bool in the shape of `tokens`."""
        allowed = tokens < self.tokenizer_size
        for token in self.forbidden:
            allowed &= tokens != token
        return allowed

    def apply(self, logits: jax.Array, temperature: float) -> jax.Array:
        """Divides logits `[..., V]` by the temperature and masks forbidden tokens."""
        return jnp.where(self.allowed(jnp.arange(logits.shape[-1])), logits / temperature, MASK_VALUE)


class Head(NamedTuple):
    """The layout of the output head: the embedding `[V, D]` if tied, else a kernel `[D, V]`.

    The vocabulary is split into the shards of the tensor axis; every shard reads its own blocks.

    Attributes:
        tied: whether the head is the embedding, with the vocabulary as its first axis.
        vocab_size: V.
        mesh: the model's mesh.
        vocab_mask: tokens of the distribution.
        temperature: divides the logits.
    """

    tied: bool
    vocab_size: int
    mesh: Mesh
    vocab_mask: VocabMask
    temperature: float

    @property
    def num_shards(self) -> int:
        """Number of vocabulary shards, read in parallel."""
        tensor = self.mesh.shape["tensor"]
        return tensor if self.vocab_size % tensor == 0 else 1

    @property
    def axes(self) -> str:
        """Letters of a block's axes: `t` the vocabulary shard, `v` the column in it, `d` the hidden size."""
        return "tvd" if self.tied else "dtv"

    def split(self, table: jax.Array) -> jax.Array:
        """Gives the vocabulary shards an axis of their own."""
        return table.reshape(
            (self.num_shards, -1, table.shape[1]) if self.tied else (table.shape[0], self.num_shards, -1)
        )

    def constrain(self, block: jax.Array, *, gathered: bool) -> jax.Array:
        """Constrains a block's sharding, with the hidden size gathered or sharded as the parameter is."""
        spec = {"t": "tensor" if self.num_shards > 1 else None, "v": None, "d": None if gathered else "fsdp"}
        return constrain(block, self.mesh, *(spec[axis] for axis in self.axes))


def blockwise_logprobs(
    hidden: jax.Array, table: jax.Array, tokens: jax.Array, head: Head
) -> tuple[jax.Array, jax.Array]:
    """Computes each token's log-probability and the entropy of its distribution.

    A forbidden token has log-probability -inf; its gradient is finite and meaningless.

    Args:
        hidden: `[P, G, T, D]`; index t predicts `tokens[..., t]`.
        table: the head's parameter.
        tokens: int `[P, G, T]`.
        head: the table's layout.

    Returns:
        Log-probabilities and entropies in nats, fp32 `[P, G, T]` each.
    """
    return _blockwise_logprobs(head, hidden, table, tokens)


def _forward(head: Head, hidden: jax.Array, table: jax.Array, tokens: jax.Array) -> tuple[Any, Any]:
    table_shards = head.split(table)

    def body(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        max_logit, sumexp, weighted_sum, target_logit = state
        logits, valid, is_target, _, _ = _block(head, hidden, table_shards, tokens, index)
        new_max = jnp.maximum(max_logit, jnp.max(logits, axis=(-2, -1), where=valid, initial=-jnp.inf))
        rescale = jnp.exp(max_logit - new_max)
        weights = jnp.where(valid, jnp.exp(logits - new_max[..., None, None]), 0)
        return (
            new_max,
            sumexp * rescale + jnp.sum(weights, axis=(-2, -1)),
            weighted_sum * rescale + jnp.sum(weights * logits, axis=(-2, -1)),
            target_logit + jnp.sum(jnp.where(is_target, logits, 0), axis=(-2, -1)),
        )

    zeros = jnp.zeros(tokens.shape, jnp.float32)
    start = (jnp.full(tokens.shape, -jnp.inf, jnp.float32), zeros, zeros, zeros)
    num_blocks, _ = _block_sizes(head, tokens)
    max_logit, sumexp, weighted_sum, target_logit = jax.lax.fori_loop(0, num_blocks, body, start)
    logsumexp, mean_logit = max_logit + jnp.log(sumexp), weighted_sum / sumexp
    logprobs = jnp.where(head.vocab_mask.allowed(tokens), target_logit - logsumexp, -jnp.inf)
    # The entropy of a near-certain token is below the rounding of the two terms, whose difference may be negative.
    entropy = jnp.maximum(logsumexp - mean_logit, 0.0)
    return (logprobs, entropy), (hidden, table, tokens, logsumexp, mean_logit)


def _backward(head: Head, saved: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, None]:
    hidden, table, tokens, logsumexp, mean_logit = (*saved[:3], *(x[..., None, None] for x in saved[3:]))
    d_logprob, d_entropy = (g[..., None, None] for g in cotangents)
    table_shards = head.split(table)

    def body(index: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_hidden, d_table = state
        logits, valid, is_target, start, weights = _block(head, hidden, table_shards, tokens, index)
        probability = jnp.where(valid, jnp.exp(logits - logsumexp), 0)
        d_logits = d_logprob * (is_target - probability) - d_entropy * probability * (logits - mean_logit)
        d_logits = (d_logits / head.temperature).astype(hidden.dtype)
        axis, size = head.axes.index("v"), logits.shape[-1]
        d_hidden += einsum_no_vjp(f"abctv,{head.axes}->abcd", d_logits, weights)
        d_block = head.constrain(einsum_no_vjp(f"abctv,abcd->{head.axes}", d_logits, hidden), gathered=False)
        current = jax.lax.dynamic_slice_in_dim(d_table, start, size, axis)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_table, current + d_block, start, axis)

    d_table = head.constrain(jnp.zeros(table_shards.shape, jnp.float32), gathered=False)
    num_blocks, _ = _block_sizes(head, tokens)
    d_hidden, d_table = jax.lax.fori_loop(0, num_blocks, body, (jnp.zeros(hidden.shape, jnp.float32), d_table))
    return d_hidden.astype(hidden.dtype), d_table.reshape(table.shape).astype(table.dtype), None


def _block_sizes(head: Head, tokens: jax.Array) -> tuple[int, int]:
    """Returns the number of blocks, and columns per vocabulary shard in a block."""
    columns = head.vocab_size // head.num_shards
    tokens_per_shard = max(1, tokens.size // data_shards(head.mesh))
    size = min(columns, max(1, BLOCK_LOGITS // (tokens_per_shard * head.num_shards)))
    num_blocks = -(-columns // size)
    return num_blocks, -(-columns // num_blocks)


def _block(
    head: Head, hidden: jax.Array, table_shards: jax.Array, tokens: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes one block of logits, `[P, G, T, vocabulary shards, columns]`.

    The last block overlaps the one before; `valid` is false for the overlap and for forbidden tokens.

    Returns:
        Logits; valid; whether a column is the target token; the block's first column; the block of the head.
    """
    _, size = _block_sizes(head, tokens)
    columns = head.vocab_size // head.num_shards
    start = jnp.minimum(index * size, columns - size)
    block = jax.lax.dynamic_slice_in_dim(table_shards, start, size, head.axes.index("v"))
    # Constrained as stored first: the slice, and not the whole table, is gathered.
    block = head.constrain(rounded(block, hidden.dtype).astype(hidden.dtype), gathered=False)
    weights = head.constrain(block, gathered=True)
    logits = einsum_no_vjp(f"abcd,{head.axes}->abctv", hidden, weights) / head.temperature
    logits = constrain(logits, head.mesh, BATCH, None, None, "tensor" if head.num_shards > 1 else None)
    column = start + jnp.arange(size)
    token = jnp.arange(head.num_shards)[:, None] * columns + column
    valid = jnp.broadcast_to((column >= index * size) & head.vocab_mask.allowed(token), logits.shape)
    return logits, valid, valid & (tokens[..., None, None] == token), start, weights


def _primal(head: Head, hidden: jax.Array, table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _forward(head, hidden, table, tokens)[0]


_blockwise_logprobs: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_blockwise_logprobs.defvjp(_forward, _backward)
