"""A step's prompts on the devices: one batch to sample for, cut into microbatches to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import BatchLayout, Config, Sampling, Stage, batch_layout
from currreft_jax.data.buckets import BatchDims, ShapeBuckets, batch_dims
from currreft_jax.data.examples import Example
from currreft_jax.data.microbatches import join_parts, make_microbatches, split_examples
from currreft_jax.data.packing import BatchShape, collate, padding_waste
from currreft_jax.models.decoder import decoding_model
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.multihost import local_rows, max_over_hosts, shards_per_host, to_devices
from currreft_jax.runtime.sharding import BATCH, data_shards, num_hosts
from currreft_jax.sampling.sampler import decoding_parts
from currreft_jax.session.session import Session
from currreft_jax.structs import Array, GroupBatch, PromptBatch, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext(Session):
    """A session in one stage of training; nothing in it changes from step to step.

    Attributes:
        stage_index: index of the stage.
        buckets: static shapes of microbatches.
        ref_params: parameters of the frozen reference, in the model's precision; None without a KL penalty.
    """

    stage_index: int
    buckets: ShapeBuckets
    ref_params: Parameters | None = None

    @property
    def stage(self) -> Stage:
        """Settings of the stage."""
        return self.config.stages[self.stage_index]

    @property
    def layout(self) -> BatchLayout:
        """Layout of a step's batch on the mesh."""
        return layout_on(self.config, self.model.mesh)


class Bucket(NamedTuple):
    """A static shape of a microbatch: of its prompts, and the length T of its completions."""

    shape: BatchShape
    completion: int

    def __str__(self) -> str:
        images = f", {self.shape.slots} slots, {self.shape.max_slots_per_image} per image" if self.shape.slots else ""
        return f"{self.shape.length} + {self.completion} tokens{images}"


def bucket_of(batch: GroupBatch) -> Bucket:
    """Returns the static shape of a microbatch."""
    images = batch.prompts.images
    slots = (images.patches.shape[1], images.max_slots_per_image) if images is not None else (0, 0)
    return Bucket(BatchShape(batch.prompts.tokens.shape[1], *slots), batch.tokens.shape[2])


class StepPrompts(NamedTuple):
    """A step's prompts in microbatches; a row is a prompt with its group, or with a part of it.

    Attributes:
        examples: this host's, one for each group.
        microbatches: prompts on the devices.
        rows: indices of each microbatch's rows among this host's.
        parts: int `[P, k]`, this host's rows that hold the parts of each example's group, in order.
        padding: metrics.
    """

    examples: list[Example]
    microbatches: list[PromptBatch]
    rows: list[np.ndarray]
    parts: np.ndarray
    padding: dict[str, float]


def layout_on(config: Config, mesh: Mesh) -> BatchLayout:
    """Returns the layout of a step's batch on a mesh.

    Raises:
        ValueError: the step's completions do not spread evenly.
    """
    return batch_layout(config, data_shards(mesh), num_hosts(mesh))


def row_sampling(config: Config, layout: BatchLayout) -> Sampling:
    """Returns the sampling settings of a row: those of a group, or of a part of one."""
    return dataclasses.replace(config.sampling, group_size=layout.completions_per_row)


def refuse_uneven_sampling(config: Config, layout: BatchLayout, model: Model) -> None:
    """Refuses a `sampling.mesh` over which a step's completions do not spread, before anything is sampled.

    Raises:
        ValueError: naming a mesh over which they do.
    """
    decoding = decoding_model(model, config.sampling.mesh, model.dtype)
    decoding_parts(layout.num_rows, decoding, row_sampling(config, layout))


def host_groups(rollout: Rollout, parts: np.ndarray) -> Rollout:
    """Fetches this host's rows of a rollout, with the parts of each group joined.

    Args:
        rollout: rollout of the rows, `[R, g]`.
        parts: from `StepPrompts`.

    Returns:
        NumPy arrays of whole groups, `[P, G]`.
    """
    return jax.tree.map(lambda x: join_parts(local_rows(x), parts), rollout)


def collate_prompts(context: StageContext, examples: Sequence[Example]) -> tuple[StepPrompts, PromptBatch]:
    """Collates a step's prompts, as microbatches and as one batch.

    Each minibatch holds consecutive examples, so that all hosts agree on it. A data shard holds its share of every
    microbatch, one after the other, so that no row moves between devices when the batch is split. All parts of a group
    are in one microbatch.

    Args:
        context: stage context.
        examples: this host's.
    """
    model = context.model
    shards, layout = shards_per_host(model.mesh), context.layout
    split = split_examples(examples, layout.group_parts, layout.completions_per_row)
    minibatch_size = len(split) // layout.minibatches
    microbatches = [
        microbatch
        for start in range(0, len(split), minibatch_size)
        for microbatch in make_microbatches(
            split[start : start + minibatch_size], model.config, shards, layout.microbatches
        )
    ]
    size = layout.rows_per_shard
    ordered = [one for s in range(shards) for part in microbatches for one in part[s * size : (s + 1) * size]]
    by_shard = np.arange(len(ordered)).reshape(shards, len(microbatches), size)
    rows = [by_shard[:, k].ravel() for k in range(len(microbatches))]
    groups, parts = find_parts(split, ordered, layout.group_parts)
    whole = [examples[group] for group in groups]
    dims = agree_on_dims([batch_dims(part, model.config, shards) for part in (ordered, *microbatches)])

    def collated(part: Sequence[Example], shape: BatchShape) -> PromptBatch:
        return collate([one.prompt for one in part], model.config, shape, shards)

    if len(microbatches) == 1:
        host_batch = collated(ordered, context.buckets.fit_step(dims[0]))
        batch = to_devices(host_batch, model.mesh)
        return StepPrompts(whole, [batch], rows, parts, prompt_padding(ordered, [host_batch])), batch
    batch = to_devices(collated(ordered, context.buckets.fit_step(dims[0])), model.mesh)
    host_batches = [
        collated(part, context.buckets.fit(of_part)[0]) for part, of_part in zip(microbatches, dims[1:], strict=True)
    ]
    on_devices = [to_devices(host_batch, model.mesh) for host_batch in host_batches]
    return StepPrompts(whole, on_devices, rows, parts, prompt_padding(ordered, host_batches)), batch


def find_parts(split: Sequence[Example], ordered: Sequence[Example], group_parts: int) -> tuple[list[int], np.ndarray]:
    """Finds the groups in a batch.

    Args:
        split: from `split_examples`.
        ordered: the same examples in the order of the batch.
        group_parts: k, parts of each group.

    Returns:
        The groups in the order in which the batch first holds them; int `[P, k]`, the rows of each one's parts.
    """
    index = {id(example): i for i, example in enumerate(split)}
    order = np.array([index[id(example)] for example in ordered])
    groups = list(dict.fromkeys((order // group_parts).tolist()))
    return groups, np.argsort(order).reshape(-1, group_parts)[groups]


def agree_on_dims(dims: Sequence[BatchDims]) -> list[BatchDims]:
    """Takes the maximum of each microbatch's dimensions over hosts."""
    largest = max_over_hosts(np.array([dataclasses.astuple(one) for one in dims]))
    return [BatchDims(*map(int, row)) for row in largest]


def prompt_padding(examples: Sequence[Example], host_batches: Sequence[PromptBatch]) -> dict[str, float]:
    """Measures the shares of tokens and of image patches that are padding.

    Args:
        examples: this host's rows.
        host_batches: their prompts, not yet on the devices.
    """
    tokens = sum(len(one.prompt.tokens) for one in examples)
    patches = [padding_waste(batch).get("patch_waste", 0.0) for batch in host_batches]
    return {
        "padding/prompt_waste": 1 - tokens / sum(batch.tokens.size for batch in host_batches),
        "padding/patch_waste": float(np.mean(patches)),
    }


@lru_cache
def microbatch_splitter(mesh: Mesh, microbatches: int) -> Callable[[Array], tuple[Array, ...]]:
    """Makes the jitted split of a batch into microbatches, within each data shard."""
    if microbatches == 1:
        return lambda x: (x,)
    shards = data_shards(mesh)

    def split(x: jax.Array) -> tuple[jax.Array, ...]:
        by_shard = x.reshape(shards, microbatches, -1, *x.shape[1:])
        return tuple(by_shard[:, k].reshape(-1, *x.shape[1:]) for k in range(microbatches))

    return jax.jit(split, out_shardings=NamedSharding(mesh, P(BATCH)))
