"""Log-probabilities of groups, and of the same sequences one by one, for the group tests."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.data.packing import BatchShape, collate, slots_per_shard
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.structs import Prompt, PromptBatch


def shape_of(
    prompts: list[Prompt], config: ModelConfig, max_slots: int = 6, shards: int = 1, spare: int = 0
) -> BatchShape:
    longest = max(len(prompt.tokens) for prompt in prompts)
    return BatchShape(longest + spare, slots_per_shard(prompts, config.vision, shards), max_slots)


def batch_of(prompts: list[Prompt], config: ModelConfig, **shape) -> PromptBatch:
    return collate(prompts, config, shape_of(prompts, config, **shape), shape.get("shards", 1))


def sequence(prompt: Prompt, completion: np.ndarray) -> Prompt:
    """Concatenates a prompt and a completion."""
    positions = prompt.next_position + np.tile(np.arange(len(completion), dtype=np.int32), (3, 1))
    return replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, completion.astype(np.int32)]),
        positions=np.concatenate([prompt.positions, positions], axis=1),
        next_position=prompt.next_position + len(completion),
    )


def group_logprobs(model: Model, parameters, batch: PromptBatch, tokens) -> jax.Array:
    module = model.bind(parameters)
    return module.logprobs(module.forward_suffix(module.prefix(batch), tokens), tokens)[0]


def fused_logprobs(model: Model, parameters, batch: PromptBatch, tokens) -> jax.Array:
    module = model.bind(parameters)
    return module.logprobs(module.forward(batch, tokens), tokens)[0]


def plain_logprobs(model: Model, parameters, batch: PromptBatch, start, tokens) -> jax.Array:
    """Log-probs of `tokens [P, T]`, which follow `start [P]` prompt tokens in the sequences of `batch`."""
    module = model.bind(parameters)
    logprobs = jax.nn.log_softmax(module.masked_logits(module.prompt_hidden(batch), 1.0))
    predicting = jnp.asarray(start)[:, None] + jnp.arange(tokens.shape[1]) - 1
    rows = jnp.arange(len(tokens))[:, None]
    return logprobs[rows, predicting, tokens]
