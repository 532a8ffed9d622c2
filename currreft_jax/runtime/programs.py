"""Jitted programs with abstract arguments: what a step exposes to be compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.runtime.sharding import BATCH


@dataclass(frozen=True, slots=True)
class StepProgram:
    """One program of a training step, for arguments of one static shape.

    Attributes:
        name: of the program.
        shape: of the arguments, for people.
        program: jitted, as the step runs it.
        arguments: abstract, with their shardings.
        resident: the other arrays on the devices while it runs, by name, abstract.
        times: runs in a step.
        iterations: of the program's while loop.
        branch_share: share of the model's conditions that take their costly branch.
    """

    name: str
    shape: str
    program: Any
    arguments: tuple[Any, ...]
    resident: dict[str, Any]
    times: float = 1.0
    iterations: int = 1
    branch_share: float = 1.0

    @property
    def bytes_before(self) -> int:
        """Bytes on each device before it runs."""
        return device_bytes(self.arguments) + device_bytes(self.resident)


def device_bytes(tree: Any) -> int:
    """Counts the bytes that abstract arrays take on each device."""

    def one(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return prod(shape) * np.dtype(x.dtype).itemsize

    return sum(one(x) for x in jax.tree.leaves(tree))


def abstract_rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """An abstract array whose rows are split over data x fsdp."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(BATCH)))
