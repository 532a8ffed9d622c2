"""Checks whether compiled programs fit their devices, and refuses a stage that does not fit the attached ones."""

from __future__ import annotations

from collections.abc import Sequence

from currreft_jax.planning.compiled import CompiledProgram, Efficiency, compile_programs
from currreft_jax.planning.devices import GIB, Topology, attached_topology
from currreft_jax.planning.programs import StagePrograms, batch_buckets, step_programs
from currreft_jax.planning.tables import format_tables


def fits(programs: Sequence[CompiledProgram], topology: Topology) -> bool:
    """True if every program fits the devices' memory, or if that memory is unknown."""
    return topology.usable_bytes is None or all(program.peak_bytes <= topology.usable_bytes for program in programs)


class TooLarge(ValueError):
    """A stage does not fit the devices' memory; the message gives the sizes and the remedies."""


def refuse_too_large(stage: StagePrograms) -> None:
    """Compiles a stage's largest programs for the devices of its mesh, before anything is loaded.

    The step reuses these programs without compiling them again. Does nothing if the devices' memory is unknown.

    Raises:
        TooLarge: a program does not fit.
    """
    topology = attached_topology(list(stage.model.mesh.devices.flat))
    if topology.usable_bytes is None:
        return
    programs = list(compile_programs(step_programs(stage, batch_buckets(stage)[-1]), stage, topology))
    if not fits(programs, topology):
        raise TooLarge(
            f"the largest batch does not fit {topology.usable_bytes / GIB:.2f} GiB per device:\n"
            f"{format_tables(programs, programs, topology, Efficiency())}\n"
            "Run `python -m currreft_jax.plan --topology=here` with the same settings to search for some that fit, or"
            " train with --config.plan_first=False until a batch is too large"
        )
