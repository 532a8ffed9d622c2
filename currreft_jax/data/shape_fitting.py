"""Fits a few static shapes to the batches of a run, so that little is padded and little is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import combinations

import numpy as np

from currreft_jax.config import BatchLayout
from currreft_jax.data.buckets import BatchDims
from currreft_jax.data.microbatches import microbatch_orders
from currreft_jax.data.mixture import Mixture
from currreft_jax.data.packing import BatchShape
from currreft_jax.data.pipeline import RowKey, global_order, row_key_of
from currreft_jax.models.config import ModelConfig

NUM_SHAPES = 2  # fitted shapes of prompts
NUM_COMPLETION_LENGTHS = 3  # fitted lengths of gold completions
MIN_SAVING = 0.02  # share of the cost that a further shape or length must save to be worth its programs
_MULTIPLE = 32  # of fitted lengths


def draw_steps(
    rows: Mixture, sizes: Mapping[RowKey, BatchDims], steps: int, layout: BatchLayout, num_hosts: int, seed: int
) -> list[tuple[list[BatchDims], BatchDims]]:
    """Measures the batches of a stage's first steps, in the order in which the stage will draw them.

    Args:
        rows: rows of the stage.
        sizes: size of each row, from `pipeline.measure_rows`.
        steps: number of steps.
        layout: layout of a step's batch.
        num_hosts: number of hosts that share each batch.
        seed: seed of the global order.

    Returns:
        `step_dims` of each step.
    """
    order = global_order(rows, seed)
    count = layout.num_rows // layout.group_parts

    def size_at(position: int) -> BatchDims:
        ref = order[position]
        assert ref is not None  # the order has no filter
        return sizes[row_key_of(rows, ref)]

    return [
        step_dims([size_at(i) for i in range(step * count, (step + 1) * count)], layout, num_hosts)
        for step in range(steps)
    ]


def step_dims(rows: Sequence[BatchDims], layout: BatchLayout, num_hosts: int = 1) -> tuple[list[BatchDims], BatchDims]:
    """Measures the batches of a step from the sizes of its rows, as `collate_prompts` and `sft_batch` will.

    Returns:
        The dimensions of each microbatch, and of all rows together.
    """
    of_hosts = [_host_dims(rows[host::num_hosts], layout, layout.num_shards // num_hosts) for host in range(num_hosts)]
    *microbatches, whole = (_largest(dims) for dims in zip(*of_hosts, strict=True))
    return microbatches, whole


def _host_dims(rows: Sequence[BatchDims], layout: BatchLayout, shards: int) -> list[BatchDims]:
    """Returns the dimensions of a host's part of each microbatch, and last those of its whole part."""
    split = [row for row in rows for _ in range(layout.group_parts)]
    size = len(split) // layout.minibatches
    microbatches = []
    for start in range(0, len(split), size):
        minibatch = split[start : start + size]
        lengths = [row.prompt_length + row.completion_length for row in minibatch]
        slots = [row.image_slots for row in minibatch]
        orders = microbatch_orders(lengths, slots, shards, layout.microbatches)
        microbatches += [[minibatch[i] for i in order] for order in orders]
    per_shard = layout.rows_per_shard
    whole = [row for shard in range(shards) for part in microbatches for row in part[shard * per_shard :][:per_shard]]
    return [_batch_dims(part, shards) for part in (*microbatches, whole)]


def _batch_dims(rows: Sequence[BatchDims], shards: int) -> BatchDims:
    """Joins the sizes of rows, shard after shard."""
    slots = np.array([row.image_slots for row in rows]).reshape(shards, -1).sum(axis=1)
    largest = _largest(rows)
    return BatchDims(largest.prompt_length, int(slots.max()), largest.max_slots_per_image, largest.completion_length)


def _largest(dims: Sequence[BatchDims]) -> BatchDims:
    return BatchDims(*map(max, zip(*map(astuple, dims), strict=True)))


def largest_dims(
    rows: Sequence[BatchDims], drawn: Sequence[BatchDims], rows_per_shard: int, group_parts: int, *, is_complete: bool
) -> BatchDims:
    """Returns the dimensions that the largest shape must hold.

    Args:
        rows: sizes of all rows.
        drawn: dimensions of batches.
        rows_per_shard: rows of a data shard of a batch.
        group_parts: rows of the batch that hold the same prompt.
        is_complete: whether `drawn` has every batch of the run; otherwise the largest images may fall on one shard.
    """
    largest = _largest([*rows, *drawn])
    if is_complete:
        return largest
    slots = sorted((row.image_slots for row in rows), reverse=True)
    copies = [slots[i // group_parts] for i in range(min(rows_per_shard, len(slots) * group_parts))]
    # A row may come several times on a shard where there are few rows.
    slots_of_shard = sum(copies) + (rows_per_shard - len(copies)) * slots[0]
    return BatchDims(largest.prompt_length, slots_of_shard, largest.max_slots_per_image, largest.completion_length)


def fit_shapes(
    drawn: Sequence[BatchDims], largest: BatchDims, limit: int, rows_per_shard: int, config: ModelConfig
) -> tuple[BatchShape, ...]:
    """Fits two shapes to batches of prompts, at the least cost of their padding: the second holds the largest batch.

    Every first shape is tried, which is exact. The cost is that of the matrix products with parameters.

    Args:
        drawn: dimensions of batches.
        largest: dimensions that the second shape must hold.
        limit: limit of a prompt's length, in tokens.
        rows_per_shard: rows of a data shard.
        config: config of the model.

    Returns:
        One shape if a second one would save less than `MIN_SAVING`.
    """
    lengths, slots = np.array([(dims.prompt_length, dims.image_slots) for dims in drawn]).T
    all_lengths = np.unique([*round_up(lengths, limit), round_up(largest.prompt_length, limit)])
    all_slots = np.unique([*slots, largest.image_slots])
    counts = np.zeros((len(all_lengths), len(all_slots)))
    np.add.at(counts, (np.searchsorted(all_lengths, lengths), np.searchsorted(all_slots, slots)), 1)
    held = counts.cumsum(axis=0).cumsum(axis=1)  # batches that each pair of a length and a number of slots holds
    per_token, per_patch = parameters_per_input(config)
    per_slot = per_patch * config.vision.patches_per_slot
    cost = rows_per_shard * per_token * all_lengths[:, None] + per_slot * all_slots
    saved = held * (cost[-1, -1] - cost)
    first = np.unravel_index(np.argmax(saved), saved.shape)
    pairs = [(all_lengths[first[0]], all_slots[first[1]]), (all_lengths[-1], all_slots[-1])]
    is_worth = saved[first] > 0 and saved[first] >= MIN_SAVING * len(drawn) * cost[-1, -1]
    return tuple(
        BatchShape(int(length), int(count), int(min(count, largest.max_slots_per_image)))
        for length, count in (pairs if is_worth else pairs[1:])
    )


def fit_lengths(lengths: Sequence[int], largest: int, limit: int) -> tuple[int, ...]:
    """Fits up to three lengths to batches of gold completions, at the least padding; the last is the largest.

    As few are taken as cost at most `MIN_SAVING` more than three.

    Args:
        lengths: of the longest completion of each batch, in tokens.
        largest: length that the last one must hold.
        limit: limit of a length.
    """
    sizes, counts = np.unique(round_up(np.array(lengths), limit), return_counts=True)
    last = int(round_up(largest, limit))
    shorter = [int(size) for size in sizes if size < last]

    def cost(chosen: tuple[int, ...]) -> int:
        taken = np.array([*chosen, last])
        return int((taken[np.searchsorted(taken, sizes)] * counts).sum())

    numbers = range(min(NUM_COMPLETION_LENGTHS - 1, len(shorter)) + 1)
    fitted = [min(combinations(shorter, number), key=cost) for number in numbers]
    enough = next(chosen for chosen in fitted if cost(chosen) * (1 - MIN_SAVING) <= cost(fitted[-1]))
    return (*enough, last)


def round_up(lengths: np.ndarray | int, limit: int) -> np.ndarray:
    """Rounds lengths up to the multiple of fitted lengths, or to the limit."""
    return np.minimum(-(-np.asarray(lengths) // _MULTIPLE) * _MULTIPLE, limit)


def parameters_per_input(config: ModelConfig) -> tuple[int, int]:
    """Counts the parameters of the products with a token in the decoder, and with a patch in the vision tower."""
    heads = config.num_attention_heads + config.num_key_value_heads  # queries and output, keys and values
    layer = config.hidden_size * (2 * heads * config.head_dim + 3 * config.intermediate_size)
    vision = config.vision
    block = vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size)
    unit = vision.hidden_size * vision.patches_per_unit
    merger = unit * (unit + vision.out_hidden_size) // vision.patches_per_unit
    return (
        config.num_hidden_layers * layer,
        vision.depth * block + merger + vision.hidden_size * vision.values_per_patch,
    )
