"""Signals to the launch scripts: they reach every process, and the script waits for the save and exits with 75."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from currreft_jax.runtime.distributed import REQUEUE
from currreft_jax.runtime.workdir import saved_steps
from tests.test_launch import ROOT, environment, settings, wait_for

__all__ = ["environment", "settings"]

# Stands in for training, in a moment: it saves half a second after a signal, however many follow.
# With SCENARIO=crash process 1 fails; with SCENARIO=stuck no process ends by itself; with SCENARIO=killed process
# VICTIM is killed, upon which the other aborts, as JAX makes it.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

folder, process = Path(os.environ["FOLDER_OF_TEST"]), os.environ.get("PROCESS_ID", "0")
scenario = os.environ.get("SCENARIO")
received = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: received.append(number))
(folder / f"arguments-{process}").write_text("|".join(sys.argv[1:]))
(folder / f"ready-{process}").write_text(str(os.getpid()))
if scenario == "crash" and process == "1":
    sys.exit(9)
if scenario == "killed":
    victim = folder / f"ready-{os.environ['VICTIM']}"
    while not all((folder / f"ready-{n}").exists() for n in (0, 1)):
        time.sleep(0.001)
    if process == os.environ["VICTIM"]:
        os.kill(os.getpid(), signal.SIGKILL)
    while Path(f"/proc/{victim.read_text()}").exists():
        time.sleep(0.001)
    os.abort()
end = time.monotonic() + 60
while (not received or scenario == "stuck") and time.monotonic() < end:
    time.sleep(0.02)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    time.sleep(0.02)
(folder / f"saved-{process}").touch()
sys.exit(75)
"""
SRUN = """#!/usr/bin/env bash
# Stands in for srun: two tasks, to which signals are forwarded; SIGINT ends it and them.
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do
    PROCESS_ID=$task "$@" &
    tasks+=($!)
done
forward() { forwarded=1; kill "-$1" "${tasks[@]}"; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM
trap 'kill -KILL "${tasks[@]}"; exit 1' INT
for task in "${tasks[@]}"; do
    while forwarded=''; code=0; wait "$task" || code=$?; [ -n "$forwarded" ]; do :; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$FOLDER_OF_TEST/scontrol.log"
"""
GCLOUD = f"""#!{sys.executable}
# Stands in for gcloud's ssh: the command runs out of reach of this machine's signals, which end gcloud itself.
import signal, subprocess, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit("gcloud was interrupted"))
(command,) = [argument.removeprefix("--command=") for argument in sys.argv if argument.startswith("--command=")]
sys.exit(subprocess.run(["bash", "-c", command], start_new_session=True).returncode)
"""
SCRIPTS = {
    "run.sh": ["launch/run.sh"],
    "processes.sh": ["launch/processes.sh", "2"],
    "slurm.sbatch": ["bash", "launch/slurm.sbatch"],
    "tpu_vm.sh": ["launch/tpu_vm.sh"],
}
TO_ONE: Callable[[int, int], None] = os.kill
TO_GROUP: Callable[[int, int], None] = os.killpg
# As a scheduler, a user or a terminal sends them.
SIGNALS = [(signal.SIGTERM, TO_ONE), (signal.SIGUSR1, TO_ONE), (signal.SIGINT, TO_GROUP), (signal.SIGTERM, TO_GROUP)]


@pytest.fixture
def stand_ins(tmp_path) -> dict[str, str]:
    """An environment in which the scripts start stand-ins for training, Slurm and gcloud."""
    (tmp_path / "stand_in.py").write_text(PROGRAM)
    python = f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n'
    commands = {"srun": SRUN, "scontrol": SCONTROL, "gcloud": GCLOUD, ".venv/bin/python": python}
    for name, text in commands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path),
        "PROGRAM": "stand_in",
        "FOLDER_OF_TEST": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "TPU": "slice",
        "ZONE": "zone",
        "FOLDER": str(tmp_path),
    }


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Starts a script in a process group of its own, with signals as a shell's user has them; kills what is left."""
    running = subprocess.Popen(
        ["env", "--default-signal=INT,TERM,USR1", *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()


def wait_until_ready(folder: Path, count: int) -> None:
    wait_for(lambda: all((folder / f"ready-{n}").exists() for n in range(count)), 30)


def processes_of(script: str) -> int:
    return 1 if script in ("run.sh", "tpu_vm.sh") else 2


@pytest.mark.parametrize(("number", "send"), SIGNALS, ids=["TERM", "USR1", "Ctrl-C", "TERM to all"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_passes_signals_on_and_waits_for_the_save(stand_ins, tmp_path, script, number, send):
    with started([*SCRIPTS[script], "--flag=a b"], stand_ins) as running:
        wait_until_ready(tmp_path, processes_of(script))
        send(running.pid, number)
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == REQUEUE, stderr
    for process in range(processes_of(script)):
        assert (tmp_path / f"saved-{process}").exists()
        assert (tmp_path / f"arguments-{process}").read_text() == "--flag=a b"
    if script == "slurm.sbatch":
        assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "run.sh"])
def test_signals_during_the_save_do_not_end_it(stand_ins, tmp_path, script):
    with started(SCRIPTS[script], stand_ins) as running:
        wait_until_ready(tmp_path, processes_of(script))
        for number in (signal.SIGTERM, signal.SIGUSR1) * 6:
            running.send_signal(number)
            time.sleep(0.02)
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == REQUEUE, stderr
    assert all((tmp_path / f"saved-{process}").exists() for process in range(processes_of(script)))


@pytest.mark.parametrize("script", ["processes.sh", "tpu_vm.sh"])
def test_a_second_ctrl_c_ends_all_processes_at_once(stand_ins, tmp_path, script):
    with started(SCRIPTS[script], stand_ins | {"SCENARIO": "stuck"}) as running:
        wait_until_ready(tmp_path, processes_of(script))
        os.killpg(running.pid, signal.SIGINT)
        assert running.stderr and "press Ctrl-C again to stop at once" in running.stderr.readline()
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=120)
    assert running.returncode == 130
    pids = [int((tmp_path / f"ready-{process}").read_text()) for process in range(processes_of(script))]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
    assert not list(tmp_path.glob("saved-*"))


def test_a_failed_process_ends_the_others_and_gives_its_code(stand_ins, tmp_path):
    with started(SCRIPTS["processes.sh"], stand_ins | {"SCENARIO": "crash"}) as running:
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 9
    assert re.search(r"process 1 \(pid \d+\) ended with 9; the others are killed", stderr)
    assert not list(tmp_path.glob("saved-*"))


@pytest.mark.parametrize("victim", ["0", "1"])
def test_the_killed_process_is_named_and_gives_its_code_when_the_other_aborts_at_once(stand_ins, tmp_path, victim):
    with started(SCRIPTS["processes.sh"], stand_ins | {"SCENARIO": "killed", "VICTIM": victim}) as running:
        _, stderr = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGKILL
    pid = (tmp_path / f"ready-{victim}").read_text()
    assert f"process {victim} (pid {pid}) ended with 137; the others are killed" in stderr


@pytest.mark.slow
def test_two_training_processes_save_on_a_signal_and_the_same_command_resumes(settings, environment, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = ["launch/processes.sh", "2", f"--config={settings}", f"--workdir={metrics.parent}"]
    command += ["--config.stages[0].steps=100000", "--config.logging.save_every=100000"]
    saved: list[int] = []
    for number, send in ((signal.SIGINT, TO_GROUP), (signal.SIGUSR1, TO_ONE)):
        with started(command, environment | {"DEVICES": "1"}) as running:
            before = metrics.read_text() if metrics.exists() else ""
            wait_for(lambda before=before: metrics.exists() and len(metrics.read_text()) > len(before))
            send(running.pid, number)
            _, stderr = running.communicate(timeout=120)
        assert running.returncode == REQUEUE, stderr
        if saved:
            assert f"resuming from step {saved[-1]}" in stderr
        (step,) = set(saved_steps(metrics.parent)) - set(saved)
        assert f'"step": {step}' in metrics.read_text().splitlines()[-1]
        saved.append(step)
    assert saved == sorted(saved)
