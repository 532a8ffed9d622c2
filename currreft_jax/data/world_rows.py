"""The rows of the embedded world, generated on first use."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from currreft_jax.config import Config
from currreft_jax.config.output import local_path
from currreft_jax.data.rows import row_to_json
from currreft_jax.world.settings import WorldSizes
from currreft_jax.world.write import DESCRIPTION, VERSION, write_world

# A curriculum's rows only; `dataset build world` also writes those that the base model was pretrained on.
SIZES = WorldSizes(captions=0, base=0, drills=0, composed=0, answers=0, axis=200)


def is_used(config: Config) -> bool:
    """Returns true if a stage trains on files of the embedded world, or holds some out."""
    files = [Path(source.file) for stage in config.stages for source in stage.files]
    return bool(config.data.world) and any(Path(config.data.world) in file.parents for file in files)


def ensure_world(folder: Path, log: Callable[[str], None]) -> None:
    """Generates the world's training and test rows unless the folder has them.

    A lock file makes concurrent runs wait for the first one.

    Args:
        folder: world folder; created if missing.
        log: called with a message before rows are generated, which takes a while.

    Raises:
        FileExistsError: the folder exists and is not a complete world, or one of another version.
        ValueError: it is an address.
    """
    folder = local_path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / DESCRIPTION).exists():
            version = json.loads((folder / DESCRIPTION).read_text("utf-8")).get("version", 1)
            if version != VERSION:
                raise FileExistsError(
                    f"{folder} holds a world of version {version}, this is {VERSION}: remove it, or put data.world"
                    " elsewhere"
                )
            return
        if folder.exists():
            raise FileExistsError(f"{folder} holds no whole world: remove it, or put data.world elsewhere")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        log(f"drawing the world into {folder}")
        write_world(partial, row_to_json, sizes=SIZES)
        partial.rename(folder)
