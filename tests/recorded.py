"""A recorded rollout, in place of the sampler and the rewards."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from currreft_jax.config import Config, Kind, Task
from currreft_jax.data.buckets import config_buckets
from currreft_jax.data.examples import Example
from currreft_jax.evaluation.scoring import ScoredRollout
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.sampling.completions import Completions
from currreft_jax.structs import Prompt, Rollout, Row, Scores
from currreft_jax.training import grpo
from currreft_jax.training.batches import StageContext, layout_on


@dataclass(frozen=True)
class Recorded:
    """P prompts with their completions; a prompt's number is its key.

    Attributes:
        prompts: tokens of each prompt, text alone.
        tokens: int32 `[P, G, T]`; arbitrary after the end of a completion.
        lengths: `[P, G]`.
        finished: bool `[P, G]`.
        logprobs: fp32 `[P, G, T]`, the sampler's.
        rewards: float64 `[P, G]`.
    """

    prompts: list[np.ndarray]
    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    logprobs: np.ndarray
    rewards: np.ndarray

    def examples(self) -> list[Example]:
        nothing = np.empty(0, np.int32), np.empty(0, bool)
        return [
            Example(
                Row(f"r{number}", Task.MATH, Kind.OPEN, "?", "1"),
                Prompt(tokens, np.tile(np.arange(len(tokens)), (3, 1)), len(tokens), (), f"r{number}", number),
                *nothing,
            )
            for number, tokens in enumerate(self.prompts)
        ]

    def first(self, count: int) -> Recorded:
        """Returns the first `count` prompts with their completions."""
        return Recorded(
            self.prompts[:count],
            self.tokens[:count],
            self.lengths[:count],
            self.finished[:count],
            self.logprobs[:count],
            self.rewards[:count],
        )

    def replace_sampling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaces the sampler and the rewards of `grpo_step`."""

        def sample(model, params, processor, prompts, settings, **seeds):
            number = numbers_of(prompts)
            mask = np.arange(self.tokens.shape[2]) < self.lengths[number][..., None]
            rollout = Rollout(
                tokens=self.tokens[number],
                mask=mask,
                logprobs=self.logprobs[number],
                entropies=np.zeros_like(self.logprobs[number]),
                lengths=self.lengths[number],
                finished=self.finished[number],
            )
            return to_devices(rollout, model.mesh)

        def score_rollout(session, examples, rollout):
            number = [example.prompt.key for example in examples]
            completions = Completions([], self.lengths[number], self.finished[number])
            return ScoredRollout(completions, Scores(self.rewards[number], {}, {}))

        monkeypatch.setattr(grpo, "sample", sample)
        monkeypatch.setattr(grpo, "score_rollout", score_rollout)


def numbers_of(prompts) -> np.ndarray:
    """Which of the recorded prompts these are, `[P]`."""
    return np.asarray(prompts.key)[:, 1].astype(int)


def context_of(config: Config, model: Model, reference: Parameters | None) -> StageContext:
    """The context of a stage whose rows are text alone, without a tokenizer."""
    processor = SimpleNamespace(config=model.config, max_pixels=28 * 28, decode=str)
    buckets = config_buckets(config, processor, layout_on(config, model.mesh))
    return StageContext(
        config=config, processor=processor, model=model, stage_index=0, buckets=buckets, ref_params=reference
    )
