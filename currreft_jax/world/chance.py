"""Draws that are the same on every machine: of a seeded `Random` Python promises that for `random()` alone."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(*key: object) -> Random:
    """A source of chance that depends on the key and on nothing else."""
    name = "/".join(map(str, key)).encode()
    return Random(int.from_bytes(blake2b(name, digest_size=8).digest(), "big"))


def whole(rng: Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[whole(rng, 0, len(items) - 1)]


def weighted(rng: Random, weights: Mapping[T, float]) -> T:
    """A key, as often as its weight's share of all weights."""
    left = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return next(reversed(list(weights)))  # the sum of the shares can miss the whole by a rounding


def shuffled(rng: Random, items: Iterable[T]) -> list[T]:
    """The items in any order."""
    keyed = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]
