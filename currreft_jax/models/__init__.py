"""Qwen2.5-VL in Flax. `config` and `folder` load no JAX; the rest does, when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from currreft_jax.models.hf import load as load
    from currreft_jax.models.hf import save as save
    from currreft_jax.models.qwen2_5_vl import Model as Model

_HOME = {"load": "hf", "save": "hf", "Model": "qwen2_5_vl"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
