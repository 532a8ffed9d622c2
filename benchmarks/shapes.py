"""Simulates the static shapes of a run on COCO's, VOC's and geometry images: its programs, and what padding costs.

  python -m benchmarks.shapes [--steps 2500]

Compiles nothing. Sizes are drawn as those of the published sets are; prompts have the paper's template around a
question. Half of the steps sample up to the limit of 512 tokens, the others one to four segments of 128. For batches of
8, 16 and 32 prompts on 8 data shards, with the 3B's parameters and 4 completions each, prints

  programs      shapes of the gradient's program that the steps take
  after step 1  of these, those that `train` compiles after the first step
  padding       FLOPs of a step's products with parameters, over those of batches padded to their largest member

for the shapes that are fitted to the rows (`data.shapes = auto`), and for those of the default bucket sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from currreft_jax.config import BatchLayout, Data, Pretrained, Sampling, Shapes
from currreft_jax.data.buckets import BatchDims, ShapeBuckets, sampled_lengths, shape_buckets
from currreft_jax.data.images import without_patches
from currreft_jax.data.packing import image_slots
from currreft_jax.data.processor import MIN_PIXELS, num_image_tokens
from currreft_jax.data.shape_fitting import fit_shapes, largest_dims, parameters_per_input, step_dims
from currreft_jax.models.config import PUBLISHED
from currreft_jax.structs import Frame

MODEL, SHARDS = PUBLISHED["3b"], 8
SAMPLING = Sampling(group_size=4, max_new_tokens=512)
MAX_PIXELS = Pretrained().max_pixels
SIZES = {  # (width, height): share
    "coco": {(640, 480): 0.45, (640, 427): 0.2, (480, 640): 0.15, (427, 640): 0.1, (640, 360): 0.05, (500, 375): 0.05},
    "voc": {(500, 375): 0.6, (375, 500): 0.2, (500, 333): 0.15, (333, 500): 0.05},
}
QUESTION_TOKENS = {"coco": (110, 175), "voc": (110, 175), "geometry": (100, 230)}  # with the template


@dataclass(frozen=True, slots=True)
class Simulated:
    """Steps taken with some shapes.

    Attributes:
        num_programs: shapes of the gradient's program.
        num_late_programs: those compiled after the first step.
        padding: share of the FLOPs above those of batches without padding.
    """

    num_programs: int
    num_late_programs: int
    padding: float


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", metavar="N", type=int, default=2500, help="steps to simulate (default 2500)")
    steps = parser.parse_args().steps
    print("prompts  shapes    programs  after step 1  padding")
    for prompts in (8, 16, 32):
        for shapes in Shapes:
            simulated = simulate(prompts, steps, shapes)
            print(
                f"{prompts:>7}  {shapes.value:<8}{simulated.num_programs:>10}{simulated.num_late_programs:>14}"
                f"{simulated.padding:>9.1%}"
            )


def simulate(prompts: int, steps: int, shapes: Shapes) -> Simulated:
    """Draws the batches of so many steps, and takes the shapes for them as `train` does."""
    rng = np.random.default_rng(0)
    layout = BatchLayout(1, 1, 1, SAMPLING.group_size, prompts // SHARDS, SHARDS)
    rows = draw_rows(rng, 6000)
    epochs = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-steps * prompts // len(rows)))])
    batches = [
        step_dims([rows[i] for i in epochs[step * prompts : (step + 1) * prompts]], layout)[1] for step in range(steps)
    ]
    limit = SAMPLING.max_new_tokens
    segments = SAMPLING.segment * rng.integers(1, limit // SAMPLING.segment + 1, steps)
    longest = np.where(rng.random(steps) < 0.5, limit, segments)
    processor = SimpleNamespace(config=MODEL, max_pixels=MAX_PIXELS)
    given = shape_buckets(Data(), processor, layout.rows_per_shard)
    buckets = given.shapes
    if shapes is Shapes.AUTO:
        largest = largest_dims(rows, batches, layout.rows_per_shard, 1, is_complete=True)
        buckets = fit_shapes(batches, largest, given.shapes[-1].length, layout.rows_per_shard, MODEL)
    return take_steps(
        ShapeBuckets(buckets, buckets, sampled_lengths(SAMPLING, shapes)), batches, longest, layout, shapes
    )


def take_steps(
    buckets: ShapeBuckets,
    batches: Sequence[BatchDims],
    longest: Sequence[int],
    layout: BatchLayout,
    shapes: Shapes,
) -> Simulated:
    """Takes a shape for each batch, and adds up what the padding costs.

    Args:
        buckets: the shapes.
        batches: dimensions of each step's prompts.
        longest: length of each step's completions, in whole segments.
        layout: layout of a batch.
        shapes: which shapes they are; those of `AUTO` are compiled before the first step.
    """
    taken, exact, padded = [], 0.0, 0.0
    for dims, length in zip(batches, longest, strict=True):
        shape, _ = buckets.fit(dims)
        completion = min(T for T in buckets.completion_lengths if length <= T)
        taken.append((shape, completion))
        exact += step_cost(dims.prompt_length, dims.image_slots, length, layout)
        padded += step_cost(shape.length, shape.slots, completion, layout)
    late = set() if shapes is Shapes.AUTO else set(taken) - {taken[0]}
    return Simulated(len(set(taken)), len(late), padded / exact - 1)


def step_cost(length: int, slots: int, completion_length: int, layout: BatchLayout) -> float:
    """Counts the products of a step with parameters on a data shard, in parameters."""
    per_token, per_patch = parameters_per_input(MODEL)
    head = MODEL.hidden_size * MODEL.vocab_size
    rows = layout.rows_per_shard
    images = slots * MODEL.vision.patches_per_slot * per_patch
    return rows * length * per_token + images + rows * SAMPLING.group_size * completion_length * (per_token + head)


def draw_rows(rng: np.random.Generator, count: int) -> list[BatchDims]:
    """Draws rows with one image each: as many of COCO as of VOC and of geometry."""
    return [_draw_row(rng, ("coco", "voc", "geometry")[index % 3]) for index in range(count)]


def _draw_row(rng: np.random.Generator, source: str) -> BatchDims:
    if source == "geometry":
        width, height = rng.integers(120, 900), rng.integers(100, 700)
    else:
        sizes = SIZES[source]
        width, height = list(sizes)[rng.choice(len(sizes), p=list(sizes.values()))]
    image = without_patches(Frame(int(width), int(height)), MODEL.vision, MIN_PIXELS, MAX_PIXELS)
    slots = image_slots(image, MODEL.vision)
    text = int(rng.integers(*QUESTION_TOKENS[source]))
    return BatchDims(num_image_tokens(image.grid, MODEL) + text, slots, slots, 0)


if __name__ == "__main__":
    main()
