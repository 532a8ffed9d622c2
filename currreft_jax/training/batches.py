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

from currreft_jax.config import Config, Method, Stage
from currreft_jax.data.buckets import BatchDims, ProcessorLike, ShapeBuckets, batch_dims, shape_buckets
from currreft_jax.data.examples import Example
from currreft_jax.data.microbatches import make_microbatches
from currreft_jax.data.packing import BatchShape, collate, padding_waste
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.multihost import max_over_hosts, shards_per_host, to_devices
from currreft_jax.runtime.sharding import BATCH, data_shards
from currreft_jax.session.session import Session
from currreft_jax.structs import Array, GroupBatch, PromptBatch


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
    """A step's prompts in microbatches.

    Attributes:
        examples: this host's, in the order of its rows.
        microbatches: prompts on the devices.
        rows: indices of each microbatch's rows among this host's.
        padding: metrics.
    """

    examples: list[Example]
    microbatches: list[PromptBatch]
    rows: list[np.ndarray]
    padding: dict[str, float]


def num_microbatches(config: Config) -> int:
    """Microbatches of a step: of all its minibatches together."""
    return config.microbatches * (config.grpo.minibatches if config.method is Method.GRPO else 1)


def prompts_per_shard(config: Config, mesh: Mesh) -> int:
    """Prompts of a data shard in a microbatch.

    Raises:
        ValueError: the batch does not divide.
    """
    minibatches, shards = num_microbatches(config) // config.microbatches, data_shards(mesh)
    if config.data.batch_size % (minibatches * config.microbatches * shards):
        raise ValueError(
            f"data.batch_size ({config.data.batch_size}) does not divide into {minibatches} minibatches of"
            f" {config.microbatches} microbatches of {shards} data shards (mesh.data x mesh.fsdp): change one of them"
        )
    return config.data.batch_size // (minibatches * config.microbatches * shards)


def collate_prompts(context: StageContext, examples: Sequence[Example]) -> tuple[StepPrompts, PromptBatch]:
    """Collates a step's prompts, as microbatches and as one batch.

    Each minibatch holds consecutive examples, so that all hosts agree on it. A data shard holds its share of every
    microbatch, one after the other, so that no row moves between devices when the batch is split.

    Args:
        context: stage context.
        examples: this host's.
    """
    config, model = context.config, context.model
    shards = shards_per_host(model.mesh)
    minibatch_size = len(examples) // config.grpo.minibatches
    parts = [
        part
        for start in range(0, len(examples), minibatch_size)
        for part in make_microbatches(
            examples[start : start + minibatch_size], model.config, shards, config.microbatches
        )
    ]
    size = len(parts[0]) // shards
    ordered = [one for s in range(shards) for part in parts for one in part[s * size : (s + 1) * size]]
    by_shard = np.arange(len(ordered)).reshape(shards, len(parts), size)
    rows = [by_shard[:, k].ravel() for k in range(len(parts))]
    dims = agree_on_dims([batch_dims(part, model.config, shards) for part in (ordered, *parts)])

    def collated(part: Sequence[Example], buckets: ShapeBuckets, dims: BatchDims) -> PromptBatch:
        shape, _ = buckets.fit(dims)
        return collate([one.prompt for one in part], model.config, shape, shards)

    if len(parts) == 1:
        host_batch = collated(ordered, context.buckets, dims[0])
        batch = to_devices(host_batch, model.mesh)
        return StepPrompts(ordered, [batch], rows, prompt_padding(ordered, [host_batch])), batch
    whole_buckets = step_buckets(config, context.processor, size * len(parts))
    batch = to_devices(collated(ordered, whole_buckets, dims[0]), model.mesh)
    host_batches = [collated(part, context.buckets, of_part) for part, of_part in zip(parts, dims[1:], strict=True)]
    microbatches = [to_devices(host_batch, model.mesh) for host_batch in host_batches]
    return StepPrompts(ordered, microbatches, rows, prompt_padding(ordered, host_batches)), batch


def step_buckets(config: Config, processor: ProcessorLike, prompts: int) -> ShapeBuckets:
    """Makes the buckets of a step's full batch, for steps of several microbatches.

    Args:
        config: all settings.
        processor: processor of texts and images.
        prompts: number of prompts of a data shard.
    """
    return shape_buckets(dataclasses.replace(config.data, slots=()), processor, prompts)


def agree_on_dims(dims: Sequence[BatchDims]) -> list[BatchDims]:
    """Takes the maximum of each microbatch's dimensions over hosts."""
    largest = max_over_hosts(np.array([dataclasses.astuple(one) for one in dims]))
    return [BatchDims(*map(int, row)) for row in largest]


def prompt_padding(examples: Sequence[Example], host_batches: Sequence[PromptBatch]) -> dict[str, float]:
    """Measures the shares of tokens and of image patches that are padding.

    Args:
        examples: this host's.
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
