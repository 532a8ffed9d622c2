"""The memory of devices by their names, so that a choice by memory is the same planned and attached."""

from __future__ import annotations

from typing import Any

import jax

# Bytes that a program sees. Of CUDA devices as the driver reports them, slightly below the data sheet's.
DEVICE_MEMORY: dict[str, int] = {
    "NVIDIA A800-SXM4-80GB": 85_100_068_864,
    "NVIDIA A100-SXM4-80GB": 85_100_068_864,
    "NVIDIA A100-SXM4-40GB": 42_298_834_944,
    "NVIDIA H100 80GB HBM3": 84_942_979_072,
    "NVIDIA H200": 150_100_000_000,
    "TPU v5e": 16 << 30,
    "TPU v5p": 95 << 30,
    "TPU v6e": 32 << 30,
}
# JAX's `device_kind` of TPUs, where it is not the vendor's name.
_TPU_KINDS = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}


def device_name(device: Any) -> str:
    """Returns the vendor's name of an attached or abstract device."""
    kind: str = device.device_kind
    return _TPU_KINDS.get(kind, kind)


def device_memory(device: Any) -> int | None:
    """Returns a device's bytes: by its name, or else as it reports them; None if neither tells, as on CPUs."""
    known = DEVICE_MEMORY.get(device_name(device))
    if known is not None or device.process_index != jax.process_index():
        return known
    return (device.memory_stats() or {}).get("bytes_limit")
