"""Shapes fitted to the batches of a run: exact, large enough, and measured as the batches will be."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import shapes as simulation
from currreft_jax.config import BatchLayout, Config, Shapes
from currreft_jax.data.buckets import BatchDims
from currreft_jax.data.examples import Example
from currreft_jax.data.packing import image_slots
from currreft_jax.data.shape_fitting import fit_lengths, fit_shapes, largest_dims, parameters_per_input, step_dims
from currreft_jax.models.config import PUBLISHED
from currreft_jax.structs import Frame, ImagePatches, Prompt
from currreft_jax.training import batches, sft
from tests import tiny

CONFIG = PUBLISHED["3b"]
LIMIT = 200


def random_batches(seed: int, count: int = 60) -> list[BatchDims]:
    rng = np.random.default_rng(seed)
    drawn = [BatchDims(int(rng.integers(20, 200)), int(slots), int(slots), 0) for slots in rng.integers(0, 9, count)]
    return [*drawn, BatchDims(LIMIT, 8, 8, 0)]


@pytest.mark.parametrize("seed", range(8))
def test_the_fitted_shapes_cost_least_of_all_pairs(seed):
    drawn, rows_per_shard = random_batches(seed), 2
    per_token, per_patch = parameters_per_input(CONFIG)

    def cost(shapes: list[tuple[int, int]]) -> float:
        """Of all batches, each in the first shape that holds it."""
        prices = {shape: rows_per_shard * shape[0] * per_token + shape[1] * 64 * per_patch for shape in shapes}
        taken = [
            next(shape for shape in shapes if dims.prompt_length <= shape[0] and dims.image_slots <= shape[1])
            for dims in drawn
        ]
        return sum(prices[shape] for shape in taken)

    largest = largest_dims([], drawn, rows_per_shard, 1, is_complete=True)
    fitted = fit_shapes(drawn, largest, LIMIT, rows_per_shard, CONFIG)
    last = (LIMIT, 8)
    assert (fitted[-1].length, fitted[-1].slots) == last  # 224 exceeds the limit
    pairs = product((32, 64, 96, 128, 160, 192, LIMIT), range(9))
    assert cost([(shape.length, shape.slots) for shape in fitted]) == min(cost([pair, last]) for pair in pairs)
    assert len(fitted) == 2 and all(shape.max_slots_per_image <= shape.slots for shape in fitted)


def test_batches_of_one_size_need_one_shape():
    drawn = [BatchDims(60, 3, 2, 0)] * 5
    (shape,) = fit_shapes(drawn, drawn[0], LIMIT, 1, CONFIG)
    assert (shape.length, shape.slots, shape.max_slots_per_image) == (64, 3, 2)


@pytest.mark.parametrize(("slots", "number"), [(985, 1), (940, 2)])  # of the 3B, whose slots cost more than its tokens
def test_two_shapes_that_are_nearly_equal_are_one(slots, number):
    drawn = [BatchDims(64, slots, 8, 0)] * 59 + [BatchDims(64, 1000, 8, 0)]
    assert len(fit_shapes(drawn, drawn[-1], LIMIT, 1, CONFIG)) == number
    assert fit_shapes(drawn, drawn[-1], LIMIT, 1, CONFIG)[-1].slots == 1000


def test_lengths_that_save_little_are_left_out():
    assert fit_lengths([2000] * 50 + [2020, 2040], 2048, 4096) == (2048,)
    assert fit_lengths([1000] * 50 + [2000, 2040], 2048, 4096) == (1024, 2048)


def test_the_largest_shape_holds_the_largest_row_and_the_fullest_shard_that_may_come():
    rows = [BatchDims(9, slots, slots, 5) for slots in (1, 7, 4)]
    drawn = [BatchDims(8, 5, 4, 0)]
    assert largest_dims(rows, drawn, 2, 1, is_complete=True) == BatchDims(9, 7, 7, 5)
    assert largest_dims(rows, drawn, 2, 1, is_complete=False).image_slots == 7 + 4
    assert largest_dims(rows, drawn, 4, 1, is_complete=False).image_slots == 7 + 4 + 1 + 7
    assert largest_dims(rows, drawn, 3, 2, is_complete=False).image_slots == 7 + 7 + 4  # two parts of each prompt


def test_the_fitted_lengths_pad_least():
    lengths = [5, 30, 33, 64, 65, 90, 100, 190]
    candidates = (32, 64, 96, 128, 160, 192)

    def padded(chosen: tuple[int, ...]) -> int:
        return sum(min(length for length in chosen if length >= needed) for needed in lengths)

    fitted = fit_lengths(lengths, 190, 1024)
    assert len(fitted) == 3 and fitted[-1] == 192
    assert padded(fitted) == min(padded((*pair, 192)) for pair in product(candidates, candidates))
    assert fit_lengths([7, 9], 9, 1024) == (32,)
    assert fit_lengths([7, 90], 90, 80) == (32, 80)


def example_of(rng: np.random.Generator, answers: bool) -> Example:
    """A row of random size, without text and pixels."""
    grids = [(4 * int(rng.integers(1, 9)), 4 * int(rng.integers(1, 9))) for _ in range(rng.integers(0, 3))]
    frame, length = Frame(1, 1), int(rng.integers(1, 90))
    images = tuple(ImagePatches(np.empty((0, 588), np.uint8), grid, frame, frame) for grid in grids)
    prompt = Prompt(np.zeros(length, np.int32), np.zeros((3, length), np.int32), length, images, "row")
    completion = np.zeros(int(rng.integers(1, 60)) if answers else 0, np.int32)
    return Example(SimpleNamespace(), prompt, completion, completion > 0)


def size_of(example: Example) -> BatchDims:
    slots = [image_slots(image, tiny.CONFIG.vision) for image in example.prompt.images]
    return BatchDims(len(example.prompt.tokens), sum(slots), max(slots, default=0), len(example.completion_tokens))


class Measured(Exception):
    """Carries the dimensions of the batches that a step is about to collate."""


@pytest.mark.parametrize(
    ("layout", "hosts"),
    [
        (BatchLayout(1, 1, 1, 4, 4, 2), 1),
        (BatchLayout(2, 2, 1, 4, 2, 2), 1),
        (BatchLayout(1, 2, 2, 2, 2, 4), 1),
        (BatchLayout(2, 1, 1, 4, 2, 4), 2),
    ],
)
@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_batches_are_measured_as_a_step_collates_them(monkeypatch, layout, hosts, method):
    if method == "sft":
        layout = replace_parts(layout)
    rng = np.random.default_rng(0)
    module = batches if method == "grpo" else sft
    shards = layout.num_shards // hosts
    context = SimpleNamespace(config=Config(), model=SimpleNamespace(mesh=None, config=tiny.CONFIG), layout=layout)
    monkeypatch.setattr(module, "shards_per_host", lambda _: shards)

    def measured(dims):
        raise Measured(dims)

    monkeypatch.setattr(module, "agree_on_dims", measured)
    for _ in range(5):
        examples = [example_of(rng, method == "sft") for _ in range(layout.num_rows // layout.group_parts)]
        of_hosts = []
        for host in range(hosts):
            collate = batches.collate_prompts if method == "grpo" else sft.sft_batch
            with pytest.raises(Measured) as caught:
                collate(context, examples[host::hosts])
            of_hosts.append(caught.value.args[0])
        expected = [
            BatchDims(*(max(getattr(dims, name) for dims in of_all) for name in BatchDims.__slots__))
            for of_all in zip(*of_hosts, strict=True)
        ]
        microbatches, whole = step_dims([size_of(example) for example in examples], layout, hosts)
        assert expected == ([whole, *microbatches] if method == "grpo" else microbatches)


def replace_parts(layout: BatchLayout) -> BatchLayout:
    """The layout of as many rows in supervised training, which splits no groups and has one minibatch."""
    return layout._replace(group_parts=1, microbatches=layout.num_microbatches, minibatches=1)


@pytest.mark.parametrize(("prompts", "padding"), [(8, 0.075), (32, 0.13)])
def test_a_simulated_mixture_takes_six_programs_at_little_padding(prompts, padding):
    """2,500 steps of COCO, VOC and geometry images at 8 prompts; fewer at 32, whose batches take longer to draw."""
    simulated = simulation.simulate(prompts, 2500 if prompts == 8 else 500, Shapes.AUTO)
    assert simulated.num_programs <= 6 and simulated.num_late_programs == 0
    assert simulated.padding < padding
