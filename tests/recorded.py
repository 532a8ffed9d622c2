"""A recorded rollout: what a step learns from where neither a sampler nor a reward has a say."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from currreft_jax.config import Config, Kind, Task
from currreft_jax.data import pipeline
from currreft_jax.data.examples import Example
from currreft_jax.experience import Context, shard_prompts
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.sharding import to_devices
from currreft_jax.structs import Prompt, Rollout, Row, Scores


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

    def stands_in(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        """Replaces the module's sampler and its rewards."""

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

        def score(context, examples, texts):
            return Scores(self.rewards[[example.prompt.key for example in examples]], {}, {})

        monkeypatch.setattr(module, "sample", sample)
        monkeypatch.setattr(module, "score", score)


def numbers_of(prompts) -> np.ndarray:
    """Which of the recorded prompts these are, `[P]`."""
    return np.asarray(prompts.key)[:, 1].astype(int)


def context_of(config: Config, model: Model, reference: Parameters | None) -> Context:
    """The context of a stage whose rows are text alone, without a tokenizer."""
    processor = SimpleNamespace(config=model.config, max_pixels=28 * 28, decode=str)
    buckets = pipeline.ladders(config.data, processor, shard_prompts(config, model.mesh))
    return Context(config, 0, processor, model, buckets, reference=reference)
