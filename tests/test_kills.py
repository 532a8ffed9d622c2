"""Killed at any moment, the program goes on as if nothing had happened: the same metrics, completions and weights."""

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
from tests.test_grpo import config_of, rows, told
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
from tests.test_kills import often_saved

checkpoint, rows, out = map(Path, sys.argv[1:4])
print("ready", flush=True)
sys.exit(75 if trainer.run(often_saved(checkpoint, rows), out) is None else 0)
"""


def often_saved(checkpoint: Path, rows: Path) -> Config:
    logging = Logging(log_every=1, save_every=1, rollouts_every=1, tensorboard=False)
    config = config_of(checkpoint, rows, STEPS, mesh=MeshShape(data=1, fsdp=1), logging=logging)
    config.data.slots = (8,)  # of all rows, which one device has
    return config


def start(*arguments: object) -> subprocess.Popen:
    """The program, as soon as it has read its code."""
    begun = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert begun.stdout and begun.stdout.readline() == "ready\n", begun.communicate()[1]
    return begun


@pytest.fixture(scope="module")
def unbroken(checkpoint, rows, tmp_path_factory) -> tuple[Path, float]:
    """A run that nothing disturbs, and how long it takes once everything was compiled."""
    for name in ("first", "unbroken"):
        workdir = tmp_path_factory.mktemp(name)
        begun = start(checkpoint, rows, workdir, jax.config.jax_compilation_cache_dir)
        since = time.monotonic()
        assert begun.wait() == 0, begun.communicate()[1]
    return workdir, time.monotonic() - since


def same(workdir: Path, unbroken: Path) -> None:
    assert told(workdir) == told(unbroken)
    for name in (*(f"rollouts/{step}.jsonl" for step in range(1, STEPS + 1)), "model/model.safetensors"):
        assert (workdir / name).read_bytes() == (unbroken / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_stopped_at_random_moments_the_run_goes_on_to_the_bit(unbroken, checkpoint, rows, tmp_path, number):
    whole, seconds = unbroken
    rng, stopped, runs, writing = random.Random(int(number)), 0, 0, 0
    while stopped < 20:
        runs += 1
        workdir, done = tmp_path / str(runs), False
        while not done:
            anew, begun = not workdir.exists(), start(checkpoint, rows, workdir, jax.config.jax_compilation_cache_dir)
            since = time.monotonic()
            try:
                begun.wait(rng.uniform(0, seconds))
                seconds = min(seconds, time.monotonic() - since) if anew else seconds
            except subprocess.TimeoutExpired:
                begun.send_signal(number)
            said = begun.communicate(timeout=300)[1]
            done = begun.returncode == 0
            stopped += not done
            writing += any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
            # A notice that comes before the program listens ends it as the system does.
            ended = {0, -number, *((REQUEUE,) if number != signal.SIGKILL else ())}
            assert begun.returncode in ended, said
        same(workdir, whole)
    print(f"{stopped} stops, {writing} of them in a checkpoint half written, {runs} runs")


@pytest.mark.slow
def test_one_of_two_processes_is_killed_at_random_moments(environment, checkpoint, rows, tmp_path):
    logging = Logging(log_every=1, save_every=1, rollouts_every=1, tensorboard=False)
    settings = settings_file(tmp_path, config_of(checkpoint, rows, STEPS, logging=logging))

    def launched(workdir: Path) -> subprocess.Popen:
        command = [LAUNCH / "processes.sh", "2", f"--config={settings}", f"--workdir={workdir}"]
        return subprocess.Popen(command, env=environment | {"DEVICES": "4"}, stderr=subprocess.PIPE, text=True)

    for name in ("first", "unbroken"):  # the first one compiles
        since, begun = time.monotonic(), launched(tmp_path / name)
        assert begun.communicate()[1] and begun.returncode == 0
    seconds = time.monotonic() - since
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 10:
        runs += 1
        workdir, done = tmp_path / str(runs), False
        while not done:
            anew, since, begun = not workdir.exists(), time.monotonic(), launched(workdir)
            try:
                said, victim = begun.communicate(timeout=rng.uniform(0.3, 1.0) * seconds)[1], None
                seconds = min(seconds, time.monotonic() - since) if anew else seconds
            except subprocess.TimeoutExpired:
                victim = rng.choice([pid for pid in children(begun.pid) if variable(pid, "PROCESS_ID")])
                os.kill(victim, signal.SIGKILL)
                said = begun.communicate(timeout=60)[1]
            done = begun.returncode == 0
            kills += not done
            assert done or (begun.returncode == 137 and f"(pid {victim}) ended with 137" in said), said
        assert told(workdir) == told(tmp_path / "unbroken")
        model = "model/model.safetensors"
        assert (workdir / model).read_bytes() == (tmp_path / "unbroken" / model).read_bytes()
    print(f"{kills} kills, {runs} runs")


@pytest.mark.slow
def test_a_disk_that_is_full_loses_nothing_that_was_saved(unbroken, checkpoint, rows, tmp_path):
    """No file may grow beyond some bytes, which the second checkpoint wants to."""
    whole, _ = unbroken
    cache = jax.config.jax_compilation_cache_dir
    first = start(checkpoint, rows, tmp_path, cache)
    while not (tmp_path / "checkpoints" / "2").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    first.kill()
    first.communicate()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal())
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    second = start(checkpoint, rows, tmp_path, cache, largest // 2)
    said = second.communicate(timeout=300)[1]
    assert second.returncode not in (0, REQUEUE) and "large" in said
    assert kept[-1] in os.listdir(tmp_path / "checkpoints")
    assert start(checkpoint, rows, tmp_path, cache).communicate(timeout=300) and (tmp_path / "model").exists()
    same(tmp_path, whole)
