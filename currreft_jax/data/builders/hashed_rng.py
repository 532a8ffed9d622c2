"""Pseudo-random draws from hashes of names: the same on every machine, whatever the order of the input.

A draw depends only on its names, such as a seed, a row id and a label of the draw. Renaming a label changes the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from currreft_jax.structs import Row

T = TypeVar("T")


def hash64(*names: object) -> int:
    """Returns a 64-bit BLAKE2b hash of a sequence of names."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hash_uniform(*names: object) -> float:
    """Returns a number in (0, 1], so that its logarithm exists."""
    return (hash64(*names) + 0.5) / 2**64


def hash_shuffle(items: Iterable[T], *names: object) -> list[T]:
    """Returns the items sorted by the hashes of `(*names, item)`."""
    return sorted(items, key=lambda item: (hash64(*names, item), str(item)))


def hash_shuffle_rows(rows: Iterable[Row], *names: object) -> list[Row]:
    """Returns the rows sorted by the hashes of `(*names, row.id)`."""
    return sorted(rows, key=lambda row: (hash64(*names, row.id), row.id))
