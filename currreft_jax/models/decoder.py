"""The model as the sampler runs it: one token of every completion at a time, layer by layer without a scan.

A scan slices its layer out of stacked weights, which copies every weight for every token; here each layer's weights and
caches are arrays of their own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from currreft_jax.models.cache import Cache, bits, numbers, stored
from currreft_jax.models.lora import merged_layer
from currreft_jax.models.qwen2_5_vl import Language, Model, Parameters
from currreft_jax.models.text import DecoderLayer, cached_heads, splits_heads
from currreft_jax.runtime.sharding import BATCH, constrain, make_mesh, parameter_sharding, path_of
from currreft_jax.structs import Array, Prefix


class Decoder(Language):
    """The decoder with separate layers. Made by `bind` inside a jitted function."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        super().__init__(model, rngs=rngs)
        config = model.config
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List([DecoderLayer(config, model.mesh, model.adapters, rngs=rngs) for _ in layers])

    def __call__(
        self,
        tokens: jax.Array,
        slot: jax.Array,
        next_position: Array,
        lengths: Array,
        prompts: tuple[Cache, ...],
        suffixes: tuple[Cache, ...],
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Reads one token of every completion.

        Args:
            tokens: int `[P, G]`.
            slot: int32, where they stand in their completions.
            next_position: int32 `[P]`.
            lengths: int32 `[P]`, of the prompts.
            prompts: each layer's cache of the prompts.
            suffixes: each layer's cache of the completions, filled before `slot`.

        Returns:
            `[P, G, D]` after the final norm, which predicts the next token, and the caches with this one.
        """
        x, angles = self.embed(tokens), self.completion_angles(next_position, slot[None])[:, 0]
        real = jnp.arange(prompts[0].values.shape[2]) < jnp.asarray(lengths)[:, None]
        written = []
        for layer, prompt, suffix in zip(self.layers, prompts, suffixes, strict=True):
            x, suffix = layer.decode(x, angles, prompt, real, suffix, slot)
            written.append(suffix)
        return self.norm(x), tuple(written)

    def embed(self, tokens: Array) -> jax.Array:
        """As its parent's; bf16 is looked up by its bits, since CPUs would widen the whole table for every token."""
        table = self.embed_tokens.embedding[...]
        if table.dtype != jnp.bfloat16:
            return super().embed(tokens)
        return constrain(numbers(jnp.take(bits(table), tokens, axis=0)), self.mesh, BATCH)

    def empty(self, prompts: int, group: int, slots: int, dtype: jnp.dtype) -> tuple[Cache, ...]:
        """Each layer's cache for `[prompts, group, slots]` tokens."""
        caches = []
        for layer in self.layers:
            zeros = jnp.zeros((prompts, layer.self_attn.kv_heads, group, slots, self.config.head_dim), self.dtype)
            caches.append(stored(zeros, zeros, dtype))
        return tuple(caches)


@lru_cache(maxsize=16)
def _graph(model: Model) -> tuple[nnx.GraphDef, Parameters]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def bind(decoding: Model, weights: Parameters) -> Decoder:
    """The decoder with these weights; to be called inside a jitted function."""
    return nnx.merge(_graph(decoding)[0], weights)


def decoding_model(model: Model, mesh: tuple[int, int], dtype: jnp.dtype) -> Model:
    """The same model laid out for decoding, without adapters.

    Args:
        model: as it is trained.
        mesh: parts along (data, tensor) over the same devices, one of them -1 for what the other leaves.
        dtype: of weights, activations and products.
    """
    laid_out = make_mesh(mesh[0], 1, mesh[1], list(model.mesh.devices.flat))
    return replace(model, mesh=laid_out, dtype=dtype, lora_rank=0)


def decoding_weights(model: Model, parameters: Parameters, decoding: Model) -> Parameters:
    """The decoder's weights in the decoding layout, layer by layer, adapters merged; the vision tower stays behind.

    Kernels and embeddings are cast, which is what each product does with them anyway; biases and norms stay exact.
    """
    return reshard(model, decoding)(parameters)


@lru_cache(maxsize=16)
def reshard(model: Model, decoding: Model) -> Any:
    """The program of `decoding_weights`."""
    layers = model.config.num_hidden_layers

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x.astype(decoding.dtype) if path_of(path).endswith(("kernel", "embedding")) else x

    def separate(parameters: Parameters) -> Parameters:
        kept = {name: tree for name, tree in parameters.items() if name not in ("visual", "layers")}
        slices = {
            i: merged_layer(model, jax.tree.map(lambda x, i=i: x[i], parameters["layers"])) for i in range(layers)
        }
        return jax.tree_util.tree_map_with_path(cast, {**kept, "layers": slices})

    def layout(path: tuple[Any, ...], x: Any) -> NamedSharding:
        name = path_of(path)
        if not name.startswith("layers/"):
            return parameter_sharding(name, x.shape, decoding.mesh)
        stacked = parameter_sharding(name, (1, *x.shape), decoding.mesh)
        return NamedSharding(decoding.mesh, PartitionSpec(*stacked.spec[1:]))

    shapes = jax.eval_shape(separate, model.abstract(jnp.dtype(jnp.float32)))
    return jax.jit(separate, out_shardings=jax.tree_util.tree_map_with_path(layout, shapes))


def prompt_caches(model: Model, prefix: Prefix, decoding: Model, dtype: jnp.dtype) -> tuple[Cache, ...]:
    """Each layer's cache of the prompts, heads repeated as the decoding mesh wants them."""
    own = model.config.num_key_value_heads
    repeats = tuple(cached_heads(model.config, laid_out.mesh) // own for laid_out in (model, decoding))
    tensor = "tensor" if splits_heads(model.config, decoding.mesh) else None

    def heads_in_front(x: jax.Array) -> jax.Array:
        once = jnp.moveaxis(x[:, :, :: repeats[0]], 2, 1)
        repeated = jnp.repeat(once, repeats[1], axis=1).astype(decoding.dtype)
        return constrain(repeated, decoding.mesh, BATCH, tensor)

    return tuple(
        stored(heads_in_front(prefix.keys[i]), heads_in_front(prefix.values[i]), dtype)
        for i in range(model.config.num_hidden_layers)
    )
