"""Jitted programs with abstract arguments: what a step exposes to be compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.runtime.sharding import BATCH


@dataclass(frozen=True, slots=True)
class StepProgram:
    """One jitted function of a step, for arguments of one static shape.

    Attributes:
        name: row label in a plan.
        shape: human-readable shape of the batch.
        function: the jitted function that a step calls.
        arguments: abstract arrays with their shardings.
        resident: other abstract arrays that are alive while it runs, by name.
        times: calls per step.
        iterations: trip count of its `while_loop`, which ends when all completions have.
        cond_fraction: fraction of its `cond`s that take the true branch.
        static: static arguments by name.
        awaits_collectives: whether what follows a collective needs its result, so that nothing hides its seconds.
        evaluation_times: calls per batch of held-out rows.
    """

    name: str
    shape: str
    function: Any
    arguments: tuple[Any, ...]
    resident: dict[str, Any]
    times: float = 1.0
    iterations: int = 1
    cond_fraction: float = 1.0
    static: dict[str, int] = field(default_factory=dict)
    awaits_collectives: bool = False
    evaluation_times: float = 0.0

    @property
    def bytes_before(self) -> int:
        """Bytes alive on each device before it runs."""
        return device_bytes(self.arguments) + device_bytes(self.resident)


def device_bytes(tree: Any) -> int:
    """Bytes that abstract or real arrays take on each device."""

    def leaf_bytes(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return prod(shape) * np.dtype(x.dtype).itemsize

    return sum(leaf_bytes(x) for x in jax.tree.leaves(tree))


def abstract_rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns an abstract array whose rows are split over data x fsdp."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(BATCH)))
