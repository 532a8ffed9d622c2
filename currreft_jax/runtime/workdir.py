"""The folder of a run: what lies where, its settings, and the one run that may write there. Loads no JAX."""

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

from currreft_jax.config import Config

CONFIG, CHECKPOINTS, EXPORT, ROLLOUTS = "config.json", "checkpoints", "model", "rollouts"
MATRIX = "curriculum.json"  # beside the folders of the stages
# Settings that may change while a run is interrupted: where and how it is computed and told, and the room for rows.
_FREE = (
    *("name", "mesh.", "sampling.mesh", "microbatches", "model.remat", "plan_first", "rewards.maths.workers"),
    *("data.threads", "data.prefetch", "data.max_bad_rows", "data.prompt_lengths", "data.completion_lengths"),
    *("logging.log_every", "logging.save_every", "logging.keep_last", "logging.rollouts_every"),
    *("logging.tensorboard", "logging.wandb"),
    *("data.slots", "grpo.max_kl", "grpo.min_entropy", "grpo.max_truncated"),
)


def write_config(config: Config, where: Path) -> None:
    """Writes the settings beside what they lead to."""
    where.mkdir(parents=True, exist_ok=True)
    whole = where / f"{CONFIG}.partial"
    whole.write_text(json.dumps(_plain(config), indent=2) + "\n", "utf-8")
    whole.replace(where / CONFIG)


def read_config(where: Path) -> Config:
    """The settings that a run has written.

    Raises:
        FileNotFoundError: it has not.
        ValueError: the file is damaged, or of another version.
    """
    path = where / CONFIG
    try:
        return _built(Config, json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds no settings of this version ({error})") from error


def refuse_other_settings(config: Config, number: int, where: Path) -> None:
    """Refuses to go on where a stage was trained with settings that lead elsewhere.

    Raises:
        ValueError: naming the settings that differ; or the settings there are damaged, or of another version.
    """
    path = where / CONFIG
    if not path.exists():
        return
    there, now = _plain(read_config(where)), _plain(config)
    for settings in (there, now):
        settings["stages"] = settings["stages"][: number + 1]
    there, now = _flat(there), _flat(now)
    differing = [
        f"{name} was {there.get(name)}, and is {now.get(name)}"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name) and not name.startswith(_FREE)
    ]
    if differing:
        raise ValueError(f"{path}: {'; '.join(differing)}: put it back as it was, or take another workdir")


@contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of the workdir; entered by one host.

    Raises:
        ValueError: one is there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {workdir}: wait for it, or take another workdir") from None
        yield


def _plain(config: Config) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda member: member.value))


def _built(kind: Any, value: Any) -> Any:
    """What `_plain` was made of; `kind` is its type."""
    if dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _built(kinds[name], inner) for name, inner in value.items()})  # pyright: ignore[reportCallIssue]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    container: Any = get_origin(kind)
    if container in (tuple, list):
        return container(_built(get_args(kind)[0], inner) for inner in value)
    if isinstance(kind, UnionType):  # of something and None
        return None if value is None else _built(get_args(kind)[0], value)
    return value


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """`{"a": [{"b": 1}]}` -> `{"a[0].b": 1}`."""
    if isinstance(value, dict):
        parts = {f"{name}.{key}" if name else key: inner for key, inner in value.items()}
    elif isinstance(value, list):
        parts = {f"{name}[{index}]": inner for index, inner in enumerate(value)}
    else:
        return {name: value}
    return {path: leaf for key, inner in parts.items() for path, leaf in _flat(inner, key).items()}
