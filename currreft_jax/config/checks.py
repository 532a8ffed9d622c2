"""Demands on settings, and their refusal in one line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

Demand = tuple[bool, str, object, str]  # whether it is met, the setting, its value, the values it takes

_PLAIN = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


def refuse(prefix: str, demands: Sequence[Demand]) -> None:
    """Raises ValueError for the first demand that is not met, naming the setting and the values it takes."""
    for met, name, value, wanted in demands:
        if not met:
            raise ValueError(f"{prefix}.{name} is {value}; it takes {wanted}")


def refuse_wrong_types(name: str, value: Any, kind: Any) -> None:
    """Refuses values that are not of their field's type, and numbers that are not finite.

    Args:
        name: the setting's name.
        value: settings, or the value of one.
        kind: its type: a dataclass, an enum, a container of others, `X | None`, or a plain type.

    Raises:
        ValueError: naming the first wrong value and what it takes.
    """
    arguments, container = get_args(kind), get_origin(kind)
    if isinstance(kind, UnionType):  # X | None
        if value is not None:
            refuse_wrong_types(name, value, arguments[0])
        return
    if not _is_of_type(value, kind):
        raise ValueError(f"{name} is {value!r}; it takes {describe(kind)}")
    if dataclasses.is_dataclass(kind):
        for field, field_type in field_types(type(value)).items():
            refuse_wrong_types(f"{name}.{field}", getattr(value, field), field_type)
    elif container is dict:
        for key, item in value.items():
            refuse_wrong_types(f"key {key!r} of {name}", key, arguments[0])
            refuse_wrong_types(f"{name}[{key!r}]", item, arguments[1])
    elif container in (list, tuple):
        for index, item in enumerate(value):
            refuse_wrong_types(f"{name}[{index}]", item, arguments[0])


def _is_of_type(value: Any, kind: Any) -> bool:
    """Returns true for a value of a type, without looking into containers; true and false are no numbers."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def describe(kind: Any) -> str:
    """Describes the values of a setting's type."""
    arguments, container = get_args(kind), get_origin(kind)
    if isinstance(kind, UnionType):
        return describe(arguments[0])
    if container is tuple:
        return f"a tuple, as a flag A,B, each {describe(arguments[0])}"
    if container is list:
        return f"a list of {arguments[0].__name__}"
    if container is dict:
        return f"a dictionary, to each name {describe(arguments[1])}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    if issubclass(kind, Enum):
        return f"one of {', '.join(member.name.lower() for member in kind)} (in Python, a member of {kind.__name__})"
    return f"{kind.__name__}, whose settings are {', '.join(field_types(kind))}"


@cache
def field_types(owner: type) -> dict[str, Any]:
    """Returns the type of each field of a dataclass."""
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def is_rising(values: Sequence[int]) -> bool:
    """Returns true for at least one number from 1 on, each larger than the one before."""
    return bool(values) and values[0] >= 1 and list(values) == sorted(set(values))


def is_falling_share(values: Sequence[float]) -> bool:
    """Returns true for shares in (0, 1), each smaller than the one before."""
    return all(0 < share < 1 for share in values) and list(values) == sorted(set(values), reverse=True)


def is_range(values: Sequence[float]) -> bool:
    """Returns true for two rising shares."""
    return len(values) == 2 and 0 <= values[0] < values[1] <= 1


def is_mesh(axes: Sequence[int]) -> bool:
    """Returns true for sizes of a mesh's axes, at most one of them -1: the rest of the devices."""
    return all(size >= 1 or size == -1 for size in axes) and list(axes).count(-1) <= 1
