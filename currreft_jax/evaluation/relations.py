"""Relations between printed figures, such as `[Relative] = 100 * [VLM] / [GPT4]`. Loads no JAX.

`[metric]` is the figure of the same table and model, `[metric @ model]` that of another model in the table. A relation
is two expressions of figures, numbers, + - * / and brackets, with =, < or > between them. Every figure may be off by
half its last digit; a relation is false if no such figures satisfy it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import NoReturn

from currreft_jax.data.fields import LineError
from currreft_jax.evaluation.figures import PrintedFigure

_REFERENCE = re.compile(r"\[([^\[\]@]+)(?:@([^\[\]@]+))?\]")
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SIGNS = {ast.Eq: "=", ast.Lt: "<", ast.Gt: ">"}
_Range = tuple[Fraction, Fraction]  # the least and the largest value
_Figures = dict[tuple[str, str, str], PrintedFigure]  # by table, model and metric


def check_relations(figures: Sequence[PrintedFigure]) -> Iterator[tuple[PrintedFigure, str]]:
    """Yields the figures whose relation is false, and why.

    Raises:
        LineError: a relation is malformed, or names a figure that there is not.
    """
    by_name: _Figures = {}
    for figure in figures:
        by_name.setdefault((figure.table, figure.model, figure.metric), figure)
    for figure in figures:
        if not figure.relation:
            continue
        left, sign, right = _parse(figure, by_name)
        if not _is_satisfiable(left, sign, right):
            yield figure, f"{figure.relation} is false: {_show(left)} {sign} {_show(right)}"


def _parse(figure: PrintedFigure, by_name: _Figures) -> tuple[_Range, str, _Range]:
    references: list[_Range] = []

    def refer(match: re.Match[str]) -> str:
        metric, model = match[1].strip(), (match[2] or figure.model).strip()
        found = by_name.get((figure.table, model, metric))
        if not found:
            _refuse(figure, f"{figure.table} has no {metric!r} of {model or 'a model without name'!r}")
        references.append((found.value - found.half_digit, found.value + found.half_digit))
        return f"_{len(references) - 1}"

    expression = _REFERENCE.sub(refer, figure.relation).replace("=", "==")
    try:
        comparison = ast.parse(expression.strip(), mode="eval").body
        if not isinstance(comparison, ast.Compare) or len(comparison.ops) != 1:
            raise SyntaxError
        left, right = (_evaluate(side, references) for side in (comparison.left, comparison.comparators[0]))
        return left, _SIGNS[type(comparison.ops[0])], right
    except (SyntaxError, LookupError, ValueError, ZeroDivisionError):
        _refuse(figure, f"{figure.relation!r} is no relation; write such as [Relative] = 100 * [VLM] / [GPT4]")


def _refuse(figure: PrintedFigure, problem: str) -> NoReturn:
    raise LineError(f"{figure.file}:{figure.line}", f"relation: {problem}")


def _evaluate(node: ast.expr, references: Sequence[_Range]) -> _Range:
    """Computes the range of an expression; a figure that occurs twice is taken for two."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number)), Fraction(str(number))
        case ast.Name(id=name) if name.startswith("_"):
            return references[int(name[1:])]
        case ast.BinOp(left=left, op=operation, right=right):
            combine: Callable[[Fraction, Fraction], Fraction] = _ARITHMETIC[type(operation)]
            sides = _evaluate(left, references), _evaluate(right, references)
            if isinstance(operation, ast.Div) and sides[1][0] <= 0 <= sides[1][1]:
                raise ZeroDivisionError
            corners = [combine(a, b) for a, b in product(*sides)]
            return min(corners), max(corners)
    raise SyntaxError


def _is_satisfiable(left: _Range, sign: str, right: _Range) -> bool:
    match sign:
        case "<":
            return left[0] < right[1]
        case ">":
            return left[1] > right[0]
    return left[0] <= right[1] and right[0] <= left[1]


def _show(values: _Range) -> str:
    low, high = map(float, values)
    return f"{(low + high) / 2:.4g}"
