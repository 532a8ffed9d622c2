"""Several processes as one program: how they find each other, meet, and learn that one of them is gone.

Slurm, Open MPI, TPU pods and Kubernetes are recognised as JAX does it. Elsewhere these variables, or flags of the same
names, tell a process its place; where they are given they are taken, and nothing is recognised:

  COORDINATOR_ADDRESS  host:port of process 0, reachable from all; the port must be free there
  NUM_PROCESSES        how many there are; 1 is a program of its own, wherever it runs
  PROCESS_ID           0 ... NUM_PROCESSES - 1

A process takes all the devices that it sees. Where Slurm or Open MPI start several on one machine, each takes the one
of its local rank; JAX_LOCAL_DEVICE_IDS=0,1,... says otherwise.

A process that dies ends the others within a minute: JAX ends them when one has been silent for `SILENCE` seconds, and
one that ends by an error waits no longer than that for the others. A shell beside each process survives it, and tells
where it was if it ended without a word of its own.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from glob import glob
from importlib.util import find_spec
from typing import Any

import jax
from jax._src import distributed as runtime  # its client keeps barriers and keys; it has no public name

REQUEUE = 75  # EX_TEMPFAIL, the exit code of a run that was interrupted and saved: the same command goes on with it
SILENCE = 25  # seconds
PARTING = 20  # seconds that a process waits for the others at its end; all of them end together
_START = 600  # seconds that the first process waits for the last: machines fetch images at different speeds
_HOSTS = "currreft_jax/hosts"
# Says the last line that it was told, unless that is empty, when the process at the other end of the pipe is gone.
_AFTERWARDS = 'trap "" HUP INT TERM USR1; while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'


class MissingProcess(RuntimeError):
    """Some processes did not come to a barrier; the message names them."""


class _LastWords:
    """What is said of this process if it ends without a word of its own."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _AFTERWARDS], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def are(self, line: str) -> None:
        """Replaces them; an empty line takes them back."""
        assert self._shell.stdin
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()


class _Place:
    """How far this process has come.

    Attributes:
        step: the last one that was reached.
    """

    def __init__(self, words: _LastWords, name: str, others: str):
        self.step = 0
        self._words, self._name, self._others = words, name, others
        self.reached(0)

    def reached(self, step: int) -> None:
        self.step = step
        self._words.are(
            f"currreft_jax: {self._name} was ended after step {step}. JAX names the one that died by its number, or 0"
            f" as the leader: {self._others}. Start all again: the last checkpoint is whole"
        )

    def part(self) -> None:
        """Waits for the others at the end of the program; without them the end is an error."""
        try:
            barrier("the end of the program", self.step, PARTING)
        except (MissingProcess, jax.errors.JaxRuntimeError) as error:
            print(f"currreft_jax: {self._name}: {error}", file=sys.stderr, flush=True)
            self._words.are("")
            os._exit(1)  # JAX's own end would wait for them once more, and abort
        self._words.are("")


_place: _Place | None = None


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; does nothing where there are none. To be called before JAX is asked for devices.

    Args:
        coordinator_address: host:port of process 0; None for the environment's, as below.
        num_processes: how many there are.
        process_id: which one this is.

    Raises:
        ValueError: they are not told, or not all of them.
    """
    global _place
    address, count, number = _told(coordinator_address, num_processes, process_id)
    if count == 1 or (address is None and not _recognised()):
        return
    host, pid = socket.gethostname(), os.getpid()
    words = _LastWords()
    words.are(
        f"currreft_jax: a process on host {host}, pid {pid}, did not find the others within {_START} s: see that all"
        f" were started, and reach {address or 'the first of them'}"
    )
    with ExitStack() as unsaid:  # an error that is raised, and a program of one process, need no last words
        unsaid.callback(words.are, "")
        jax.distributed.initialize(
            address,
            count,
            number,
            local_device_ids=None if "JAX_LOCAL_DEVICE_IDS" in os.environ or _shares_its_machine() else [],
            initialization_timeout=_START,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=PARTING,
        )
        state = runtime.global_state
        if state.num_processes == 1 or state.client is None:
            return
        unsaid.pop_all()
    name = f"process {state.process_id} (host {host}, pid {pid})"
    state.client.key_value_set(f"{_HOSTS}/{state.process_id}", name)
    barrier("the start of the program", 0, _START)
    _place = _Place(words, name, ", ".join(name for _, name in sorted(_numbered(state.client, _HOSTS).items())))
    atexit.register(_place.part)


def is_main() -> bool:
    """Whether this is the one process that writes what all share."""
    return jax.process_index() == 0


def reached(step: int) -> None:
    """Notes how far this process has come, for what is said if it is killed."""
    if _place:
        _place.reached(step)


def last_step() -> int:
    """The step last noted by `reached`."""
    return _place.step if _place else 0


def barrier(name: str, step: int, seconds: float) -> None:
    """Waits until every process is here.

    Args:
        name: what they meet for.
        step: the last one done.
        seconds: how long to wait.

    Raises:
        MissingProcess: naming those that did not come, and the step.
    """
    state = runtime.global_state
    if state.client is None:
        return
    where = f"currreft_jax/barriers/{name}/{step}"
    here = f"{where}/{state.process_id}"
    state.client.key_value_set(here, "", allow_overwrite=True)
    try:
        state.client.wait_at_barrier(where, int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        names = _numbered(state.client, _HOSTS)
        missing = sorted(set(range(state.num_processes)) - _numbered(state.client, where).keys())
        who = ", ".join(names.get(number, f"process {number}") for number in missing)
        raise MissingProcess(
            f"{who or 'a process'} did not come to the barrier {name!r} of step {step} within {seconds:g} s: it is"
            " dead, stuck or far behind; its own log tells more. Start all again: the last checkpoint is whole"
        ) from error
    state.client.key_value_delete(here)


def _numbered(client: Any, folder: str) -> dict[int, str]:
    """What processes have left under their numbers."""
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(f"{folder}/")}


def _told(address: str | None, count: int | None, number: int | None) -> tuple[str | None, int | None, int | None]:
    """What flags and variables say, all of it or none.

    Raises:
        ValueError: some of it is missing, or no number.
    """
    told = {
        "COORDINATOR_ADDRESS": address or os.environ.get("COORDINATOR_ADDRESS"),
        "NUM_PROCESSES": os.environ.get("NUM_PROCESSES") if count is None else str(count),
        "PROCESS_ID": os.environ.get("PROCESS_ID") if number is None else str(number),
    }
    given = {name: value for name, value in told.items() if value}
    for name in given.keys() - {"COORDINATOR_ADDRESS"}:
        if not given[name].isdecimal():
            raise ValueError(f"{name} is {given[name]!r}; it takes a number from 0 on")
    if not given:
        return None, None, None
    if given.get("NUM_PROCESSES") == "1":
        return None, 1, 0
    if missing := sorted(told.keys() - given.keys()):
        raise ValueError(f"{', '.join(sorted(given))} without {', '.join(missing)}: give all three, or none")
    if not int(given["PROCESS_ID"]) < int(given["NUM_PROCESSES"]):
        raise ValueError(f"PROCESS_ID is {given['PROCESS_ID']} of NUM_PROCESSES {given['NUM_PROCESSES']}: count from 0")
    return given["COORDINATOR_ADDRESS"], int(given["NUM_PROCESSES"]), int(given["PROCESS_ID"])


def _recognised() -> bool:
    """Whether this is one of several processes, or may be, of a launcher that JAX knows how to ask."""
    has = os.environ
    if "SLURM_STEP_NODELIST" in has and "SLURM_PROCID" in has:  # a task of srun, not the batch script
        return int(has["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in has:
        return int(has["OMPI_COMM_WORLD_SIZE"]) > 1
    if "KUBERNETES_SERVICE_HOST" in has and "JOB_COMPLETION_INDEX" in has:
        if not find_spec("kubernetes"):
            raise ValueError(
                "this pod is part of an indexed job, and without the package kubernetes it cannot be told how many"
                " there are: set COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID as launch/jobset.yaml does, or"
                " NUM_PROCESSES=1 for a pod of its own"
            )
        return True
    # A TPU machine is told by its chips and the library that runs them; whether it is alone, JAX finds out.
    chips = glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")
    google = "TPU_WORKER_HOSTNAMES" in has or "TPU_SKIP_MDS_QUERY" not in has
    return bool(chips and find_spec("libtpu") and google)


def _shares_its_machine() -> bool:
    """Whether Slurm or Open MPI started other processes on this machine."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or "1"
    leading = re.match(r"\d+", tasks)  # 1, or 8(x2), or 8,4
    return bool(leading) and int(leading.group()) > 1
