"""Agreement of the hosts of a run: before its first step, all have the same settings, versions, code and rows.

Free to differ are the path of the workdir, which may be mounted anywhere, and the settings of `_PER_HOST`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import currreft_jax
from currreft_jax.config import Config
from currreft_jax.runtime.digests import hash_files
from currreft_jax.runtime.multihost import gather_bytes
from currreft_jax.runtime.workdir import flat_settings

# Settings that spend a host's own processors and memory, and change no result.
_PER_HOST = frozenset({"data.threads", "data.prefetch", "rewards.maths.workers"})
_MAX_NAMED = 20


def refuse_differing_settings(config: Config) -> None:
    """Compares settings, versions and code with the other hosts; all of them call it.

    Raises:
        ValueError: on every host, naming each difference from host 0.
    """
    if jax.process_count() > 1:
        settings = {name: value for name, value in flat_settings(config).items() if name not in _PER_HOST}
        packages = {f"the version of {name}": version(name) for name in ("currreft_jax", "jax", "jaxlib", "flax")}
        code = {"the code of currreft_jax": hash_files(*sorted(Path(currreft_jax.__file__).parent.rglob("*.py")))}
        _refuse_differences(settings | packages | code, "start all hosts with the same command, from the same code")


def refuse_differing_files(config: Config) -> None:
    """Compares the files of rows with the other hosts, by content; all of them call it.

    Raises:
        ValueError: on every host, naming each difference from host 0.
    """
    if jax.process_count() > 1:
        files = [source.file for stage in config.stages for source in stage.files]
        paths = [*files, *filter(None, [config.data.pass_rates])]
        contents = {f"the content of {path}": hash_files(Path(path)) for path in dict.fromkeys(paths)}
        _refuse_differences(contents, "give all hosts the same files")


def _refuse_differences(facts: Mapping[str, Any], remedy: str) -> None:
    own = {"machine": socket.gethostname(), "facts": dict(facts)}
    hosts = [json.loads(content) for content in gather_bytes(json.dumps(own).encode())]
    names = dict.fromkeys(name for host in hosts for name in host["facts"])
    if differences := list(filter(None, (_difference(name, hosts) for name in names))):
        more = [f"and {len(differences) - _MAX_NAMED} more"] if len(differences) > _MAX_NAMED else []
        raise ValueError(f"the hosts differ: {'; '.join(differences[:_MAX_NAMED] + more)}: {remedy}")


def _difference(name: str, hosts: list[dict[str, Any]]) -> str:
    """Formats the value of host 0, and each other value with its hosts; the empty string where all are equal."""
    hosts_with: dict[str, list[str]] = {}
    for number, host in enumerate(hosts):
        value = repr(host["facts"][name]) if name in host["facts"] else "not set"
        hosts_with.setdefault(value, []).append(f"host {number} ({host['machine']})")
    if len(hosts_with) == 1:
        return ""
    first, *others = hosts_with
    return ", ".join(
        [f"{name} is {first} on host 0", *(f"{other} on {', '.join(hosts_with[other])}" for other in others)]
    )
