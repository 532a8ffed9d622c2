"""Reads a workdir, but for its rollouts: settings, metrics, held-out rewards and checkpoints, also while it trains."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from currreft_jax.evaluation.measurement import Measurement, regressed_from
from currreft_jax.evaluation.statistics import Z
from currreft_jax.models.folder import read_json
from currreft_jax.runtime.metrics import METRICS, read_metrics
from currreft_jax.runtime.workdir import CHECKPOINTS, CONFIG, EXPORT, MATRIX
from currreft_jax.training.curriculum import ForgettingMatrix

MAX_POINTS = 2000  # per curve and stage, more than a screen's pixels


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of a run.

    Attributes:
        name: stage name.
        folder: where its files are.
        planned_steps: configured number of steps; promotion may end the stage earlier.
        metrics: one object per step.
    """

    name: str
    folder: Path
    planned_steps: int
    metrics: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        workdir: path as given.
        config: all settings, from the latest stage that has begun.
        stages: those that have begun, in training order.
        measurements: rewards on held-out rows.
        notes: losses on held-out rows, and decisions of forgetting gates.
        kept_steps: the step whose model a forgetting gate has kept, by stage.
    """

    workdir: Path
    config: dict[str, Any]
    stages: tuple[StageRun, ...]
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    kept_steps: Mapping[str, int] = field(default_factory=dict)


def read_run(workdir: Path) -> Run:
    """Reads a workdir of one or several stages.

    Raises:
        ValueError: it holds no run, or a file is damaged; the message names file and line.
    """
    single_stage = (workdir / METRICS).is_file()
    folders = [workdir] if single_stage else [path.parent for path in sorted(workdir.glob(f"*/{METRICS}"))]
    if not folders:
        raise ValueError(
            f"{workdir} holds no run: neither it nor a folder in it has a {METRICS}, which every stage writes from its"
            " start"
        )
    stages = sorted((_read_stage(folder, single_stage) for folder in folders), key=lambda stage: stage[0])
    _, config, _ = stages[-1]
    matrix = ForgettingMatrix(workdir / MATRIX, writes=False)
    kept_steps = {decision.stage: decision.kept_step for decision in matrix.decisions}
    return Run(
        workdir, config, tuple(stage for _, _, stage in stages), matrix.history, tuple(matrix.notes()), kept_steps
    )


def _read_stage(folder: Path, single_stage: bool) -> tuple[int, dict[str, Any], StageRun]:
    """Returns the index of a folder's stage, its settings, and the stage."""
    config = read_json(folder / CONFIG)
    try:
        steps = {str(stage["name"]): int(stage["steps"]) for stage in config["stages"]}
        name = next(iter(steps)) if single_stage else folder.name
        index, planned_steps = list(steps).index(name), steps[name]
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"{folder / CONFIG}: no settings of a run with such a stage ({error!r})") from error
    return index, config, StageRun(name, folder, planned_steps, read_metrics(folder / METRICS))


def run_record(run: Run) -> dict[str, Any]:
    """Converts a run to the page's JSON."""
    return {
        "name": run.workdir.resolve().name,
        "path": str(run.workdir),
        "config": run.config,
        "stages": [
            {
                "name": stage.name,
                "planned_steps": stage.planned_steps,
                "checkpoints": _checkpoints(stage.folder),
                "export": _folder_bytes(stage.folder / EXPORT),
                **metric_columns(stage.metrics),
            }
            for stage in run.stages
        ],
        "matrix": forgetting_matrix(run.measurements) | {"notes": run.notes},
    }


def metric_columns(lines: Sequence[dict[str, Any]], max_points: int = MAX_POINTS) -> dict[str, Any]:
    """Converts a stage's metrics to columns; a point covers several steps if there are more than `max_points`.

    Args:
        lines: one object per step.
        max_points: maximum length of a column.

    Returns:
        `steps_per_point`; `steps`, the last step of each point; `metrics`, name -> values: the mean over the point's
        steps, the maximum or minimum for names of maxima or minima, None if no step has a finite value.
    """
    steps_per_point = max(1, math.ceil(len(lines) / max_points))
    bins = [lines[start : start + steps_per_point] for start in range(0, len(lines), steps_per_point)]
    names = sorted(set().union(*lines) - {"step", "stage"})
    return {
        "steps_per_point": steps_per_point,
        "steps": [steps[-1]["step"] for steps in bins],
        "metrics": {name: [_reduce(name, steps) for steps in bins] for name in names},
    }


def _reduce(name: str, lines: Sequence[dict[str, Any]]) -> float | None:
    absent = 0.0 if name.startswith("parse/") else math.nan  # a parse reason with no occurrence is not written
    values = [value for line in lines if math.isfinite(value := line.get(name, absent))]
    if not values:
        return None
    words = name.replace("_", "/").split("/")
    value = max(values) if "max" in words else min(values) if "min" in words else fmean(values)
    return float(f"{value:.5g}")


def forgetting_matrix(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Converts measurements to `times`, held-out `names`, and `cells` `[times][names]`, None if not measured."""
    times = list(dict.fromkeys((measured.stage, measured.step) for measured in measurements))
    names = list(dict.fromkeys(measured.held_out for measured in measurements))
    cells: dict[tuple[str, int, str], dict[str, Any]] = {}
    for index, measured in enumerate(measurements):
        best = regressed_from(measurements[:index], measured)
        cells[measured.stage, measured.step, measured.held_out] = {
            "reward": measured.reward,
            "half_interval": Z * measured.error,
            "accuracy": measured.accuracy,
            "format": measured.format,
            "passed": None if measured.passed is None else measured.passed / measured.rows,
            "rows": measured.rows,
            "greedy": measured.greedy,
            "regressed_from": best and best.reward,
        }
    return {
        "times": times,
        "names": names,
        "cells": [[cells.get((*time, name)) for name in names] for time in times],
    }


def _checkpoints(folder: Path) -> list[tuple[int, int]]:
    """Lists the step and the bytes of each checkpoint."""
    steps = sorted(int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal())
    return [(step, _folder_bytes(folder / CHECKPOINTS / str(step))) for step in steps]


def _folder_bytes(folder: Path) -> int:
    """Sums the sizes of all files in a folder; 0 if there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run in progress deletes old checkpoints
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
