"""Log-probabilities of given tokens, block by block of the vocabulary.

All logits of a batch would be its largest array by far. Here the head is read in blocks of its vocabulary, under a
running logsumexp forward and once more backward. Blocks of the vocabulary and not of the tokens: a sharded head is
gathered, and its gradient reduced, once in all and a block at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from currreft_jax.models.layers import NEVER, product
from currreft_jax.runtime.sharding import BATCH, constrain, data_shards
from currreft_jax.structs import Array

BLOCK_LOGITS = 2**26  # of a data shard, at one time: 256 MB in fp32


class Choices(NamedTuple):
    """The tokens that a completion may consist of: the one mask of sampling, training and scoring.

    Attributes:
        size: ids that the tokenizer knows; the table's further rows stand for nothing.
        forbidden: ids below it that are never chosen: those that stand for parts of an image.
    """

    size: int
    forbidden: tuple[int, ...]

    def allow(self, tokens: Array) -> jax.Array:
        """Which of these may be chosen, in the shape of `tokens`."""
        allowed = tokens < self.size
        for token in self.forbidden:
            allowed &= tokens != token
        return allowed

    def scores(self, logits: jax.Array, temperature: float) -> jax.Array:
        """`[..., V]` logits to those of the distribution: divided by the temperature, forbidden ones out of reach."""
        return jnp.where(self.allow(jnp.arange(logits.shape[-1])), logits / temperature, NEVER)


class Head(NamedTuple):
    """How the table `[V, D]` of a tied head, or the kernel `[D, V]` of an untied one, is read.

    The vocabulary is split into the parts that the tensor axis holds, so that every part reads its own blocks.

    Attributes:
        tied: whether the vocabulary stands first.
        vocabulary: V.
        mesh: where it is laid out.
        choices: the tokens that the distribution is over.
        temperature: by which logits are divided.
    """

    tied: bool
    vocabulary: int
    mesh: Mesh
    choices: Choices
    temperature: float

    @property
    def parts(self) -> int:
        """Parts of the vocabulary that are read side by side."""
        tensor = self.mesh.shape["tensor"]
        return tensor if self.vocabulary % tensor == 0 else 1

    @property
    def axes(self) -> str:
        """Letters of a block: `t` the part, `v` the column in it, `d` the hidden size."""
        return "tvd" if self.tied else "dtv"

    def split(self, table: jax.Array) -> jax.Array:
        """The table with the parts as an axis of their own."""
        return table.reshape((self.parts, -1, table.shape[1]) if self.tied else (table.shape[0], self.parts, -1))

    def laid_out(self, block: jax.Array, *, gathered: bool) -> jax.Array:
        """Pins a block to its parts, with the hidden size whole or as the parameter has it."""
        spec = {"t": "tensor" if self.parts > 1 else None, "v": None, "d": None if gathered else "fsdp"}
        return constrain(block, self.mesh, *(spec[axis] for axis in self.axes))


def blockwise_logprobs(
    hidden: jax.Array, table: jax.Array, tokens: jax.Array, head: Head
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from.

    A forbidden token has log-probability -inf, and what flows back from it means nothing.

    Args:
        hidden: `[P, G, T, D]`, slot t predicts `tokens[..., t]`.
        table: the head's parameter.
        tokens: int `[P, G, T]`.
        head: how to read the table.

    Returns:
        Two fp32 arrays `[P, G, T]`, in nats.
    """
    return _blockwise_logprobs(head, hidden, table, tokens)


def _forward(head: Head, hidden: jax.Array, table: jax.Array, tokens: jax.Array) -> tuple[Any, Any]:
    split = head.split(table)

    def body(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, weighted, chosen = state
        logits, counted, hit, _, _ = _block(head, hidden, split, tokens, index)
        above = jnp.maximum(peak, jnp.max(logits, axis=(-2, -1), where=counted, initial=-jnp.inf))
        scale = jnp.exp(peak - above)
        weights = jnp.where(counted, jnp.exp(logits - above[..., None, None]), 0)
        return (
            above,
            total * scale + jnp.sum(weights, axis=(-2, -1)),
            weighted * scale + jnp.sum(weights * logits, axis=(-2, -1)),
            chosen + jnp.sum(jnp.where(hit, logits, 0), axis=(-2, -1)),
        )

    zeros = jnp.zeros(tokens.shape, jnp.float32)
    start = (jnp.full(tokens.shape, -jnp.inf, jnp.float32), zeros, zeros, zeros)
    peak, total, weighted, chosen = jax.lax.fori_loop(0, _blocks(head, tokens)[0], body, start)
    normaliser, mean = peak + jnp.log(total), weighted / total
    logprobs = jnp.where(head.choices.allow(tokens), chosen - normaliser, -jnp.inf)
    return (logprobs, normaliser - mean), (hidden, table, tokens, normaliser, mean)


def _backward(head: Head, saved: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, None]:
    hidden, table, tokens, normaliser, mean = (*saved[:3], *(x[..., None, None] for x in saved[3:]))
    of_logprob, of_entropy = (g[..., None, None] for g in cotangents)
    split = head.split(table)

    def body(index: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_hidden, of_table = state
        logits, counted, hit, start, weights = _block(head, hidden, split, tokens, index)
        probability = jnp.where(counted, jnp.exp(logits - normaliser), 0)
        of_logits = of_logprob * (hit - probability) - of_entropy * probability * (logits - mean)
        of_logits = (of_logits / head.temperature).astype(hidden.dtype)
        axis, size = head.axes.index("v"), logits.shape[-1]
        of_hidden += product(f"abctv,{head.axes}->abcd", of_logits, weights)
        of_block = head.laid_out(product(f"abctv,abcd->{head.axes}", of_logits, hidden), gathered=False)
        before = jax.lax.dynamic_slice_in_dim(of_table, start, size, axis)
        return of_hidden, jax.lax.dynamic_update_slice_in_dim(of_table, before + of_block, start, axis)

    of_table = head.laid_out(jnp.zeros(split.shape, jnp.float32), gathered=False)
    of_hidden, of_table = jax.lax.fori_loop(
        0, _blocks(head, tokens)[0], body, (jnp.zeros(hidden.shape, jnp.float32), of_table)
    )
    return of_hidden.astype(hidden.dtype), of_table.reshape(table.shape).astype(table.dtype), None


def _blocks(head: Head, tokens: jax.Array) -> tuple[int, int]:
    """How many blocks, and how many columns of each part a block has."""
    columns = head.vocabulary // head.parts
    on_a_shard = max(1, tokens.size // data_shards(head.mesh))
    size = min(columns, max(1, BLOCK_LOGITS // (on_a_shard * head.parts)))
    count = -(-columns // size)
    return count, -(-columns // count)


def _block(
    head: Head, hidden: jax.Array, split: jax.Array, tokens: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Scores `[P, G, T, parts, columns]`, which columns count, which is the token's, the block's start and weights.

    The last block overlaps the one before; what it repeats does not count again, and forbidden tokens never do.
    """
    _, size = _blocks(head, tokens)
    columns = head.vocabulary // head.parts
    start = jnp.minimum(index * size, columns - size)
    block = jax.lax.dynamic_slice_in_dim(split, start, size, head.axes.index("v"))
    weights = head.laid_out(block.astype(hidden.dtype), gathered=True)
    logits = product(f"abcd,{head.axes}->abctv", hidden, weights) / head.temperature
    logits = constrain(logits, head.mesh, BATCH, None, None, "tensor" if head.parts > 1 else None)
    column = start + jnp.arange(size)
    token = jnp.arange(head.parts)[:, None] * columns + column
    counted = jnp.broadcast_to((column >= index * size) & head.choices.allow(token), logits.shape)
    return logits, counted, counted & (tokens[..., None, None] == token), start, weights


def _primal(head: Head, hidden: jax.Array, table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _forward(head, hidden, table, tokens)[0]


_blockwise_logprobs: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_blockwise_logprobs.defvjp(_forward, _backward)
