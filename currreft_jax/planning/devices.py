"""The table of devices to plan for, and topologies of them that need no hardware."""

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

from currreft_jax.runtime.devices import DEVICE_MEMORY, device_name
from currreft_jax.runtime.sharding import devices_per_host
from currreft_jax.runtime.timing import memory_limit

_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_CUDA = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities"
_TPU = "https://docs.cloud.google.com/tpu/docs/"
GB, GIB = 10**9, 2**30


class Platform(Enum):
    """A compiler platform; the value is the pip extra that installs its compiler."""

    CUDA = "cuda12"
    TPU = "tpu"


_COMPILER_PACKAGES = {Platform.CUDA: ("jax-cuda12-plugin", "jax-cuda13-plugin"), Platform.TPU: ("libtpu",)}


class MissingCompiler(ModuleNotFoundError):
    """The compiler of a platform is not installed; the message names the extra that brings it."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """The hardware limits of a CUDA device that XLA needs besides its memory.

    Attributes:
        compute_capability: major and minor version.
        num_sms: streaming multiprocessors.
        fp32_lanes: per SM.
        shared_memory: bytes per SM.
        shared_memory_per_block: bytes that one block may request.
        l2_cache: bytes.
        clock_ghz: boost clock.
    """

    compute_capability: tuple[int, int]
    num_sms: int
    fp32_lanes: int
    shared_memory: int
    shared_memory_per_block: int
    l2_cache: int
    clock_ghz: float


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One accelerator, by its vendor's figures.

    Attributes:
        name: device description that XLA gets; on a GPU JAX's `device_kind`.
        platform: compiler platform.
        usable_fraction: fraction of `memory` available to arrays; the runtime keeps the rest.
        bandwidth: memory bandwidth in bytes/s.
        peak_flops: bf16 FLOP/s with fp32 accumulation, dense.
        link_bandwidth: bytes/s sent to the other devices of its host (NVLink) or slice (ICI), all links together.
        sources: URLs of these figures.
        gpu: hardware limits of a CUDA device.
    """

    name: str
    platform: Platform
    usable_fraction: float
    bandwidth: float
    peak_flops: float
    link_bandwidth: float
    sources: tuple[str, ...]
    gpu: GpuSpec | None = None

    @property
    def memory(self) -> int:
        """Bytes that a program sees."""
        return DEVICE_MEMORY[self.name]


_GA100 = GpuSpec((8, 0), 108, 64, 164 * 1024, 163 * 1024, 40 * 2**20, 1.41)
_GH100 = GpuSpec((9, 0), 132, 128, 228 * 1024, 227 * 1024, 50 * 2**20, 1.98)
# On CUDA, launch/env_gpu.sh sets the fraction for arrays; a TPU's compiler reserves its own share and reports it.
_CUDA_USABLE = 0.93

DEVICES: dict[str, DeviceSpec] = {
    "a800": DeviceSpec(  # an A100 with NVLink cut from 600 GB/s to 400, both directions together
        "NVIDIA A800-SXM4-80GB",
        Platform.CUDA,
        _CUDA_USABLE,
        2039e9,
        312e12,
        200e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "a100": DeviceSpec(
        "NVIDIA A100-SXM4-80GB",
        Platform.CUDA,
        _CUDA_USABLE,
        2039e9,
        312e12,
        300e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "a100-40": DeviceSpec(
        "NVIDIA A100-SXM4-40GB",
        Platform.CUDA,
        _CUDA_USABLE,
        1555e9,
        312e12,
        300e9,
        (_A100, _CUDA),
        _GA100,
    ),
    "h100": DeviceSpec(
        "NVIDIA H100 80GB HBM3",
        Platform.CUDA,
        _CUDA_USABLE,
        3350e9,
        989e12,
        450e9,
        (_H100, _CUDA),
        _GH100,
    ),
    "h200": DeviceSpec("NVIDIA H200", Platform.CUDA, _CUDA_USABLE, 4800e9, 989e12, 450e9, (_H200, _CUDA), _GH100),
    "v5e": DeviceSpec("TPU v5e", Platform.TPU, 15.75 / 16, 819e9, 197e12, 200e9, (f"{_TPU}v5e",)),
    "v5p": DeviceSpec("TPU v5p", Platform.TPU, 0.98, 2765e9, 459e12, 600e9, (f"{_TPU}v5p",)),
    "v6e": DeviceSpec("TPU v6e", Platform.TPU, 31.25 / 32, 1640e9, 918e12, 448e9, (f"{_TPU}v6e",)),
}


def device_spec(device: Any) -> DeviceSpec | None:
    """Returns the figures of an attached device; None if the table lacks it."""
    return next((spec for spec in DEVICES.values() if spec.name == device_name(device)), None)


@dataclass(frozen=True, slots=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: such as `a800:2x8`.
        spec: figures of each device; None for attached devices that are not in `DEVICES`.
        devices: JAX devices, real or abstract.
        devices_per_host: consecutive devices that share the links of a host, or of a TPU slice.
        usable_bytes: bytes per device available to arrays; None if unknown.
        compiler_package: the package that compiles for them.
    """

    name: str
    spec: DeviceSpec | None
    devices: Sequence[Any]
    devices_per_host: int
    usable_bytes: float | None
    compiler_package: str = "jaxlib"


def topology_by_name(name: str) -> Topology:
    """Returns a topology by name: `a800:2x8` is two hosts of eight A800s, `v5e:2x4` a slice of TPUs.

    Raises:
        ValueError: no such device or shape.
        MissingCompiler: the compiler for it is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in DEVICES or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(
            f"no topology {name!r}: write GPU:HOSTSxGPUS, such as a800:2x8, or TPU:SLICE_SHAPE, such as v5e:2x4;"
            f" devices are {', '.join(DEVICES)}"
        )
    spec = DEVICES[kind]
    compiler_package = _compiler_package(spec.platform, name)
    is_cuda = spec.platform is Platform.CUDA
    devices = _cuda_devices(spec, name, shape) if is_cuda else _tpu_devices(spec, name)
    usable_bytes = spec.memory * spec.usable_fraction
    return Topology(name, spec, devices, devices_per_host(devices), usable_bytes, compiler_package)


def attached_topology(devices: Sequence[Any] | None = None) -> Topology:
    """Returns the topology of attached devices: by default all of this process and its peers."""
    devices = jax.devices() if devices is None else devices
    spec, usable_bytes = device_spec(devices[0]), memory_limit(devices)
    return Topology(devices[0].device_kind, spec, devices, devices_per_host(devices), usable_bytes)


def _cuda_devices(spec: DeviceSpec, name: str, shape: str) -> Sequence[Any]:
    if shape.count("x") != 1:
        raise ValueError(f"topology {name!r}: write a GPU topology as GPU:HOSTSxGPUS, such as a800:2x8")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check queries a driver
    # JAX expects slices x hosts x devices.
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, topology=f"1x{shape}", target_config=target_config(spec)
    ).devices


def _tpu_devices(spec: DeviceSpec, name: str) -> Sequence[Any]:
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # no cloud metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling opens no device that another process may hold
        "TPU_ACCELERATOR_TYPE": "none",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {name!r}: libtpu knows no such slice of {spec.name}: {error}") from error


def _compiler_package(platform: Platform, name: str) -> str:
    """Returns the installed package that compiles for a platform."""
    for package in _COMPILER_PACKAGES[platform]:
        if find_spec(package.replace("-", "_")):
            return package
    raise MissingCompiler(
        f"{name} needs the compiler of its platform, not its hardware: pip install -e '.[{platform.value}]';"
        " without it, docs/plan.md has the plans of the paper's settings"
    )


def target_config(spec: DeviceSpec) -> str:
    """Formats a CUDA device as XLA's `GpuTargetConfigProto` in text form."""
    gpu = spec.gpu
    assert gpu
    major, minor = gpu.compute_capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.num_sms}
  fpus_per_core: {gpu.fp32_lanes}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.l2_cache}
  memory_bandwidth: {int(spec.bandwidth)}
  device_memory_size: {spec.memory}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
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
device_description_str: "{spec.name}"
"""
