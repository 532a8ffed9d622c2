"""Checks whether compiled programs fit their devices, and refuses a stage that does not fit the attached ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from currreft_jax.planning.compiled import CompiledProgram, Efficiency, compile_programs
from currreft_jax.planning.devices import GIB, Topology, attached_topology
from currreft_jax.planning.tables import format_tables
from currreft_jax.runtime.programs import StepProgram


def fits(programs: Sequence[CompiledProgram], topology: Topology) -> bool:
    """Returns true if every program fits the devices' memory, or if that memory is unknown."""
    return topology.usable_bytes is None or all(program.peak_bytes <= topology.usable_bytes for program in programs)


class TooLarge(ValueError):
    """A stage does not fit the devices' memory; the message gives the sizes and the remedies."""


def refuse_too_large(programs: Iterable[StepProgram], devices: Sequence[Any]) -> None:
    """Compiles the programs of a step for their devices, before anything is loaded.

    The step reuses these programs without compiling them again. Does nothing if the devices' memory is unknown.

    Raises:
        TooLarge: a program does not fit.
    """
    topology = attached_topology(devices)
    if topology.usable_bytes is None:
        return
    compiled = list(compile_programs(programs, topology))
    if not fits(compiled, topology):
        raise TooLarge(
            f"the largest batch does not fit {topology.usable_bytes / GIB:.2f} GiB per device:\n"
            f"{format_tables(compiled, compiled, topology, Efficiency())}\n"
            "Run `python -m currreft_jax.plan --topology=here` with the same settings to search for some that fit, or"
            " train with --config.plan_first=False until a batch is too large"
        )
