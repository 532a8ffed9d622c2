"""Limits that pause a run, and the error for a loss or gradient that is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from currreft_jax.config import Config, Method


class NonFiniteError(ArithmeticError):
    """The loss or the gradient norm is not finite; the message names the step."""


class LimitReached(Exception):
    """A limit of `config.grpo` was reached, and the run was saved."""


def reached_limit(config: Config, lines: Sequence[dict[str, float]]) -> str:
    """Describes the first limit that the steps' mean metrics violate; returns an empty string if none is.

    A limit of 0 is off.

    Args:
        config: all settings.
        lines: metrics of the steps.
    """
    if config.method is not Method.GRPO:
        return ""
    limits = config.grpo

    def mean(name: str, lines: Sequence[dict[str, float]]) -> float:
        return float(np.mean([line.get(name, 0.0) for line in lines]))

    trained = [line for line in lines if line["num_loss_tokens"]]  # `mask_truncated` can leave a step without tokens
    if limits.max_kl and trained and (kl := mean("kl", trained)) > limits.max_kl:
        return f"KL {kl:.4g} is above grpo.max_kl = {limits.max_kl}"
    if limits.min_entropy and trained and (entropy := mean("entropy", trained)) < limits.min_entropy:
        return f"entropy {entropy:.4g} is below grpo.min_entropy = {limits.min_entropy}"
    if limits.max_truncated and (share := mean("completions/clipped_ratio", lines)) > limits.max_truncated:
        return f"{share:.1%} of the completions were cut off, more than grpo.max_truncated = {limits.max_truncated}"
    return ""
