"""Arrays on disk, written whole or not at all, and verified bit by bit when they are read.

Orbax restores a flipped bit without complaint; a manifest next to the arrays keeps a checksum of each.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from currreft_jax.config.output import local_path
from currreft_jax.runtime import distributed
from currreft_jax.runtime.sharding import path_of

MANIFEST = "manifest.json"
ARRAYS = "params"
FORMAT = "currreft_jax/params/1"
STATE_FORMAT = "currreft_jax/state/1"
_STEP_MANIFEST = "metadata"  # in the folder `manifest` of a step
_LOCK = ".lock"
_PATIENCE = 3600  # seconds to wait for a host that writes files; a dead one ends the others sooner
# Raised by Orbax on files that are missing, truncated or damaged.
_UNREADABLE = (OSError, KeyError, ValueError, TypeError)


class DamagedCheckpoint(ValueError):
    """A checkpoint does not hold the arrays that were written."""


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yields a folder to fill, and renames it to `destination` when the block succeeds; every host enters it.

    Raises:
        FileExistsError: `destination` exists, or another process is filling it.
        ValueError: `destination` is an address.
    """
    destination = local_path(destination)
    partial = destination.with_name(destination.name + ".partial")
    if jax.process_index():
        _barrier(f"{destination} can be filled")
        yield partial
        _barrier(f"{destination} is filled")
        return
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination} exists already; remove it or choose another name")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another process is writing {partial}; wait for it or choose another name") from None
        for leftover in partial.iterdir():  # from an interrupted run
            if leftover.name != _LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        _barrier(f"{destination} can be filled")
        yield partial
        _barrier(f"{destination} is filled")
        (partial / _LOCK).unlink()
        partial.rename(destination)


def _barrier(name: str) -> None:
    distributed.barrier(name, distributed.last_step(), _PATIENCE)


def _checksum(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    words = words.astype(jnp.uint32)
    # Each word is hashed with its index before the sum, so that flips and moves cannot cancel.
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = index * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = words ^ (index * jnp.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


# One program for all arrays: as many programs, each with a collective, may block one another on simulated devices.
@jax.jit
def _checksums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_checksum(x) for x in arrays])


def start_checksums(tree: Any) -> Callable[[], dict[str, dict[str, Any]]]:
    """Starts to compute a checksum of each array of a tree, in one program; the arrays may be donated on return.

    Returns:
        A function that waits for the checksums and fetches them: shape, dtype and checksum of each array by its path,
        the same on any mesh and number of hosts.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {path_of(path): {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves}
    on_devices = _checksums([x for _, x in leaves])

    def fetch() -> dict[str, dict[str, Any]]:
        values = jax.device_get(on_devices).tolist()
        return {path: {**array, "checksum": value} for (path, array), value in zip(arrays.items(), values, strict=True)}

    return fetch


def checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Computes what the function of `start_checksums` returns."""
    return start_checksums(tree)()


def save_params(folder: Path, params: Any) -> None:
    """Writes a tree of arrays, each host its own shards, then the manifest."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / ARRAYS, params)
    manifest = {"format": FORMAT, "arrays": checksums(params)}
    if jax.process_index() == 0:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


def read_manifest(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Reads shape, dtype and checksum of each array by its path.

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
    """Reads a tree of arrays onto the devices and verifies each.

    Args:
        folder: written by `save_params`, on any mesh.
        abstract: tree of `jax.ShapeDtypeStruct` with the shardings to read into and the dtypes that were saved.

    Raises:
        DamagedCheckpoint: an array is missing, unknown, of another shape or dtype, or damaged.
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


def restore_item(folder: Path, name: str, abstract: Any) -> Any:
    """Reads one item of a step that `Checkpoints` has written, and verifies it; the run may keep writing.

    Args:
        folder: folder of the step.
        name: item name.
        abstract: its tree of `jax.ShapeDtypeStruct` with the shardings to read into.

    Raises:
        DamagedCheckpoint: the item is damaged.
        ValueError: the item is of another model.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return _restore(partial(checkpointer.restore, folder.absolute()), folder, {name: abstract})[0][name]


class _ManifestHandler(ocp.JsonCheckpointHandler):
    """Writes the manifest of a step, whose checksums are fetched by the thread that writes it."""

    def __init__(self) -> None:
        super().__init__(filename=_STEP_MANIFEST)

    async def async_save(self, directory: Any, item: Any = None, args: Any = None) -> list[Future]:
        """Starts to write what `args.make()` returns; the training loop waits for none of it."""
        return [CommitFutureAwaitingContractedSignals(self._write(directory, args.make), name="manifest")]

    async def _write(self, directory: Any, make: Callable[[], Any]) -> None:
        if jax.process_index() == 0:
            (directory / _STEP_MANIFEST).write_text(json.dumps(make()))


@ocp.args.register_with_handler(_ManifestHandler, for_save=True)
@dataclass(slots=True)
class _ManifestSave(ocp.args.CheckpointArgs):
    make: Callable[[], Any]


@ocp.args.register_with_handler(_ManifestHandler, for_restore=True)
class _ManifestRestore(ocp.args.CheckpointArgs):
    pass


class Checkpoints:
    """The checkpoints of a stage: the latest and the best are kept, and each is verified when it is read.

    A step is written under another name, and renamed when it is complete, with a manifest of checksums. Until then a
    killed run leaves the step before it.

    Attributes:
        folder: checkpoint folder.
    """

    def __init__(self, folder: Path, keep_last: int):
        """Opens the folder.

        Args:
            folder: checkpoint folder, with a folder `STEP/` for each checkpoint.
            keep_last: number of latest checkpoints to keep, besides the one with the highest score.
        """
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        policy = policies.AnyPreservationPolicy([policies.LatestN(keep_last), best])
        # Without `best_fn` Orbax does not write the score, and a resumed run would not know the best step.
        options = ocp.CheckpointManagerOptions(best_fn=_score, preservation_policy=policy, cleanup_tmp_directories=True)
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._best_score = self._read_best_score()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(
        self, step: int, items: Mapping[str, Any], metadata: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        """Copies a step to the host, and writes it in the background; the arrays may be donated on return.

        Waits for the step before it to be written. A failure is raised by the next call, or by closing.

        Args:
            step: later than any saved one.
            items: name -> tree of arrays.
            metadata: JSON values saved with the step.
            score: the step with the highest one is kept; None where there is no score.

        Raises:
            ValueError: this step or a later one is saved already.
        """
        fetch_checksums = start_checksums(dict(items))
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}

        def make_manifest() -> dict[str, Any]:
            arrays: dict[str, dict[str, Any]] = {name: {} for name in items}
            for path, array in fetch_checksums().items():
                name, _, path_in_item = path.partition("/")
                arrays[name][path_in_item] = array
            return {"format": STATE_FORMAT, "arrays": arrays, "about": dict(metadata)}

        manifest = _ManifestSave(make_manifest)
        metrics = {} if score is None else {"score": score}  # Orbax warns of a step without metrics
        if not self._manager.save(step, args=ocp.args.Composite(**trees, manifest=manifest), metrics=metrics):
            raise ValueError(f"{self.folder} holds step {step} or a later one already; remove it or continue from it")
        self._best_score = max(self._best_score, -math.inf if score is None else score)

    def is_best(self, score: float) -> bool:
        """Returns true if a score is above that of every step that was saved."""
        return score > self._best_score

    def preempted(self, step: int) -> bool:
        """Returns true if SIGTERM has reached one of several hosts; all of them get the answer at the same step."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def restore(self, abstract: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Reads the latest intact step.

        A damaged step is reported and skipped, and set aside once an earlier one is read.

        Args:
            abstract: name -> tree of `jax.ShapeDtypeStruct` with the shardings to read into.

        Returns:
            Step, items, and the `metadata` of `save`; None where there is no checkpoint.

        Raises:
            DamagedCheckpoint: all checkpoints are damaged.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = step, *_restore(partial(self._manager.restore, step), self.folder / str(step), abstract)
            except DamagedCheckpoint as error:
                damaged.append(step)
                print(f"checkpoint: {error}; step {step} is skipped", file=sys.stderr)
                continue
            for other in damaged:
                self._set_aside(other)
            return restored
        if damaged:
            raise DamagedCheckpoint(
                f"no checkpoint in {self.folder} is intact: start again in another workdir, or remove the folder"
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            step_dir = self.folder / str(step)
            step_dir.rename(step_dir.with_name(f"{step}.damaged-{time.time_ns()}"))
        _barrier(f"step {step} is set aside")
        self._manager.reload()
        self._best_score = self._read_best_score()

    def _read_best_score(self) -> float:
        step = self._manager.best_step()
        metrics = None if step is None else self._manager.metrics(step)
        return -math.inf if metrics is None else _score(metrics)


def _score(metrics: Mapping[str, float]) -> float:
    """Returns the score of a step, below all others for one that was saved without."""
    return metrics.get("score", -math.inf)


def _restore(
    restore: Callable[..., Any], step_dir: Path, abstract: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads and verifies items of a step; returns them and the step's `about`."""
    trees = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        manifest = restore(args=ocp.args.Composite(manifest=_ManifestRestore()))["manifest"]
        saved = manifest["arrays"]
        metadata = manifest["about"]
        differing = _differing(abstract, saved)
        found = restore(args=ocp.args.Composite(**trees)) if not differing else {}
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{step_dir} is not readable ({type(error).__name__}: {str(error)[:200]})") from error
    if manifest["format"] != STATE_FORMAT or differing:
        difference = ", ".join(differing[:5]) or f"format {manifest['format']!r}"
        raise ValueError(f"{step_dir} is of another model or optimizer ({difference}): take another workdir")
    items = {name: found[name] for name in abstract}
    damaged = [
        f"{name}/{path}"
        for name, tree in items.items()
        for path, array in checksums(tree).items()
        if array["checksum"] != saved[name][path]["checksum"]
    ]
    if damaged:
        raise DamagedCheckpoint(f"{step_dir}: the checksum of {', '.join(damaged[:5])} does not match")
    return items, metadata


def _differing(abstract: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Lists paths that are missing, unknown, or of another shape or dtype."""
    wanted = {
        f"{name}/{path_of(path)}": (list(x.shape), str(x.dtype))
        for name, tree in abstract.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = {
        f"{name}/{path}": (array["shape"], array["dtype"])
        for name in abstract
        for path, array in saved.get(name, {}).items()
    }
    return sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
