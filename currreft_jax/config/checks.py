"""Demands on settings, and their refusal in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

Demand = tuple[bool, str, object, str]  # whether it is met, the setting, its value, the values it takes


def refuse(prefix: str, demands: Sequence[Demand]) -> None:
    """Raises ValueError for the first demand that is not met, naming the setting and the values it takes."""
    for met, name, value, wanted in demands:
        if not met:
            raise ValueError(f"{prefix}.{name} is {value}; it takes {wanted}")


def is_finite(*values: float) -> bool:
    """Returns true if every value is a finite number."""
    return all(map(math.isfinite, values))


def is_rising(values: Sequence[int]) -> bool:
    """Returns true for at least one number from 1 on, each larger than the one before."""
    return bool(values) and values[0] >= 1 and list(values) == sorted(set(values))


def is_falling_share(values: Sequence[float]) -> bool:
    """Returns true for shares in (0, 1), each smaller than the one before."""
    return all(0 < share < 1 for share in values) and list(values) == sorted(set(values), reverse=True)


def is_range(values: Sequence[float]) -> bool:
    """Returns true for two rising shares."""
    return len(values) == 2 and 0 <= values[0] < values[1] <= 1


def are_members(values: Sequence[object], kind: type[Enum]) -> bool:
    """Returns true if every value is a member of the enum."""
    return all(isinstance(value, kind) for value in values)
