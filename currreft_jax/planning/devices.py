"""Devices that can be planned for: the table of what they have, and topologies of them without the hardware."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_CUDA = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities"
_TPU = "https://docs.cloud.google.com/tpu/docs/"
GB, GIB = 10**9, 2**30


class Platform(Enum):
    """Who compiles, and the extra that brings it."""

    CUDA = "cuda12"
    TPU = "tpu"


_COMPILERS = {Platform.CUDA: "jax-cuda12-plugin", Platform.TPU: "libtpu"}


class MissingCompiler(ModuleNotFoundError):
    """What compiles for a platform is not installed; the message names the extra."""


@dataclass(frozen=True, slots=True)
class Chip:
    """What XLA has to know of a CUDA device, besides its memory.

    Attributes:
        capability: compute capability, major and minor.
        processors: streaming multiprocessors.
        lanes: fp32 lanes of each.
        shared: bytes of shared memory of each.
        shared_of_block: bytes of it that a block may ask for.
        cache: bytes of second-level cache.
        clock: GHz.
    """

    capability: tuple[int, int]
    processors: int
    lanes: int
    shared: int
    shared_of_block: int
    cache: int
    clock: float


@dataclass(frozen=True, slots=True)
class Device:
    """One device, by its vendor's figures.

    Attributes:
        name: as XLA is told.
        platform: who compiles for it.
        memory: bytes that a program sees.
        usable: share of them for arrays; the rest is the runtime's.
        bandwidth: of the memory, bytes/s.
        peak: bf16 operations/s with fp32 sums, without sparsity.
        link: bytes/s that it sends to others of its host (NVLink) or slice (ICI), all links together.
        sources: of these figures.
        chip: of a CUDA device.
    """

    name: str
    platform: Platform
    memory: int
    usable: float
    bandwidth: float
    peak: float
    link: float
    sources: tuple[str, ...]
    chip: Chip | None = None


_GA100 = Chip((8, 0), 108, 64, 164 * 1024, 163 * 1024, 40 * 2**20, 1.41)
_GH100 = Chip((9, 0), 132, 128, 228 * 1024, 227 * 1024, 50 * 2**20, 1.98)
# CUDA's arrays get what launch/env_gpu.sh gives them; a TPU's compiler keeps its own share back, and says how much.
_CUDA_USABLE = 0.93

# Memory of CUDA devices: what the driver reports, which is a little below what the data sheet says.
DEVICES: dict[str, Device] = {
    "a800": Device(  # an A100 with NVLink cut from 600 GB/s to 400, both directions together
        "NVIDIA A800-SXM4-80GB",
        Platform.CUDA,
        85_100_068_864,
        _CUDA_USABLE,
        2039e9,
        312e12,
        200e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "a100": Device(
        "NVIDIA A100-SXM4-80GB",
        Platform.CUDA,
        85_100_068_864,
        _CUDA_USABLE,
        2039e9,
        312e12,
        300e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "a100-40": Device(
        "NVIDIA A100-SXM4-40GB",
        Platform.CUDA,
        42_298_834_944,
        _CUDA_USABLE,
        1555e9,
        312e12,
        300e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "h100": Device(
        "NVIDIA H100 80GB HBM3",
        Platform.CUDA,
        84_942_979_072,
        _CUDA_USABLE,
        3350e9,
        989e12,
        450e9,
        (_H100, _CUDA),
        _GH100,
    ),
    "h200": Device(
        "NVIDIA H200", Platform.CUDA, 150_100_000_000, _CUDA_USABLE, 4800e9, 989e12, 450e9, (_H200, _CUDA), _GH100
    ),
    "v5e": Device("TPU v5e", Platform.TPU, 16 * GIB, 15.75 / 16, 819e9, 197e12, 200e9, (f"{_TPU}v5e",)),
    "v5p": Device("TPU v5p", Platform.TPU, 95 * GIB, 0.98, 2765e9, 459e12, 600e9, (f"{_TPU}v5p",)),
    "v6e": Device("TPU v6e", Platform.TPU, 32 * GIB, 31.25 / 32, 1640e9, 918e12, 448e9, (f"{_TPU}v6e",)),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """Devices to plan for.

    Attributes:
        name: such as `a800:2x8`.
        device: what each is.
        devices: JAX's, which may not be there.
        of_host: of them, those that share a host's links, or a TPU slice's.
        usable: bytes of a device for arrays; None where nobody knows.
        compiler: the package that compiles for them.
    """

    name: str
    device: Device | None
    devices: Sequence[Any]
    of_host: int
    usable: float | None
    compiler: str = "jaxlib"


def topology(name: str) -> Slice:
    """Devices by name: `a800:2x8` is two hosts of eight A800s, `v5e:2x4` a slice of TPUs.

    Raises:
        ValueError: no such device or shape.
        MissingCompiler: what compiles for it is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in DEVICES or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(
            f"no topology {name!r}: write HOSTSxGPUS behind a GPU, such as a800:2x8, or the chips of a slice behind a"
            f" TPU, such as v5e:2x4; devices are {', '.join(DEVICES)}"
        )
    device = DEVICES[kind]
    found = {Platform.CUDA: _cuda, Platform.TPU: _tpu}[device.platform](device, name, shape)
    of_host = int(shape.split("x")[1]) if device.platform is Platform.CUDA else len(found)
    return Slice(name, device, found, of_host, device.memory * device.usable, _COMPILERS[device.platform])


def present(devices: Sequence[Any] | None = None) -> Slice:
    """The devices of this machine and its peers, all of them by default."""
    devices = jax.devices() if devices is None else devices
    limits = [it.memory_stats() or {} for it in devices if it.process_index == jax.process_index()]
    usable = min((limit["bytes_limit"] for limit in limits if "bytes_limit" in limit), default=None)
    of_host = sum(it.process_index == devices[0].process_index for it in devices)
    return Slice(devices[0].device_kind, None, devices, of_host, usable)


def _cuda(device: Device, name: str, shape: str) -> Sequence[Any]:
    if not any(find_spec(module) for module in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        raise _missing(Platform.CUDA, name)
    if shape.count("x") != 1:
        raise ValueError(f"topology {name!r}: GPUs are HOSTSxGPUS, such as a800:2x8")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which would ask a driver
    # JAX wants slices x hosts x devices.
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, topology=f"1x{shape}", target_config=target(device)
    ).devices


def _tpu(device: Device, name: str, shape: str) -> Sequence[Any]:
    if not find_spec("libtpu"):
        raise _missing(Platform.TPU, name)
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no cloud machine to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is opened that a second program could want
        "TPU_ACCELERATOR_TYPE": "none",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {name!r}: libtpu knows no such slice of a {device.name}: {error}") from error


def _missing(platform: Platform, name: str) -> MissingCompiler:
    return MissingCompiler(
        f"{name} needs the compiler of its platform, not its hardware: pip install 'currreft_jax[{platform.value}]'"
    )


def target(device: Device) -> str:
    """A CUDA device as XLA's `GpuTargetConfigProto`, in text."""
    chip = device.chip
    assert chip
    major, minor = chip.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {chip.processors}
  fpus_per_core: {chip.lanes}
  clock_rate_ghz: {chip.clock}
  l2_cache_size: {chip.cache}
  memory_bandwidth: {int(device.bandwidth)}
  device_memory_size: {device.memory}
  shared_memory_per_core: {chip.shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {chip.shared_of_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{device.name}"
"""
