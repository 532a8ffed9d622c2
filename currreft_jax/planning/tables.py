"""Formats a plan: a summary of the stage and its devices, and tables of memory and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from currreft_jax.config import BatchLayout, Config
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.planning.compiled import CompiledProgram, Efficiency, step_seconds
from currreft_jax.planning.devices import GB, GIB, Topology
from currreft_jax.runtime.programs import device_bytes


def format_summary(
    config: Config,
    stage_index: int,
    model: Model,
    layout: BatchLayout,
    resident: Mapping[str, Any],
    topology: Topology,
    efficiency: Efficiency,
) -> str:
    """Formats the model, the devices, the resident arrays and the assumed efficiency."""
    mesh, spec = model.mesh.shape, topology.spec
    sizes = {name: device_bytes(arrays) for name, arrays in resident.items()}
    packages = dict.fromkeys(("jax", "jaxlib", topology.compiler_package))
    versions = " ".join(f"{package} {metadata.version(package)}" for package in packages)
    count, usable_bytes = model.num_parameters, topology.usable_bytes
    parameters = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
    memory = "unknown memory" if usable_bytes is None else f"{usable_bytes / GIB:.2f} GiB for arrays"
    lines = [
        f"{config.name}, stage {config.stages[stage_index].name}: {parameters} parameters,"
        f" batch {config.data.batch_size} in {layout.microbatches} microbatches, remat {config.model.remat.value}",
        f"{topology.name}: {len(topology.devices)} devices, {memory} each; mesh data {mesh['data']}, fsdp"
        f" {mesh['fsdp']}, tensor {mesh['tensor']}; sampling.mesh {config.sampling.mesh}; {versions}",
        *layout.remarks(config),
        "resident: " + ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items()),
    ]
    if spec:
        lines.append(
            f"at {efficiency.compute:.0%} of {spec.peak_flops / 1e12:g} TFLOP/s, {efficiency.memory:.0%} of"
            f" {spec.bandwidth / GB:g} GB/s, {efficiency.links:.0%} of {spec.link_bandwidth / GB:g} GB/s of links,"
            f" {efficiency.network / GB:g} GB/s between hosts; the slowest limit hides the others; decoding waits for"
            f" collectives, too: {efficiency.latency * 1e6:g} us and their bytes each"
            f" ({efficiency.network_latency * 1e6:g} us between hosts)"
        )
    return "\n".join([*lines, ""])


def format_tables(
    programs: Sequence[CompiledProgram],
    step: Sequence[CompiledProgram],
    topology: Topology,
    efficiency: Efficiency,
) -> str:
    """Formats the memory of programs and, if the devices' figures are known, the speed of a step.

    Args:
        programs: one line each in the table of memory.
        step: the programs of one step, for the table of speed.
        topology: the devices.
        efficiency: achieved fraction of their figures.
    """
    lines = _memory_table(programs, topology)
    if topology.spec:
        lines += ["", *_speed_table(step, topology, efficiency)]
    return "\n".join(lines)


def _memory_table(programs: Sequence[CompiledProgram], topology: Topology) -> list[str]:
    lines = [
        f"{'GiB per device':20}{'arguments':>11}{'results':>9}{'temporary':>11}{'resident':>10}{'peak':>8}"
        f"{'headroom':>10}{'compiled':>10}  shape",
    ]
    for compiled in programs:
        peak = f"{compiled.peak_bytes / GIB:.2f}"
        sizes = (compiled.argument_bytes, compiled.output_bytes, compiled.temp_bytes)
        cells = [f"{size / GIB:.2f}" for size in (*sizes, sum(compiled.resident_bytes.values()))]
        if compiled.refused_bytes:
            cells = ["", "", "", ""]
        row = "".join(f"{cell:>{width}}" for cell, width in zip([*cells, peak], (11, 9, 11, 10, 8), strict=True))
        usable_bytes = topology.usable_bytes
        headroom = "" if usable_bytes is None else f"{(usable_bytes - compiled.peak_bytes) / GIB:.2f}"
        lines.append(
            f"{compiled.program.name:20}{row}{headroom:>10}{compiled.compile_seconds:>8.1f} s  {compiled.program.shape}"
        )
    return lines


def _speed_table(step: Sequence[CompiledProgram], topology: Topology, efficiency: Efficiency) -> list[str]:
    lines = [
        f"{'per device, step':20}{'times':>7}{'TFLOP':>9}{'GB moved':>10}{'GB sent':>9}{'seconds':>9}"
        "  limit    collectives"
    ]
    for compiled in step:
        times, roofline = compiled.program.times, compiled.roofline(topology, efficiency)
        if not times:
            continue
        limits = {name: roofline[name] for name in roofline if compiled.program.awaits_collectives or name != "latency"}
        limit = max(limits, key=limits.__getitem__)
        sent = sum(compiled.traffic.sent.values())
        lines.append(
            f"{compiled.program.name:20}{times:>7g}{times * compiled.flops / 1e12:>9.2f}"
            f"{times * compiled.traffic.memory / GB:>10.1f}{times * sent / GB:>9.2f}"
            f"{times * compiled.seconds(topology, efficiency):>9.3f}"
            f"  {limit:8} {_collectives(compiled)}"
        )
    flops = sum(compiled.program.times * compiled.flops for compiled in step)
    moved = sum(compiled.program.times * compiled.traffic.memory for compiled in step)
    total = step_seconds(step, topology, efficiency)
    lines.append(f"{'step':20}{'':7}{flops / 1e12:>9.2f}{moved / GB:>10.1f}{'':9}{total:>9.3f}")
    return lines


def _collectives(compiled: CompiledProgram) -> str:
    """Returns each collective with its calls and GB sent per step, largest first."""
    times, calls = compiled.program.times, compiled.traffic.calls
    by_size = sorted(compiled.traffic.sent.items(), key=lambda pair: -pair[1])
    return ", ".join(
        f"{collective} x {times * calls[collective]:g} {times * sent / GB:.3g} GB" for collective, sent in by_size
    )
