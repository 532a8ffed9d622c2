"""The embedded world's rows, made where they are missing."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from currreft_jax.data.rows import to_keys
from currreft_jax.world.settings import WorldSizes
from currreft_jax.world.write import DESCRIPTION, write_world

# What a curriculum needs; the rows that the base was taught with are left to `dataset build world`.
SIZES = WorldSizes(captions=0, base=0, drills=0, axis=200)


def make(folder: Path, say: Callable[[str], None]) -> None:
    """Makes the world's training and test rows, unless the folder holds a world. Runs that want it at once wait.

    Args:
        folder: made if it is not there.
        say: told what is done, as it takes a while.

    Raises:
        FileExistsError: the folder holds something else, or a world that was not finished.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / DESCRIPTION).exists():
            return
        if folder.exists():
            raise FileExistsError(f"{folder} holds no whole world: remove it, or put data.world elsewhere")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        say(f"drawing the world into {folder}")
        write_world(partial, to_keys, sizes=SIZES)
        partial.rename(folder)
