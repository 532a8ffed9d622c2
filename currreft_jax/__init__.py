"""Curr-ReFT in JAX/Flax: curriculum reinforcement learning for small vision-language models.

Every name below is loaded when it is first used, so that a host-side part never loads JAX.
"""

import sys
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from currreft_jax.data.packing import collate as collate
    from currreft_jax.data.processor import load as load_processor
    from currreft_jax.models.hf import export as save_hf
    from currreft_jax.models.hf import load as load_model
    from currreft_jax.models.qwen2_5_vl import token_logprobs as token_logprobs
    from currreft_jax.rewards import score_completions as score_completions
    from currreft_jax.runtime.multihost import to_devices as to_devices
    from currreft_jax.runtime.sharding import make_mesh as make_mesh
    from currreft_jax.sampling.sampler import decode_params as decode_params
    from currreft_jax.sampling.sampler import replay as replay
    from currreft_jax.sampling.sampler import sample as sample
    from currreft_jax.training.losses import group_advantages as group_advantages
    from currreft_jax.training.losses import grpo_loss as grpo_loss
    from currreft_jax.training.trainer import run as run

_HOME = {
    "collate": "data.packing:collate",
    "decode_params": "sampling.sampler:decode_params",
    "group_advantages": "training.losses:group_advantages",
    "grpo_loss": "training.losses:grpo_loss",
    "load_model": "models.hf:load",
    "load_processor": "data.processor:load",
    "make_mesh": "runtime.sharding:make_mesh",
    "replay": "sampling.sampler:replay",
    "run": "training.trainer:run",
    "sample": "sampling.sampler:sample",
    "save_hf": "models.hf:export",
    "score_completions": "rewards:score_completions",
    "to_devices": "runtime.multihost:to_devices",
    "token_logprobs": "models.qwen2_5_vl:token_logprobs",
}
__all__ = [
    "collate",
    "decode_params",
    "group_advantages",
    "grpo_loss",
    "load_model",
    "load_processor",
    "make_mesh",
    "replay",
    "run",
    "sample",
    "save_hf",
    "score_completions",
    "to_devices",
    "token_logprobs",
]


def _report_uncaught(kind: type[BaseException], *error: Any) -> None:
    """Prints the traceback of an uncaught exception, unless it is Ctrl-C."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, *error)


if sys.argv[:1] == ["-m"]:  # Python looks for a program of this package, whose imports take seconds
    sys.excepthook = _report_uncaught


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"{__name__}.{_HOME[name]}")


def __dir__() -> list[str]:
    return __all__
