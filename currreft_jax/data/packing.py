"""Prompts of all lengths and images of all sizes, packed into one of a few static shapes.

An attention window of the vision tower never leaves its slot and an image never leaves its row, so that attention
within slots and rows, masked by ids, is exactly attention within windows and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from currreft_jax.models.config import ModelConfig, VisionConfig
from currreft_jax.structs import Picture, Pictures, Prompt, PromptBatch

PADDING = -1


class BudgetError(ValueError):
    """A prompt or its images do not fit the batch's shape; the message says by how much and what to do."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """One static shape of a batch.

    Attributes:
        length: L, slots of a prompt.
        rows: R, rows of packed images for each data shard; 0 for a batch without images.
        slots: S, attention windows that fit one row; bounds the largest image.
    """

    length: int
    rows: int
    slots: int


@lru_cache(maxsize=4096)
def _place_units(grid: tuple[int, int], config: VisionConfig) -> tuple[int, np.ndarray, np.ndarray]:
    """First-fit decreasing of an image's windows into slots.

    Returns:
        The number of slots; for each merged unit, in the image's order, its place and its window's id in its slot.
    """
    merge, side = config.spatial_merge_size, config.window_units
    y, x = np.divmod(np.arange(grid[0] * grid[1] // config.unit), grid[1] // merge)
    window = (y // side) * -(-grid[1] // merge // side) + x // side
    place, number = np.empty_like(window), np.empty_like(window)
    free: list[int] = []
    windows_in: list[int] = []
    sizes = np.bincount(window)
    for index in np.argsort(-sizes, kind="stable"):
        slot = next((slot for slot, space in enumerate(free) if space >= sizes[index]), len(free))
        if slot == len(free):
            free.append(side**2)
            windows_in.append(0)
        units = window == index
        place[units] = slot * side**2 + side**2 - free[slot] + np.arange(sizes[index])
        number[units] = windows_in[slot]
        free[slot] -= int(sizes[index])
        windows_in[slot] += 1
    return len(free), place, number


def slots_of(picture: Picture, config: VisionConfig) -> int:
    """Slots of a row that an image fills."""
    return _place_units(picture.grid, config)[0]


def _place_images(sizes: Sequence[int], slots: int) -> list[tuple[int, int]]:
    """First-fit decreasing of images into rows: the row and the first slot of each."""
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        row = next((row for row, taken in enumerate(used) if taken + sizes[index] <= slots), len(used))
        if row == len(used):
            used.append(0)
        places[index] = row, used[row]
        used[row] += sizes[index]
    return places


def _shards(prompts: Sequence[Prompt], shards: int) -> list[Sequence[Prompt]]:
    if len(prompts) % shards:
        raise BudgetError(f"{len(prompts)} prompts do not divide into {shards} data shards")
    size = len(prompts) // shards
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def rows_needed(prompts: Sequence[Prompt], config: VisionConfig, slots: int, shards: int = 1) -> int:
    """R, the rows that every shard needs so that the fullest one fits."""

    def rows(shard: Sequence[Prompt]) -> int:
        sizes = [slots_of(picture, config) for prompt in shard for picture in prompt.pictures]
        return max((row + 1 for row, _ in _place_images(sizes, slots)), default=0)

    return max(map(rows, _shards(prompts, shards)))


def fitting(needed: int, ladder: Sequence[int], what: str) -> int:
    """The smallest bucket that holds what is needed.

    Raises:
        BudgetError: none does.
    """
    fits = [bucket for bucket in ladder if bucket >= needed]
    if not fits:
        raise BudgetError(f"{what}: {needed} needed, but the largest bucket is {max(ladder)}; add a larger one")
    return min(fits)


def collate(prompts: Sequence[Prompt], config: ModelConfig, shape: BatchShape, shards: int = 1) -> PromptBatch:
    """Packs prompts and their images into one static shape.

    Args:
        prompts: P of them, in the order of the batch.
        config: of the model.
        shape: what to fill; nothing is ever cut off to fit it.
        shards: N, data shards among these prompts; consecutive prompts share one.

    Raises:
        BudgetError: a prompt or an image is too large, or the images are too many.
    """
    count, length = len(prompts), shape.length
    tokens = np.full((count, length), config.bos_token_id, np.int32)
    positions = np.zeros((count, 3, length), np.int32)
    embed_index = np.full((count, length), PADDING, np.int32)
    packed = [_pack(shard, config.vision, shape) for shard in _shards(prompts, shards)]
    units = [places for _, of_shard in packed for places in of_shard]
    for row, (prompt, places) in enumerate(zip(prompts, units, strict=True)):
        size = len(prompt.tokens)
        if size > length:
            images = sum(picture.grid[0] * picture.grid[1] for picture in prompt.pictures) // config.vision.unit
            raise BudgetError(
                f"{prompt.name}: the prompt has {size} tokens, {images} of them for {len(prompt.pictures)} images, but"
                f" the batch holds {length}: lower max_pixels, shorten the text or raise the prompt length"
            )
        tokens[row, :size] = prompt.tokens
        positions[row, :, :size] = prompt.positions
        embed_index[row, :size][prompt.tokens == config.image_token_id] = places
    return PromptBatch(
        tokens=tokens,
        lengths=np.array([len(prompt.tokens) for prompt in prompts], np.int32),
        positions=positions,
        next_position=np.array([prompt.next_position for prompt in prompts], np.int32),
        embed_index=embed_index,
        pictures=_stack([pictures for pictures, _ in packed]) if shape.rows else None,
    )


def _stack(shards: Sequence[Pictures]) -> Pictures:
    return Pictures(
        patches=np.stack([shard.patches for shard in shards]),
        coordinates=np.stack([shard.coordinates for shard in shards]),
        window=np.stack([shard.window for shard in shards]),
        image=np.stack([shard.image for shard in shards]),
    )


def _pack(prompts: Sequence[Prompt], config: VisionConfig, shape: BatchShape) -> tuple[Pictures, list[np.ndarray]]:
    """One shard's images, without the shard axis, and where each prompt's merged units went."""
    named = [(prompt.name, picture) for prompt in prompts for picture in prompt.pictures]
    sizes = [slots_of(picture, config) for _, picture in named]
    for (name, picture), size in zip(named, sizes, strict=True):
        if size > shape.slots:
            raise BudgetError(
                f"{name}: an image of {picture.resized.width} x {picture.resized.height} pixels fills {size} slots, but"
                f" a row has {shape.slots}: lower max_pixels or raise the slots of a row"
            )
    places = _place_images(sizes, shape.slots)
    if places and max(row for row, _ in places) >= shape.rows:
        rows = 1 + max(row for row, _ in places)
        raise BudgetError(f"{prompts[0].name}, ...: the images fill {rows} rows, but the batch has {shape.rows}")

    slot_units = config.slot_patches // config.unit
    flat = (shape.rows * shape.slots * slot_units, config.unit)
    patches = np.zeros((*flat, config.patch_values), np.uint8)
    coordinates = np.zeros((*flat, 2), np.int32)
    window = np.full(flat, PADDING, np.int32)
    image = np.full(flat, PADDING, np.int32)
    unit_places = []
    for number, ((_, picture), (row, slot)) in enumerate(zip(named, places, strict=True)):
        _, place, window_number = _place_units(picture.grid, config)
        units = (row * shape.slots + slot) * slot_units + place
        patches[units] = picture.patches.reshape(len(units), config.unit, -1)
        coordinates[units] = _coordinates(picture.grid, config.spatial_merge_size)
        window[units] = window_number[:, None]
        image[units] = number
        unit_places.append(units)

    full = shape.rows, shape.slots, config.slot_patches
    pictures = Pictures(
        patches.reshape(*full, config.patch_values), coordinates.reshape(*full, 2), window.reshape(full), image.reshape(full)
    )
    remaining = iter(unit_places)
    of_prompt = [
        np.concatenate([np.empty(0, int), *(next(remaining) for _ in prompt.pictures)]).astype(np.int32)
        for prompt in prompts
    ]
    return pictures, of_prompt


@lru_cache(maxsize=4096)
def _coordinates(grid: tuple[int, int], merge: int) -> np.ndarray:
    """(y, x) of each patch, `[units, merge², 2]`: units row by row, inside each unit row by row."""
    yx = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    units = yx.reshape(grid[0] // merge, merge, grid[1] // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return units.reshape(-1, merge**2, 2)


def padding_waste(batch: PromptBatch) -> dict[str, float]:
    """Share of the batch that is padding: `prompt_waste` of the token slots, `patch_waste` of the patches."""
    waste = {"prompt_waste": 1 - float(np.sum(batch.lengths)) / batch.tokens.size}
    if batch.pictures is not None:
        waste["patch_waste"] = float(np.mean(np.asarray(batch.pictures.image) == PADDING))
    return waste
