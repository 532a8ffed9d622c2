"""Decoder layers: prefill of the prompts, forward pass of their completions, and decoding of one token."""

from __future__ import annotations

from functools import partial
from math import lcm

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import AttentionKernel
from currreft_jax.models.attention import KVSource, attend
from currreft_jax.models.cache import Cache, bitcast_to_bfloat16, update_cache
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.flash import FlashAttention, Sequences
from currreft_jax.models.layers import RESIDUAL_INIT_SCALE, Adapters, GatedMLP, Linear, RMSNorm
from currreft_jax.models.rope import apply_rope
from currreft_jax.runtime.sharding import BATCH, constrain

KVPair = tuple[jax.Array, jax.Array]  # keys and values


def causal_mask(length: int) -> jax.Array:
    """Makes the causal mask `[queries, keys]` by token index: position ids repeat within an image.

          k0 k1 k2
      q0   x  .  .
      q1   x  x  .
      q2   x  x  x

    Padding on the right needs no mask: no real query attends to it.
    """
    return jnp.tril(jnp.ones((length, length), bool))


def splits_heads(config: ModelConfig, mesh: Mesh) -> bool:
    """Returns true if attention heads are sharded over the tensor axis."""
    return config.num_attention_heads % mesh.shape["tensor"] == 0


def num_cached_heads(config: ModelConfig, mesh: Mesh) -> int:
    """Returns the key/value heads of a cache, repeated so that every tensor shard holds those that its queries use."""
    kv_heads = config.num_key_value_heads
    return lcm(kv_heads, mesh.shape["tensor"]) if splits_heads(config, mesh) else kv_heads


class Attention(nnx.Module):
    """Grouped-query attention with M-RoPE.

    With more tensor shards than key/value heads, each of these heads is repeated so that every shard holds those that
    its queries use; `kv_heads` counts them with the repeats.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, adapters: Adapters | None, kernel: AttentionKernel, *, rngs: nnx.Rngs
    ):
        size, head = config.hidden_size, config.head_dim
        self.mesh = mesh
        linear = partial(Linear, adapters=adapters, rngs=rngs)
        self.q_proj = linear((size,), (config.num_attention_heads, head), bias=True)
        self.k_proj = linear((size,), (config.num_key_value_heads, head), bias=True)
        self.v_proj = linear((size,), (config.num_key_value_heads, head), bias=True)
        self.o_proj = linear((config.num_attention_heads, head), (size,), bias=False, init_scale=RESIDUAL_INIT_SCALE)
        self.splits = splits_heads(config, mesh)
        self.kv_heads = num_cached_heads(config, mesh)
        self.repeats = self.kv_heads // config.num_key_value_heads
        self.flash = FlashAttention(kernel, mesh, "heads" if self.splits else None, causal=True)

    def project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Projects `[P, ..., D]` to queries `[P, ..., K, H / K, head]` and keys and values `[P, ..., K, head]`."""
        query = apply_rope(self.q_proj(x), angles, x.dtype)
        key, value = apply_rope(self.k_proj(x), angles, x.dtype), self.v_proj(x)
        key, value = (self.constrain_heads(jnp.repeat(a, self.repeats, axis=-2)) for a in (key, value))
        query = self.constrain_heads(query)
        return query.reshape(*query.shape[:-2], self.kv_heads, -1, query.shape[-1]), key, value

    def attend_prompts(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Attends causally within each prompt: `[P, L, K, H / K, head]`, keys and values `[P, L, K, head]`."""
        sequences = Sequences(query[:, None], key[:, None], value[:, None])
        if self.flash.takes(sequences):
            return self.flash(sequences)[:, 0]
        return attend("pqkgd", query, KVSource("pskd", key, value, "qs", causal_mask(query.shape[1])), mesh=self.mesh)

    def attend_completions(
        self, query: jax.Array, key: jax.Array, value: jax.Array, prompt: KVPair, prompt_mask: jax.Array
    ) -> jax.Array:
        """Attends to the prompt, and causally within each completion, `[P, G, T, K, H / K, head]`."""
        sequences = Sequences(query, key, value, *prompt, prompt_mask)
        if self.flash.takes(sequences):
            return self.flash(sequences)
        return attend(
            "pcqkgd",
            query,
            KVSource("pskd", *prompt, "ps", prompt_mask),
            KVSource("pcskd", key, value, "qs", causal_mask(query.shape[2])),
            mesh=self.mesh,
        )

    def constrain_heads(self, x: jax.Array) -> jax.Array:
        """Shards the heads of `[P, ..., heads, head]` over the tensor axis, if it divides them."""
        return constrain(x, self.mesh, BATCH, *(None,) * (x.ndim - 3), "tensor" if self.splits else None)

    def output(self, attended: jax.Array) -> jax.Array:
        """Projects `[..., K, H / K, head]` to `[..., D]`."""
        return self.o_proj(attended.reshape(*attended.shape[:-3], -1, attended.shape[-1]))


class DecoderLayer(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, adapters: Adapters | None, kernel: AttentionKernel, *, rngs: nnx.Rngs
    ):
        self.mesh = mesh
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        self.self_attn = Attention(config, mesh, adapters, kernel, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, adapters=adapters, rngs=rngs)

    def prefill(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, KVPair]:
        """Runs the layer on the prompts.

        Args:
            x: `[P, L, D]`.
            angles: fp32 `[P, L, head / 2]`.

        Returns:
            Hidden states `[P, L, D]`, and keys and values `[P, L, K, head]` for the completions.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        return self.finish(x, self.self_attn.attend_prompts(query, key, value)), (key, value)

    def forward_suffix(self, x: jax.Array, angles: jax.Array, prompt: KVPair, prompt_mask: jax.Array) -> jax.Array:
        """Runs the layer on the completions; each attends to its prompt and to itself.

        Args:
            x: `[P, G, T, D]`.
            angles: fp32 `[P, 1, T, head / 2]`, the same for all completions of a prompt.
            prompt: keys and values of the prompts, `[P, L, K, head]`.
            prompt_mask: bool `[P, L]`, false on padding.

        Returns:
            Hidden states `[P, G, T, D]`.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        return self.finish(x, self.self_attn.attend_completions(query, key, value, prompt, prompt_mask))

    def decode(
        self,
        x: jax.Array,
        angles: jax.Array,
        prompt: Cache,
        prompt_mask: jax.Array,
        suffix: Cache,
        suffix_mask: jax.Array,
        place: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Runs the layer on one token of each completion, which attends to its prompt and to the tokens before it.

        Args:
            x: `[P, G, D]`.
            angles: fp32 `[P, 1, head / 2]`.
            prompt: cache of the prompts, L tokens each.
            prompt_mask: bool `[P, L]`, false on padding.
            suffix: cache of the completions.
            suffix_mask: bool `[P, T]`, true on their tokens, with these.
            place: int32 scalar, where these tokens are written.

        Returns:
            Hidden states `[P, G, D]`, and the suffix cache with these tokens.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        query, key, value = (jnp.moveaxis(a, 1, 2) for a in (query, key, value))
        suffix = update_cache(suffix, key, value, place)

        def source(axes: str, cache: Cache, mask_axes: str, mask: jax.Array) -> KVSource:
            keys, values = jnp.swapaxes(bitcast_to_bfloat16(cache.keys), -1, -2), bitcast_to_bfloat16(cache.values)
            return KVSource(axes, keys, values, mask_axes, mask, cache.key_scale, cache.value_scale)

        attended = attend(
            "pkcgd",
            query,
            source("pksd", prompt, "ps", prompt_mask),
            source("pkcsd", suffix, "ps", suffix_mask),
        )
        return self.finish(x, jnp.moveaxis(attended, 2, 1)), suffix

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Adds attention and MLP to the residual stream."""
        x = constrain(x + self.self_attn.output(attended), self.mesh, BATCH)
        return constrain(x + self.mlp(self.post_attention_layernorm(x)), self.mesh, BATCH)
