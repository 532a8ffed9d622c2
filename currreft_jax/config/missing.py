"""Files and folders that are not there: messages in words, with the nearest names that are."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from currreft_jax.config.names import nearest

_REPOSITORY = Path(__file__).parents[2]
_MAX_ENTRIES = 2000  # of a folder that is searched for near names


def describe_error(error: Exception) -> str:
    """Returns the message of an error; of one about a file, in words and without the number of the system's error."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    path = os.fsdecode(error.filename)
    return describe_missing(path) if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"


def describe_missing(path: str | Path, kind: str = "file") -> str:
    """Says that there is no such file, and names the nearest ones.

    Args:
        path: the path.
        kind: what it should be: file or folder.
    """
    where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
    known, missing = _split_known(Path(path))
    folder = f"; there is no folder {known / missing[0]}" if len(missing) > 1 else ""
    return f"there is no {kind} {path}{where}{name_nearest(path) or folder}"


def name_nearest(path: str | Path) -> str:
    """Returns `; nearest: ` and the paths that are nearest to a missing one; nothing if none is near."""
    near = _nearest_paths(Path(path), *_split_known(Path(path)))
    return f"; nearest: {', '.join(map(str, near))}" if near else ""


def _split_known(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Splits a path into its longest beginning that exists and the names after it."""
    known = Path()
    for index, part in enumerate(path.parts):
        if not os.path.exists(known / part):
            return known, path.parts[index:]
        known /= part
    return known, ()


def _nearest_paths(path: Path, known: Path, missing: tuple[str, ...]) -> list[Path]:
    """Returns the same path in the repository, if it is there; else paths with a name like the first missing one."""
    if not missing:
        return []
    if not path.is_absolute() and os.path.exists(_REPOSITORY / path):
        return [_REPOSITORY / path]
    if not known.is_dir() or not os.access(known, os.R_OK | os.X_OK):
        return []
    names = [entry.name for entry in os.scandir(known)]
    similar = [known / name for name in nearest(missing[0], sorted(names))] if len(names) <= _MAX_ENTRIES else []
    whole = [folder.joinpath(*missing[1:]) for folder in similar]
    return [path for path in whole if os.path.exists(path) or any(glob.iglob(str(path)))] or similar
