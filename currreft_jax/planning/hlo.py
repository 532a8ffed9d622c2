"""What a compiled program moves, read from its text: bytes of memory, and bytes between devices.

XLA's own count takes the body of a loop once, and a plugin without its hardware gives none. Here each computation
counts as often as it runs. Memory: every operation reads its operands and writes its result, slices what they take;
what stays in a cache between two operations counts all the same.
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
_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while", "conditional", "call", "iota"}
_FREE |= {
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "async-start",
    "async-update",
    "async-done",
}
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "bitcast-convert", "convert", "copy", "get-tuple-element", "reshape", "transpose")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_NEAR = "S(1)"  # a TPU's memory beside its units, in a layout
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: of its result.
        root: whether the computation returns it.
        size: bytes of the result, all parts of a tuple together.
        stored: of them, those in the device's main memory.
        kind: of the operation.
        operands: names; of a parameter its number, of a constant its value.
        rest: attributes, as text.
    """

    name: str
    root: bool
    size: float
    stored: float
    kind: str
    operands: tuple[str, ...]
    rest: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a program moves on each device.

    Attributes:
        memory: bytes read and written.
        links: kind of collective -> bytes sent to devices of the same host or slice.
        network: likewise, by collectives that reach other hosts.
        calls: kind of collective -> how often it runs.
    """

    memory: float = 0.0
    links: dict[str, float] = field(default_factory=dict)
    network: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)

    @property
    def sent(self) -> dict[str, float]:
        """Kind of collective -> bytes sent to any device."""
        return {kind: self.links.get(kind, 0.0) + self.network.get(kind, 0.0) for kind in self.calls}


def traffic(text: str, of_host: int, trips: int = 1, taken: float = 1.0) -> Traffic:
    """Reads a compiled module.

    Args:
        text: of it.
        of_host: consecutive devices that share a host.
        trips: how often a loop runs that does not say it.
        taken: share of the times that a condition holds; one inside another is taken to hold.
    """
    computations, entry = _parsed(text)
    runs: dict[tuple[str, bool], float] = defaultdict(float)
    _count(computations, entry, 1.0, False, (trips, taken), runs)
    memory, (links, network, calls) = 0.0, (defaultdict[str, float](float) for _ in range(3))
    for (name, fused), times in runs.items():
        lines = {it.name: it for it in computations[name]}
        for it in computations[name]:
            if not fused:
                memory += times * _moved(it, lines, computations)
            if kind := next((kind for kind in _COLLECTIVES if it.kind in (kind, f"{kind}-done")), None):
                start = lines[it.operands[0]] if it.kind.endswith("-done") else it
                size, crosses = _groups(start.rest, of_host)
                calls[kind] += times
                (network if crosses else links)[kind] += times * _sent(kind, it.size, size)
    return Traffic(memory, links, network, calls)


def _parsed(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif found := _LINE.match(line):
            kind_at = _end(found[3], 0) if found[3].startswith("(") else found[3].index(" ")
            shape, call = found[3][:kind_at], found[3][kind_at:].lstrip()
            kind = call[: call.index("(")]
            end = _end(call, len(kind))
            inside = call[len(kind) : end]
            operands = (inside[1:-1],) if kind in ("parameter", "constant") else tuple(_NAME.findall(inside))
            size, stored = _size(shape), _size(shape, _NEAR)
            lines.append(Instruction(found[2], bool(found[1]), size, stored, kind, operands, call[end:]))
    return computations, entry


def _end(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index + 1
    raise ValueError(f"unclosed bracket in {text[:200]!r}")


def _size(shape: str, without: str = "nothing") -> float:
    return sum(
        _bits(kind) / 8 * prod(int(n) for n in axes.split(",") if n)
        for kind, axes, layout in _ARRAY.findall(shape)
        if without not in layout
    )


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])


def _count(
    computations: dict[str, list[Instruction]],
    name: str,
    times: float,
    fused: bool,
    how: tuple[int, float],
    runs: dict[tuple[str, bool], float],
) -> None:
    """Adds how often each computation runs."""
    runs[name, fused] += times
    for it in computations[name]:
        inside = (how[0], 1.0) if it.kind == "conditional" else how
        for called, share in _called(it, how, computations):
            _count(computations, called, times * share, fused or it.kind == "fusion", inside, runs)


def _called(
    it: Instruction, how: tuple[int, float], computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, float]]:
    """The computations that an instruction runs, and how often; what is applied to single numbers left out."""
    trips, taken = how
    if it.kind == "while":
        found = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", it.rest))
        known = _TRIPS.search(it.rest)
        yield (
            found["body"],
            float(known[1])
            if known
            else _counted(computations[found["condition"]], computations[found["body"]]) or trips,
        )
    elif it.kind == "conditional":
        if listed := _BRANCHES.search(it.rest):  # the first is taken where the condition does not hold
            yield from zip(_NAME.findall(listed[1]), (1 - taken, taken), strict=True)
        for holds, name in re.findall(r"(true|false)_computation=%?([\w.\-]+)", it.rest):
            yield name, taken if holds == "true" else 1 - taken
    elif it.kind in ("fusion", "call", "async-start"):
        yield from ((name, 1.0) for name in _CALLED.findall(it.rest))


def _counted(condition: Sequence[Instruction], body: Sequence[Instruction]) -> int:
    """How often a loop runs whose condition is that its counter, which starts at 0, is below a number. Else 0."""
    lines = {it.name: it for it in condition}
    root = next(it for it in condition if it.root)
    if root.kind != "compare" or "direction=LT" not in root.rest:
        return 0
    counter, bound = (lines[name] for name in root.operands)
    place = _INDEX.search(counter.rest)
    if bound.kind != "constant" or not place:
        return 0
    inside = {it.name: it for it in body}
    after = inside[next(it for it in body if it.root).operands[int(place[1])]]
    steps = [inside[name].operands[0] for name in after.operands if name in inside and inside[name].kind == "constant"]
    return -(-int(bound.operands[0]) // int(steps[0] if after.kind == "add" and steps else 1))


def _moved(it: Instruction, lines: dict[str, Instruction], computations: dict[str, list[Instruction]]) -> float:
    if it.kind in _FREE or it.kind.endswith("-start"):
        return 0.0
    if it.kind.endswith("-done"):
        return it.size + it.stored
    if it.kind in _SLICES:
        return min(it.size, lines[it.operands[0]].stored) + it.stored
    if it.kind == "dynamic-update-slice":
        update = lines[it.operands[1]]
        return update.stored + min(update.size, it.stored)
    operands = [lines[name].stored for name in it.operands if name in lines]
    if it.kind != "fusion":
        return it.stored + sum(operands)
    (called,) = _CALLED.findall(it.rest)
    read, written = _fusion(computations[called], operands)
    return read + (it.stored if written is None else min(written, it.stored))


def _fusion(inside: Sequence[Instruction], operands: Sequence[float]) -> tuple[float, float | None]:
    """Bytes that a fusion reads of its operands, and writes; None for the whole result."""
    lines, origin = {it.name: it for it in inside}, {}
    for it in inside:  # an operand, in whatever shape or precision, is one thing
        if it.kind == "parameter":
            origin[it.name] = it.name
        elif it.kind in _VIEWS and it.operands[0] in origin:
            origin[it.name] = origin[it.operands[0]]
    taken: dict[str, float] = defaultdict(float)
    whole: set[str] = set()
    for it in inside:
        for place, name in enumerate(it.operands):
            if name not in origin or (it.name in origin and not it.root):
                continue
            if it.kind in _SLICES and place == 0:
                taken[origin[name]] += it.size
            elif not (it.kind == "dynamic-update-slice" and place == 0):
                whole.add(origin[name])
    names = {int(it.operands[0]): it.name for it in inside if it.kind == "parameter"}
    read = sum(size if names[n] in whole else min(size, taken[names[n]]) for n, size in enumerate(operands))
    root = next(it for it in inside if it.root)
    roots = [lines[name] for name in root.operands] if root.kind == "tuple" else [root]
    while any(it.kind == "bitcast" for it in roots):
        roots = [lines[it.operands[0]] if it.kind == "bitcast" else it for it in roots]
    if not any(it.kind == "dynamic-update-slice" for it in roots):
        return read, None
    return read, sum(lines[it.operands[1]].size if it.kind == "dynamic-update-slice" else it.size for it in roots)


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that a device sends, from those of its result."""
    others = (group - 1) / group
    return size * {
        "all-reduce": 2 * others,
        "reduce-scatter": group - 1,
        "collective-permute": 1.0,
    }.get(kind, others)


def _groups(rest: str, of_host: int) -> tuple[int, bool]:
    """Devices of a collective's group, and whether any group reaches beyond a host."""
    if "replica_groups=" not in rest:
        pairs = re.findall(r"\{(\d+),(\d+)\}", rest.partition("source_target_pairs=")[2])
        return 2, any(int(a) // of_host != int(b) // of_host for a, b in pairs)
    groups = _members(rest.partition("replica_groups=")[2])
    return groups.shape[1], bool((groups // of_host != groups[:, :1] // of_host).any())


def _members(text: str) -> np.ndarray:
    """Groups `[groups, devices]` in any of XLA's three notations.

    `{{0,1},{2,3}}` lists them; `[2,2]<=[4]` counts on, `[2,2]<=[2,2]T(1,0)` over swapped axes; and
    `mesh['a'=2,'b'=2] {'b'}` names the axes that a group runs along, `'b':(2)2` a part of one; `device_ids=(...)`
    before them says which devices the mesh has, one by one or as `[2,2]T(1,0)`.
    """
    if text.startswith("mesh["):
        sizes = [int(n) for n in re.findall(r"'=(\d+)", text.partition("]")[0])]
        names = re.findall(r"'([^']+)'=", text.partition("]")[0])
        listed = re.search(r"\]\s*(?:,\s*device_ids=\((.*?)\)\s*(?=\{))?\{([^}]*)\}", text)
        assert listed, text[:200]
        along = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", listed[2])
        places = _along(dict(zip(names, sizes, strict=True)), along)
        if listed[1] is None:
            return places
        counted = re.fullmatch(_IOTA, listed[1])
        return (_iota(*counted.groups()) if counted else np.array([int(n) for n in listed[1].split(",")]))[places]
    if found := re.match(rf"\[(\d+),(\d+)\]<={_IOTA}", text):
        return _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))
    return np.array(
        [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", text.partition("}}")[0] + "}")]
    )


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """Numbers from 0, counted over axes of these sizes that are then put into this order."""
    axes = [int(n) for n in sizes.split(",")]
    ids = np.arange(prod(axes)).reshape(axes)
    return (ids.transpose([int(n) for n in order.split(",")]) if order else ids).ravel()


def _along(sizes: dict[str, int], along: Sequence[tuple[str, str, str]]) -> np.ndarray:
    split, chosen = [], []
    parts = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in along}
    for name, size in sizes.items():
        before, own = parts.get(name, (size, 1))
        if name in parts:
            chosen.append(len(split) + 1)
        split += [before, own, size // before // own]
    ids = np.arange(prod(split)).reshape(split)
    rest = [axis for axis in range(len(split)) if axis not in chosen]
    return ids.transpose([*rest, *chosen]).reshape(-1, prod(split[axis] for axis in chosen))
