"""Low-rank adapters (Hu et al. 2021) beside the decoder's kernels: put there, and merged into them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from currreft_jax.models.qwen2_5_vl import Model, Parameters, Qwen2_5_VL

ADAPTERS = ("lora_a", "lora_b")


def adapted(model: Model, parameters: Parameters, seed: int) -> Parameters:
    """Plain parameters with fresh adapters beside them, which change nothing yet.

    Args:
        model: with a `lora_rank`.
        parameters: without adapters; they are not copied.
        seed: of the adapters, fp32, which are the same on every mesh.
    """
    layouts = {path: x.sharding for path, x in _adapters(model.abstract(jnp.float32)).items()}

    def create() -> dict[tuple[str, ...], Any]:
        return _adapters(nnx.to_pure_dict(nnx.state(Qwen2_5_VL(model, rngs=nnx.Rngs(seed)))))  # XLA drops the rest

    return unflatten_dict(flatten_dict(parameters) | jax.jit(create, out_shardings=layouts)())


def merged(model: Model, parameters: Parameters) -> Parameters:
    """Plain parameters that compute the same: kernels `W + alpha / rank * A B`, added in fp32 and kept in W's dtype.

    Args:
        model: as it is trained, with its adapters.
        parameters: of it; without adapters they are returned as they are.

    Raises:
        ValueError: the parameters have adapters, and the model has none.
    """
    if not _adapters(parameters):
        return parameters
    layouts = jax.tree.map(lambda x: x.sharding, replace(model, lora_rank=0).abstract(jnp.float32)["layers"])
    merge = jax.jit(jax.vmap(partial(merged_layer, model)), out_shardings=layouts)
    return {**parameters, "layers": merge(parameters["layers"])}


def merged_layer(model: Model, layer: Parameters) -> Parameters:
    """`merged` of one layer's parameters; to be called inside a jitted function."""
    if "lora_a" not in layer:
        return {name: merged_layer(model, x) if isinstance(x, dict) else x for name, x in layer.items()}
    if model.adapters is None:
        raise ValueError("the parameters have adapters, and the model has none: give it their lora_rank and lora_alpha")
    a, b, kernel = (layer[name].astype(jnp.float32) for name in (*ADAPTERS, "kernel"))
    kernel += model.adapters.scale * jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
    plain = {name: x for name, x in layer.items() if name not in ADAPTERS}
    return {**plain, "kernel": kernel.astype(layer["kernel"].dtype)}


def _adapters(parameters: Parameters) -> dict[tuple[str, ...], Any]:
    flat: dict[Any, Any] = flatten_dict(parameters)
    return {path: x for path, x in flat.items() if path[-1] in ADAPTERS}
