"""Compiles the programs of a step for devices, and says what they take and how long they should run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from currreft_jax.planning.devices import GB, GIB, Slice, present
from currreft_jax.planning.flops import products
from currreft_jax.planning.hlo import Traffic, traffic
from currreft_jax.runtime.programs import StepProgram, device_bytes

# Products are tuned on the device; without one, XLA has no tiles for some of Triton's, and cuBLAS computes all of that
# program's, with somewhat more memory.
_UNTILED, CUBLAS = "find output tile sizes", {"xla_gpu_enable_triton_gemm": False}
# What a TPU's compiler says when it refuses: of the whole program, or of its temporaries alone.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?)i?B? of")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)i?B?\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Shares:
    """What is reached of a device's figures.

    Attributes:
        compute: of its bf16 peak.
        memory: of its memory's bandwidth.
        links: of its links' to the same host or slice.
        network: bytes/s of each device to other hosts, reached.
    """

    compute: float = 0.4
    memory: float = 0.7
    links: float = 0.6
    network: float = 0.8 * 25e9  # a 200 Gb/s adapter for each device


@dataclass(frozen=True, slots=True)
class Measured:
    """A compiled part; bytes and operations are of one device.

    Attributes:
        part: what was compiled.
        compile_seconds: tracing included.
        arguments: bytes of what it reads.
        results: bytes of what it returns, but for what takes an argument's place.
        temporaries: bytes of what it makes and throws away.
        beside: bytes of what else lies there, by name.
        operations: of its products, each time.
        moved: each time.
        refused: bytes that it would take, where the compiler refuses to go beyond the memory; else 0.
    """

    part: StepProgram
    compile_seconds: float
    arguments: int
    results: int
    temporaries: int
    beside: dict[str, int]
    operations: float
    moved: Traffic
    refused: float = 0.0

    @property
    def peak(self) -> float:
        """Bytes that are taken while it runs."""
        own = self.refused or self.arguments + self.results + self.temporaries
        return own + sum(self.beside.values())

    def seconds(self, place: Slice, shares: Shares) -> dict[str, float]:
        """How long each of its limits takes, each time; what it takes is the longest of them."""
        device = place.device
        assert device
        return {
            "compute": self.operations / (device.peak * shares.compute),
            "memory": self.moved.memory / (device.bandwidth * shares.memory),
            "links": sum(self.moved.links.values()) / (device.link * shares.links),
            "network": sum(self.moved.network.values()) / shares.network,
        }


def measured(part: StepProgram, place: Slice) -> Measured:
    """Compiles a part for the devices that its arguments lie on."""
    full = part.branch_share
    began = time.perf_counter()
    traced = part.program.trace(*part.arguments)
    arguments = device_bytes(part.arguments)
    operations = products(traced.jaxpr.jaxpr, part.iterations, full) / len(place.devices)
    beside = {name: device_bytes(arrays) for name, arrays in part.resident.items()}
    try:
        compiled = _compiled(traced)
    except jax.errors.JaxRuntimeError as error:
        used, temporaries = _told(_USED, error), _told(_TEMPORARIES, error)
        if not used and not temporaries:
            raise
        took = time.perf_counter() - began
        return Measured(part, took, arguments, 0, int(temporaries), beside, operations, Traffic(), used)
    took = time.perf_counter() - began
    stats = compiled.memory_analysis()
    return Measured(
        part=part,
        compile_seconds=took,
        arguments=arguments,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        beside=beside,
        operations=operations,
        moved=traffic(compiled.as_text(), place.of_host, part.iterations, full),
    )


def _told(pattern: re.Pattern[str], error: Exception) -> float:
    found = pattern.search(str(error))
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def _compiled(traced: Any) -> Any:
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if _UNTILED not in str(error):
            raise
    return traced.lower().compile(CUBLAS)


def plan(wanted: Iterable[StepProgram], place: Slice) -> Iterator[Measured]:
    """Compiles one part after the other, those that a bucket before them had left out."""
    seen = set()
    for part in wanted:
        if (part.name, part.shape) not in seen:
            seen.add((part.name, part.shape))
            yield measured(part, place)


def fits(seen: Sequence[Measured], place: Slice) -> bool:
    """Whether all parts fit; where nobody knows the memory, they do."""
    return place.usable is None or all(it.peak <= place.usable for it in seen)


class TooLarge(ValueError):
    """The devices cannot hold what is to be trained; the message says by how much, and what to do."""


def refuse_too_large(programs: Iterable[StepProgram], devices: Sequence[Any]) -> None:
    """Compiles the largest programs for the devices that they will run on.

    The programs are those that will run, and are not compiled again. Where nobody knows the memory, nothing happens.

    Raises:
        TooLarge: they do not fit.
    """
    place = present(devices)
    if place.usable is None:
        return
    seen = list(plan(programs, place))
    if not fits(seen, place):
        raise TooLarge(
            f"the largest batch does not fit {place.usable / GIB:.2f} GiB a device:\n"
            f"{table(seen, seen, place, Shares())}\n"
            "`python -m currreft_jax.plan --topology=here` with the same settings looks for some that fit;"
            " --config.plan_first=False trains all the same, until a batch is too large"
        )


def step_seconds(seen: Sequence[Measured], place: Slice, shares: Shares) -> float:
    """How long a step takes: the sum of its parts, each as long as its longest limit."""
    return sum(it.part.times * max(it.seconds(place, shares).values()) for it in seen)


def table(seen: Sequence[Measured], step: Sequence[Measured], place: Slice, shares: Shares) -> str:
    """One line for each part, and those of a step."""
    lines = [
        f"{'GiB a device':18}{'arguments':>11}{'results':>9}{'temporary':>11}{'beside':>8}{'peak':>8}{'headroom':>10}"
        f"{'compiled':>10}  shape",
    ]
    for it in seen:
        room = "" if place.usable is None else f"{(place.usable - it.peak) / GIB:.2f}"
        sizes = (it.arguments, it.results, it.temporaries, sum(it.beside.values()), it.peak)
        cells = [f"{size / GIB:.2f}" for size in sizes] if not it.refused else ["", "", "", "", f"{it.peak / GIB:.2f}"]
        widths = (11, 9, 11, 8, 8)
        told = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{it.part.name:18}{told}{room:>10}{it.compile_seconds:>8.1f} s  {it.part.shape}")
    if place.device:
        lines += ["", *_speed(step, place, shares)]
    return "\n".join(lines)


def _speed(seen: Sequence[Measured], place: Slice, shares: Shares) -> list[str]:
    lines = [
        f"{'a device, a step':18}{'times':>7}{'TFLOP':>9}{'GB moved':>10}{'GB sent':>9}{'seconds':>9}"
        "  limit    collectives"
    ]
    for it in seen:
        if not it.part.times:
            continue
        times, limits = it.part.times, it.seconds(place, shares)
        limit = max(limits, key=limits.__getitem__)
        sent = sum(it.moved.sent.values())
        lines.append(
            f"{it.part.name:18}{times:>7g}{times * it.operations / 1e12:>9.2f}{times * it.moved.memory / GB:>10.1f}"
            f"{times * sent / GB:>9.2f}{times * limits[limit]:>9.3f}  {limit:8} {_collectives(it)}"
        )
    operations = sum(it.part.times * it.operations for it in seen)
    moved = sum(it.part.times * it.moved.memory for it in seen)
    whole = step_seconds(seen, place, shares)
    lines.append(f"{'step':18}{'':7}{operations / 1e12:>9.2f}{moved / GB:>10.1f}{'':9}{whole:>9.3f}")
    return lines


def _collectives(it: Measured) -> str:
    """Each kind, how often it runs in a step, and what it sends in one."""
    told = sorted(it.moved.sent.items(), key=lambda pair: -pair[1])
    return ", ".join(
        f"{kind} x {it.part.times * it.moved.calls[kind]:g} {it.part.times * sent / GB:.3g} GB" for kind, sent in told
    )
