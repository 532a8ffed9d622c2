"""Measures of finished runs, read from their workdirs alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import scipy

from benchmarks.paper.arms import ARM_BY_NAME, Arm
from benchmarks.paper.plan import GREEDY, PLAN, PROGRESS, RUN, SAMPLED
from currreft_jax.config import REJECT, Kind, Method, SuiteDomain
from currreft_jax.evaluation.answers import Answer
from currreft_jax.evaluation.compare import read_model_answers
from currreft_jax.evaluation.statistics import Interval, PairedDifference, paired_difference
from currreft_jax.report.runs import StageRun, read_run
from currreft_jax.rewards.answer import extract_answer
from currreft_jax.rewards.format import format_reward
from currreft_jax.structs import Completion, Reason

ACCURACY = "rewards/accuracy/mean"  # the metric of a step's completions
IN, OUT = "open in", "open out"  # columns: open rows of all tasks


class ColumnScores(NamedTuple):
    """Scores of the rows of a column.

    Attributes:
        accuracy: `[rows]`, right as a careful person reads the text; means over completions.
        layout: `[rows]`, thoughts and then one answer, and nothing else.
        images: key of each row's images.
        rows: their ids.
    """

    accuracy: np.ndarray
    layout: np.ndarray
    images: tuple[str, ...]
    rows: tuple[str, ...]


class ArmBudget(NamedTuple):
    """What a run has spent on training.

    Attributes:
        updates: of the optimizer.
        completions: sampled and learnt from, in GRPO.
        golds: answers read in supervised updates, each as often as it was read.
        judged: answers sampled and judged by rejected sampling.
        seconds: of all steps.
    """

    updates: int
    completions: int
    golds: int
    judged: int
    seconds: float

    def plus(self, other: ArmBudget) -> ArmBudget:
        """Returns the sum."""
        return ArmBudget(
            self.updates + other.updates,
            self.completions + other.completions,
            self.golds + other.golds,
            self.judged + other.judged,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        workdir: its folder.
        record: its `run.json`.
    """

    workdir: Path
    record: dict[str, Any]

    @property
    def arm(self) -> Arm:
        """Its arm."""
        return ARM_BY_NAME[self.record["arm"]]

    @cached_property
    def greedy(self) -> dict[str, ColumnScores]:
        """Scores of greedy answers, by column."""
        return read_scores(self.workdir / "answers" / GREEDY / self.arm.name)

    @cached_property
    def sampled(self) -> dict[str, ColumnScores]:
        """Scores of answers at temperature 1, by column."""
        return read_scores(self.workdir / "answers" / SAMPLED / self.arm.name)

    @cached_property
    def progress(self) -> dict[int, dict[str, ColumnScores]]:
        """Scores of greedy answers to a part of the rows, by step and column."""
        folders = [path for path in (self.workdir / "answers" / PROGRESS).iterdir() if path.is_dir()]
        return {step: read_scores(folder) for step, folder in sorted((int(path.name), path) for path in folders)}

    @cached_property
    def stages(self) -> tuple[StageRun, ...]:
        """Stages of its training; none for the base."""
        return read_run(self.workdir).stages if self.arm.build else ()

    @cached_property
    def budget(self) -> ArmBudget:
        """What its training has spent."""
        total = ArmBudget(0, 0, 0, 0, 0.0)
        settings = read_run(self.workdir).config if self.stages else {}
        by_name = {stage["name"]: stage for stage in settings.get("stages", ())}
        for stage in self.stages:
            own, steps = by_name[stage.name], len(stage.metrics)
            batch = steps * (own["batch_size"] or settings["data"]["batch_size"])
            seconds = sum(line["step_time"] for line in stage.metrics)
            if (own["method"] or settings["method"]) == Method.GRPO.value:
                grpo = settings["grpo"]
                updates = steps * grpo["num_updates"] * grpo["minibatches"]
                spent = ArmBudget(updates, batch * settings["sampling"]["group_size"], 0, 0, seconds)
            else:
                spent = ArmBudget(steps, 0, batch, 0, seconds)
            total = total.plus(spent)
        summary = self.workdir / REJECT / "summary.json"
        if summary.exists():
            total = total._replace(judged=sum(json.loads(summary.read_text("utf-8"))["answers"].values()))
        return total

    def accuracies(self) -> list[float]:
        """Returns the accuracy of the sampled completions of each step of GRPO, in the order of training."""
        return [line[ACCURACY] for stage in self.stages for line in stage.metrics if ACCURACY in line]


@dataclass(frozen=True)
class FinishedRuns:
    """The finished runs of a folder.

    Attributes:
        plan: its `plan.json`.
        runs: by world, arm and seed.
    """

    plan: dict[str, Any]
    runs: Mapping[tuple[str, str, int], FinishedRun]

    def seeds(self, world: str, *arms: str) -> list[int]:
        """Returns the seeds on which all of these arms are finished."""
        return [seed for seed in self.plan["seeds"] if all((world, arm, seed) in self.runs for arm in arms)]

    def of(self, world: str, arm: str) -> list[FinishedRun]:
        """Returns the runs of an arm, by seed."""
        return [self.runs[world, arm, seed] for seed in self.seeds(world, arm)]

    def arms(self, world: str) -> list[str]:
        """Returns the arms of which a run is finished."""
        return [arm for arm in self.plan["arms"][world] if self.seeds(world, arm)]

    def missing(self, world: str) -> list[str]:
        """Names the planned runs that are not finished."""
        return [
            f"{arm}-{seed}"
            for seed in self.plan["seeds"]
            for arm in self.plan["arms"][world]
            if (world, arm, seed) not in self.runs
        ]


def read_comparison(runs: Path) -> FinishedRuns:
    """Reads the finished runs of a folder.

    Raises:
        ValueError: the folder holds no comparison, or none of its runs is finished.
    """
    if not (runs / PLAN).exists():
        raise ValueError(f"{runs} holds no comparison: name the --runs of an earlier command")
    plan = json.loads((runs / PLAN).read_text("utf-8"))
    found = {}
    for world in plan["worlds"]:
        for arm in plan["arms"][world]:
            for seed in plan["seeds"]:
                path = runs / world / f"{arm}-{seed}" / RUN
                if path.exists() and (record := json.loads(path.read_text("utf-8")))["finished"]:
                    found[world, arm, seed] = FinishedRun(path.parent, record)
    if not found:
        raise ValueError(f"{runs} has no finished run yet; its logs tell why")
    return FinishedRuns(plan, found)


def read_scores(folder: Path) -> dict[str, ColumnScores]:
    """Reads a model's answers, by column.

    Columns are `detection in` and so on for the open rows of a task; `open in` and `open out` for those of all tasks;
    `judge in` and `choice in`; and each suite out of domain by its name.
    """
    rows: dict[str, list[Answer]] = defaultdict(list)
    for suite in read_model_answers(folder).suites:
        for answer in suite.answers:
            rows[f"{answer.kind.value} {suite.domain.value}"].append(answer)
            if answer.kind is Kind.OPEN:
                rows[f"{answer.task.value} {suite.domain.value}"].append(answer)
                if suite.domain is SuiteDomain.OUT:
                    rows[suite.suite].append(answer)
    return {
        column: ColumnScores(
            np.array([fmean(answer.readable) for answer in answers]),
            np.array([fmean(map(has_layout, answer.completions, answer.finished)) for answer in answers]),
            tuple(answer.image for answer in answers),
            tuple(answer.row for answer in answers),
        )
        for column, answers in rows.items()
    }


def has_layout(text: str, finished: bool) -> bool:
    """Returns true for thoughts and then one answer, and nothing else, whatever the answer says."""
    completion = Completion(text, 0, finished)
    return not isinstance(extract_answer(completion), Reason) and format_reward(text).value == 1


def oscillation(values: Sequence[float], windows: Sequence[int]) -> float:
    """Computes the share of a series' variance that is change from step to step.

    Σ (x_t − x_{t−1})² / 2 over Σ (x_t − mean)², both summed over windows: half of von Neumann's ratio. Noise about a
    constant has 1 on average, a smooth curve nearly 0, and a series that turns at every step up to 2.

    Args:
        values: one a step.
        windows: lengths of consecutive windows with means of their own; what follows them is left out.
    """
    changes = deviations = start = 0.0
    for length in windows:
        window = np.asarray(values[int(start) : int(start) + length], float)
        changes += float(np.square(np.diff(window)).sum())
        deviations += float(np.square(window - window.mean()).sum()) if len(window) else 0.0
        start += length
    return changes / 2 / deviations if deviations else float("nan")


def last_window_oscillation(run: FinishedRun, stage_steps: Sequence[int]) -> float:
    """Computes the oscillation of a run's last third: of the steps at which the curriculum trains on open rows."""
    accuracies = run.accuracies()
    return oscillation(accuracies[-stage_steps[-1] :], [stage_steps[-1]])


def seeds_difference(differences: Sequence[float]) -> PairedDifference:
    """Estimates a difference from those of several seeds, with Student's t; without an interval for one seed."""
    values = np.asarray(differences, float)
    mean, count = float(values.mean()), len(values)
    interval, p_value = None, 1.0
    if count > 1:
        error = float(scipy.stats.sem(values))
        half = float(scipy.stats.t.ppf(0.975, count - 1)) * error
        interval = Interval(mean - half, mean + half)
        p_value = float(2 * scipy.stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return PairedDifference(mean, interval, p_value, float(np.square(values).mean()), count, count)


def rows_difference(first: ColumnScores, second: ColumnScores) -> PairedDifference:
    """Estimates a difference from the rows of one seed, which says nothing of other seeds.

    Raises:
        ValueError: they are other rows.
    """
    if first.rows != second.rows:
        raise ValueError("two arms of a seed answered other rows; remove the answers of one, and run the command again")
    return paired_difference(first.accuracy, second.accuracy, first.images)


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean over seeds and half its 95% interval (Student's t); None for the half with one seed."""
    found = seeds_difference(values)
    return found.difference, found.interval and found.interval.high - found.difference
