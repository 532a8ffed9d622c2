"""LoRA adapters (Hu et al. 2021) of the decoder's kernels: adding them, and merging them into the kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from currreft_jax.models.qwen2_5_vl import Model, Parameters, Qwen2_5_VL

ADAPTER_NAMES = ("lora_a", "lora_b")


def add_adapters(model: Model, parameters: Parameters, seed: int) -> Parameters:
    """Adds fresh fp32 adapters, which have no effect yet, to plain parameters.

    Args:
        model: has a `lora_rank`.
        parameters: without adapters; not copied.
        seed: seed of the adapters, which are the same on every mesh.
    """
    shardings = {path: x.sharding for path, x in _adapter_leaves(model.abstract(jnp.float32)).items()}

    def create() -> dict[tuple[str, ...], Any]:
        module = Qwen2_5_VL(model, rngs=nnx.Rngs(seed))
        return _adapter_leaves(nnx.to_pure_dict(nnx.state(module)))  # XLA removes the other parameters

    return unflatten_dict(flatten_dict(parameters) | jax.jit(create, out_shardings=shardings)())


def merge_adapters(model: Model, parameters: Parameters) -> Parameters:
    """Merges adapters into kernels: `W + alpha / rank * A B`, computed in fp32 and stored in W's dtype.

    Args:
        model: the model as trained, with its adapters.
        parameters: the model's parameters; returned unchanged if they have no adapters.

    Raises:
        ValueError: the parameters have adapters but the model has not.
    """
    if not _adapter_leaves(parameters):
        return parameters
    shardings = jax.tree.map(lambda x: x.sharding, model.merged.abstract(jnp.float32)["layers"])
    merge = jax.jit(jax.vmap(partial(merge_layer_adapters, model)), out_shardings=shardings)
    return {**parameters, "layers": merge(parameters["layers"])}


def merge_layer_adapters(model: Model, layer: Parameters) -> Parameters:
    """Computes `merge_adapters` of one layer. Call inside a jitted function."""
    if "lora_a" not in layer:
        return {name: merge_layer_adapters(model, x) if isinstance(x, dict) else x for name, x in layer.items()}
    if model.adapters is None:
        raise ValueError(
            "the parameters have adapters but the model has not: set its lora_rank and lora_alpha to theirs"
        )
    a, b, kernel = (layer[name].astype(jnp.float32) for name in (*ADAPTER_NAMES, "kernel"))
    kernel += model.adapters.scale * jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
    plain = {name: x for name, x in layer.items() if name not in ADAPTER_NAMES}
    return {**plain, "kernel": kernel.astype(layer["kernel"].dtype)}


def _adapter_leaves(parameters: Parameters) -> dict[tuple[str, ...], Any]:
    flat: dict[Any, Any] = flatten_dict(parameters)
    return {path: x for path, x in flat.items() if path[-1] in ADAPTER_NAMES}
