"""The decoder of the sampler: one token of every completion at a time, layers unrolled.

A scan slices its layer out of stacked weights, which copies every weight for every token. Here each layer has weight
and cache arrays of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from currreft_jax.config import AttentionKernel
from currreft_jax.models.cache import Cache, bitcast_to_bfloat16, bitcast_to_uint16, init_cache, ring_mask
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.lora import merge_layer_adapters
from currreft_jax.models.qwen2_5_vl import LanguageModel, Model, Parameters
from currreft_jax.models.sampling import BLOCK_SIZE
from currreft_jax.models.text import DecoderLayer, num_cached_heads, splits_heads
from currreft_jax.runtime.sharding import (
    BATCH,
    constrain,
    devices_per_host,
    parameter_sharding,
    path_of,
    reshape_mesh,
)
from currreft_jax.structs import Array, Prefix

_TENSOR_SIZES = (1, 2, 4, 8)
# Of an A800: it reads 30 MB while a collective within the host takes 15 microseconds, and 12 bytes per byte sent.
_LATENCY_BYTES, _BYTES_PER_SENT_BYTE = 30e6, 12


class Decoder(LanguageModel):
    """The decoder with unstacked layers. Made by `bind_decoder` inside a jitted function."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        super().__init__(model, rngs=rngs)
        config = model.config
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List(
            [DecoderLayer(config, model.mesh, model.adapters, model.kernel, rngs=rngs) for _ in layers]
        )

    def __call__(
        self,
        tokens: jax.Array,
        token_index: jax.Array,
        place: jax.Array,
        next_position: Array,
        lengths: Array,
        prompts: tuple[Cache, ...],
        suffixes: tuple[Cache, ...],
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Decodes one token of every completion.

        Args:
            tokens: int `[P, G]`.
            token_index: int32 `[P]`, index of these tokens in the completions of each prompt.
            place: int32 scalar, where they are cached; see `ring_mask`.
            next_position: int32 `[P]`, position of the first token of a completion.
            lengths: int32 `[P]`, lengths of the prompts.
            prompts: each layer's cache of the prompts.
            suffixes: each layer's cache of the completions, with the tokens before these.

        Returns:
            Hidden states `[P, G, D]` after the final norm, which predict the next tokens; the updated suffix caches.
        """
        positions = jnp.asarray(next_position) + token_index
        x, angles = self.embed(tokens), self.completion_angles(positions, jnp.zeros(1, jnp.int32))[:, 0]
        prompt_mask = jnp.arange(prompts[0].values.shape[2]) < jnp.asarray(lengths)[:, None]
        suffix_mask = ring_mask(place, token_index, suffixes[0].values.shape[3])
        updated = []
        for layer, prompt, suffix in zip(self.layers, prompts, suffixes, strict=True):
            x, suffix = layer.decode(x, angles, prompt, prompt_mask, suffix, suffix_mask, place)
            updated.append(suffix)
        return self.norm(x), tuple(updated)

    def embed(self, tokens: Array) -> jax.Array:
        """Embeds tokens; looks bf16 up as uint16, since CPUs would convert the whole table to fp32 for every token."""
        table = self.embed_tokens.embedding[...]
        if table.dtype != jnp.bfloat16:
            return super().embed(tokens)
        embedded = bitcast_to_bfloat16(jnp.take(bitcast_to_uint16(table), tokens, axis=0))
        return constrain(embedded, self.mesh, BATCH)

    def masked_logits(self, hidden: jax.Array, temperature: float) -> jax.Array:
        """Computes the logits that tokens are sampled from, `[P, G, V]`, split over the tensor axis as the head is.

        V is `decoding_vocab_size`; the columns behind the vocabulary are masked.
        """
        return constrain(super().masked_logits(hidden, temperature), self.mesh, BATCH, None, "tensor")

    def init_caches(self, num_prompts: int, group_size: int, length: int, dtype: jnp.dtype) -> tuple[Cache, ...]:
        """Makes each layer's empty cache for completions of `length` tokens."""
        caches = []
        for layer in self.layers:
            zeros = jnp.zeros(
                (num_prompts, layer.self_attn.kv_heads, group_size, length, self.config.head_dim), self.dtype
            )
            caches.append(init_cache(zeros, zeros, dtype))
        return tuple(caches)


@lru_cache(maxsize=16)
def _graph(model: Model) -> tuple[nnx.GraphDef, Parameters]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def bind_decoder(decoding: Model, weights: Parameters) -> Decoder:
    """Makes the decoder with these weights. Call inside a jitted function."""
    return nnx.merge(_graph(decoding)[0], weights)


def decoding_model(model: Model, mesh: tuple[int, int], dtype: jnp.dtype) -> Model:
    """Returns the model on the decoding mesh, without adapters and kernels of whole sequences.

    Args:
        model: the model as trained.
        mesh: sizes of (data, tensor) over the same devices; -1 in one of them takes the remaining devices, and a tensor
            axis of 0 is `decoding_tensor`'s.
        dtype: dtype of weights and activations.
    """
    data, tensor = mesh
    decoding_mesh = reshape_mesh(model.mesh, data, tensor or decoding_tensor(model.config, model.mesh.devices.flat))
    return replace(model, mesh=decoding_mesh, dtype=dtype, lora_rank=0, attention=AttentionKernel.EINSUM)


def decoding_tensor(config: ModelConfig, devices: Iterable[Any], completions: int = 0) -> int:
    """Returns the tensor parts with which a token of all completions is planned to take the least time.

    With t parts a device reads 1/t of the weights for each token, and the activations of t times as many completions
    cross its links twice a layer. t divides a host's devices and the attention heads, and is at most twice the number
    of key/value heads: with more, the repeated heads make every device read more of the caches.

    Args:
        config: architecture of the model.
        devices: devices of the decoding mesh.
        completions: completions decoded at a time; 0 for few.
    """
    listed = list(devices)
    per_host, largest = devices_per_host(listed), 2 * config.num_key_value_heads
    sizes = [
        size
        for size in _TENSOR_SIZES
        if size <= largest and per_host % size == 0 and config.num_attention_heads % size == 0
    ]

    def token_bytes(tensor: int) -> float:
        """Bytes of memory traffic that take as long as a token."""
        activations = 4 * config.hidden_size * completions * tensor / len(listed)
        sent = 2 * activations * (tensor - 1) / tensor
        all_reduces = 2 * config.num_hidden_layers if tensor > 1 else 0
        return _weight_bytes(config) / tensor + all_reduces * (_LATENCY_BYTES + _BYTES_PER_SENT_BYTE * sent)

    return min(sizes, key=token_bytes)


def _weight_bytes(config: ModelConfig) -> int:
    """Bytes of the bf16 kernels that decoding a token reads."""
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    layer = config.hidden_size * (attention + 3 * config.intermediate_size)
    return 2 * (config.num_hidden_layers * layer + config.vocab_size * config.hidden_size)


def decoding_vocab_size(decoding: Model) -> int:
    """Returns the rows of the decoding head: padded so that every tensor shard has equally many whole blocks.

    151,936 tokens are a prime number of blocks; without padding every device would gather all logits to sample.
    """
    num_shards, vocab_size = decoding.mesh.shape["tensor"], decoding.config.vocab_size
    multiple = BLOCK_SIZE * num_shards if num_shards > 1 else 1
    return -(-vocab_size // multiple) * multiple


def decoding_weights(model: Model, parameters: Parameters, decoding: Model) -> Parameters:
    """Casts and reshards the decoder's parameters for decoding: layers unstacked, adapters merged, no vision tower.

    The embedding and the head have `decoding_vocab_size` rows.
    Kernels and embeddings are cast to the decoding dtype, which every matmul would do anyway; biases and norms are not.
    """
    return decoding_weights_fn(model, decoding)(parameters)


@lru_cache(maxsize=16)
def decoding_weights_fn(model: Model, decoding: Model) -> Any:
    """Returns the jitted function of `decoding_weights`."""
    num_layers = model.config.num_hidden_layers
    padding = decoding_vocab_size(decoding) - model.config.vocab_size

    def pad(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        widths = {"embed_tokens/embedding": ((0, padding), (0, 0)), "lm_head/kernel": ((0, 0), (0, padding))}
        return jnp.pad(x, widths[name]) if padding and (name := path_of(path)) in widths else x

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x.astype(decoding.dtype) if path_of(path).endswith(("kernel", "embedding")) else x

    def separate(parameters: Parameters) -> Parameters:
        others = {name: tree for name, tree in parameters.items() if name not in ("visual", "layers")}
        others = jax.tree_util.tree_map_with_path(pad, others)
        layers = {
            i: merge_layer_adapters(model, jax.tree.map(lambda x, i=i: x[i], parameters["layers"]))
            for i in range(num_layers)
        }
        return jax.tree_util.tree_map_with_path(cast, {**others, "layers": layers})

    def sharding(path: tuple[Any, ...], x: Any) -> NamedSharding:
        name = path_of(path)
        if not name.startswith("layers/"):
            return parameter_sharding(name, x.shape, decoding.mesh)
        stacked = parameter_sharding(name, (1, *x.shape), decoding.mesh)
        return NamedSharding(decoding.mesh, PartitionSpec(*stacked.spec[1:]))

    shapes = jax.eval_shape(separate, model.abstract(jnp.dtype(jnp.float32)))
    return jax.jit(separate, out_shardings=jax.tree_util.tree_map_with_path(sharding, shapes))


def prompt_caches(model: Model, prefix: Prefix, decoding: Model, dtype: jnp.dtype) -> tuple[Cache, ...]:
    """Makes each layer's cache of the prompts, with the key/value heads repeated for the decoding mesh."""
    kv_heads = model.config.num_key_value_heads
    repeats, decoding_repeats = (num_cached_heads(model.config, m.mesh) // kv_heads for m in (model, decoding))
    tensor = "tensor" if splits_heads(model.config, decoding.mesh) else None

    def heads_first(x: jax.Array) -> jax.Array:
        unrepeated = jnp.moveaxis(x[:, :, ::repeats], 2, 1)
        repeated = jnp.repeat(unrepeated, decoding_repeats, axis=1).astype(decoding.dtype)
        return constrain(repeated, decoding.mesh, BATCH, tensor)

    return tuple(
        init_cache(heads_first(prefix.keys[i]), heads_first(prefix.values[i]), dtype)
        for i in range(model.config.num_hidden_layers)
    )
