"""What lies in a run's workdir besides its completions; a run that is still going has less of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from currreft_jax.evaluation.measurement import Measurement, Z, regressed_from
from currreft_jax.models.folder import read_json
from currreft_jax.runtime.metrics import METRICS, read_metrics
from currreft_jax.runtime.workdir import CHECKPOINTS, CONFIG, EXPORT, MATRIX
from currreft_jax.training.curriculum import ForgettingMatrix

POINTS = 2000  # of a curve in a stage: more than a screen shows


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of a run.

    Attributes:
        name: of the stage.
        folder: of it.
        planned: its steps; it may end earlier.
        lines: its metrics, one object a step.
    """

    name: str
    folder: Path
    planned: int
    lines: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        workdir: as it was named.
        config: all settings, as the last stage that has begun wrote them.
        stages: those that have begun, in their order.
        measured: what held-out rows said.
    """

    workdir: Path
    config: dict[str, Any]
    stages: tuple[StageRun, ...]
    measured: tuple[Measurement, ...]


def read_run(workdir: Path) -> Run:
    """Reads a workdir, of one stage or of several.

    Raises:
        ValueError: there is no run in it, or a file of it is damaged; the message names file and line.
    """
    alone = (workdir / METRICS).is_file()
    folders = [workdir] if alone else [path.parent for path in sorted(workdir.glob(f"*/{METRICS}"))]
    if not folders:
        raise ValueError(
            f"{workdir} holds no run: {METRICS}, there or in a folder of a stage, is written as one begins"
        )
    found = sorted((_stage(folder, alone) for folder in folders), key=lambda it: it[0])
    return Run(
        workdir, found[-1][1], tuple(it[2] for it in found), ForgettingMatrix(workdir / MATRIX, writes=False).history
    )


def _stage(folder: Path, alone: bool) -> tuple[int, dict[str, Any], StageRun]:
    """The number of a folder's stage, the settings that it was trained with, and itself."""
    config = read_json(folder / CONFIG)
    try:
        planned = {str(stage["name"]): int(stage["steps"]) for stage in config["stages"]}
        name = next(iter(planned)) if alone else folder.name
        number, steps = list(planned).index(name), planned[name]
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"{folder / CONFIG}: no settings of a run with such a stage ({error!r})") from error
    return number, config, StageRun(name, folder, steps, read_metrics(folder / METRICS))


def told(run: Run) -> dict[str, Any]:
    """A run as the page takes it."""
    return {
        "name": run.workdir.resolve().name,
        "path": str(run.workdir),
        "config": run.config,
        "stages": [
            {
                "name": stage.name,
                "planned": stage.planned,
                "checkpoints": _checkpoints(stage.folder),
                "export": _size(stage.folder / EXPORT),
                **curves(stage.lines),
            }
            for stage in run.stages
        ],
        "matrix": matrix(run.measured),
    }


def curves(lines: Sequence[dict[str, Any]], points: int = POINTS) -> dict[str, Any]:
    """The metrics of a stage as columns; where there are too many steps, a point stands for several.

    Args:
        lines: one object a step.
        points: at most so many.

    Returns:
        `every`: how many steps a point stands for; `steps`: the last step of each; `metrics`: name -> its value at each
        point, which is their mean, or for the largest and smallest of something again the largest and smallest. None
        where no step has a finite one.
    """
    every = max(1, math.ceil(len(lines) / points))
    bins = [lines[start : start + every] for start in range(0, len(lines), every)]
    names = sorted(set().union(*lines) - {"step", "stage"})
    return {
        "every": every,
        "steps": [part[-1]["step"] for part in bins],
        "metrics": {name: [_folded(name, part) for part in bins] for name in names},
    }


def _folded(name: str, lines: Sequence[dict[str, Any]]) -> float | None:
    absent = 0.0 if name.startswith("parse/") else math.nan  # a reason that was not given is not written
    values = [value for line in lines if math.isfinite(value := line.get(name, absent))]
    if not values:
        return None
    extreme = name.replace("_", "/").split("/")
    value = max(values) if "max" in extreme else min(values) if "min" in extreme else fmean(values)
    return float(f"{value:.5g}")


def matrix(measured: Sequence[Measurement]) -> dict[str, Any]:
    """The forgetting matrix: `times`, `names` of held-out sets, and a cell for each of both, or None."""
    times = list(dict.fromkeys((it.stage, it.step) for it in measured))
    names = list(dict.fromkeys(it.held_out for it in measured))
    cells: dict[tuple[str, int, str], dict[str, Any]] = {}
    for place, it in enumerate(measured):
        best = regressed_from(measured[:place], it)
        cells[it.stage, it.step, it.held_out] = {
            "reward": it.reward,
            "half": Z * it.error,
            "accuracy": it.accuracy,
            "format": it.format,
            "passed": None if it.passed is None else it.passed / it.rows,
            "rows": it.rows,
            "greedy": it.greedy,
            "fallen": best and best.reward,
        }
    return {
        "times": times,
        "names": names,
        "cells": [[cells.get((*time, name)) for name in names] for time in times],
    }


def _checkpoints(folder: Path) -> list[tuple[int, int]]:
    """Step and size in bytes of each."""
    steps = sorted(int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal())
    return [(step, _size(folder / CHECKPOINTS / str(step))) for step in steps]


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run that is still going removes old checkpoints
                total += os.lstat(os.path.join(place, name)).st_size
    return total
