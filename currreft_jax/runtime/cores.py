"""CPU cores that a process may use. Loads no JAX."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time and their period


class Cores(NamedTuple):
    """Cores of a process.

    Attributes:
        machine: name of its machine.
        indices: cores that it may run on.
        limit: number of cores whose time its container may use; infinite without a limit.
    """

    machine: str
    indices: tuple[int, ...]
    limit: float


def own_cores() -> Cores:
    """Returns the cores of this process."""
    indices = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return Cores(socket.gethostname(), tuple(sorted(indices)), container_limit(_CGROUP_LIMIT))


def container_limit(path: Path) -> float:
    """Reads the limit of a control group, such as `200000 100000` for two cores; infinite for `max` or no file."""
    time, _, period = (path.read_text() if path.exists() else "max").partition(" ")
    return math.inf if time.strip() == "max" else int(time) / int(period)


def share_of_cores(own: Cores, processes: Sequence[Cores]) -> int:
    """Returns the number of cores that a process can keep busy, at least 1.

    Args:
        own: its cores; each is shared evenly with the other processes that may run on it.
        processes: those of the run, with this one.
    """
    neighbours = [process for process in processes if process.machine == own.machine]
    share = sum(1 / sum(core in process.indices for process in neighbours) for core in own.indices)
    return max(1, int(min(share, own.limit / len(neighbours)) + 1e-6))
