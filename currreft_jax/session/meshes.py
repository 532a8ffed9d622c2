"""The meshes that settings leave open: parameters within a host and a copy on each, decoding in parts of a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from currreft_jax.config import Config, MeshShape, Method, Rule
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.decoder import decoding_tensor
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.runtime.programs import device_bytes
from currreft_jax.runtime.sharding import devices_per_host, make_mesh

_STATE_SHARE = 0.5  # of the memory; gradients, activations and the decoding copy take the rest


def choose_meshes(
    config: Config, architecture: ModelConfig, devices: Sequence[Any], usable_bytes: float | None = None
) -> Config:
    """Chooses `mesh.data` and the tensor axis of `sampling.mesh` where they are 0.

    Args:
        config: all settings.
        architecture: architecture of the model.
        devices: devices of the mesh.
        usable_bytes: bytes per device available to arrays; None if unknown, and then a copy on each host fits.
    """
    mesh, sampling = config.mesh, config.sampling
    if not mesh.data:
        mesh = replace(mesh, data=_num_copies(config, architecture, devices, usable_bytes))
    if not sampling.mesh[1]:
        completions = config.data.batch_size * sampling.group_size
        sampling = replace(sampling, mesh=(-1, decoding_tensor(architecture, devices, completions)))
    return replace(config, mesh=mesh, sampling=sampling)


def _num_copies(config: Config, architecture: ModelConfig, devices: Sequence[Any], usable_bytes: float | None) -> int:
    """Returns the number of hosts if each can hold a copy of the parameters, else 1.

    With a copy on each host only gradients travel between hosts.
    """
    mesh, num_copies = config.mesh, most_copies(config.mesh, devices)
    if num_copies in (-1, 1):
        return num_copies
    with_copies = make_mesh(num_copies, -1, mesh.tensor, devices)
    model = Model(architecture, with_copies, jnp.dtype(config.model.dtype), lora_rank=config.model.lora.rank)
    fits = usable_bytes is None or _state_bytes(config, model) <= _STATE_SHARE * usable_bytes
    return num_copies if fits else 1


def most_copies(mesh: MeshShape, devices: Sequence[Any]) -> int:
    """Returns `mesh.data` for one copy of the parameters on each host; all that `mesh.fsdp` leaves if that is set."""
    per_host = devices_per_host(devices)
    if mesh.fsdp != -1:
        return 1 if mesh.tensor == -1 else -1
    return 1 if per_host % mesh.tensor else len(devices) // per_host


def _state_bytes(config: Config, model: Model) -> float:
    """Bytes per device of the masters, the moments of AdamW and the reference; frozen towers count as trained."""
    masters = device_bytes(model.abstract(jnp.dtype(jnp.float32)))
    per_master = 1.0
    if config.optimizer.rule is Rule.ADAMW and not config.model.lora.rank:
        per_master += 1 + jnp.dtype(config.optimizer.moments).itemsize / 4
    if config.method is Method.GRPO and config.grpo.kl_coef:
        per_master += model.dtype.itemsize / 4
    return masters * per_master
