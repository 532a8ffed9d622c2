"""A run killed at any moment resumes with the same metrics, completions and weights as an uninterrupted one."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import pytest

from currreft_jax.config import Config, Logging, MeshShape
from currreft_jax.runtime.distributed import REQUEUE
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.training import trainer
from tests.test_grpo import config_of, logged_metrics, rows
from tests.test_launch import LAUNCH, children, environment, settings_file, variable

__all__ = ["environment", "rows"]

STEPS = 8
# Processes of runs are forked from one that has done the imports, and has no threads of JAX.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_kills"])


def frequently_saved(checkpoint: Path, rows: Path) -> Config:
    logging = Logging(log_every=1, save_every=1, rollouts_every=1, tensorboard=False)
    config = config_of(checkpoint, rows, STEPS, mesh=MeshShape(data=1, fsdp=1), logging=logging)
    config.data.slots = (8,)  # one device holds all rows
    return config


def train(checkpoint: Path, rows: Path, workdir: Path, cache: str, stderr: Path, largest_file: int | None) -> None:
    """Trains on one device, in a process of its own."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.exit(REQUEUE if trainer.run(frequently_saved(checkpoint, rows), workdir) is None else 0)


def start(checkpoint: Path, rows: Path, workdir: Path, largest_file: int | None = None) -> BaseProcess:
    """Starts a run, whose standard error goes to a file beside its workdir."""
    cache = jax.config.jax_compilation_cache_dir
    arguments = (checkpoint, rows, workdir, cache, stderr_of(workdir), largest_file)
    process = FORKS.Process(target=train, args=arguments)
    process.start()
    return process


def stderr_of(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.stderr")


def step_seconds(workdir: Path) -> float:
    """Returns the seconds of a run's last step, without those of its checkpoint."""
    return read_metrics(workdir / "metrics.jsonl")[-1]["step_time"]


def wait_for_checkpoint(workdir: Path, step: int, is_running: Callable[[], bool]) -> None:
    """Waits for the checkpoint of a step, or for the end of the run."""
    while not (workdir / "checkpoints" / str(step)).exists() and is_running():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, rows, tmp_path_factory) -> tuple[Path, float]:
    """An uninterrupted run, and its seconds."""
    workdir, started = tmp_path_factory.mktemp("uninterrupted") / "run", time.monotonic()
    process = start(checkpoint, rows, workdir)
    process.join()
    assert process.exitcode == 0, stderr_of(workdir).read_text()
    return workdir, time.monotonic() - started


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert logged_metrics(workdir) == logged_metrics(reference)
    for name in (*(f"rollouts/{step}.jsonl" for step in range(1, STEPS + 1)), "model/model.safetensors"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name


def test_a_killed_run_resumes_bit_for_bit(uninterrupted, checkpoint, rows, tmp_path):
    workdir = tmp_path / "killed"
    process = start(checkpoint, rows, workdir)
    wait_for_checkpoint(workdir, 2, process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, stderr_of(workdir).read_text()
    process = start(checkpoint, rows, workdir)
    process.join()
    assert process.exitcode == 0, stderr_of(workdir).read_text()
    assert_same_run(workdir, uninterrupted[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_at_random_moments_resumes_bit_for_bit(uninterrupted, checkpoint, rows, tmp_path, number):
    """Stops at a moment of the start, and at two of a step or of the save after it."""
    reference, seconds = uninterrupted
    rng, stopped, writing, workdir = random.Random(int(number)), 0, 0, tmp_path / "stopped"
    # A signal that arrives before the handlers are installed ends the process by default.
    expected = {0, -number, *((REQUEUE,) if number != signal.SIGKILL else ())}
    for saved, longest in ((None, seconds / 4), (2, step_seconds(reference)), (5, step_seconds(reference))):
        process = start(checkpoint, rows, workdir)
        if saved:
            wait_for_checkpoint(workdir, saved, process.is_alive)
        process.join(rng.uniform(0, longest))
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(300)
        assert process.exitcode in expected, stderr_of(workdir).read_text()
        stopped += process.exitcode != 0
        writing += any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
    process = start(checkpoint, rows, workdir)
    process.join(300)
    assert process.exitcode == 0 and stopped >= 2, stderr_of(workdir).read_text()
    assert_same_run(workdir, reference)
    print(f"{stopped} stops, {writing} of them within a checkpoint's write")


@pytest.mark.slow
def test_a_run_resumes_after_kills_of_one_of_two_processes(environment, checkpoint, rows, tmp_path):
    logging = Logging(log_every=1, save_every=1, rollouts_every=1, tensorboard=False)
    settings = settings_file(tmp_path, config_of(checkpoint, rows, STEPS, logging=logging))

    def launch(workdir: Path) -> subprocess.Popen:
        command = [LAUNCH / "processes.sh", "2", f"--config={settings}", f"--workdir={workdir}"]
        return subprocess.Popen(command, env=environment | {"DEVICES": "4"}, stderr=subprocess.PIPE, text=True)

    for name in ("first", "uninterrupted"):  # the first run compiles
        started, process = time.monotonic(), launch(tmp_path / name)
        assert process.communicate()[1] and process.returncode == 0
    seconds = time.monotonic() - started
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 3:
        runs += 1
        workdir, done = tmp_path / str(runs), False
        while not done:
            is_new, started, process = not workdir.exists(), time.monotonic(), launch(workdir)
            try:
                stderr, victim = process.communicate(timeout=rng.uniform(0.3, 1.0) * seconds)[1], None
                seconds = min(seconds, time.monotonic() - started) if is_new else seconds
            except subprocess.TimeoutExpired:
                victim, running = None, [pid for pid in children(process.pid) if variable(pid, "PROCESS_ID")]
                if running:  # unless the run ends at this moment
                    victim = rng.choice(running)
                    os.kill(victim, signal.SIGKILL)
                stderr = process.communicate(timeout=60)[1]
            done = process.returncode == 0
            kills += not done
            assert done or (process.returncode == 137 and f"(pid {victim}) ended with 137" in stderr), stderr
        assert logged_metrics(workdir) == logged_metrics(tmp_path / "uninterrupted")
        model = "model/model.safetensors"
        assert (workdir / model).read_bytes() == (tmp_path / "uninterrupted" / model).read_bytes()
    print(f"{kills} kills, {runs} runs")


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint(uninterrupted, checkpoint, rows, tmp_path):
    """A limit on the size of files makes later checkpoints fail."""
    workdir = tmp_path / "run"
    first = start(checkpoint, rows, workdir)
    wait_for_checkpoint(workdir, 2, first.is_alive)
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL, stderr_of(workdir).read_text()
    saved = sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    largest = max(path.stat().st_size for path in (workdir / "checkpoints").rglob("*") if path.is_file())
    second = start(checkpoint, rows, workdir, largest // 2)
    second.join(300)
    assert second.exitcode not in (0, REQUEUE, None) and "large" in stderr_of(workdir).read_text()
    assert saved[-1] in os.listdir(workdir / "checkpoints")
    last = start(checkpoint, rows, workdir)
    last.join(300)
    assert last.exitcode == 0 and (workdir / "model").exists(), stderr_of(workdir).read_text()
    assert_same_run(workdir, uninterrupted[0])
