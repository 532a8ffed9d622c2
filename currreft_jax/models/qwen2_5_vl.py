"""Qwen2.5-VL as two computations on groups: `prefix` reads each prompt once, `extend` reads its G completions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import Remat
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.layers import Adapters, Linear, RMSNorm, einsum, rematerialised, stacked, unstacked
from currreft_jax.models.logprobs import Choices, Head, blockwise_logprobs
from currreft_jax.models.rope import text_angles
from currreft_jax.models.text import DecoderLayer, KeysValues
from currreft_jax.models.vision import VisionTower
from currreft_jax.runtime.sharding import BATCH, constrain, gathered, parameter_shardings
from currreft_jax.structs import Array, Prefix, PromptBatch

Parameters = dict[str, Any]


class Embedding(nnx.Module):
    """The token table `[V, D]`, which is also the head where the checkpoint ties them."""

    def __init__(self, vocabulary: int, size: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(size**-0.5 * jax.random.normal(rngs.params(), (vocabulary, size)))


class Language(nnx.Module):
    """What reading and decoding share: the way in and the way out."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        config = model.config
        self.config = config
        self.mesh = model.mesh
        self.dtype = model.dtype
        self.choices = model.choices
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear((config.hidden_size,), (config.vocab_size,), bias=False, rngs=rngs)

    def embed(self, tokens: Array) -> jax.Array:
        """Int `[P, ...] -> [P, ..., D]`."""
        return constrain(
            jnp.take(self.embed_tokens.embedding[...], tokens, axis=0).astype(self.dtype), self.mesh, BATCH
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., D] -> [..., V]` in fp32. For few tokens; `logprobs` is for many."""
        letters = "abcdef"[: hidden.ndim - 1]
        table, axes = (self.embed_tokens.embedding, "vz") if self.lm_head is None else (self.lm_head.kernel, "zv")
        return einsum(f"{letters}z,{axes}->{letters}v", hidden, table[...])

    def scores(self, hidden: jax.Array, temperature: float) -> jax.Array:
        """`[..., D] -> [..., V]` whose softmax is the distribution that completions are drawn from."""
        return self.choices.scores(self.logits(hidden), temperature)

    def completion_angles(self, next_position: Array, slots: Array) -> jax.Array:
        """`[P, 1, T, head / 2]` of slots `[T]`: all completions of a prompt start at the same position."""
        config = self.config
        positions = jnp.asarray(next_position)[:, None, None] + slots
        positions = jnp.broadcast_to(positions, (positions.shape[0], 3, slots.shape[0]))
        return text_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)[:, None]


class Qwen2_5_VL(Language):
    """The published architecture. Made by `Model.bind` inside a jitted function."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        super().__init__(model, rngs=rngs)
        config = model.config
        self.remat = model.remat
        self.visual = VisionTower(config.vision, mesh=model.mesh, remat=model.remat, rngs=rngs)
        self.layers = stacked(DecoderLayer, config.num_hidden_layers, config, model.mesh, model.adapters, rngs=rngs)

    def prefix(self, batch: PromptBatch) -> Prefix:
        """Reads each image once and each prompt once."""
        hidden, (keys, values) = self.read_prompts(batch)
        return Prefix(
            keys=keys,
            values=values,
            lengths=batch.lengths,
            next_position=batch.next_position,
            last_hidden=self.norm(_last(hidden, batch.lengths)),
        )

    def extend(self, prefix: Prefix, tokens: Array) -> jax.Array:
        """Reads the completions of every prompt.

        Args:
            prefix: of the same P prompts.
            tokens: int `[P, G, T]`, padded on the right.

        Returns:
            `[P, G, T, D]` after the final norm: slot t predicts `tokens[..., t]`, so that slot 0 is the prompt's
            `last_hidden`.
        """
        angles = self.completion_angles(prefix.next_position, jnp.arange(tokens.shape[2]))
        mask = _real(prefix.lengths, prefix.keys.shape[2])
        one, layers = unstacked(self.layers)

        def layer(x: jax.Array, xs: tuple[nnx.State, KeysValues]) -> tuple[jax.Array, None]:
            parameters, prompt = xs
            return one(parameters).read_completions(x, angles, prompt, mask), None

        xs = (layers, (prefix.keys, prefix.values))
        hidden, _ = jax.lax.scan(rematerialised(layer, self.remat), self.embed(tokens), xs)
        return _predicting(prefix.last_hidden, self.norm(hidden))

    def prefix_extend(self, batch: PromptBatch, tokens: Array) -> jax.Array:
        """`extend(prefix(batch), tokens)` in one scan, for training: each layer's weights are gathered once."""
        angles = self._prompt_angles(batch)
        completion_angles = self.completion_angles(batch.next_position, jnp.arange(tokens.shape[2]))
        mask = _real(batch.lengths, batch.tokens.shape[1])
        one, layers = unstacked(self.layers)

        def layer(
            carry: tuple[jax.Array, jax.Array], parameters: nnx.State
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            prompts, completions = carry
            block = one(gathered(parameters, self.mesh, "layers"))
            prompts, prompt = block.read_prompts(prompts, angles)
            return (prompts, block.read_completions(completions, completion_angles, prompt, mask)), None

        carry = (self.embed_prompts(batch), self.embed(tokens))
        (prompts, completions), _ = jax.lax.scan(rematerialised(layer, self.remat), carry, layers)
        return _predicting(self.norm(_last(prompts, batch.lengths)), self.norm(completions))

    def hidden(self, batch: PromptBatch) -> jax.Array:
        """The prompts' own hidden states after the final norm, `[P, L, D]`."""
        return self.norm(self.read_prompts(batch)[0])

    def logprobs(
        self, hidden: jax.Array, tokens: Array, temperature: float = 1.0, choices: Choices | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of given tokens, and the entropy of the distribution each was drawn from.

        The distribution is the softmax of logits / temperature over the tokens that `Model.choices` allows, here as in
        the sampler; a forbidden token has -inf. The logits never exist all at once, forward or backward.

        Args:
            hidden: `[P, G, T, D]`, slot t predicts `tokens[..., t]`.
            tokens: int `[P, G, T]`.
            temperature: positive.
            choices: other tokens than those that may be sampled.

        Returns:
            Two fp32 arrays `[P, G, T]`, in nats.
        """
        tied = self.lm_head is None
        table = self.embed_tokens.embedding[...] if self.lm_head is None else self.lm_head.kernel[...]
        hidden = constrain(hidden, self.mesh, BATCH)
        head = Head(tied, self.config.vocab_size, self.mesh, choices or self.choices, temperature)
        return blockwise_logprobs(hidden, table, jnp.asarray(tokens), head)

    def read_prompts(self, batch: PromptBatch) -> tuple[jax.Array, KeysValues]:
        """`[P, L, D]` before the final norm, and every layer's keys and values `[layers, P, L, K, head]`."""
        angles = self._prompt_angles(batch)
        one, layers = unstacked(self.layers)

        def layer(x: jax.Array, parameters: nnx.State) -> tuple[jax.Array, KeysValues]:
            return one(parameters).read_prompts(x, angles)

        return jax.lax.scan(rematerialised(layer, self.remat), self.embed_prompts(batch), layers)

    def embed_prompts(self, batch: PromptBatch) -> jax.Array:
        """Token embeddings `[P, L, D]` with the images' features in their placeholders' slots."""
        x = self.embed(batch.tokens)
        if batch.pictures is None:
            return x
        features = self.visual(batch.pictures, self.dtype)
        index = jnp.asarray(batch.embed_index)
        of_shard = index.reshape(features.shape[0], -1, 1)
        placed = jnp.take_along_axis(features, jnp.maximum(of_shard, 0), axis=1).reshape(x.shape)
        return constrain(jnp.where(index[..., None] >= 0, placed, x), self.mesh, BATCH)

    def _prompt_angles(self, batch: PromptBatch) -> jax.Array:
        config = self.config
        return text_angles(jnp.asarray(batch.positions), config.head_dim, config.rope_theta, config.mrope_section)


def _real(lengths: Array, slots: int) -> jax.Array:
    return jnp.arange(slots) < jnp.asarray(lengths)[:, None]


def _last(hidden: jax.Array, lengths: Array) -> jax.Array:
    index = jnp.maximum(jnp.asarray(lengths) - 1, 0)
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]


def _predicting(last_hidden: jax.Array, hidden: jax.Array) -> jax.Array:
    first = jnp.broadcast_to(last_hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[3]))
    return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)


@dataclass(frozen=True)
class Model:
    """A model without its parameters: how to compute, on which mesh.

    Attributes:
        config: the architecture.
        mesh: where it runs.
        dtype: of activations and products; the parameters may be kept in another.
        remat: what the backward pass recomputes.
        tokenizer_size: ids that the tokenizer knows, where the table has more rows; None where it has not.
        lora_rank: of the adapters beside the decoder's linear layers; 0 where there are none.
        lora_alpha: the adapters' scale, times their rank.
    """

    config: ModelConfig
    mesh: Mesh
    dtype: jnp.dtype
    remat: Remat = Remat.NONE
    tokenizer_size: int | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0

    @property
    def adapters(self) -> Adapters | None:
        """Those of every linear layer of the decoder."""
        return Adapters(self.lora_rank, self.lora_alpha / self.lora_rank) if self.lora_rank else None

    @property
    def choices(self) -> Choices:
        """The tokens that completions may consist of."""
        size = self.config.vocab_size if self.tokenizer_size is None else self.tokenizer_size
        return Choices(size, self.config.forbidden_tokens)

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef, Parameters]:
        module = nnx.eval_shape(lambda: Qwen2_5_VL(self, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(module)
        return graphdef, nnx.to_pure_dict(state)

    def bind(self, parameters: Parameters) -> Qwen2_5_VL:
        """The module with these parameters; to be called inside a jitted function."""
        return nnx.merge(self._split[0], parameters)

    def abstract(self, dtype: jnp.dtype) -> Parameters:
        """Shapes and layouts of the parameters, without memory."""
        shapes = self._split[1]
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding),
            shapes,
            parameter_shardings(shapes, self.mesh),
        )

    def init(self, seed: int, dtype: jnp.dtype = jnp.float32) -> Parameters:
        """Random parameters, laid out on the mesh; the same on every mesh."""
        abstract = self.abstract(dtype)

        def create() -> Parameters:
            module = Qwen2_5_VL(self, rngs=nnx.Rngs(seed))
            return jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(nnx.state(module)))

        return jax.jit(create, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))()

    @property
    def num_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(prod(x.shape) for x in jax.tree.leaves(self._split[1]))


@partial(jax.jit, static_argnums=0, static_argnames="temperature")
def token_logprobs(
    model: Model, parameters: Parameters, batch: PromptBatch, tokens: Array, temperature: float = 1.0
) -> jax.Array:
    """Log-probabilities of completions, as the sampler that drew them reports them.

    Args:
        model: whose mesh holds the rest.
        parameters: of the model.
        batch: P prompts.
        tokens: int `[P, G, T]`, padded on the right with any allowed token; a forbidden one has -inf.
        temperature: that they were drawn with.

    Returns:
        fp32 `[P, G, T]`, in nats; slots behind a completion's end mean nothing.
    """
    module = model.bind(parameters)
    return module.logprobs(module.prefix_extend(batch, tokens), tokens, temperature)[0]
