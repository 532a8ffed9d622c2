"""Rows into parts that share no image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from currreft_jax.data.builders.keyed import uniform
from currreft_jax.structs import Row


@lru_cache(maxsize=1 << 20)
def image_identity(path: str) -> str:
    """The hash of an image file's content; of its path where there is no such file."""
    content = Path(path).read_bytes() if Path(path).is_file() else path.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def identities(row: Row) -> tuple[str, ...]:
    """What makes a row the neighbour of another: its images, or its question where it has none."""
    if row.images:
        return tuple(image_identity(path) for path in row.images)
    text = row.problem or next(turn.text for turn in row.messages if turn.role == "user")
    return (hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),)


def components(rows: Iterable[Row], identify: Callable[[Row], Sequence[str]] = identities) -> list[list[Row]]:
    """Rows that share an image, directly or through other rows, each such group together."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    named = [(row, identify(row)) for row in rows]
    for _, names in named:
        first = find(names[0])
        for name in names[1:]:
            leader[find(name)] = first
    groups: dict[str, list[Row]] = {}
    for row, names in named:
        groups.setdefault(find(names[0]), []).append(row)
    return list(groups.values())


def split_by_image(
    rows: Iterable[Row],
    fractions: Mapping[str, float],
    seed: int,
    identify: Callable[[Row], Sequence[str]] = identities,
) -> dict[str, list[Row]]:
    """Splits rows so that no image stands in two parts.

    Where a group of rows goes depends on the seed and on its images alone: neither the order of the rows nor rows
    added later move it, unless they tie it to another group.

    Args:
        rows: to split.
        fractions: part -> its share of the groups; they sum to 1.
        seed: of the split.
        identify: names what two parts may not share.

    Raises:
        ValueError: the fractions do not sum to 1.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions {dict(fractions)}: they take shares of at least 0 that sum to 1")
    parts: dict[str, list[Row]] = {name: [] for name in fractions}
    for group in components(rows, identify):
        place = uniform(seed, "split", min(name for row in group for name in identify(row)))
        parts[_part(fractions, place)] += group
    return parts


def shared(first: Iterable[Row], second: Iterable[Row]) -> set[str]:
    """The identities that stand on both sides."""
    return {name for row in first for name in identities(row)} & {name for row in second for name in identities(row)}


def _part(fractions: Mapping[str, float], place: float) -> str:
    end, last = 0.0, ""
    for name, share in fractions.items():
        end, last = end + share, name if share else last
        if place < end:
            return name
    return last
