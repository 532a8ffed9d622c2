"""From the examples of a step to its microbatches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from currreft_jax.data.examples import Example
from currreft_jax.data.packing import BatchShape, balanced_order, collate, prompt_slots
from currreft_jax.models.config import ModelConfig
from currreft_jax.structs import GroupBatch


def split_examples(examples: Sequence[Example], group_parts: int, completions_per_row: int) -> list[Example]:
    """Splits the group of each example into parts: examples of the same prompt that stand one after the other."""
    return [
        dataclasses.replace(
            example, prompt=dataclasses.replace(example.prompt, first_sample=part * completions_per_row)
        )
        for example in examples
        for part in range(group_parts)
    ]


def join_parts(rows: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Joins the parts of each group.

    Args:
        rows: `[R, g, ...]`, values of the completions of each part.
        parts: int `[P, k]`, the rows that hold the parts of each group, in order.

    Returns:
        `[P, k g, ...]`.
    """
    return rows[parts].reshape(len(parts), -1, *rows.shape[2:])


def split_groups(groups: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Splits groups into their parts, the inverse of `join_parts`: `[P, G, ...] -> [R, g, ...]`."""
    rows = groups.reshape(parts.size, -1, *groups.shape[2:])
    return rows[np.argsort(parts, axis=None)]


def make_microbatches(
    examples: Sequence[Example], config: ModelConfig, shards: int, num_microbatches: int
) -> list[list[Example]]:
    """Splits a host's examples of a step into microbatches: see `microbatch_orders`."""
    lengths = [len(example.prompt.tokens) + len(example.completion_tokens) for example in examples]
    slots = [prompt_slots(example.prompt, config.vision) for example in examples]
    return [[examples[i] for i in order] for order in microbatch_orders(lengths, slots, shards, num_microbatches)]


def microbatch_orders(
    lengths: Sequence[int], slots: Sequence[int], shards: int, num_microbatches: int
) -> list[list[int]]:
    """Splits rows into microbatches of similar length, and orders each so that its images spread evenly over shards.

    Args:
        lengths: tokens of each row, prompt and completion.
        slots: image slots of each row.
        shards: number of data shards.
        num_microbatches: number of microbatches.

    Returns:
        Indices of the rows of each microbatch, shard after shard.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    size = len(by_length) // num_microbatches
    parts = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    return [[part[i] for i in balanced_order([slots[row] for row in part], shards)] for part in parts]


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
