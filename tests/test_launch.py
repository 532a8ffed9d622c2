"""The launch files: runs start, processes connect, and a dead process ends the others."""

import ctypes
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from currreft_jax.config import Config, MeshShape, Shapes
from currreft_jax.runtime import distributed
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.training import interrupt as interrupt_module
from currreft_jax.training.interrupt import Interrupt
from tests.test_train import config_of

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
STEPS = 4
CAPTURED = {"capture_output": True, "text": True, "timeout": 300}
# Processes that share two cores compile at different speeds, which XLA would take for a hang after 40 s.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"

SRUN = """#!/usr/bin/env bash
# Stands in for srun on this machine: one task per node, with Slurm's variables; exits with the highest code.
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do
    SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=2 SLURM_STEP_TASKS_PER_NODE='1(x2)' SLURM_NTASKS=2 \\
        SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
    tasks+=($!)
done
if [ -n "$STUB_NOTICE_AFTER" ]; then # the time limit is near
    until [ -s "$STUB_NOTICE_AFTER" ]; do sleep 0.1; done
    kill -USR1 "${tasks[@]}"
fi
code=0
for task in "${tasks[@]}"; do
    wait "$task" || { ended=$?; code=$((ended > code ? ended : code)); }
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$(dirname "$0")/scontrol.log"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {PATIENT}",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory) -> Path:
    """A config file for the training program: a tiny model, rows without images, two devices."""
    folder = tmp_path_factory.mktemp("settings")
    row = {"task": "math", "kind": "open"}
    rows = [{**row, "id": f"r{n}", "problem": f"{n}?", "solution": str(n % 7)} for n in range(32)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(checkpoint, folder / "rows.jsonl", STEPS, mesh=MeshShape(data=1, fsdp=2))
    config.data.shapes = Shapes.AUTO  # the processes fit the same ones, and compile them before the first step
    return settings_file(folder, config)


def settings_file(folder: Path, config: Config) -> Path:
    """Writes a file for --config that returns these settings."""
    text = f"import pickle\n\ndef get_config(variant=None):\n    return pickle.loads({pickle.dumps(config)})\n"
    (folder / "tiny.py").write_text(text)
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def single_process_run(settings, environment, tmp_path_factory) -> Path:
    """The workdir of a run with one process, started by `run.sh`."""
    workdir = tmp_path_factory.mktemp("alone")
    command = [LAUNCH / "run.sh", f"--config={settings}", f"--workdir={workdir}"]
    done = subprocess.run(command, env=environment | {"JAX_NUM_CPU_DEVICES": "2"}, cwd=workdir, **CAPTURED)
    assert done.returncode == 0, done.stderr
    return workdir


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


def wait_for(happened: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def variable(pid: int, name: str) -> str | None:
    """Reads a variable of another process's environment; None where it has none, or has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pairs = (pair.partition("=") for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        return next((value for key, _, value in pairs if key == name), None)
    return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.slow
def test_a_slurm_job_saves_on_notice_is_requeued_and_resumes(settings, environment, single_process_run, tmp_path):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    metrics = tmp_path / "run" / "metrics.jsonl"
    environment = environment | {
        "PATH": f"{tmp_path}:{environment['PATH']}",
        "JAX_NUM_CPU_DEVICES": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    command = ["bash", LAUNCH / "slurm.sbatch", f"--config={settings}", f"--workdir={metrics.parent}"]
    stopped = subprocess.run(command, env=environment | {"STUB_NOTICE_AFTER": str(metrics)}, **CAPTURED)
    assert stopped.returncode == distributed.REQUEUE, stopped.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    assert 1 <= len(losses(metrics.parent)) < STEPS

    finished = subprocess.run(command, env=environment | {"STUB_NOTICE_AFTER": ""}, **CAPTURED)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from step" in finished.stderr
    np.testing.assert_allclose(losses(metrics.parent), losses(single_process_run), rtol=1e-5)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"


@pytest.mark.slow
def test_a_killed_process_is_named_and_ends_the_others(settings, environment, tmp_path):
    workdir, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    command = [LAUNCH / "processes.sh", "2", f"--config={settings}", f"--workdir={workdir}"]
    command += ["--config.stages[0].steps=100000", "--config.logging.save_every=100000"]
    running = subprocess.Popen(command, env=environment | {"DEVICES": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
        (killed,) = [pid for pid in children(running.pid) if variable(pid, "PROCESS_ID") == "1"]
        os.kill(killed, signal.SIGKILL)
        started = time.monotonic()
        _, stderr = running.communicate(timeout=60)
    finally:
        running.terminate()
    assert running.returncode == 128 + signal.SIGKILL
    assert f"process 1 (pid {killed}) ended with 137; the others are killed" in stderr
    assert re.search(rf"process 1 \(host {socket.gethostname()}, pid {killed}\) was ended after step \d+", stderr)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_request_a_save_and_are_answered_at_once(number, capfd):
    before = signal.signal(number, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    answer = capfd.readouterr().err
    assert f"train: {signal.Signals(number).name}: saving after this step, or after the first one" in answer
    assert ("press Ctrl-C again to stop at once" in answer) == (number == signal.SIGINT)
    assert signal.signal(number, before) == signal.default_int_handler


def test_a_second_ctrl_c_ends_a_run_that_compiles(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    libc, mutex, answers = ctypes.CDLL(None), ctypes.create_string_buffer(64), []
    monkeypatch.setattr(interrupt_module, "_print", answers.append)
    monkeypatch.setattr(interrupt_module.os, "_exit", answers.append)
    answers_meanwhile = []

    def press_twice() -> None:
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            end = time.monotonic() + 20
            while len(answers) < number and time.monotonic() < end:
                time.sleep(0.001)
        answers_meanwhile.extend(answers)
        libc.pthread_mutex_unlock(mutex)

    with Interrupt():
        libc.pthread_mutex_lock(mutex)
        thread = threading.Thread(target=press_twice)
        thread.start()
        libc.pthread_mutex_lock(mutex)  # as in XLA's compiler, Python runs no handler meanwhile
        thread.join()
    signal.signal(signal.SIGINT, before)
    (first, second), code = answers_meanwhile[:2], answers[2]
    assert "press Ctrl-C again to stop at once" in first
    assert "SIGINT again: stopped at once, without saving" in second and code == 130


def test_several_hosts_learn_of_ctrl_c_by_sigterm(monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    received = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))  # stands in for JAX's
    try:
        with Interrupt():
            signal.raise_signal(signal.SIGINT)
            assert received == ["SIGTERM"]
            signal.raise_signal(signal.SIGUSR1)
            assert received == ["SIGTERM", "SIGTERM"]
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        assert [line[:13] for line in capfd.readouterr().err.split("\n") if line] == ["train: SIGINT", "train: SIGUSR"]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_ctrl_c_stays_ignored_in_the_background_of_a_script():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert not interrupt.requested
    signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_save_does_not_change_the_exit_code(settings, environment, tmp_path):
    code = """
import atexit, os, signal
from absl import app
from currreft_jax import train
train.run = lambda *_, **__: None  # interrupted and saved
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGUSR1)])
app.run(train.main)
"""
    command = [sys.executable, "-c", code, f"--config={settings}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, **CAPTURED)
    assert done.returncode == distributed.REQUEUE, done.stderr


MEETING = """
import os, sys, time
import jax
from currreft_jax.runtime import distributed
from currreft_jax.training.interrupt import Interrupt
distributed.HEARTBEAT_TIMEOUT = distributed.SHUTDOWN_TIMEOUT = 5
distributed.initialize()
assert jax.process_count() == 2 and len(jax.local_devices()) == 1
distributed.reached(17)
distributed.barrier("both are here", 17, 60)
distributed.barrier("both are here", 17, 60)
print("met", flush=True)
if sys.argv[1] == "late" and jax.process_index():
    time.sleep(600)
if sys.argv[1] == "late":
    distributed.barrier("the weights are written", 18, 1)
if sys.argv[1] == "killed":
    time.sleep(600)
"""


def start_two(environment: dict[str, str], variables: list[dict[str, str]], scenario: str) -> list[subprocess.Popen]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, scenario],
            env=environment | {"JAX_NUM_CPU_DEVICES": "1"} | own,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in variables
    ]


def explicit_variables() -> list[dict[str, str]]:
    shared = {"COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "NUM_PROCESSES": "2"}
    return [{**shared, "PROCESS_ID": str(number)} for number in range(2)]


def slurm_variables() -> list[dict[str, str]]:
    shared = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    shared |= {"SLURM_STEP_NODELIST": "localhost", "JAX_COORDINATOR_PORT": str(free_port())}
    return [{**shared, "SLURM_PROCID": str(number)} for number in range(2)]


def open_mpi_variables() -> list[dict[str, str]]:
    shared = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": str(free_port())}
    shared |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    return [{**shared, "OMPI_COMM_WORLD_RANK": str(number)} for number in range(2)]


@pytest.mark.parametrize("variables", [explicit_variables, slurm_variables, open_mpi_variables])
def test_processes_connect_and_exit_quietly(environment, variables):
    for process in start_two(environment, variables(), "meet"):
        out, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert out == "met\n" and "currreft_jax:" not in stderr


def test_a_barrier_names_the_missing_process_and_the_step(environment):
    first, second = start_two(environment, explicit_variables(), "late")
    _, stderr = first.communicate(timeout=120)
    assert re.search(
        rf"MissingProcess: process 1 \(host {socket.gethostname()}, pid {second.pid}\) did not come to the barrier"
        " 'the weights are written' of step 18 within 1 s",
        stderr,
    )
    assert first.returncode == 1
    second.communicate(timeout=60)
    assert second.returncode


@pytest.mark.parametrize("victim", [0, 1], ids=["the leader", "another"])
def test_a_killed_process_ends_the_other(environment, victim):
    processes = start_two(environment, explicit_variables(), "killed")
    for process in processes:
        assert process.stdout and process.stdout.readline() == "met\n"
    processes[victim].kill()
    started = time.monotonic()
    _, stderr = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - started < 40
    assert processes[1 - victim].returncode
    assert (
        f"process {1 - victim} (host {socket.gethostname()}, pid {processes[1 - victim].pid}) was ended after" in stderr
    )
    assert f"process {victim} (host {socket.gethostname()}, pid {processes[victim].pid})" in stderr
    _, last = processes[victim].communicate(timeout=60)
    assert (
        f"process {victim} (host {socket.gethostname()}, pid {processes[victim].pid}) was ended after step 17" in last
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PROCESS_ID": "0"}, "PROCESS_ID without COORDINATOR_ADDRESS, NUM_PROCESSES: give all three, or none"),
        (
            {"COORDINATOR_ADDRESS": "a", "NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            "COORDINATOR_ADDRESS is 'a'; it takes ho",
        ),
        ({"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"}, "NUM_PROCESSES is 'two'"),
        ({"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"}, "PROCESS_ID is 2 of NUM_PROCESSES 2"),
        ({"KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "1"}, "or NUM_PROCESSES=1 for a pod of its own"),
    ],
)
def test_incomplete_process_variables_are_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.initialize()


def test_a_taken_port_is_named_and_not_shared(settings, environment, tmp_path):
    command = [sys.executable, "-m", "currreft_jax.train", f"--config={settings}", f"--workdir={tmp_path / 'run'}"]
    with socket.socket() as other_run:
        other_run.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as JAX does: a second run could listen too
        other_run.bind(("", 0))
        other_run.listen()
        port = other_run.getsockname()[1]
        variables = {"COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}
        done = subprocess.run(command, env=environment | variables, cwd=ROOT, **CAPTURED | {"timeout": 60})
    message = rf"^train: the coordinator cannot listen on \[::\]:{port} \(Address already in use\): end the program"
    assert done.returncode == 1
    assert re.search(message, done.stderr, re.MULTILINE) and "Traceback" not in done.stderr


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "_INIT_TIMEOUT", 1)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        ConnectionError, match=rf"no coordinator answers at {address} within 1 s \(Connection refused\)"
    ):
        distributed.await_coordinator(address, is_coordinator=False)


def test_a_coordinator_at_the_address_of_another_machine_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "_SELF_TIMEOUT", 1)
    address = f"nowhere.invalid:{free_port()}"
    with pytest.raises(
        ConnectionError, match=f"process 0 cannot be the coordinator at {address}.* does not reach itself"
    ):
        distributed.await_coordinator(address, is_coordinator=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_waits_for_its_coordinator(monkeypatch, host):
    port = free_port()
    monkeypatch.setattr(distributed, "_INIT_TIMEOUT", 30)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(distributed.await_coordinator, f"{host}:{port}", is_coordinator=False)
        time.sleep(0.7)
        assert not waiting.done()
        with distributed._listening(f"[::]:{port}"):
            waiting.result(10)
    distributed.await_coordinator(f"{host}:{port}", is_coordinator=True)  # and the port is free again


def test_different_numbers_of_processes_are_refused(environment):
    first, second = explicit_variables()
    processes = start_two(environment, [first, second | {"NUM_PROCESSES": "3"}], "meet")
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "ValueError: NUM_PROCESSES is 2 at process 0, 3 at process 1: give all processes the same" in stderr
        assert "did not find the others" not in stderr


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"NUM_PROCESSES": "1"},
        {"NUM_PROCESSES": "1", "KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},  # a batch script without srun
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"},
    ],
)
def test_a_single_process_connects_to_none(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("tries to connect"))
    distributed.initialize()
    distributed.barrier("alone", 3, 0)
    distributed.reached(3)
    assert distributed.is_main() and distributed.last_step() == 0


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, []),  # all devices
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),  # the device of its local rank, which JAX determines
        ({"SLURM_STEP_TASKS_PER_NODE": "8,4"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
        ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),  # JAX reads them itself
    ],
)
def test_processes_on_one_machine_share_its_devices(monkeypatch, variables, devices):
    for name in ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(distributed, "await_coordinator", lambda *_, **__: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *address, **options: calls.append((address, options)))
    distributed.initialize("a:1", 2, 1)
    ((address, options),) = calls
    assert address == ("a:1", 2, 1) and options["local_device_ids"] == devices


def test_the_jobset_restarts_two_pods_of_eight_gpus_together():
    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text("utf-8"))
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name, spec = job_set["metadata"]["name"], job_set["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1 and job["parallelism"] == job["completions"] == 2
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    disrupted, interrupted = job["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    (container,) = pod["containers"]
    codes = {"containerName": container["name"], "operator": "In", "values": [distributed.REQUEUE]}
    assert interrupted == {"action": "FailJob", "onExitCodes": codes}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environment = {variable["name"]: variable for variable in container["env"]}
    host, port = environment["COORDINATOR_ADDRESS"]["value"].split(":")
    # JobSet names a pod NAME-JOB-NUMBER-INDEX, in the headless service NAME.
    assert host == f"{name}-{replicated['name']}-0-0.{name}" and spec["network"]["enableDNSHostnames"] is True
    assert container["ports"] == [{"containerPort": int(port)}]
    assert environment["NUM_PROCESSES"]["value"] == str(job["completions"])
    field = environment["PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (spread,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert spread["labelSelector"]["matchLabels"] == {"jobset.sigs.k8s.io/jobset-name": name}
