"""Evaluation during training: held-out rows of all stages, the forgetting matrix, and the gates of stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from currreft_jax.config import SuiteDomain
from currreft_jax.config.wording import plural
from currreft_jax.evaluation.held_out import HeldOut, measure
from currreft_jax.evaluation.measurement import LossMeasurement, Measurement, regressed_from
from currreft_jax.evaluation.scoring import ScoredRollout
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.workdir import HELD_OUT, MATRIX
from currreft_jax.training.batches import StageContext
from currreft_jax.training.console import answers_bar, say, timed
from currreft_jax.training.curriculum import ForgettingMatrix, is_promoted
from currreft_jax.training.forgetting_gate import (
    GateDecision,
    decide,
    mean_reward,
    reward_change,
    start_measurements,
)
from currreft_jax.training.held_out_loss import LossRows, measure_loss
from currreft_jax.training.records import answer_records, write_records


class StepEvaluation(NamedTuple):
    """The evaluation of a step.

    Attributes:
        metrics: metrics.
        promoted: whether the stage is promoted.
        score: by which the best checkpoint is chosen; None for one that is not to be chosen.
    """

    metrics: dict[str, float]
    promoted: bool
    score: float | None


class Evaluator:
    """Evaluates the policy of a stage on the held-out rows of all stages; the context's model is the policy's.

    Greedy answers before the first step of a run, and at the end of each stage, are written into the stage's folder.
    """

    def __init__(
        self,
        context: StageContext,
        sets: Sequence[HeldOut],
        matrix: ForgettingMatrix,
        stage_dir: Path,
        loss_rows: LossRows | None = None,
    ) -> None:
        self._context, self._sets, self._matrix, self._loss_rows = context, sets, matrix, loss_rows
        self._stage_dir = stage_dir
        self._images = {held_out.name: held_out.images for held_out in sets}
        self._has_answered = self._has_computed_loss = False

    def begin(self, policy: Parameters, start: int) -> None:
        """Drops evaluations after the resumed step. What a new stage is compared with is measured at its start."""
        stage = self._context.stage
        self._matrix.resume_from(stage.name, start)
        has_gate = stage.forgetting_margin is not None
        if start and has_gate and not start_measurements(self._matrix.in_domain, stage.name):
            raise ValueError(
                f"{MATRIX} has no measurement of the start of {stage.name}, with which its forgetting gate compares:"
                " put the file back, or remove the stage's folder, and the same command trains it again"
            )
        if start:
            return
        if self._sets and self._context.stage_index == 0 and not self._matrix.has("", 0):
            self._measure_start(policy, "")
        if has_gate and not start_measurements(self._matrix.in_domain, stage.name):
            self._measure_start(policy, stage.name)
        if self._loss_rows and not any(one.stage == stage.name for one in self._matrix.losses):
            loss = self._measure_loss(policy, 0)
            say(f"loss of {plural(self._loss_rows.rows, 'held-out row')} at the start: {loss:.4f}")

    def evaluate(self, policy: Parameters, step: int) -> StepEvaluation:
        """Evaluates after a step, and warns of a stage that has regressed."""
        if not self._sets and not self._loss_rows:
            return StepEvaluation({}, False, None)
        stage = self._context.stage
        begun = time.perf_counter()
        metrics: dict[str, float] = {}
        if self._loss_rows:
            metrics[f"held_out/{stage.name}/loss"] = self._measure_loss(policy, step)
        greedy = step == stage.steps or stage.promote_above < 1
        measurements, answers = self._measure(policy, stage.name, step, greedy=greedy)
        metrics["time/evaluate"] = time.perf_counter() - begun
        promoted = False
        for held_out, now in zip(self._sets, measurements, strict=True):
            metrics |= self._set_metrics(held_out, now)
            if held_out.name == stage.name:
                promoted = stage.promote_above < 1 and is_promoted(now, stage.promote_above)
        score = self._score([now for now in measurements if now.domain == SuiteDomain.IN.value])
        if promoted or step == stage.steps:
            self._write_answers(step, answers)
        self._matrix.add(measurements)
        if promoted and step < stage.steps:
            say(f"stage {stage.name} is promoted at step {step}: its pass rate is above its gate")
        return StepEvaluation(metrics, promoted, score)

    def decide(self, saved_steps: Sequence[int]) -> GateDecision | None:
        """Decides which model of the finished stage is kept, and writes it down; None without a forgetting gate.

        Args:
            saved_steps: steps that have a checkpoint.
        """
        stage = self._context.stage
        if stage.forgetting_margin is None:
            return None
        decision = decide(self._matrix.in_domain, stage.name, stage.forgetting_margin, saved_steps, self._images)
        self._matrix.decide(decision)
        say(str(decision))
        return decision

    def _measure_start(self, policy: Parameters, stage_name: str) -> None:
        begun = time.perf_counter()
        measurements, answers = self._measure(policy, stage_name, 0, greedy=True)
        self._write_answers(0, answers)  # before the measurements, with which the evaluation counts as done
        self._matrix.add(measurements)
        rows = plural(sum(held_out.rows for held_out in self._sets), "held-out row")
        say(f"answered {rows} before the first step in {time.perf_counter() - begun:.0f} s, compilation included")

    def _measure(
        self, policy: Parameters, stage_name: str, step: int, *, greedy: bool
    ) -> tuple[list[Measurement], list[dict[str, Any]]]:
        """Answers all held-out rows, and shows the progress; returns the records of greedy answers, too."""
        if not self._sets:
            return [], []
        answers: list[dict[str, Any]] = []

        def record(held_out: HeldOut, first: int, scored: ScoredRollout) -> None:
            answers.extend(answer_records(self._context.config, held_out, first, scored))

        num_rows = sum(held_out.rows for held_out in self._sets)
        if not self._has_answered:
            say(f"answering {plural(num_rows, 'held-out row')}; missing programs are compiled along the way")
        self._has_answered = True
        with answers_bar(num_rows * (1 + greedy)) as on_answers:
            measurements = measure(
                self._context,
                policy,
                self._sets,
                stage_name,
                step,
                greedy=greedy,
                on_answers=on_answers,
                on_greedy=record,
            )
        return measurements, answers

    def _write_answers(self, step: int, answers: Sequence[dict[str, Any]]) -> None:
        if answers:  # none without held-out rows, or where other hosts have those that are recorded
            write_records(self._stage_dir / HELD_OUT / f"{step}.jsonl", answers)

    def _set_metrics(self, held_out: HeldOut, now: Measurement) -> dict[str, float]:
        """Returns the metrics of a set of held-out rows, and warns if an earlier stage has regressed."""
        stage, metrics = self._context.stage, {f"held_out/{held_out.name}/reward": now.reward}
        if now.passed is not None:
            metrics[f"held_out/{held_out.name}/pass"] = now.passed / now.rows
        metrics |= {f"held_out/{held_out.name}/rewards/{name}": mean for name, mean in now.own.items()}
        best = regressed_from(self._matrix.in_domain, now)  # none of rows out of domain
        if best and held_out.stage_index < self._context.stage_index:
            metrics[f"held_out/{held_out.stage}/regression"] = best.reward - now.reward
            say(
                f"brick wall: {held_out.stage} fell from {best.reward:.3f} to {now.reward:.3f} while {stage.name}"
                " is trained; replay of earlier stages, a larger kl_coef or a lower learning rate may help"
            )
        return metrics

    def _score(self, measurements: Sequence[Measurement]) -> float | None:
        """Returns the reward on the stage's own rows; with a forgetting gate that on all sets, if none has fallen."""
        stage = self._context.stage
        if stage.forgetting_margin is None:
            return next((now.reward for now in measurements if now.held_out == stage.name), None)
        start = {before.held_out: before for before in start_measurements(self._matrix.in_domain, stage.name)}
        changes = (
            reward_change(start[now.held_out], now, stage.forgetting_margin, self._images[now.held_out])
            for now in measurements
        )
        return None if any(change.fallen for change in changes) else mean_reward(measurements)

    def _measure_loss(self, policy: Parameters, step: int) -> float:
        """Computes the loss of held-out gold answers; the first time compiles its program, with a line that says so."""
        assert self._loss_rows is not None
        rows = plural(self._loss_rows.rows, "held-out row")
        compiling = timed(f"compiling for the loss of {rows}, and computing it")
        with nullcontext() if self._has_computed_loss else compiling:
            loss = measure_loss(self._context.model, policy, self._loss_rows)
        self._has_computed_loss = True
        self._matrix.add_loss(LossMeasurement(self._context.stage.name, step, self._loss_rows.rows, loss))
        return loss
