"""Memory and network traffic of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, and a compiler plugin without its hardware gives none. Here each
computation counts as often as it runs. Every operation is taken to read its operands and write its result in main
memory, slices only the sliced part; a value that stays in a cache between two operations is counted all the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# What TPUs run as one reduce-scatter is a fused computation: an all-reduce, and the slice of its result.
_TPU_REDUCE_SCATTER = "all-reduce-scatter"
_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "optimization-barrier"}
_FREE |= {"async-start", "async-update", "async-done"}
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "bitcast-convert", "convert", "copy", "get-tuple-element", "reshape", "transpose")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = "S(1)"  # the memory space of a TPU's on-chip memory, in a layout
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of an HLO computation.

    Attributes:
        name: name of the result.
        is_root: whether the computation returns the result.
        size: bytes of the result, summed over a tuple's elements.
        main_memory: bytes of the result that lie in the device's main memory.
        opcode: such as `fusion`.
        operands: names; the index of a parameter, the value of a constant.
        attributes: text after the operands.
    """

    name: str
    is_root: bool
    size: float
    main_memory: float
    opcode: str
    operands: tuple[str, ...]
    attributes: str


Computations = dict[str, list[Instruction]]


class LoopAssumptions(NamedTuple):
    """How often control flow runs whose count the program does not state.

    Attributes:
        iterations: trip count of a `while` without a known one.
        cond_fraction: fraction of conditionals that take the true branch.
    """

    iterations: int
    cond_fraction: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a program moves per device.

    Attributes:
        memory: bytes read and written.
        links: collective -> bytes sent to devices of the same host or slice.
        network: collective -> bytes sent by collectives that span hosts.
        calls: collective -> number of calls.
        network_calls: number of those calls that span hosts.
    """

    memory: float = 0.0
    links: dict[str, float] = field(default_factory=dict)
    network: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    network_calls: float = 0.0

    @property
    def sent(self) -> dict[str, float]:
        """Collective -> bytes sent to any device."""
        return {opcode: self.links.get(opcode, 0.0) + self.network.get(opcode, 0.0) for opcode in self.calls}


def hlo_traffic(text: str, devices_per_host: int, iterations: int = 1, cond_fraction: float = 1.0) -> Traffic:
    """Counts the traffic of a compiled module.

    Args:
        text: HLO of the module.
        devices_per_host: consecutive devices that share a host.
        iterations: trip count of a `while` that does not state its own.
        cond_fraction: fraction of conditionals that take the true branch; one inside another always takes it.
    """
    computations, entry = _parse_module(text)
    runs: dict[tuple[str, bool], float] = defaultdict(float)
    _count_runs(computations, entry, 1.0, False, LoopAssumptions(iterations, cond_fraction), runs)
    memory, network_calls = 0.0, 0.0
    links, network, calls = (defaultdict[str, float](float) for _ in range(3))
    for (name, in_fusion), times in runs.items():
        by_name = {instruction.name: instruction for instruction in computations[name]}
        for instruction in computations[name]:
            if not in_fusion:
                memory += times * _memory_bytes(instruction, by_name, computations)
            if collective := _collective(instruction.opcode):
                is_done = instruction.opcode.endswith("-done")
                start = by_name[instruction.operands[0]] if is_done else instruction
                group_size, spans_hosts = _device_group(start.attributes, devices_per_host)
                size = instruction.size
                if collective == "all-reduce" and name.startswith(_TPU_REDUCE_SCATTER):
                    collective, size = "reduce-scatter", size / group_size
                calls[collective] += times
                network_calls += times * spans_hosts
                sent = times * _sent_bytes(collective, size, group_size)
                (network if spans_hosts else links)[collective] += sent
    return Traffic(memory, links, network, calls, network_calls)


def _collective(opcode: str) -> str | None:
    """Returns the collective that an instruction completes; None for a `-start` and all other opcodes."""
    return next((collective for collective in _COLLECTIVES if opcode in (collective, f"{collective}-done")), None)


# ------------------------------------------------------------------------------------------------------------- parsing


def _parse_module(text: str) -> tuple[Computations, str]:
    """Returns all computations, and the name of the entry."""
    computations: Computations = {}
    entry, instructions = "", []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            instructions = computations.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            instructions.append(_parse_instruction(found[2], found[3], is_root=bool(found[1])))
    return computations, entry


def _parse_instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    shape_end = _bracket_end(text, 0) if text.startswith("(") else text.index(" ")
    shape, call = text[:shape_end], text[shape_end:].lstrip()
    opcode = call[: call.index("(")]
    end = _bracket_end(call, len(opcode))
    inside = call[len(opcode) : end]
    operands = (inside[1:-1],) if opcode in ("parameter", "constant") else tuple(_NAME.findall(inside))
    size, main_memory = _shape_bytes(shape), _shape_bytes(shape, without_layout=_ON_CHIP)
    return Instruction(name, is_root, size, main_memory, opcode, operands, call[end:])


def _bracket_end(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index + 1
    raise ValueError(f"unclosed bracket in {text[:200]!r}")


def _shape_bytes(shape: str, without_layout: str = "nothing") -> float:
    """Bytes of all arrays in a shape, but for those whose layout contains `without_layout`."""
    return sum(
        _num_bits(dtype) / 8 * prod(int(n) for n in axes.split(",") if n)
        for dtype, axes, layout in _ARRAY.findall(shape)
        if without_layout not in layout
    )


def _num_bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])


# -------------------------------------------------------------------------------------------------------- control flow


def _count_runs(
    computations: Computations,
    name: str,
    times: float,
    in_fusion: bool,
    assumptions: LoopAssumptions,
    runs: dict[tuple[str, bool], float],
) -> None:
    """Adds to `runs` how often each computation runs, as (name, whether inside a fusion)."""
    runs[name, in_fusion] += times
    for instruction in computations[name]:
        is_fusion = in_fusion or instruction.opcode == "fusion"
        inner = assumptions._replace(cond_fraction=1.0) if instruction.opcode == "conditional" else assumptions
        for called, times_each in _called_computations(instruction, assumptions, computations):
            _count_runs(computations, called, times * times_each, is_fusion, inner, runs)


def _called_computations(
    instruction: Instruction, assumptions: LoopAssumptions, computations: Computations
) -> Iterator[tuple[str, float]]:
    """Yields the computations that an instruction runs and how often; reducers of scalars are left out."""
    attributes, cond_fraction = instruction.attributes, assumptions.cond_fraction
    if instruction.opcode == "while":
        called = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", attributes))
        known = _TRIP_COUNT.search(attributes)
        body, condition = computations[called["body"]], computations[called["condition"]]
        yield called["body"], float(known[1]) if known else _trip_count(condition, body) or assumptions.iterations
    elif instruction.opcode == "conditional":
        if listed := _BRANCHES.search(attributes):  # the false branch is listed first
            yield from zip(_NAME.findall(listed[1]), (1 - cond_fraction, cond_fraction), strict=True)
        for branch, name in re.findall(r"(true|false)_computation=%?([\w.\-]+)", attributes):
            yield name, cond_fraction if branch == "true" else 1 - cond_fraction
    elif instruction.opcode in ("fusion", "call", "async-start"):
        yield from ((name, 1.0) for name in _CALLED.findall(attributes))


def _trip_count(condition: Sequence[Instruction], body: Sequence[Instruction]) -> int:
    """Returns the trip count of a loop that counts from 0 while below a constant; 0 for any other loop."""
    in_condition = {instruction.name: instruction for instruction in condition}
    root = _root(condition)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
        return 0
    counter, bound = (in_condition[name] for name in root.operands)
    index = _INDEX.search(counter.attributes)
    if bound.opcode != "constant" or not index:
        return 0
    in_body = {instruction.name: instruction for instruction in body}
    updated = in_body[_root(body).operands[int(index[1])]]
    operands = [in_body[name] for name in updated.operands if name in in_body]
    increments = [operand.operands[0] for operand in operands if operand.opcode == "constant"]
    return -(-int(bound.operands[0]) // int(increments[0] if updated.opcode == "add" and increments else 1))


def _root(computation: Sequence[Instruction]) -> Instruction:
    return next(instruction for instruction in computation if instruction.is_root)


# -------------------------------------------------------------------------------------------------------------- memory


def _memory_bytes(instruction: Instruction, by_name: dict[str, Instruction], computations: Computations) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    opcode, size, main_memory = instruction.opcode, instruction.size, instruction.main_memory
    if opcode in _FREE or opcode.endswith("-start"):
        return 0.0
    if opcode.endswith("-done"):
        return size + main_memory
    if opcode in _SLICES:
        return min(size, by_name[instruction.operands[0]].main_memory) + main_memory
    if opcode == "dynamic-update-slice":
        update = by_name[instruction.operands[1]]
        return update.main_memory + min(update.size, main_memory)
    operands = [by_name[name].main_memory for name in instruction.operands if name in by_name]
    if opcode != "fusion":
        return main_memory + sum(operands)
    (called,) = _CALLED.findall(instruction.attributes)
    read, written = _fusion_bytes(computations[called], operands)
    return read + (main_memory if written is None else min(written, main_memory))


def _fusion_bytes(fused: Sequence[Instruction], operands: Sequence[float]) -> tuple[float, float | None]:
    """Bytes that a fusion reads from its operands and writes; None written means the whole result."""
    by_name, origin = {instruction.name: instruction for instruction in fused}, {}
    for instruction in fused:  # views of an operand in another shape or dtype count as that operand
        if instruction.opcode == "parameter":
            origin[instruction.name] = instruction.name
        elif instruction.opcode in _VIEWS and instruction.operands[0] in origin:
            origin[instruction.name] = origin[instruction.operands[0]]
    sliced: dict[str, float] = defaultdict(float)
    read_whole: set[str] = set()
    for instruction in fused:
        for index, name in enumerate(instruction.operands):
            if name not in origin or (instruction.name in origin and not instruction.is_root):
                continue
            if instruction.opcode in _SLICES and index == 0:
                sliced[origin[name]] += instruction.size
            elif not (instruction.opcode == "dynamic-update-slice" and index == 0):
                read_whole.add(origin[name])
    parameters = {int(line.operands[0]): line.name for line in fused if line.opcode == "parameter"}
    read = sum(
        size if parameters[index] in read_whole else min(size, sliced[parameters[index]])
        for index, size in enumerate(operands)
    )
    root = _root(fused)
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    while any(result.opcode == "bitcast" for result in results):
        results = [by_name[result.operands[0]] if result.opcode == "bitcast" else result for result in results]
    if not any(result.opcode == "dynamic-update-slice" for result in results):
        return read, None
    written = [
        by_name[result.operands[1]].size if result.opcode == "dynamic-update-slice" else result.size
        for result in results
    ]
    return read, sum(written)


# --------------------------------------------------------------------------------------------------------- collectives


def _sent_bytes(collective: str, size: float, group_size: int) -> float:
    """Bytes that a device sends in a collective whose result has `size` bytes."""
    others = (group_size - 1) / group_size
    return size * {
        "all-reduce": 2 * others,
        "reduce-scatter": group_size - 1,
        "collective-permute": 1.0,
    }.get(collective, others)


def _device_group(attributes: str, devices_per_host: int) -> tuple[int, bool]:
    """Returns the size of a collective's device groups, and whether any group spans hosts."""
    if "replica_groups=" not in attributes:
        pairs = re.findall(r"\{(\d+),(\d+)\}", attributes.partition("source_target_pairs=")[2])
        return 2, any(int(a) // devices_per_host != int(b) // devices_per_host for a, b in pairs)
    groups = _parse_replica_groups(attributes.partition("replica_groups=")[2])
    hosts = groups // devices_per_host
    return groups.shape[1], bool((hosts != hosts[:, :1]).any())


def _parse_replica_groups(text: str) -> np.ndarray:
    """Parses replica groups `[groups, devices]` in any of XLA's three notations.

    `{{0,1},{2,3}}` lists them; `[2,2]<=[4]` counts up, `[2,2]<=[2,2]T(1,0)` over transposed axes;
    `mesh['a'=2,'b'=2] {'b'}` names the mesh axes of a group, `'b':(1)2` a sub-axis; `device_ids=(...)` before the axes
    gives the devices of the mesh, one by one or as `[2,2]T(1,0)`.
    """
    if text.startswith("mesh["):
        return _parse_mesh_groups(text)
    if found := re.match(rf"\[(\d+),(\d+)\]<={_IOTA}", text):
        return _iota_ids(found[3], found[4]).reshape(int(found[1]), int(found[2]))
    rows = re.findall(r"\{([\d,]+)\}", text.partition("}}")[0] + "}")
    return np.array([[int(n) for n in row.split(",")] for row in rows])


def _parse_mesh_groups(text: str) -> np.ndarray:
    header = text.partition("]")[0]
    axis_sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", header)}
    listed = re.search(r"\]\s*(?:,\s*device_ids=\((.*?)\)\s*(?=\{))?\{([^}]*)\}", text)
    assert listed, text[:200]
    group_axes = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", listed[2])
    indices = _mesh_groups(axis_sizes, group_axes)
    if listed[1] is None:
        return indices
    iota = re.fullmatch(_IOTA, listed[1])
    device_ids = _iota_ids(*iota.groups()) if iota else np.array([int(n) for n in listed[1].split(",")])
    return device_ids[indices]


def _iota_ids(sizes: str, order: str | None) -> np.ndarray:
    """Ids from 0, counted over axes of these sizes, which are then transposed into `order`."""
    axes = [int(n) for n in sizes.split(",")]
    ids = np.arange(prod(axes)).reshape(axes)
    return (ids.transpose([int(n) for n in order.split(",")]) if order else ids).ravel()


def _mesh_groups(axis_sizes: dict[str, int], group_axes: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Returns mesh indices `[groups, devices]` of the groups along axes, each a (name, pre-size, sub-axis size)."""
    shape, group_dims = [], []
    subaxes = {name: (int(before or 1), int(size or axis_sizes[name])) for name, before, size in group_axes}
    for name, size in axis_sizes.items():
        before, own = subaxes.get(name, (size, 1))
        if name in subaxes:
            group_dims.append(len(shape) + 1)
        shape += [before, own, size // before // own]
    ids = np.arange(prod(shape)).reshape(shape)
    other_dims = [dim for dim in range(len(shape)) if dim not in group_dims]
    return ids.transpose([*other_dims, *group_dims]).reshape(-1, prod(shape[dim] for dim in group_dims))
