"""The decoder's layers: the prompt reads itself, completions read their prompt and themselves."""

from __future__ import annotations

from functools import partial
from math import lcm

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.models.attention import Source, attend
from currreft_jax.models.cache import Cache, numbers, written
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.layers import RESIDUAL, Adapters, GatedMLP, Linear, RMSNorm
from currreft_jax.models.rope import rotate
from currreft_jax.runtime.sharding import BATCH, constrain

KeysValues = tuple[jax.Array, jax.Array]


def causal(length: int) -> jax.Array:
    """The causal mask `[queries, keys]`, by index: the position ids of an image repeat.

          k0 k1 k2
      q0   x  .  .
      q1   x  x  .
      q2   x  x  x

    Padding needs no mask of its own where it stands on the right: no real query reaches it.
    """
    return jnp.tril(jnp.ones((length, length), bool))


def splits_heads(config: ModelConfig, mesh: Mesh) -> bool:
    """Whether the tensor axis splits attention by heads."""
    return config.num_attention_heads % mesh.shape["tensor"] == 0


def cached_heads(config: ModelConfig, mesh: Mesh) -> int:
    """Key/value heads as they are cached: so many that every part of the tensor axis holds the ones it needs."""
    own = config.num_key_value_heads
    return lcm(own, mesh.shape["tensor"]) if splits_heads(config, mesh) else own


class Attention(nnx.Module):
    """Grouped-query attention with M-RoPE.

    Keys and values are cached in `kv_heads` heads: where the tensor axis has more parts than the model has key/value
    heads, each head is repeated so that every part holds the ones its queries need.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, adapters: Adapters | None, *, rngs: nnx.Rngs):
        size, head = config.hidden_size, config.head_dim
        self.mesh = mesh
        linear = partial(Linear, adapters=adapters, rngs=rngs)
        self.q_proj = linear((size,), (config.num_attention_heads, head), bias=True)
        self.k_proj = linear((size,), (config.num_key_value_heads, head), bias=True)
        self.v_proj = linear((size,), (config.num_key_value_heads, head), bias=True)
        self.o_proj = linear((config.num_attention_heads, head), (size,), bias=False, gain=RESIDUAL)
        self.splits = splits_heads(config, mesh)
        self.kv_heads = cached_heads(config, mesh)
        self.repeats = self.kv_heads // config.num_key_value_heads

    def project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`[P, ..., D] ->` queries `[P, ..., K, H / K, head]`, keys and values `[P, ..., K, head]`."""
        query = rotate(self.q_proj(x), angles, x.dtype)
        key, value = rotate(self.k_proj(x), angles, x.dtype), self.v_proj(x)
        key, value = (self.constrain_heads(jnp.repeat(a, self.repeats, axis=-2)) for a in (key, value))
        query = self.constrain_heads(query)
        return query.reshape(*query.shape[:-2], self.kv_heads, -1, query.shape[-1]), key, value

    def constrain_heads(self, x: jax.Array) -> jax.Array:
        """Splits the heads of `[P, ..., heads, head]` over the tensor axis where they divide."""
        return constrain(x, self.mesh, BATCH, *(None,) * (x.ndim - 3), "tensor" if self.splits else None)

    def output(self, attended: jax.Array) -> jax.Array:
        """`[..., K, H / K, head] -> [..., D]`."""
        return self.o_proj(attended.reshape(*attended.shape[:-3], -1, attended.shape[-1]))


class DecoderLayer(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ModelConfig, mesh: Mesh, adapters: Adapters | None, *, rngs: nnx.Rngs):
        self.mesh = mesh
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        self.self_attn = Attention(config, mesh, adapters, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, adapters=adapters, rngs=rngs)

    def read_prompts(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, KeysValues]:
        """Each prompt attends to itself.

        Args:
            x: `[P, L, D]`.
            angles: `[P, L, head / 2]`.

        Returns:
            `[P, L, D]` and the keys and values `[P, L, K, head]` for the completions.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        attended = attend("pqkgd", query, Source("pskd", key, value, "qs", causal(x.shape[1])))
        return self.finish(x, attended), (key, value)

    def read_completions(
        self, x: jax.Array, angles: jax.Array, prompt: KeysValues, prompt_mask: jax.Array
    ) -> jax.Array:
        """Each completion attends to its prompt and to itself.

        Args:
            x: `[P, G, T, D]`.
            angles: `[P, 1, T, head / 2]`: all completions of a prompt start at the same position.
            prompt: keys and values `[P, L, K, head]`.
            prompt_mask: bool `[P, L]`, true on real tokens.

        Returns:
            `[P, G, T, D]`.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        attended = attend(
            "pcqkgd",
            query,
            Source("pskd", *prompt, "ps", prompt_mask),
            Source("pcskd", key, value, "qs", causal(x.shape[2])),
        )
        return self.finish(x, attended)

    def decode(
        self, x: jax.Array, angles: jax.Array, prompt: Cache, prompt_mask: jax.Array, suffix: Cache, slot: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """One token of each completion attends to its prompt, to its predecessors and to itself.

        Args:
            x: `[P, G, D]`.
            angles: `[P, 1, head / 2]`.
            prompt: of L slots.
            prompt_mask: bool `[P, L]`.
            suffix: of T slots for each completion, filled before `slot`.
            slot: int32, where these tokens stand.

        Returns:
            `[P, G, D]` and the suffix with these tokens.
        """
        query, key, value = self.self_attn.project(self.input_layernorm(x), angles)
        query, key, value = (jnp.moveaxis(a, 1, 2) for a in (query, key, value))
        suffix = written(suffix, key, value, slot)

        def source(axes: str, cache: Cache, mask_axes: str, mask: jax.Array) -> Source:
            keys = jnp.swapaxes(numbers(cache.keys), -1, -2)
            return Source(axes, keys, numbers(cache.values), mask_axes, mask, cache.key_scale, cache.value_scale)

        seen = jnp.arange(suffix.values.shape[3]) <= slot
        attended = attend(
            "pkcgd",
            query,
            source("pksd", prompt, "ps", prompt_mask),
            source("pkcsd", suffix, "s", seen),
        )
        return self.finish(x, jnp.moveaxis(attended, 2, 1)), suffix

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Both residual additions of the block."""
        x = constrain(x + self.self_attn.output(attended), self.mesh, BATCH)
        return constrain(x + self.mlp(self.post_attention_layernorm(x)), self.mesh, BATCH)
