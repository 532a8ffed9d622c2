"""Randomness that depends on names and not on order: the same on every machine, however the input is shuffled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from currreft_jax.structs import Row

T = TypeVar("T")


def digest(*names: object) -> int:
    """64 bits for a sequence of names."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform(*names: object) -> float:
    """A number in (0, 1)."""
    return (digest(*names) + 0.5) / 2**64


def shuffled(items: Iterable[T], *names: object) -> list[T]:
    """The items in an order of their own names' making."""
    return sorted(items, key=lambda item: (digest(*names, item), str(item)))


def ranked(rows: Iterable[Row], *names: object) -> list[Row]:
    """Rows in the order of their ids' digests."""
    return sorted(rows, key=lambda row: (digest(*names, row.id), row.id))
