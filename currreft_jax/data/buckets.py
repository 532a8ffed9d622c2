"""Static batch shapes: each dimension of a microbatch is padded to one of a few bucket sizes, to limit compilations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from currreft_jax.config import Data
from currreft_jax.data.examples import Example
from currreft_jax.data.packing import BatchShape, image_slots, max_slots_per_image, slots_per_shard, smallest_bucket
from currreft_jax.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class BatchDims:
    """The unpadded size of a microbatch. With several hosts the maximum over hosts decides.

    Attributes:
        prompt_length: tokens of the longest prompt.
        image_slots: slots of the fullest data shard.
        max_slots_per_image: slots of the largest image.
        completion_length: tokens of the longest completion.
    """

    prompt_length: int
    image_slots: int
    max_slots_per_image: int
    completion_length: int


@dataclass(frozen=True, slots=True)
class ShapeBuckets:
    """The bucket sizes of each dimension of a microbatch.

    Attributes:
        prompt_lengths: lengths in tokens.
        image_slots: image slots of a data shard; 0 is for batches without images.
        max_slots_per_image: slots of the largest image.
        completion_lengths: lengths in tokens.
    """

    prompt_lengths: tuple[int, ...]
    image_slots: tuple[int, ...]
    max_slots_per_image: tuple[int, ...]
    completion_lengths: tuple[int, ...]

    def fit(self, dims: BatchDims) -> tuple[BatchShape, int]:
        """Returns the smallest batch shape and completion length that a microbatch fits into.

        Raises:
            BudgetError: a dimension exceeds its largest bucket.
        """
        image_slots = smallest_bucket(dims.image_slots, self.image_slots, "data.slots")
        prompt_length = smallest_bucket(dims.prompt_length, self.prompt_lengths, "data.prompt_lengths")
        max_slots = smallest_bucket(dims.max_slots_per_image, self.max_slots_per_image, "slots of an image")
        completion_length = smallest_bucket(dims.completion_length, self.completion_lengths, "data.completion_lengths")
        return BatchShape(prompt_length, image_slots, max_slots), completion_length


class ProcessorLike(Protocol):
    """The part of a processor that bucket sizes depend on."""

    @property
    def config(self) -> ModelConfig:
        """Config of the model."""
        ...

    @property
    def max_pixels(self) -> int:
        """Area that larger images are shrunk to."""
        ...


def shape_buckets(data: Data, processor: ProcessorLike, prompts_per_shard: int) -> ShapeBuckets:
    """Returns the bucket sizes for microbatches with `prompts_per_shard` prompts on each data shard."""
    max_slots = max_slots_per_image(processor.max_pixels, processor.config.vision)
    image_slots = tuple(data.slots) or _geometric_sizes(max_slots * prompts_per_shard, 1.25)
    return ShapeBuckets(
        prompt_lengths=tuple(data.prompt_lengths),
        image_slots=(0, *image_slots),
        max_slots_per_image=(0, *_geometric_sizes(max_slots, 1.5)),
        completion_lengths=tuple(data.completion_lengths),
    )


def batch_dims(examples: Sequence[Example], config: ModelConfig, shards: int) -> BatchDims:
    """Measures this host's part of a microbatch, which is split over `shards` data shards."""
    images = [image for example in examples for image in example.prompt.images]
    return BatchDims(
        prompt_length=max(len(example.prompt.tokens) for example in examples),
        image_slots=slots_per_shard([example.prompt for example in examples], config.vision, shards),
        max_slots_per_image=max((image_slots(image, config.vision) for image in images), default=0),
        completion_length=max(len(example.completion_tokens) for example in examples),
    )


def _geometric_sizes(largest: int, ratio: float) -> tuple[int, ...]:
    """Returns ascending integers from 1 to `largest`, each at most about `ratio` times the one before it."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(min(sizes[-1] - 1, ceil(sizes[-1] / ratio)))
    return tuple(reversed(sizes))
