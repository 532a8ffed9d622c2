"""Parameters on disk, written whole or not at all, and verified bit by bit when they are read.

Orbax restores a flipped bit without complaint, so a manifest keeps a checksum of every array beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from currreft_jax.sharding import path_of

MANIFEST = "manifest.json"
ARRAYS = "params"
FORMAT = "currreft_jax/params/1"
_LOCK = ".lock"


class DamagedCheckpoint(ValueError):
    """What was read is not what was written."""


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `destination` only when the block ends well; entered by every host.

    Raises:
        FileExistsError: there is something at `destination` already, or another process is filling it.
    """
    partial = destination.with_name(destination.name + ".partial")
    if jax.process_index():
        _meet(f"{destination} can be filled")
        yield partial
        _meet(f"{destination} is filled")
        return
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination} exists already; remove it or choose another name")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another process is writing {partial}; wait for it or choose another name") from None
        for leftover in partial.iterdir():  # of an interrupted run
            if leftover.name != _LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        _meet(f"{destination} can be filled")
        yield partial
        _meet(f"{destination} is filled")
        (partial / _LOCK).unlink()
        partial.rename(destination)


def _meet(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    words = words.astype(jnp.uint32)
    # Every word is mixed with its place before the sum, so that no pattern of flips or moves cancels in it.
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = words ^ (place * jnp.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape, dtype and checksum of every array by its path; the same on every mesh and host count."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        path_of(path): {"shape": list(x.shape), "dtype": str(x.dtype), "checksum": int(_checksum(x))}
        for path, x in leaves
    }


def save_params(folder: Path, params: Any) -> None:
    """Writes a tree of arrays, each host its own shards, and then the manifest."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / ARRAYS, params)
    manifest = {"format": FORMAT, "arrays": checksums(params)}
    if jax.process_index() == 0:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


def read_manifest(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Shape, dtype and checksum of every array, by its path.

    Raises:
        DamagedCheckpoint: the manifest is missing, unreadable or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["format"] == FORMAT:
            return manifest["arrays"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} is missing or damaged: convert the checkpoint again") from error
    raise DamagedCheckpoint(f"{path}: format {manifest['format']!r}, but this version reads {FORMAT!r}")


def restore_params(folder: Path, abstract: Any) -> Any:
    """Reads a tree of arrays onto the devices and verifies every one of them.

    Args:
        folder: written by `save_params`, on any mesh.
        abstract: the tree of `jax.ShapeDtypeStruct` with the layout to read into, of the dtypes that were saved.

    Raises:
        DamagedCheckpoint: an array is missing, superfluous, of another shape or dtype, or not the one written.
    """
    manifest = read_manifest(folder)
    expected = {path_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
    if differing := sorted(expected.keys() ^ manifest.keys()):
        raise DamagedCheckpoint(f"{folder}: the model and the checkpoint differ in {', '.join(differing)}")
    for path, x in expected.items():
        saved = manifest[path]
        if (list(x.shape), str(x.dtype)) != (saved["shape"], saved["dtype"]):
            raise DamagedCheckpoint(
                f"{folder}: {path} is {saved['dtype']}{saved['shape']}, not {x.dtype}{list(x.shape)}"
            )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder.absolute() / ARRAYS, abstract)
    found = checksums(params)
    if damaged := [path for path in found if found[path]["checksum"] != manifest[path]["checksum"]]:
        raise DamagedCheckpoint(f"{folder}: the checksum of {', '.join(damaged)} does not match: the file is damaged")
    return params
