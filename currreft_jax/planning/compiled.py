"""Compiles the programs of a step ahead of time, and reads memory, FLOPs and traffic from what XLA returns."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from currreft_jax.planning.devices import Topology
from currreft_jax.planning.flops import matmul_flops
from currreft_jax.planning.hlo import Traffic, hlo_traffic
from currreft_jax.runtime.programs import StepProgram, device_bytes

# XLA autotunes matmul tiles on the device. Without one it finds no tiles for some Triton GEMMs; such a program is
# compiled with cuBLAS for all its products, which takes slightly more memory.
_NO_TILES, CUBLAS_ONLY = "find output tile sizes", {"xla_gpu_enable_triton_gemm": False}
# Error messages of a TPU's compiler that refuses a program: bytes of the whole program, or of its temporaries alone.
_PROGRAM_SIZE = re.compile(r"Used ([\d.]+)([KMGT]?)i?B? of")
_TEMP_SIZE = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)i?B?\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Achieved fraction of a device's peak figures, and the latency of its collectives.

    Attributes:
        compute: fraction of its bf16 peak.
        memory: fraction of its memory bandwidth.
        links: fraction of its link bandwidth within a host or slice.
        network: achieved bytes/s from each device to other hosts.
        latency: seconds of a collective within a host or slice, besides those of its bytes.
        network_latency: the same of a collective that spans hosts.
    """

    compute: float = 0.4
    memory: float = 0.7
    links: float = 0.6
    network: float = 0.8 * 25e9  # one 200 Gb/s adapter per device
    latency: float = 15e-6
    network_latency: float = 50e-6


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """Memory, FLOPs and traffic of a compiled program, per device; FLOPs and traffic are of one call.

    Attributes:
        program: the program that was compiled.
        compile_seconds: including tracing.
        argument_bytes: bytes of its arguments.
        output_bytes: bytes of its outputs, without those that alias a donated argument.
        temp_bytes: bytes of temporaries and code.
        resident_bytes: bytes of other arrays that are alive while it runs, by name.
        flops: FLOPs of its matrix products.
        traffic: bytes moved.
        refused_bytes: bytes that the program needs, if the compiler refused it for lack of memory; else 0.
    """

    program: StepProgram
    compile_seconds: float
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    resident_bytes: dict[str, int]
    flops: float
    traffic: Traffic
    refused_bytes: float = 0.0

    @property
    def peak_bytes(self) -> float:
        """Bytes in use while it runs."""
        own = self.refused_bytes or self.argument_bytes + self.output_bytes + self.temp_bytes
        return own + sum(self.resident_bytes.values())

    def roofline(self, topology: Topology, efficiency: Efficiency) -> dict[str, float]:
        """Seconds of one call by each hardware limit; `seconds` combines them."""
        spec, traffic = topology.spec, self.traffic
        assert spec
        calls = sum(traffic.calls.values())
        return {
            "compute": self.flops / (spec.peak_flops * efficiency.compute),
            "memory": traffic.memory / (spec.bandwidth * efficiency.memory),
            "links": sum(traffic.links.values()) / (spec.link_bandwidth * efficiency.links),
            "network": sum(traffic.network.values()) / efficiency.network,
            "latency": (calls - traffic.network_calls) * efficiency.latency
            + traffic.network_calls * efficiency.network_latency,
        }

    def seconds(self, topology: Topology, efficiency: Efficiency) -> float:
        """Estimates the seconds of one call: the slowest limit hides the others.

        Where each collective is awaited at once, as in decoding, nothing hides its seconds and its latency. Elsewhere
        latency does not count: collectives run while the device computes.
        """
        roofline = self.roofline(topology, efficiency)
        if self.program.awaits_collectives:
            own = max(roofline["compute"], roofline["memory"])
            return own + roofline["links"] + roofline["network"] + roofline["latency"]
        return max(seconds for limit, seconds in roofline.items() if limit != "latency")


def compile_program(program: StepProgram, topology: Topology) -> CompiledProgram:
    """Compiles a program for the devices in its arguments' shardings."""
    start = time.perf_counter()
    traced = program.function.trace(*program.arguments, **program.static)
    argument_bytes = device_bytes(program.arguments)
    resident_bytes = {name: device_bytes(arrays) for name, arrays in program.resident.items()}
    flops = matmul_flops(traced.jaxpr.jaxpr, program.iterations, program.cond_fraction) / len(topology.devices)
    try:
        compiled = _compile(traced)
    except jax.errors.JaxRuntimeError as error:
        refused_bytes, temp_bytes = _size_in_error(_PROGRAM_SIZE, error), _size_in_error(_TEMP_SIZE, error)
        if not refused_bytes and not temp_bytes:
            raise
        return CompiledProgram(
            program=program,
            compile_seconds=time.perf_counter() - start,
            argument_bytes=argument_bytes,
            output_bytes=0,
            temp_bytes=int(temp_bytes),
            resident_bytes=resident_bytes,
            flops=flops,
            traffic=Traffic(),
            refused_bytes=refused_bytes,
        )
    compile_seconds = time.perf_counter() - start
    stats = compiled.memory_analysis()
    return CompiledProgram(
        program=program,
        compile_seconds=compile_seconds,
        argument_bytes=argument_bytes,
        output_bytes=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temp_bytes=stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        resident_bytes=resident_bytes,
        flops=flops,
        traffic=hlo_traffic(compiled.as_text(), topology.devices_per_host, program.iterations, program.cond_fraction),
    )


def _size_in_error(pattern: re.Pattern[str], error: Exception) -> float:
    """Bytes that an error message states; 0 if it states none."""
    found = pattern.search(str(error))
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def _compile(traced: Any) -> Any:
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if _NO_TILES not in str(error):
            raise
    return traced.lower().compile(CUBLAS_ONLY)


def compile_programs(programs: Iterable[StepProgram], topology: Topology) -> Iterator[CompiledProgram]:
    """Compiles programs one after another; a name and shape that was compiled before is skipped."""
    compiled = set()
    for program in programs:
        if (program.name, program.shape) not in compiled:
            compiled.add((program.name, program.shape))
            yield compile_program(program, topology)


def step_seconds(programs: Sequence[CompiledProgram], topology: Topology, efficiency: Efficiency) -> float:
    """Estimates the seconds of a step: the sum over its calls."""
    return sum(compiled.program.times * compiled.seconds(topology, efficiency) for compiled in programs)


def evaluation_seconds(programs: Sequence[CompiledProgram], topology: Topology, efficiency: Efficiency) -> float:
    """Estimates the seconds of a batch of held-out rows; 0 without held-out rows."""
    return sum(compiled.program.evaluation_times * compiled.seconds(topology, efficiency) for compiled in programs)
