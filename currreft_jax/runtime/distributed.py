"""Processes of one program: initialization, barriers, and a report of the one that died.

JAX detects Slurm, Open MPI, TPU pods and Kubernetes. Other launchers set these variables, or flags of the same names,
which override detection:

  COORDINATOR_ADDRESS  host:port of process 0, reachable from all processes; the port must be free there
  NUM_PROCESSES        number of processes; 1 runs the program alone under any launcher
  PROCESS_ID           0 ... NUM_PROCESSES - 1

Process 0 listens at the address, and the others wait for it; an error names a port that is taken, or an address that
leads nowhere.

A process uses all devices that it sees. If Slurm or Open MPI start several processes on a machine, each uses the device
of its local rank, unless JAX_LOCAL_DEVICE_IDS=0,1,... is set.

When a process dies, the others end within a minute: JAX ends them after `HEARTBEAT_TIMEOUT` seconds without its
heartbeat. A shell next to each process outlives it and prints which step it had reached, if the process could not
report by itself.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import glob
from importlib.util import find_spec
from typing import Any

import jax
from jax._src import clusters  # what JAX detects about its launcher; it has no public name
from jax._src import distributed as runtime  # its client keeps barriers and keys; it has no public name

REQUEUE = 75  # EX_TEMPFAIL: the run was interrupted and saved; the same command continues it
HEARTBEAT_TIMEOUT = 25  # seconds without a heartbeat
SHUTDOWN_TIMEOUT = 20  # seconds to wait for the other processes at the end
_INIT_TIMEOUT = 600  # seconds to wait for the other processes at the start: machines fetch images at different speeds
_SELF_TIMEOUT = 60  # seconds until process 0 must reach itself: the names of new machines spread slowly
_HOSTS = "currreft_jax/hosts"
_COUNTS = "currreft_jax/counts"
# Prints the last line of its input, unless that is empty, when the process that writes it is gone.
_PRINT_LAST_LINE = (
    'trap "" HUP INT TERM USR1; while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'
)


class MissingProcess(RuntimeError):
    """Some processes did not reach a barrier; the message names them."""


class _DeathReport:
    """A line that is printed if this process is killed."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _PRINT_LAST_LINE], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def set(self, line: str) -> None:
        """Replaces the line; an empty one prints nothing."""
        assert self._shell.stdin
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()


class _ProcessProgress:
    """The latest step of this process.

    Attributes:
        step: the latest one.
    """

    def __init__(self, death_report: _DeathReport, name: str, all_names: str):
        self.step = 0
        self._death_report, self._name, self._all_names = death_report, name, all_names
        self.reached(0)

    def reached(self, step: int) -> None:
        self.step = step
        self._death_report.set(
            f"currreft_jax: {self._name} was ended after step {step}. JAX names the process that died by its number,"
            f" or 0 as the leader: {self._all_names}. Start all processes again: the last checkpoint is whole"
        )

    def part(self) -> None:
        """Waits for the other processes at the end of the program; a missing one is an error."""
        try:
            barrier("the end of the program", self.step, SHUTDOWN_TIMEOUT)
        except (MissingProcess, jax.errors.JaxRuntimeError) as error:
            print(f"currreft_jax: {self._name}: {error}", file=sys.stderr, flush=True)
            self._death_report.set("")
            os._exit(1)  # JAX would wait for them once more, and abort
        self._death_report.set("")


_progress: _ProcessProgress | None = None


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes, if there are any. Must run before JAX initializes its devices.

    Args:
        coordinator_address: host:port of process 0; by default from the environment, as are the others.
        num_processes: number of processes.
        process_id: index of this process.

    Raises:
        ValueError: some of the three are missing or wrong, or processes have different numbers of processes.
        ConnectionError: process 0 cannot listen, or does not answer.
    """
    global _progress
    address, count, number = _resolve(coordinator_address, num_processes, process_id)
    if count == 1 or (address is None and not _launched_by_known_launcher()):
        return
    if address is None:
        given = os.environ.get("JAX_COORDINATOR_ADDRESS")
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, count, number, _ = detect(given, None, None, [], None, _INIT_TIMEOUT)
    if address and count != 1:
        await_coordinator(address, is_coordinator=number == 0)
    host, pid = socket.gethostname(), os.getpid()
    death_report = _DeathReport()
    death_report.set(
        f"currreft_jax: a process on host {host}, pid {pid}, did not find the others within {_INIT_TIMEOUT} s: check"
        f" that all were started, and reach {address or 'the first of them'}"
    )
    with ExitStack() as on_return:  # an exception reports itself, and a single process needs no report
        on_return.callback(death_report.set, "")
        jax.distributed.initialize(
            address,
            count,
            number,
            local_device_ids=None if "JAX_LOCAL_DEVICE_IDS" in os.environ or _shares_machine() else [],
            initialization_timeout=_INIT_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
        state = runtime.global_state
        if state.num_processes == 1 or state.client is None:
            return
        name = f"process {state.process_id} (host {host}, pid {pid})"
        state.client.key_value_set(f"{_HOSTS}/{state.process_id}", name)
        state.client.key_value_set(f"{_COUNTS}/{state.process_id}", str(state.num_processes))
        barrier("the start of the program", 0, _INIT_TIMEOUT)
        counts = _by_process(state.client, _COUNTS)
        if len(set(counts.values())) > 1:
            each = ", ".join(f"{own} at process {number}" for number, own in sorted(counts.items()))
            raise ValueError(f"NUM_PROCESSES is {each}: give all processes the same number")
        on_return.pop_all()
    all_names = ", ".join(name for _, name in sorted(_by_process(state.client, _HOSTS).items()))
    _progress = _ProcessProgress(death_report, name, all_names)
    atexit.register(_progress.part)


def await_coordinator(address: str, *, is_coordinator: bool) -> None:
    """Waits until process 0 answers. JAX alone would wait ten minutes, and abort without naming the address.

    Args:
        address: host:port of process 0.
        is_coordinator: whether this is process 0; it opens the port for this test, and closes it for JAX.

    Raises:
        ConnectionError: the port cannot be opened, or nothing answers at the address.
    """
    if not is_coordinator:
        if problem := _unreachable(address, _INIT_TIMEOUT):
            raise ConnectionError(
                f"no coordinator answers at {address} within {_INIT_TIMEOUT} s ({problem}): check that process 0 runs"
                " there, and that no firewall blocks the port"
            )
        return
    bind_address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or f"[::]:{address.rpartition(':')[2]}"
    with _listening(bind_address):
        if problem := _unreachable(address, _SELF_TIMEOUT):
            raise ConnectionError(
                f"process 0 cannot be the coordinator at {address}: it listens on {bind_address}, and does not reach"
                f" itself there ({problem}); give all processes an address of machine {socket.gethostname()}"
            )


@contextmanager
def _listening(bind_address: str) -> Iterator[None]:
    """Listens on host:port as JAX will. JAX itself would share the port of another run, and mix their processes."""
    host, port = _split(bind_address)
    wildcard = host in ("", "::")
    both = wildcard and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or (":" in host and not wildcard) else socket.AF_INET
    try:
        server = socket.create_server(("" if wildcard else host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]  # without the call that Python adds
        raise ConnectionError(
            f"the coordinator cannot listen on {bind_address} ({reason}): end the program that uses"
            " the port, or give all processes another in COORDINATOR_ADDRESS (JAX_COORDINATOR_PORT where the launcher"
            " names the host)"
        ) from error
    with server:
        yield


def _unreachable(address: str, seconds: float) -> str:
    """Tries to connect for so many seconds; returns the reason of failure, the empty string where it succeeds."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(_split(address), timeout=5).close()
            return ""
        except OSError as error:
            if time.monotonic() > end:
                return error.strerror or str(error)
        time.sleep(0.5)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_main() -> bool:
    """Returns true on the one process that writes the files all processes share."""
    return jax.process_index() == 0


def reached(step: int) -> None:
    """Records the latest step, for the report if this process is killed."""
    if _progress:
        _progress.reached(step)


def last_step() -> int:
    """Returns the step recorded by `reached`."""
    return _progress.step if _progress else 0


def barrier(name: str, step: int, seconds: float) -> None:
    """Waits until every process reaches the barrier.

    Args:
        name: barrier name.
        step: the latest one.
        seconds: how long to wait.

    Raises:
        MissingProcess: naming the processes that did not come, and the step.
    """
    state = runtime.global_state
    if state.client is None:
        return
    folder = f"currreft_jax/barriers/{name}/{step}"
    own_key = f"{folder}/{state.process_id}"
    state.client.key_value_set(own_key, "", allow_overwrite=True)
    try:
        state.client.wait_at_barrier(folder, int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        names = _by_process(state.client, _HOSTS)
        missing = sorted(set(range(state.num_processes)) - _by_process(state.client, folder).keys())
        who = ", ".join(names.get(number, f"process {number}") for number in missing)
        raise MissingProcess(
            f"{who or 'a process'} did not come to the barrier {name!r} of step {step} within {seconds:g} s: it is"
            " dead, stuck or far behind; see its log. Start all processes again: the last checkpoint is whole"
        ) from error
    state.client.key_value_delete(own_key)


def _by_process(client: Any, folder: str) -> dict[int, str]:
    """Returns the values that processes have set in a folder of the key-value store."""
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(f"{folder}/")}


def _resolve(address: str | None, count: int | None, index: int | None) -> tuple[str | None, int | None, int | None]:
    """Merges flags and environment variables; either all three are given, or none.

    Raises:
        ValueError: some are missing, or no number.
    """
    settings = {
        "COORDINATOR_ADDRESS": address or os.environ.get("COORDINATOR_ADDRESS"),
        "NUM_PROCESSES": os.environ.get("NUM_PROCESSES") if count is None else str(count),
        "PROCESS_ID": os.environ.get("PROCESS_ID") if index is None else str(index),
    }
    given = {name: value for name, value in settings.items() if value}
    for name in given.keys() - {"COORDINATOR_ADDRESS"}:
        if not given[name].isdecimal():
            raise ValueError(f"{name} is {given[name]!r}; it takes a number from 0 on")
    if not given:
        return None, None, None
    if given.get("NUM_PROCESSES") == "1":
        return None, 1, 0
    if missing := sorted(settings.keys() - given.keys()):
        raise ValueError(f"{', '.join(sorted(given))} without {', '.join(missing)}: give all three, or none")
    host, _, port = given["COORDINATOR_ADDRESS"].rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"COORDINATOR_ADDRESS is {given['COORDINATOR_ADDRESS']!r}; it takes host:port")
    if not int(given["PROCESS_ID"]) < int(given["NUM_PROCESSES"]):
        raise ValueError(f"PROCESS_ID is {given['PROCESS_ID']} of NUM_PROCESSES {given['NUM_PROCESSES']}: count from 0")
    return given["COORDINATOR_ADDRESS"], int(given["NUM_PROCESSES"]), int(given["PROCESS_ID"])


def _launched_by_known_launcher() -> bool:
    """Returns true if a launcher that JAX knows started several processes, or may have."""
    has = os.environ
    if "SLURM_STEP_NODELIST" in has and "SLURM_PROCID" in has:  # a task of srun, not the batch script
        return int(has["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in has:
        return int(has["OMPI_COMM_WORLD_SIZE"]) > 1
    if "KUBERNETES_SERVICE_HOST" in has and "JOB_COMPLETION_INDEX" in has:
        if not find_spec("kubernetes"):
            raise ValueError(
                "this pod is part of an indexed job, but without the package kubernetes the number of pods is unknown:"
                " set COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID as launch/jobset.yaml does, or NUM_PROCESSES=1"
                " for a pod of its own"
            )
        return True
    # A TPU machine has chips and libtpu; JAX finds out whether there are others.
    chips = glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")
    google = "TPU_WORKER_HOSTNAMES" in has or "TPU_SKIP_MDS_QUERY" not in has
    return bool(chips and find_spec("libtpu") and google)


def _shares_machine() -> bool:
    """Returns true if Slurm or Open MPI started several processes on this machine."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or "1"
    leading = re.match(r"\d+", tasks)  # 1, or 8(x2), or 8,4
    return bool(leading) and int(leading.group()) > 1
