"""Qwen2.5-VL on groups: `prefix` encodes each prompt once, `forward_suffix` runs its G completions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import AttentionKernel, Remat
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.flash import choose_kernel
from currreft_jax.models.layers import Adapters, Linear, RMSNorm, apply_remat, einsum, split_stack, stack_layers
from currreft_jax.models.logprobs import Head, VocabMask, blockwise_logprobs
from currreft_jax.models.rope import text_angles
from currreft_jax.models.text import DecoderLayer, KVPair
from currreft_jax.models.vision import VisionTower
from currreft_jax.runtime.sharding import BATCH, constrain, gathered, parameter_shardings, rounded
from currreft_jax.structs import Array, Prefix, PromptBatch

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

Parameters = dict[str, Any]


class Embedding(nnx.Module):
    """The token embedding `[V, D]`; also the head if the checkpoint ties them."""

    def __init__(self, vocab_size: int, size: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(size**-0.5 * jax.random.normal(rngs.params(), (vocab_size, size)))


class LanguageModel(nnx.Module):
    """Embedding, final norm and head, shared by training (`Qwen2_5_VL`) and decoding (`Decoder`)."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        config = model.config
        self.config = config
        self.mesh = model.mesh
        self.dtype = model.dtype
        self.vocab_mask = model.vocab_mask
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear((config.hidden_size,), (config.vocab_size,), bias=False, rngs=rngs)

    def embed(self, tokens: Array) -> jax.Array:
        """Embeds tokens, int `[P, ...]`, as `[P, ..., D]`; an fp32 table sums its gradient in fp32."""
        embedded = jnp.take(self.embed_tokens.embedding[...], tokens, axis=0)
        return constrain(rounded(embedded, self.dtype).astype(self.dtype), self.mesh, BATCH)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes fp32 logits `[..., V]` of `[..., D]`. For few tokens; for many use `logprobs`."""
        letters = "abcdef"[: hidden.ndim - 1]
        table, axes = (self.embed_tokens.embedding, "vz") if self.lm_head is None else (self.lm_head.kernel, "zv")
        return einsum(f"{letters}z,{axes}->{letters}v", hidden, table[...])

    def masked_logits(self, hidden: jax.Array, temperature: float) -> jax.Array:
        """Computes the logits `[..., V]` that tokens are sampled from: divided by the temperature and masked."""
        return self.vocab_mask.apply(self.logits(hidden), temperature)

    def completion_angles(self, next_position: Array, token_index: Array) -> jax.Array:
        """Computes the angles of completion tokens, the same for all completions of a prompt.

        Args:
            next_position: int32 `[P]`, position of the first token of a completion.
            token_index: int32 `[T]`, indices of tokens in a completion.

        Returns:
            fp32 `[P, 1, T, head / 2]`.
        """
        config = self.config
        positions = jnp.asarray(next_position)[:, None, None] + token_index
        positions = jnp.broadcast_to(positions, (positions.shape[0], 3, token_index.shape[0]))
        return text_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)[:, None]


class Qwen2_5_VL(LanguageModel):
    """The published architecture. Made by `Model.bind` inside a jitted function."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        super().__init__(model, rngs=rngs)
        config = model.config
        self.remat = model.remat
        self.visual = VisionTower(config.vision, mesh=model.mesh, remat=model.remat, kernel=model.kernel, rngs=rngs)
        self.layers = stack_layers(
            DecoderLayer, config.num_hidden_layers, config, model.mesh, model.adapters, model.kernel, rngs=rngs
        )

    def prefix(self, batch: PromptBatch) -> Prefix:
        """Encodes the images and prefills the prompts, each once."""
        hidden, (keys, values) = self.prefill(batch)
        return Prefix(
            keys=keys,
            values=values,
            lengths=batch.lengths,
            next_position=batch.next_position,
            last_hidden=self.norm(_last_token(hidden, batch.lengths)),
        )

    def forward_suffix(self, prefix: Prefix, tokens: Int[Array, "P G T"]) -> Float[jax.Array, "P G T D"]:
        """Runs the completions of every prompt.

        Args:
            prefix: prefix of the P prompts.
            tokens: completions, padded on the right.

        Returns:
            Hidden states after the final norm. Index t predicts `tokens[..., t]`; index 0 is the
            prefix's `last_hidden`.
        """
        angles = self.completion_angles(prefix.next_position, jnp.arange(tokens.shape[2]))
        mask = _prompt_mask(prefix.lengths, prefix.keys.shape[2])
        make_layer, stack = split_stack(self.layers)

        def layer(x: jax.Array, inputs: tuple[nnx.State, KVPair]) -> tuple[jax.Array, None]:
            parameters, prompt = inputs
            return make_layer(parameters).forward_suffix(x, angles, prompt, mask), None

        inputs = (stack, (prefix.keys, prefix.values))
        hidden, _ = jax.lax.scan(apply_remat(layer, self.remat), self.embed(tokens), inputs)
        return _shift_right(prefix.last_hidden, self.norm(hidden))

    def forward(self, batch: PromptBatch, tokens: Int[Array, "P G T"]) -> Float[jax.Array, "P G T D"]:
        """Computes `forward_suffix(prefix(batch), tokens)` in one scan: FSDP gathers each layer's weights once."""
        angles = self._prompt_angles(batch)
        completion_angles = self.completion_angles(batch.next_position, jnp.arange(tokens.shape[2]))
        mask = _prompt_mask(batch.lengths, batch.tokens.shape[1])
        make_layer, stack = split_stack(self.layers)

        def layer(
            carry: tuple[jax.Array, jax.Array], parameters: nnx.State
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            prompts, completions = carry
            block = make_layer(gathered(parameters, self.mesh, "layers", self.dtype))
            prompts, prompt = block.prefill(prompts, angles)
            return (prompts, block.forward_suffix(completions, completion_angles, prompt, mask)), None

        carry = (self.embed_prompts(batch), self.embed(tokens))
        (prompts, completions), _ = jax.lax.scan(apply_remat(layer, self.remat), carry, stack)
        return _shift_right(self.norm(_last_token(prompts, batch.lengths)), self.norm(completions))

    def prompt_hidden(self, batch: PromptBatch) -> Float[jax.Array, "P L D"]:
        """Computes the hidden states of the prompts after the final norm."""
        return self.norm(self.prefill(batch)[0])

    def logprobs(
        self,
        hidden: Float[jax.Array, "P G T D"],
        tokens: Int[Array, "P G T"],
        temperature: float = 1.0,
        vocab_mask: VocabMask | None = None,
    ) -> tuple[Float32[jax.Array, "P G T"], Float32[jax.Array, "P G T"]]:
        """Computes each token's log-probability and the entropy of its distribution.

        The distribution is the sampler's: softmax of logits / temperature over the allowed tokens. A forbidden token
        has log-probability -inf. The logits never exist all at once, forward or backward.

        Args:
            hidden: index t predicts `tokens[..., t]`.
            tokens: completions.
            temperature: positive.
            vocab_mask: replaces the model's mask.

        Returns:
            Log-probabilities and entropies in nats.
        """
        tied = self.lm_head is None
        table = self.embed_tokens.embedding[...] if self.lm_head is None else self.lm_head.kernel[...]
        hidden = constrain(hidden, self.mesh, BATCH)
        head = Head(tied, self.config.vocab_size, self.mesh, vocab_mask or self.vocab_mask, temperature)
        return blockwise_logprobs(hidden, table, jnp.asarray(tokens), head)

    def prefill(self, batch: PromptBatch) -> tuple[jax.Array, KVPair]:
        """Runs the prompts.

        Returns:
            Hidden states `[P, L, D]` before the final norm; keys and values of every layer, `[layers, P, L, K, head]`.
        """
        angles = self._prompt_angles(batch)
        make_layer, stack = split_stack(self.layers)

        def layer(x: jax.Array, parameters: nnx.State) -> tuple[jax.Array, KVPair]:
            return make_layer(parameters).prefill(x, angles)

        return jax.lax.scan(apply_remat(layer, self.remat), self.embed_prompts(batch), stack)

    def embed_prompts(self, batch: PromptBatch) -> jax.Array:
        """Embeds the prompts, `[P, L, D]`, with image features in place of the placeholders."""
        x = self.embed(batch.tokens)
        if batch.images is None:
            return x
        features = self.visual(batch.images, self.dtype)
        index = jnp.asarray(batch.embed_index)
        shard_index = index.reshape(features.shape[0], -1, 1)
        image_embeddings = jnp.take_along_axis(features, jnp.maximum(shard_index, 0), axis=1).reshape(x.shape)
        return constrain(jnp.where(index[..., None] >= 0, image_embeddings, x), self.mesh, BATCH)

    def _prompt_angles(self, batch: PromptBatch) -> jax.Array:
        config = self.config
        return text_angles(jnp.asarray(batch.positions), config.head_dim, config.rope_theta, config.mrope_section)


def _prompt_mask(lengths: Array, max_length: int) -> jax.Array:
    """Returns bool `[P, L]`, false on padding."""
    return jnp.arange(max_length) < jnp.asarray(lengths)[:, None]


def _last_token(hidden: jax.Array, lengths: Array) -> jax.Array:
    """Returns the hidden state of each prompt's last token, `[P, D]` of `[P, L, D]`."""
    index = jnp.maximum(jnp.asarray(lengths) - 1, 0)
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]


def _shift_right(last_hidden: jax.Array, hidden: jax.Array) -> jax.Array:
    """Puts `last_hidden` in front of all but the last hidden state, so that index t predicts token t."""
    first = jnp.broadcast_to(last_hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[3]))
    return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)


@dataclass(frozen=True)
class Model:
    """A model without its parameters.

    Attributes:
        config: the architecture.
        mesh: devices of the parameters and activations.
        dtype: dtype of activations and matmuls; parameters may have another.
        remat: rematerialisation policy of the backward pass.
        tokenizer_size: number of ids that the tokenizer knows; None for all of the vocabulary.
        lora_rank: rank of the adapters of the decoder's linear layers; 0 for none.
        lora_alpha: scale of the adapters, times their rank.
        attention: kernel of attention over whole sequences.

    Raises:
        ValueError: the devices or the dtype lack that kernel.
    """

    config: ModelConfig
    mesh: Mesh
    dtype: jnp.dtype
    remat: Remat = Remat.NONE
    tokenizer_size: int | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    attention: AttentionKernel = AttentionKernel.AUTO

    def __post_init__(self) -> None:
        choose_kernel(self.attention, self.mesh, self.dtype)  # refuses what the devices lack

    @property
    def kernel(self) -> AttentionKernel:
        """The attention kernel that the setting chooses."""
        return choose_kernel(self.attention, self.mesh, self.dtype)

    @property
    def adapters(self) -> Adapters | None:
        """Ranks and scale of the decoder's adapters."""
        return Adapters(self.lora_rank, self.lora_alpha / self.lora_rank) if self.lora_rank else None

    @property
    def merged(self) -> Model:
        """The model whose adapters are merged into its kernels; itself without adapters."""
        return replace(self, lora_rank=0)

    @property
    def vocab_mask(self) -> VocabMask:
        """The tokens that a completion may contain."""
        size = self.config.vocab_size if self.tokenizer_size is None else self.tokenizer_size
        return VocabMask(size, self.config.forbidden_tokens)

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef, Parameters]:
        module = nnx.eval_shape(lambda: Qwen2_5_VL(self, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(module)
        return graphdef, nnx.to_pure_dict(state)

    def bind(self, parameters: Parameters) -> Qwen2_5_VL:
        """Makes the module with these parameters. Call inside a jitted function."""
        return nnx.merge(self._split[0], parameters)

    def abstract(self, dtype: jnp.dtype) -> Parameters:
        """Returns the shapes and shardings of the parameters, without memory."""
        shapes = self._split[1]
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding),
            shapes,
            parameter_shardings(shapes, self.mesh),
        )

    def init(self, seed: int, dtype: jnp.dtype = jnp.float32) -> Parameters:
        """Makes random parameters on the mesh; they are the same on every mesh."""
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
    model: Model, parameters: Parameters, batch: PromptBatch, tokens: Int[Array, "P G T"], temperature: float = 1.0
) -> Float32[jax.Array, "P G T"]:
    """Computes the log-probabilities of completions under the sampler's distribution.

    Args:
        model: the model.
        parameters: its parameters.
        batch: P prompts.
        tokens: completions, padded on the right with any allowed token; a forbidden one gets -inf.
        temperature: the sampling temperature.

    Returns:
        Log-probabilities in nats; values after the end of a completion are meaningless.
    """
    module = model.bind(parameters)
    return module.logprobs(module.forward(batch, tokens), tokens, temperature)[0]
