"""A run killed at any moment resumes with the same metrics, completions and weights as an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from currreft_jax.config import Config, Logging, MeshShape
from currreft_jax.runtime.distributed import REQUEUE
from tests.test_grpo import config_of, logged_metrics, rows
from tests.test_launch import LAUNCH, children, environment, settings_file, variable

__all__ = ["environment", "rows"]

STEPS = 8
PROGRAM = """
import resource, sys
from pathlib import Path
import jax
for largest in map(int, sys.argv[5:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from currreft_jax.training import trainer
from tests.test_kills import frequently_saved

checkpoint, rows, out = map(Path, sys.argv[1:4])
print("ready", flush=True)
sys.exit(75 if trainer.run(frequently_saved(checkpoint, rows), out) is None else 0)
"""


def frequently_saved(checkpoint: Path, rows: Path) -> Config:
    logging = Logging(log_every=1, save_every=1, rollouts_every=1, tensorboard=False)
    config = config_of(checkpoint, rows, STEPS, mesh=MeshShape(data=1, fsdp=1), logging=logging)
    config.data.slots = (8,)  # one device holds all rows
    return config


def start(*arguments: object) -> subprocess.Popen:
    """Starts the program, and returns once its imports are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, rows, tmp_path_factory) -> tuple[Path, float]:
    """An uninterrupted run, and its seconds with a warm compilation cache."""
    for name in ("first", "uninterrupted"):
        workdir = tmp_path_factory.mktemp(name)
        process = start(checkpoint, rows, workdir, jax.config.jax_compilation_cache_dir)
        started = time.monotonic()
        assert process.wait() == 0, process.communicate()[1]
    return workdir, time.monotonic() - started


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert logged_metrics(workdir) == logged_metrics(reference)
    for name in (*(f"rollouts/{step}.jsonl" for step in range(1, STEPS + 1)), "model/model.safetensors"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name


def test_a_killed_run_resumes_bit_for_bit(checkpoint, rows, tmp_path):
    cache = jax.config.jax_compilation_cache_dir
    reference, workdir = tmp_path / "reference", tmp_path / "killed"
    process = start(checkpoint, rows, reference, cache)
    assert process.wait() == 0, process.communicate()[1]
    process = start(checkpoint, rows, workdir, cache)
    while not (workdir / "checkpoints" / "2").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    process = start(checkpoint, rows, workdir, cache)
    assert process.wait() == 0, process.communicate()[1]
    assert_same_run(workdir, reference)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_at_random_moments_resumes_bit_for_bit(uninterrupted, checkpoint, rows, tmp_path, number):
    reference, seconds = uninterrupted
    rng, stopped, runs, writing = random.Random(int(number)), 0, 0, 0
    while stopped < 3:
        runs += 1
        workdir, done = tmp_path / str(runs), False
        while not done:
            is_new = not workdir.exists()
            process = start(checkpoint, rows, workdir, jax.config.jax_compilation_cache_dir)
            started = time.monotonic()
            try:
                process.wait(rng.uniform(0, seconds))
                seconds = min(seconds, time.monotonic() - started) if is_new else seconds
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            stderr = process.communicate(timeout=300)[1]
            done = process.returncode == 0
            stopped += not done
            writing += any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
            # A signal that arrives before the handlers are installed ends the process by default.
            expected = {0, -number, *((REQUEUE,) if number != signal.SIGKILL else ())}
            assert process.returncode in expected, stderr
        assert_same_run(workdir, reference)
    print(f"{stopped} stops, {writing} of them within a checkpoint's write, {runs} runs")


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
    reference, _ = uninterrupted
    cache = jax.config.jax_compilation_cache_dir
    first = start(checkpoint, rows, tmp_path, cache)
    while not (tmp_path / "checkpoints" / "2").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    first.kill()
    first.communicate()
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal())
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    second = start(checkpoint, rows, tmp_path, cache, largest // 2)
    stderr = second.communicate(timeout=300)[1]
    assert second.returncode not in (0, REQUEUE) and "large" in stderr
    assert saved[-1] in os.listdir(tmp_path / "checkpoints")
    assert start(checkpoint, rows, tmp_path, cache).communicate(timeout=300) and (tmp_path / "model").exists()
    assert_same_run(tmp_path, reference)
