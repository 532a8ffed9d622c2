"""Evaluation during training: held-out rows of all stages, the forgetting matrix, and the promotion gate."""

from __future__ import annotations

import time
from collections.abc import Sequence

from currreft_jax.evaluation.held_out import HeldOut, measure
from currreft_jax.evaluation.measurement import regressed_from
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.training.batches import StageContext
from currreft_jax.training.console import say
from currreft_jax.training.curriculum import ForgettingMatrix, is_promoted


class Evaluator:
    """Evaluates the policy of a stage on the held-out rows of all stages; the context's model is the policy's."""

    def __init__(self, context: StageContext, sets: Sequence[HeldOut], matrix: ForgettingMatrix) -> None:
        self._context, self._sets, self._matrix = context, sets, matrix

    def begin(self, policy: Parameters, start: int) -> None:
        """Drops evaluations after the resumed step. A new run first evaluates the base model."""
        self._matrix.resume_from(self._context.stage.name, start)
        if self._sets and self._context.stage_index == 0 and start == 0 and not self._matrix.has("", 0):
            self._matrix.add(measure(self._context, policy, self._sets, "", 0, greedy=True))

    def evaluate(self, policy: Parameters, step: int) -> tuple[dict[str, float], bool]:
        """Evaluates after a step, and warns of a stage that has regressed.

        Returns:
            Metrics, and whether the stage is promoted.
        """
        if not self._sets:
            return {}, False
        stage = self._context.stage
        greedy = step == stage.steps or stage.promote_above < 1
        begun = time.perf_counter()
        measurements = measure(self._context, policy, self._sets, stage.name, step, greedy=greedy)
        metrics = {"time/evaluate": time.perf_counter() - begun}
        promoted = False
        for held_out, now in zip(self._sets, measurements, strict=True):
            metrics[f"held_out/{held_out.stage}/reward"] = now.reward
            if now.passed is not None:
                metrics[f"held_out/{held_out.stage}/pass"] = now.passed / now.rows
            best = regressed_from(self._matrix.history, now)
            if best and held_out.stage_index < self._context.stage_index:
                metrics[f"held_out/{held_out.stage}/regression"] = best.reward - now.reward
                say(
                    f"brick wall: {held_out.stage} fell from {best.reward:.3f} to {now.reward:.3f} while {stage.name}"
                    " is trained; replay of earlier stages, a larger kl_coef or a lower learning rate may help"
                )
            if held_out.stage == stage.name:
                promoted = stage.promote_above < 1 and is_promoted(now, stage.promote_above)
        self._matrix.add(measurements)
        if promoted and step < stage.steps:
            say(f"stage {stage.name} is promoted at step {step}: its pass rate is above its gate")
        return metrics, promoted
