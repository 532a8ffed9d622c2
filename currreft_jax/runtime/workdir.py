"""The folder of a run: its layout, its settings, and the lock that keeps a second run out. Loads no JAX."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from currreft_jax.config import REJECT, Config, Source

CONFIG, CHECKPOINTS, EXPORT = "config.json", "checkpoints", "model"
ROLLOUTS, HELD_OUT = "rollouts", "held_out"  # folders of JSON lines, a file for each written step
MATRIX, SHAPES = "curriculum.json", "shapes.json"  # in the workdir; the others are in the folder of each stage
KEPT, KEPT_HELD_OUT = "kept.jsonl", "held_out.jsonl"  # in the folder of rejected sampling
_LOCK = ".lock"
# Settings that may change between the parts of an interrupted run: layout, logging, limits, and room for rows.
_MAY_CHANGE = (
    *("name", "mesh.", "sampling.mesh", "microbatches", "model.remat", "plan_first", "rewards.maths.workers"),
    *("rewards.on_error",),
    *("data.threads", "data.prefetch", "data.max_bad_rows", "data.shapes", "data.prompt_lengths"),
    *("logging.log_every", "logging.save_every", "logging.keep_last", "logging.rollouts_every"),
    *("logging.tensorboard", "logging.wandb"),
    *("model.attention", "data.completion_lengths", "data.slots"),
    *("grpo.max_kl", "grpo.min_entropy", "grpo.max_truncated"),
)


def with_kept_rows(config: Config, workdir: Path) -> Config:
    """Adds the rows that rejected sampling has kept to the stage that it was run for."""
    kept, held_out = (workdir / REJECT / name for name in (KEPT, KEPT_HELD_OUT))
    has_held_out = held_out.is_file() and held_out.stat().st_size > 0
    stages = [
        dataclasses.replace(
            stage,
            sources=[*stage.sources, Source(str(kept))],
            held_out_loss=[*stage.held_out_loss, *([Source(str(held_out))] if has_held_out else [])],
        )
        if stage.rejection
        else stage
        for stage in config.stages
    ]
    return dataclasses.replace(config, stages=stages)


def is_stage_dir(path: Path) -> bool:
    """Returns true for the folder of a stage, or of a run with a single stage."""
    return (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir()


def stage_folder(config: Config, stage_index: int, workdir: Path) -> Path:
    """Returns the folder of a stage: its own within the workdir, or the workdir of a run with a single stage."""
    return workdir / config.stages[stage_index].name if len(config.stages) > 1 else workdir


def saved_steps(stage_dir: Path) -> list[int]:
    """Lists the steps that have a checkpoint, in rising order."""
    return sorted(int(path.name) for path in (stage_dir / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal())


def write_config(config: Config, stage_dir: Path) -> None:
    """Writes the settings into a stage's folder, whole or not at all."""
    stage_dir.mkdir(parents=True, exist_ok=True)
    partial = stage_dir / f"{CONFIG}.partial"
    partial.write_text(json.dumps(_to_json(config), indent=2) + "\n", "utf-8")
    partial.replace(stage_dir / CONFIG)


def read_config(stage_dir: Path) -> Config:
    """Reads the settings of a run.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or of another version.
    """
    path = stage_dir / CONFIG
    try:
        return _from_json(Config, json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds no settings of this version ({error})") from error


def refuse_other_run(config: Config, workdir: Path) -> None:
    """Refuses a workdir that holds stages of another run, and nothing of this run's first stage.

    Raises:
        ValueError: naming the stages that are there.
    """
    first = stage_folder(config, 0, workdir)
    if (first / CONFIG).exists() or (first / EXPORT).exists():
        return
    folders = [workdir, *(path.parent for path in sorted(workdir.glob(f"*/{CONFIG}")))]
    names = ["a single stage" if folder == workdir else folder.name for folder in folders if is_stage_dir(folder)]
    if names:
        stages = ", ".join(stage.name for stage in config.stages)
        raise ValueError(
            f"{workdir} holds another run, of {', '.join(names)}, and this one has {stages}: take another workdir,"
            " or give the config of the run that is there"
        )


def refuse_changed_settings(config: Config, stage_index: int, stage_dir: Path) -> None:
    """Refuses to continue a stage whose earlier steps were trained with other settings.

    Raises:
        ValueError: naming the settings that differ; or the file there is damaged, or of another version.
    """
    path = stage_dir / CONFIG
    if not path.exists():
        return
    before, now = (
        lasting_settings(dataclasses.replace(settings, stages=settings.stages[: stage_index + 1]))
        for settings in (read_config(stage_dir), config)
    )
    changed = [
        f"{name} was {before.get(name)}, and is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        workdir = stage_dir if len(config.stages) == 1 else stage_dir.parent
        is_untrained = stage_index == 0 and not (saved_steps(stage_dir) or (stage_dir / EXPORT).exists())
        remedy = f"; or remove {workdir}, where no step is saved" if is_untrained else ""
        raise ValueError(f"{path}: {'; '.join(changed)}: put it back as it was, or take another workdir{remedy}")


def lasting_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that may not change between the parts of a run, as JSON values by their names."""
    return {name: value for name, value in flat_settings(config).items() if not name.startswith(_MAY_CHANGE)}


def flat_settings(config: Config) -> dict[str, Any]:
    """Returns all settings as JSON values by their names, such as `stages[0].steps`."""
    return _flatten(_to_json(config))


@contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Locks the workdir against a second run; entered by one host.

    A folder that was made for the run is removed at its end if nothing was written into it.

    Raises:
        ValueError: another run holds the lock.
    """
    is_new, path = not workdir.exists(), workdir / _LOCK
    workdir.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {workdir}: wait for it, or take another workdir") from None
        try:
            yield
        finally:
            if is_new and list(workdir.iterdir()) == [path]:
                path.unlink()
                workdir.rmdir()


def _to_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda member: member.value))


def _from_json(kind: Any, value: Any) -> Any:
    """Builds a value of type `kind`: a dataclass, enum, tuple, list, optional or plain type."""
    if dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _from_json(kinds[name], item) for name, item in value.items()})  # pyright: ignore[reportCallIssue]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    container: Any = get_origin(kind)
    if container in (tuple, list):
        return container(_from_json(get_args(kind)[0], item) for item in value)
    if isinstance(kind, UnionType):  # X | None
        return None if value is None else _from_json(get_args(kind)[0], value)
    return value


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """`{"a": [{"b": 1}]}` -> `{"a[0].b": 1}`."""
    if isinstance(value, dict):
        items = {f"{name}.{key}" if name else key: item for key, item in value.items()}
    elif isinstance(value, list):
        items = {f"{name}[{index}]": item for index, item in enumerate(value)}
    else:
        return {name: value}
    return {path: leaf for key, item in items.items() for path, leaf in _flatten(item, key).items()}
