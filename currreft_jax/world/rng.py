"""Random draws that are the same on every machine.

Python promises reproducible streams for `Random.random()` alone, so every draw here is made of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import TypeVar

T = TypeVar("T")


def hashed_rng(*key: object) -> Random:
    """Returns a generator seeded by a hash of the key."""
    name = "/".join(map(str, key)).encode()
    return Random(int.from_bytes(blake2b(name, digest_size=8).digest(), "big"))


def randint(rng: Random, low: int, high: int) -> int:
    """Draws an integer in [low, high], both ends included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Random, items: Sequence[T]) -> T:
    """Draws one item, all equally likely."""
    return items[randint(rng, 0, len(items) - 1)]


def weighted_pick(rng: Random, weights: Mapping[T, float]) -> T:
    """Draws a key with a probability proportional to its weight."""
    left = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return next(reversed(list(weights)))  # reached when rounding leaves a remainder


def shuffled(rng: Random, items: Iterable[T]) -> list[T]:
    """Returns the items in random order."""
    draws = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(draws, key=lambda draw: draw[0])]
