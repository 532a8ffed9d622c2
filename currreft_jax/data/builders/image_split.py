"""Splits of rows that share no image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from currreft_jax.data.builders.hashed_rng import hash_uniform
from currreft_jax.structs import Row

T = TypeVar("T")


@lru_cache(maxsize=1 << 20)
def image_hash(path: str) -> str:
    """Returns the hash of an image file's content; of its path if there is no such file."""
    content = Path(path).read_bytes() if Path(path).is_file() else path.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def group_keys(row: Row) -> tuple[str, ...]:
    """Returns the hashes of a row's images, or of its question if it has none; rows with a common key stay together."""
    if row.images:
        return tuple(image_hash(path) for path in row.images)
    text = row.problem or next(turn.text for turn in row.messages if turn.role == "user")
    return (hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),)


def connected_groups(rows: Iterable[T], keys_of: Callable[[T], Sequence[str]]) -> list[list[T]]:
    """Groups rows that share a key, directly or through other rows (union-find)."""
    parent: dict[str, str] = {}

    def find_root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keyed_rows = [(row, keys_of(row)) for row in rows]
    for _, keys in keyed_rows:
        root = find_root(keys[0])
        for key in keys[1:]:
            parent[find_root(key)] = root
    groups: dict[str, list[T]] = {}
    for row, keys in keyed_rows:
        groups.setdefault(find_root(keys[0]), []).append(row)
    return list(groups.values())


def split_by_image(
    rows: Iterable[Row],
    fractions: Mapping[str, float],
    seed: int,
    keys_of: Callable[[Row], Sequence[str]] = group_keys,
) -> dict[str, list[Row]]:
    """Splits rows so that no image is in two splits.

    The split of a group depends only on the seed and on the group's images. The order of the rows and rows added later
    do not move it, unless they connect it to another group.

    Args:
        rows: rows to split.
        fractions: split -> its fraction of the groups; they sum to 1.
        seed: seed of the draws.
        keys_of: returns the keys of a row that no two splits may share.

    Raises:
        ValueError: the fractions do not sum to 1.
    """
    if not fractions or min(fractions.values()) < 0 or not abs(sum(fractions.values()) - 1) <= 1e-6:
        raise ValueError(f"fractions {dict(fractions)}: they take fractions of at least 0 that sum to 1")
    splits: dict[str, list[Row]] = {name: [] for name in fractions}
    for group in connected_groups(rows, keys_of):
        draw = hash_uniform(seed, "split", min(key for row in group for key in keys_of(row)))
        splits[_split_of(draw, fractions)] += group
    return splits


def describe_split(splits: Mapping[str, Sequence[Row]], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Counts the images of each split, and says for an empty one what fills it; nothing without fractions."""
    if not fractions:
        return []
    counts = {name: len({key for row in rows for key in group_keys(row)}) for name, rows in splits.items()}
    lines = [f"images: {', '.join(f'{name} {count}' for name, count in counts.items())}"]
    empty = [name for name, count in counts.items() if not count and fractions[name]]
    if not empty:
        return lines
    rows = [row for split in splits.values() for row in split]
    other = next((n for n in range(seed + 1, seed + 100) if _fills(rows, fractions, n)), None)
    remedy = "give it a larger fraction" + ("" if other is None else f", or take another --seed: {other} fills all")
    return [
        *lines,
        *(
            f"{name} has no rows: none of the {sum(counts.values())} images fell into its {fractions[name]:g}; {remedy}"
            for name in empty
        ),
    ]


def _fills(rows: Sequence[Row], fractions: Mapping[str, float], seed: int) -> bool:
    splits = split_by_image(rows, fractions, seed)
    return all(splits[name] for name, fraction in fractions.items() if fraction)


def shared_keys(first: Iterable[Row], second: Iterable[Row]) -> set[str]:
    """Returns the keys that occur in both sets of rows."""
    return {key for row in first for key in group_keys(row)} & {key for row in second for key in group_keys(row)}


def _split_of(draw: float, fractions: Mapping[str, float]) -> str:
    """Returns the split whose interval of the cumulative fractions holds a draw; the last one after rounding errors."""
    end, last = 0.0, ""
    for name, fraction in fractions.items():
        end, last = end + fraction, name if fraction else last
        if draw < end:
            return name
    return last
