"""Static batch shapes: a microbatch is padded to the first of a few shapes that holds it, to limit compilations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Protocol

from currreft_jax.config import BatchLayout, Config, Data, Method, Sampling, Shapes
from currreft_jax.data.examples import Example
from currreft_jax.data.packing import BatchShape, BudgetError, image_slots, max_slots_per_image, slots_per_shard
from currreft_jax.models.config import ModelConfig

# Lengths of sampled completions, as fractions of `max_new_tokens`, to which `Shapes.AUTO` pads.
_COMPLETION_FRACTIONS = (Fraction(1, 2), Fraction(3, 4), Fraction(1))


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
    """The static shapes of batches: a batch takes the first one that holds it.

    The last shape of each list is the largest in every dimension.

    Attributes:
        shapes: of the prompts of a microbatch.
        step_shapes: of all prompts of a step; the same where a step has one microbatch.
        completion_lengths: lengths T of completions, rising.
        file: the file of shapes that were fitted to the rows; empty for those of the settings.
    """

    shapes: tuple[BatchShape, ...]
    step_shapes: tuple[BatchShape, ...]
    completion_lengths: tuple[int, ...]
    file: str = ""

    def fit(self, dims: BatchDims) -> tuple[BatchShape, int]:
        """Returns the batch shape and the completion length of a microbatch.

        Raises:
            BudgetError: a dimension exceeds its largest bucket.
        """
        self.check(dims)
        return _first_fit(self.shapes, dims), next(T for T in self.completion_lengths if dims.completion_length <= T)

    def fit_step(self, dims: BatchDims) -> BatchShape:
        """Returns the batch shape of a step's prompts.

        Raises:
            BudgetError: a dimension exceeds its largest bucket.
        """
        self._check(dims, self.step_shapes[-1])
        return _first_fit(self.step_shapes, dims)

    def check(self, dims: BatchDims) -> None:
        """Refuses a microbatch that no shape holds.

        Raises:
            BudgetError: a dimension exceeds its largest bucket.
        """
        self._check(dims, self.shapes[-1])

    def largest(self) -> ShapeBuckets:
        """Returns the largest shapes alone, with every completion length."""
        return replace(self, shapes=self.shapes[-1:], step_shapes=self.step_shapes[-1:])

    def _check(self, dims: BatchDims, largest: BatchShape) -> None:
        sizes: dict[str, tuple[int, Sequence[int]]] = {
            "data.prompt_lengths": (dims.prompt_length, [shape.length for shape in self.shapes]),
            "data.slots": (dims.image_slots, [largest.slots]),
            "slots of an image": (dims.max_slots_per_image, [largest.max_slots_per_image]),
            "data.completion_lengths": (dims.completion_length, self.completion_lengths),
        }
        excess = {name: (needed, buckets) for name, (needed, buckets) in sizes.items() if needed > max(buckets)}
        if excess and self.file:
            name, (needed, buckets) = next(iter(excess.items()))
            raise BudgetError(
                f"{name}: {needed} needed, but the shapes in {self.file} hold {max(buckets)}: the rows have changed"
                " since the shapes were fitted to them; remove the file, and the same command fits them again"
            )
        if excess:
            needs = "; ".join(
                f"{name}: {needed} needed, but the largest bucket is {max(buckets)}"
                for name, (needed, buckets) in excess.items()
            )
            settings = {name: values for name, values in excess.items() if name.startswith("data.")}
            example = f", such as {larger_buckets(settings)}" if settings else ""
            raise BudgetError(f"{needs}; add a larger one{example}", settings)


def larger_buckets(excess: Mapping[str, tuple[int, Sequence[int]]]) -> str:
    """Returns the flags that add what is needed to bucket sizes, as a multiple of 64; `excess` as in `BudgetError`."""
    return " ".join(
        f"--config.{name}={','.join(map(str, sorted({*buckets, ceil(needed / 64) * 64})))}"
        for name, (needed, buckets) in excess.items()
    )


def _first_fit(shapes: Sequence[BatchShape], dims: BatchDims) -> BatchShape:
    return next(
        shape
        for shape in shapes
        if dims.prompt_length <= shape.length
        and dims.image_slots <= shape.slots
        and dims.max_slots_per_image <= shape.max_slots_per_image
    )


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


def config_buckets(config: Config, processor: ProcessorLike, layout: BatchLayout) -> ShapeBuckets:
    """Returns the shapes that the settings give without the rows: all buckets, or for `Shapes.AUTO` the largest."""
    buckets = shape_buckets(config.data, processor, layout.rows_per_shard, layout.num_microbatches)
    if config.method is Method.GRPO:
        buckets = replace(buckets, completion_lengths=sampled_lengths(config.sampling, config.data.shapes))
    return buckets.largest() if config.data.shapes is Shapes.AUTO else buckets


def shape_buckets(data: Data, processor: ProcessorLike, rows_per_shard: int, num_microbatches: int = 1) -> ShapeBuckets:
    """Returns all shapes that the bucket sizes of the settings give.

    Args:
        data: the bucket sizes.
        processor: processor of texts and images.
        rows_per_shard: rows of a data shard in a microbatch.
        num_microbatches: microbatches of a step.
    """
    shapes = _shapes(data, processor, rows_per_shard)
    of_step = _shapes(replace(data, slots=()), processor, rows_per_shard * num_microbatches)
    return ShapeBuckets(shapes, shapes if num_microbatches == 1 else of_step, tuple(data.completion_lengths))


def sampled_lengths(sampling: Sampling, shapes: Shapes) -> tuple[int, ...]:
    """Returns the lengths T to which sampled completions are padded, each a number of whole segments or the limit."""
    limit, segment = sampling.max_new_tokens, min(sampling.segment, sampling.max_new_tokens)
    if shapes is Shapes.AUTO:
        segments = [ceil(limit * fraction / segment) for fraction in _COMPLETION_FRACTIONS]
    else:
        segments = range(1, ceil(limit / segment) + 1)
    return tuple(sorted({min(count * segment, limit) for count in segments}))


def batch_dims(examples: Sequence[Example], config: ModelConfig, shards: int) -> BatchDims:
    """Measures this host's part of a microbatch, which is split over `shards` data shards."""
    images = [image for example in examples for image in example.prompt.images]
    return BatchDims(
        prompt_length=max(len(example.prompt.tokens) for example in examples),
        image_slots=slots_per_shard([example.prompt for example in examples], config.vision, shards),
        max_slots_per_image=max((image_slots(image, config.vision) for image in images), default=0),
        completion_length=max(len(example.completion_tokens) for example in examples),
    )


def _shapes(data: Data, processor: ProcessorLike, rows_per_shard: int) -> tuple[BatchShape, ...]:
    """Returns the shapes of a batch with so many rows on each data shard, those with shorter prompts first."""
    max_slots = max_slots_per_image(processor.max_pixels, processor.config.vision)
    slots = tuple(data.slots) or _geometric_sizes(max_slots * rows_per_shard, 1.25)
    per_image = _geometric_sizes(max_slots, 1.5)
    images = [(0, 0), *((size, min(size, largest)) for size in slots for largest in per_image)]
    return tuple(BatchShape(length, *image) for length in data.prompt_lengths for image in dict.fromkeys(images))


def _geometric_sizes(largest: int, ratio: float) -> tuple[int, ...]:
    """Returns ascending integers from 1 to `largest`, each at most about `ratio` times the one before it."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(min(sizes[-1] - 1, ceil(sizes[-1] / ratio)))
    return tuple(reversed(sizes))
