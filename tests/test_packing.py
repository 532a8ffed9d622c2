"""Packing keeps every patch, keeps windows and images whole, and wastes little."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.config import Config
from currreft_jax.data.images import smart_resize
from currreft_jax.data.packing import (
    PADDING,
    BatchShape,
    BudgetError,
    balanced_order,
    collate,
    image_slots,
    max_slots_per_image,
    padding_waste,
    prompt_slots,
    slots_per_shard,
    smallest_bucket,
)
from currreft_jax.data.processor import MIN_PIXELS
from currreft_jax.models.config import PUBLISHED
from currreft_jax.structs import Frame, ImagePatches, Prompt
from tests import tiny

CONFIG = tiny.CONFIG
IMAGE = CONFIG.image_token_id
PAPER_PIXELS = Config().model.max_pixels


def image_of(grid: tuple[int, int], values: int = 588) -> ImagePatches:
    count = grid[0] * grid[1]
    patches = (np.arange(count * values) % 251).astype(np.uint8).reshape(count, values)
    frame = Frame(grid[1] * 14, grid[0] * 14)
    return ImagePatches(patches, grid, frame, frame)


def prompt_of(*grids: tuple[int, int], text: int = 5, name: str = "prompt") -> Prompt:
    tokens = [7] * text
    for grid in grids:
        tokens += [IMAGE] * (grid[0] * grid[1] // 4) + [8]
    return Prompt(
        np.array(tokens, np.int32),
        np.tile(np.arange(len(tokens), dtype=np.int32), (3, 1)),
        len(tokens),
        tuple(map(image_of, grids)),
        name,
    )


grids = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda units: (2 * units[0], 2 * units[1]))


@given(st.lists(st.lists(grids, max_size=3), min_size=2, max_size=6), st.sampled_from([1, 2]), st.sampled_from([9, 14]))
def test_every_patch_is_packed_once(prompt_grids, shards, max_slots):
    prompts = [prompt_of(*grids) for grids in prompt_grids[: len(prompt_grids) // shards * shards]]
    slots = slots_per_shard(prompts, CONFIG.vision, shards)
    batch = collate(prompts, CONFIG, BatchShape(2000, slots, max_slots), shards)
    if not slots:
        assert batch.images is None and not any(prompt.images for prompt in prompts)
        return
    per_shard = len(prompts) // shards
    units = batch.images.patches.reshape(shards, -1, 4, 588)
    coordinates = batch.images.coordinates.reshape(shards, -1, 4, 2)
    window_ids = batch.images.window_id.reshape(shards, -1, 4)
    image_ids = batch.images.image_id.reshape(shards, -1, 4)
    slot = np.repeat(np.arange(slots), 16)
    times_used = np.zeros(units.shape[:2], int)
    for row, prompt in enumerate(prompts):
        shard = row // per_shard
        index = batch.embed_index[row]
        np.testing.assert_array_equal(index != PADDING, np.pad(prompt.tokens == IMAGE, (0, 2000 - len(prompt.tokens))))
        ends = np.cumsum([len(image.patches) // 4 for image in prompt.images])
        for image, own in zip(prompt.images, np.split(index[index != PADDING], ends[:-1]), strict=False):
            np.testing.assert_array_equal(units[shard, own].reshape(-1, 588), image.patches)
            height, width = image.grid[0] // 2, image.grid[1] // 2
            y, x = np.divmod(np.arange(height * width), width)
            # the four patches of a unit: rows 2y and 2y + 1, columns 2x and 2x + 1
            corners = np.stack([np.stack([2 * y + i, 2 * x + j], -1) for i in (0, 1) for j in (0, 1)], 1)
            np.testing.assert_array_equal(coordinates[shard, own], corners)
            # two units share slot and window id exactly if they share a window of 4 x 4 units
            packed_window = slot[own] * 100 + window_ids[shard, own, 0]
            window = (y // 4) * 100 + x // 4
            np.testing.assert_array_equal(packed_window[:, None] == packed_window, window[:, None] == window)
            assert (window_ids[shard, own] >= 0).all()
            # consecutive slots and one id
            used = sorted({*slot[own]})
            assert used == list(range(used[0], used[0] + image_slots(image, CONFIG.vision)))
            assert len({*image_ids[shard, own].reshape(-1)}) == 1
            times_used[shard, own] += 1
    np.testing.assert_array_equal(times_used, image_ids[..., 0] != PADDING)
    num_ids = sum(len({*ids.reshape(-1)} - {PADDING}) for ids in image_ids)
    assert num_ids == sum(len(prompt.images) for prompt in prompts)


def test_overflow_errors_give_size_and_remedy():
    with pytest.raises(
        BudgetError, match=r"a\.jsonl:3: the prompt has 22 tokens, 16 of them for 1 images.* holds 20: lower max"
    ):
        collate([prompt_of((8, 8), name="a.jsonl:3")], CONFIG, BatchShape(20, 4, 4))
    with pytest.raises(BudgetError, match=r"p: an image of 280 x 280 pixels fills 7 slots, but one image may fill 4"):
        collate([prompt_of((20, 20), name="p")], CONFIG, BatchShape(200, 9, 4))
    with pytest.raises(BudgetError, match=r"fills 1 slots, but one image may fill 0"):
        collate([prompt_of((8, 8))], CONFIG, BatchShape(200, 0, 0))
    with pytest.raises(BudgetError, match="fill 2 slots and more, but the batch has 1"):
        collate([prompt_of((8, 8), (8, 8))], CONFIG, BatchShape(200, 1, 1))
    with pytest.raises(BudgetError, match="0 prompts do not divide into 1"):
        collate([], CONFIG, BatchShape(20, 0, 1))
    with pytest.raises(BudgetError, match="3 prompts do not divide into 2"):
        collate([prompt_of()] * 3, CONFIG, BatchShape(20, 0, 1), shards=2)
    assert smallest_bucket(5, (4, 8, 16), "slots") == 8
    with pytest.raises(BudgetError, match="slots: 17 needed, but the largest bucket is 16"):
        smallest_bucket(17, (4, 8, 16), "slots")


def typical_sizes(count: int) -> list[tuple[int, int]]:
    """Sizes like COCO's and VOC's: 300 to 640 pixels wide, aspect 0.4 to 2.5; some documents and small crops."""
    rng = np.random.default_rng(0)
    width = np.where(rng.random(count) < 0.8, rng.integers(300, 641, count), rng.integers(60, 1600, count))
    aspect = np.exp(rng.uniform(np.log(0.4), np.log(2.5), count))
    return [(max(28, round(w / a)), int(w)) for w, a in zip(width, aspect, strict=True)]


@pytest.mark.parametrize(("images", "limit"), [(8, 0.45), (16, 0.2), (32, 0.15), (64, 0.15)])
def test_padding_at_the_papers_budget(images, limit):
    """At the paper's budget on 8 devices. With one image per device, as in the paper, the largest of 8 decides."""
    config, shards, buckets = PUBLISHED["3b"], 8, range(4, 400, 4)
    sizes = [smart_resize(*size, 28, MIN_PIXELS, PAPER_PIXELS) for size in typical_sizes(20 * images)]
    image_list = [image_of((height // 14, width // 14), 1) for height, width in sizes]
    filled = capacity = 0
    for start in range(0, len(image_list), images):
        prompts = [replace(prompt_of(text=1), images=(image,)) for image in image_list[start : start + images]]
        prompts = [prompts[i] for i in balanced_order([prompt_slots(p, config.vision) for p in prompts], shards)]
        filled += sum(len(prompt.images[0].patches) for prompt in prompts)
        capacity += smallest_bucket(slots_per_shard(prompts, config.vision, shards), buckets, "slots") * shards * 64
    print(f"{images} images on {shards} devices: {1 - filled / capacity:.3f} of the patches are padding")
    assert 1 - filled / capacity < limit


@given(st.lists(st.lists(grids, max_size=2), min_size=6, max_size=6), st.sampled_from([1, 2, 3, 6]))
def test_balancing_keeps_every_prompt_and_bounds_the_fullest_shard(prompt_grids, shards):
    prompts = [prompt_of(*grids, name=str(i)) for i, grids in enumerate(prompt_grids)]
    order = [prompts[i] for i in balanced_order([prompt_slots(p, CONFIG.vision) for p in prompts], shards)]
    assert sorted(prompt.name for prompt in order) == [str(i) for i in range(6)]
    total = slots_per_shard(prompts, CONFIG.vision)
    largest = max(sum(image_slots(p, CONFIG.vision) for p in prompt.images) for prompt in prompts)
    assert slots_per_shard(order, CONFIG.vision, shards) <= -(-total // shards) + largest


@pytest.mark.parametrize(("spare", "starts"), [(0, [0, 3, 6]), (1, [0, 4, 7]), (2, [0, 4, 8])])
def test_images_start_at_rows_while_slots_are_left(spare, starts):
    """Three images of three slots, in rows of four: as many start at rows as there is room for."""
    prompts = [prompt_of((24, 8))] * 3
    packed = collate(prompts, CONFIG, BatchShape(60, 9 + spare, 4)).images
    assert [int(np.argmax((packed.image_id[0] == image).any(axis=1))) for image in range(3)] == starts


def test_padding_waste():
    batch = collate([prompt_of((8, 8)), prompt_of(text=11)], CONFIG, BatchShape(22, 2, 2))
    assert padding_waste(batch) == {"prompt_waste": 1 - (22 + 11) / 44, "patch_waste": 0.5}
    assert padding_waste(collate([prompt_of(text=11)], CONFIG, BatchShape(22, 0, 2))) == {"prompt_waste": 0.5}


def test_slots_of_images_of_usual_shape():
    """At the paper's budget an image of usual shape fills at most 36 slots."""
    config = PUBLISHED["3b"].vision
    usual = [
        (2 * h, 2 * w)
        for h in range(8, 65)
        for w in range(8, 65)
        if h * w <= PAPER_PIXELS // 28**2 and max(h, w) <= 4 * min(h, w)
    ]
    assert max(image_slots(image_of(grid, 1), config) for grid in usual) <= 36


def test_no_image_fills_more_slots_than_the_largest_of_its_budget():
    """For every budget of 1 to 512 merged units, and every grid within it."""
    config = PUBLISHED["3b"].vision
    most = np.zeros(513, int)
    for height in range(1, 513):
        for width in range(1, 512 // height + 1):
            slots = image_slots(image_of((2 * height, 2 * width), 1), config)
            most[height * width] = max(most[height * width], slots)
    most = np.maximum.accumulate(most)[1:]
    bounds = np.array([max_slots_per_image(units * 28 * 28, config) for units in range(1, 513)])
    assert (bounds >= most).all() and (bounds <= most + 2).all()
    assert max_slots_per_image(PAPER_PIXELS, config) == most[-1] == 43
