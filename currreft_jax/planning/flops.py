"""Floating-point operations of a program, counted in its jaxpr.

XLA counts the body of a scan once, however often it runs, so that its count of a scanned model is that of one layer.
Here a body counts as often as it runs. Only products count: all else is little beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend import core

Jaxpr = core.Jaxpr


def products(jaxpr: Jaxpr, trips: float = 1.0, taken: float = 1.0) -> float:
    """Operations of all products, two for each multiplication and addition; of the whole mesh.

    Args:
        jaxpr: of the program.
        trips: how often a loop runs that does not say it.
        taken: share of the times that a condition holds; one inside another is taken to hold.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "dot_general":
                total += _dot(equation)
            case "cond":
                otherwise, holds = (products(branch.jaxpr, trips) for branch in equation.params["branches"])
                total += (1 - taken) * otherwise + taken * holds
            case "scan":
                total += equation.params["length"] * products(equation.params["jaxpr"].jaxpr, trips, taken)
            case "while":
                total += trips * products(equation.params["body_jaxpr"].jaxpr, trips, taken)
            case _:
                total += sum(products(inner, trips, taken) for inner in _inside(equation.params))
    return total


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    (left, _), (out,) = equation.invars, equation.outvars
    return 2.0 * prod(out.aval.shape) * prod(left.aval.shape[axis] for axis in contracted)


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls once."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
