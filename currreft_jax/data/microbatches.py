"""From the examples of a step to its microbatches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from currreft_jax.data.examples import Example
from currreft_jax.data.packing import BatchShape, balance_shards, collate
from currreft_jax.models.config import ModelConfig
from currreft_jax.structs import GroupBatch


def make_microbatches(
    examples: Sequence[Example], config: ModelConfig, shards: int, num_microbatches: int
) -> list[list[Example]]:
    """Splits a host's examples of a step into microbatches of similar length.

    Within a microbatch, examples are ordered so that their images spread evenly over the data shards.
    """
    by_prompt = {id(example.prompt): example for example in examples}
    by_length = sorted(examples, key=lambda example: len(example.prompt.tokens) + len(example.completion_tokens))
    size = len(by_length) // num_microbatches
    microbatches = []
    for start in range(0, len(by_length), size):
        prompts = [example.prompt for example in by_length[start : start + size]]
        microbatches.append([by_prompt[id(prompt)] for prompt in balance_shards(prompts, config.vision, shards)])
    return microbatches


def collate_gold(
    examples: Sequence[Example], config: ModelConfig, shape: BatchShape, completion_length: int, shards: int
) -> tuple[GroupBatch, np.ndarray]:
    """Collates a microbatch with its gold completions as groups of one.

    Returns:
        The batch, with completions int32 `[P, 1, T]` padded on the right, and the loss mask, bool `[P, 1, T]`.

    Raises:
        BudgetError: a prompt or an image exceeds the shape.
    """
    tokens = np.full((len(examples), 1, completion_length), config.bos_token_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for index, example in enumerate(examples):
        length = len(example.completion_tokens)
        tokens[index, 0, :length] = example.completion_tokens
        mask[index, 0, :length] = example.loss_mask
    return GroupBatch(collate([example.prompt for example in examples], config, shape, shards), tokens), mask
