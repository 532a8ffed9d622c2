"""Makes runs: trains an arm and answers the test rows in one process, several such processes at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging

from benchmarks.learning import shuffled_advantages
from benchmarks.paper.arms import PASS_RATES, Arm
from benchmarks.paper.plan import GREEDY, PROGRESS, RUN, SAMPLED, PaperRun, Plan
from benchmarks.paper.rows import ensure_rows
from currreft_jax.config import EvaluatedModel
from currreft_jax.evaluation.runner import evaluate
from currreft_jax.runtime.compilation_cache import enable_compilation_cache
from currreft_jax.runtime.distributed import REQUEUE
from currreft_jax.runtime.workdir import CHECKPOINTS, saved_steps, stage_folder
from currreft_jax.training import grpo, trainer

_SHOWN_LINES = 5  # of the log of a run that failed


def make_run(plan: Plan, run: PaperRun) -> bool:
    """Trains a run's arm and answers its test rows, from where an earlier process has stopped.

    Returns:
        False if a signal stopped the training, which was saved.

    Raises:
        ValueError: the workdir was made with other sizes, or rows, model or settings cannot be used.
    """
    workdir = plan.runs / run.name
    record = _open_record(plan, run, workdir)
    if record["finished"]:
        return True
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    with _timed(workdir, record):
        ensure_rows(run.rows, _log)
        if run.arm is None:
            _measure_pass_rates(plan, run, workdir)
        elif not _make_arm(plan, run, run.arm, workdir):
            return False
        record["finished"] = True
    return True


def _make_arm(plan: Plan, run: PaperRun, arm: Arm, workdir: Path) -> bool:
    model, checkpoints, folders = plan.base(run), [(0, plan.base(run))], list[Path]()
    if arm.build:
        if arm.shuffles:
            grpo.group_advantages = shuffled_advantages
        config = arm.build(plan.ingredients(run))
        exported = trainer.run(config, workdir)
        if exported is None:
            return False
        folders = [stage_folder(config, index, workdir) for index in range(len(config.stages))]
        model, checkpoints = str(exported), list(_checkpoints(folders, [stage.steps for stage in config.stages]))
    for what, models in (
        (GREEDY, [EvaluatedModel(model, arm.name)]),
        (SAMPLED, [EvaluatedModel(model, arm.name)]),
        (PROGRESS, [EvaluatedModel(path, str(step)) for step, path in checkpoints]),
    ):
        evaluate(plan.evaluation(run, models, what), workdir / "answers" / what, _log)
    for folder in folders:
        for step in saved_steps(folder)[:-1]:  # their answers are there
            shutil.rmtree(folder / CHECKPOINTS / str(step))
    return True


def _checkpoints(folders: Sequence[Path], steps: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yields the checkpoints of all stages, with the step of the whole run."""
    before = 0
    for folder, count in zip(folders, steps, strict=True):
        for step in saved_steps(folder):
            yield before + step, str(folder / CHECKPOINTS / str(step))
        before += count


def _measure_pass_rates(plan: Plan, run: PaperRun, workdir: Path) -> None:
    files = evaluate(plan.pass_rates(run), workdir / "answers", _log)
    partial = workdir / "pass_rates.partial"
    partial.write_text("".join(file.path.read_text("utf-8") for file in files), "utf-8")
    partial.replace(workdir / "pass_rates.jsonl")


def _open_record(plan: Plan, run: PaperRun, workdir: Path) -> dict[str, Any]:
    """Reads a run's record, or begins it.

    Raises:
        ValueError: it is of other sizes.
    """
    facts = {
        **{"world": run.rows.name, "arm": run.arm.name if run.arm else "", "seed": run.seed},
        **{"base": plan.base(run), "sizes": plan.record()["sizes"]},
    }
    path = workdir / RUN
    if not path.exists():
        return {**facts, "seconds": 0.0, "finished": False}
    record = json.loads(path.read_text("utf-8"))
    for name, value in facts.items():
        if record[name] != value:
            raise ValueError(f"{path}: {name} was {record[name]}, and is {value}: take another --runs")
    return record


@contextmanager
def _timed(workdir: Path, record: dict[str, Any]) -> Iterator[None]:
    """Adds the seconds of the block to the record and writes it, whatever ends the block."""
    begun = time.perf_counter()
    _write_record(workdir, record)
    try:
        yield
    finally:
        record["seconds"] += time.perf_counter() - begun
        _write_record(workdir, record)


def _write_record(workdir: Path, record: dict[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / f"{RUN}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    partial.replace(workdir / RUN)


def has_finished(plan: Plan, run: PaperRun) -> bool:
    """Returns true if a run's record says so."""
    path = plan.runs / run.name / RUN
    return path.exists() and json.loads(path.read_text("utf-8"))["finished"]


def make_runs(plan: Plan, arguments: Sequence[str], jobs: int) -> list[str]:
    """Makes all runs that are not finished, each in a process of its own.

    Args:
        plan: the plan.
        arguments: of the command line, which each process gets with `--only`.
        jobs: processes at a time.

    Returns:
        Names of the runs that failed; their last lines are printed.

    Raises:
        KeyboardInterrupt: Ctrl-C; the processes have got it, too, and have saved.
    """
    waiting = [run for run in plan if not has_finished(plan, run)]
    total, failed, started = len(waiting), [], 0
    going: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or going:
            while len(going) < jobs and (run := _next_run(plan, waiting)):
                waiting.remove(run)
                started += 1
                _log(f"{started} of {total}: {run.name}")
                going[run.name] = _start(plan, run, arguments)
            if not going:  # what is left waits for a run that failed
                return [*failed, *(run.name for run in waiting)]
            time.sleep(0.5)
            for name in [name for name, process in going.items() if process.poll() is not None]:
                code = going.pop(name).returncode
                if code == REQUEUE:
                    raise KeyboardInterrupt
                if code:
                    failed.append(name)
                    lines = _log_path(plan, name).read_text("utf-8", "replace").splitlines()[-_SHOWN_LINES:]
                    _log("\n  ".join([f"{name} failed; the end of {_log_path(plan, name)}:", *lines]))
    finally:
        for process in going.values():
            process.terminate()
        for process in going.values():
            process.wait()
    return failed


def _next_run(plan: Plan, waiting: Sequence[PaperRun]) -> PaperRun | None:
    """Returns the first run that waits for nothing; filtered fine-tuning waits for the pass rates of its world."""
    for run in waiting:
        needed = [other for other in plan if other.arm is None and other.rows.name == run.rows.name]
        if run.arm is None or run.arm.needs != PASS_RATES or all(has_finished(plan, other) for other in needed):
            return run
    return None


def _start(plan: Plan, run: PaperRun, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    path = _log_path(plan, run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        command = [sys.executable, "-m", "benchmarks.paper", *arguments, f"--only={run.name}"]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _log_path(plan: Plan, name: str) -> Path:
    return plan.runs / f"{name}.log"


def _log(line: str) -> None:
    print(f"paper: {line}", file=sys.stderr, flush=True)
