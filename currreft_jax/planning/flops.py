"""Matmul FLOPs of a program, counted in its jaxpr.

XLA counts the body of a scan once, however often it runs, so its count for a scanned model is that of one layer. Here a
body counts once per iteration. Only matrix products count, those within attention's kernels too; everything else is
negligible. A kernel that skips masked scores counts as if it did not, as einsum's products do.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend import core

Jaxpr = core.Jaxpr


def matmul_flops(jaxpr: Jaxpr, iterations: float = 1.0, cond_fraction: float = 1.0) -> float:
    """Counts the FLOPs of all matrix products over the whole mesh, two per multiply-add.

    Args:
        jaxpr: the program.
        iterations: trip count of a `while_loop`, which does not state its own.
        cond_fraction: fraction of `cond`s that take the true branch; a `cond` inside another always takes it.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "dot_general":
                total += _dot_flops(equation)
            case name if name.startswith("dot_product_attention_fwd"):
                total += 2 * _scores_flops(equation)  # scores, and values weighted by them
            case name if name.startswith("dot_product_attention_bwd"):
                total += 5 * _scores_flops(equation)  # scores once more, and the gradients of weights, q, k and v
            case "pallas_call":  # the body runs once for each step of the grid; its `cond`s skip masked blocks
                body = equation.params["jaxpr"]
                total += prod(equation.params["grid_mapping"].grid) * matmul_flops(body, iterations)
            case "shard_map":  # the body is what one device runs
                total += equation.params["mesh"].size * matmul_flops(
                    equation.params["jaxpr"], iterations, cond_fraction
                )
            case "cond":
                if_false, if_true = (matmul_flops(branch.jaxpr, iterations) for branch in equation.params["branches"])
                total += (1 - cond_fraction) * if_false + cond_fraction * if_true
            case "scan":
                body = equation.params["jaxpr"].jaxpr
                total += equation.params["length"] * matmul_flops(body, iterations, cond_fraction)
            case "while":
                body = equation.params["body_jaxpr"].jaxpr
                total += iterations * matmul_flops(body, iterations, cond_fraction)
            case _:
                for inner in _inner_jaxprs(equation.params):
                    total += matmul_flops(inner, iterations, cond_fraction)
    return total


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    (left, _), (out,) = equation.invars, equation.outvars
    return 2.0 * prod(out.aval.shape) * prod(left.aval.shape[axis] for axis in contracted)


def _scores_flops(equation: Any) -> float:
    """Counts one product of cuDNN's attention, `[B, T, N, head]` by `[B, S, K, head]`."""
    (batch, queries, heads, head_dim), (_, keys, _, _) = (x.aval.shape for x in equation.invars[:2])
    return 2.0 * batch * heads * queries * keys * head_dim


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the jaxprs that an equation calls once."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
