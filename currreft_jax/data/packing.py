"""Prompts of all lengths and images of all sizes, packed into one of a few static shapes.

An attention window of the vision tower never leaves its slot, and an image fills consecutive slots, so that attention
within slots and between near ones, masked by ids, is exactly attention within windows and images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from currreft_jax.models.config import ModelConfig, VisionConfig
from currreft_jax.structs import PADDING, Picture, Pictures, Prompt, PromptBatch


class BudgetError(ValueError):
    """A prompt or its images do not fit the batch's shape; the message says by how much and what to do."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """One static shape of a batch.

    Attributes:
        length: L, slots of a prompt.
        slots: S, attention windows that fit each data shard; 0 for a batch without images.
        reach: slots that one image may fill, and of a row of full attention: an image of any shard that crosses from
            one row to the next makes both look at three rows.
    """

    length: int
    slots: int
    reach: int


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
        place[units] = slot * side**2 + side**2 - free[slot] + np.arange(int(sizes[index]))
        number[units] = windows_in[slot]
        free[slot] -= int(sizes[index])
        windows_in[slot] += 1
    return len(free), place, number


def slots_of(picture: Picture, config: VisionConfig) -> int:
    """Slots that an image fills."""
    return _place_units(picture.grid, config)[0]


@lru_cache
def largest_slots(max_pixels: int, config: VisionConfig) -> int:
    """Slots that no image of up to `max_pixels` exceeds.

    Whole windows fill a slot each; of the narrower ones at the right and the lower edge, as many as fit share one.
    """
    side, unit = config.window_units, config.patch_size * config.spatial_merge_size
    units = max_pixels // unit**2
    height = np.arange(1, units + 1)[:, None]
    largest = 0
    for width_rest in range(side):
        # For a height, the widest image of each remainder; a narrower one needs fewer.
        width = (units // height - width_rest) // side * side + width_rest
        rows, columns = height // side, width // side
        right = _shared(rows, side * width_rest, side)
        lower = np.where(height % side, -(-columns // np.maximum(side // np.maximum(height % side, 1), 1)), 0)
        corner = (height % side > 0) & (width_rest > 0)
        total = np.where(width > 0, rows * columns + right + lower + corner, 0)
        largest = max(largest, int(total.max()))
    return largest


def _shared(windows: np.ndarray, size: int, side: int) -> np.ndarray:
    return -(-windows // (side**2 // size)) if size else np.zeros_like(windows)


def prompt_slots(prompt: Prompt, config: VisionConfig) -> int:
    """Slots that the images of a prompt fill."""
    return sum(slots_of(picture, config) for picture in prompt.pictures)


def _shards(prompts: Sequence[Prompt], shards: int) -> list[Sequence[Prompt]]:
    if len(prompts) % shards or not prompts:
        raise BudgetError(f"{len(prompts)} prompts do not divide into {shards} data shards")
    size = len(prompts) // shards
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def slots_needed(prompts: Sequence[Prompt], config: VisionConfig, shards: int = 1) -> int:
    """S, the slots that every shard needs so that the fullest one fits."""
    return max(sum(prompt_slots(prompt, config) for prompt in shard) for shard in _shards(prompts, shards))


def balanced(prompts: Sequence[Prompt], config: VisionConfig, shards: int) -> list[Prompt]:
    """The prompts in an order that fills the shards evenly: the largest first, each to the emptiest shard with room."""
    size = len(prompts) // shards
    parts: list[list[Prompt]] = [[] for _ in range(shards)]
    filled = [0] * shards
    for prompt in sorted(prompts, key=lambda prompt: -prompt_slots(prompt, config)):
        shard = min((i for i in range(shards) if len(parts[i]) < size), key=filled.__getitem__)
        parts[shard].append(prompt)
        filled[shard] += prompt_slots(prompt, config)
    return [prompt for part in parts for prompt in part]


def fitting(needed: int, ladder: Sequence[int], what: str) -> int:
    """The smallest bucket that holds what is needed.

    Raises:
        BudgetError: none does.
    """
    fits = [bucket for bucket in ladder if bucket >= needed]
    if not fits:
        raise BudgetError(f"{what}: {needed} needed, but the largest bucket is {max(ladder)}; add a larger one")
    return min(fits)


def row_key(row_id: str, occurrence: int = 0) -> int:
    """64 bits for a row and how many times it was met before; the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{row_id}\0{occurrence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


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
    pictures, placed = _pack(_shards(prompts, shards), config.vision, shape)
    for row, (prompt, places) in enumerate(zip(prompts, placed, strict=True)):
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
        key=np.array([(prompt.key >> 32, prompt.key & 0xFFFFFFFF) for prompt in prompts], np.uint32),
        embed_index=embed_index,
        pictures=pictures if shape.slots else None,
    )


def _pack(
    shards: Sequence[Sequence[Prompt]], config: VisionConfig, shape: BatchShape
) -> tuple[Pictures, list[np.ndarray]]:
    """All images, and for each prompt where its merged units stand among those of its shard."""
    slot_units = config.slot_patches // config.unit
    flat = len(shards), shape.slots * slot_units, config.unit
    patches = np.zeros((*flat, config.patch_values), np.uint8)
    coordinates = np.zeros((*flat, 2), np.int32)
    window = np.full(flat, PADDING, np.int32)
    image = np.full(flat, PADDING, np.int32)
    placed = []
    for shard, prompts in enumerate(shards):
        start = number = 0
        left = sum(prompt_slots(prompt, config) for prompt in prompts)
        for prompt in prompts:
            places = [np.empty(0, np.int32)]
            for picture in prompt.pictures:
                size, place, window_number = _place_units(picture.grid, config)
                _refuse_overflow(prompt, picture, size, start + size, shape)
                start = _start(start, size, left, shape)
                units = start * slot_units + place
                patches[shard, units] = picture.patches.reshape(len(units), config.unit, -1)
                coordinates[shard, units] = _coordinates(picture.grid, config.spatial_merge_size)
                window[shard, units] = window_number[:, None]
                image[shard, units] = number
                places.append(units.astype(np.int32))
                start += size
                left -= size
                number += 1
            placed.append(np.concatenate(places))
    full = len(shards), shape.slots, config.slot_patches
    pictures = Pictures(
        patches.reshape(*full, config.patch_values),
        coordinates.reshape(*full, 2),
        window.reshape(full),
        image.reshape(full),
        shape.reach,
    )
    return pictures, placed


def _start(free: int, size: int, left: int, shape: BatchShape) -> int:
    """Where an image begins: where it lies in one row of `reach` slots, if what is left to place then fits as well."""
    next_row = -(-free // shape.reach) * shape.reach
    crosses = free // shape.reach != (free + size - 1) // shape.reach
    return next_row if crosses and next_row + left <= shape.slots else free


def _refuse_overflow(prompt: Prompt, picture: Picture, size: int, end: int, shape: BatchShape) -> None:
    if size > shape.reach:
        raise BudgetError(
            f"{prompt.name}: an image of {picture.resized.width} x {picture.resized.height} pixels fills {size} slots,"
            f" but one image may fill {shape.reach}: lower max_pixels or raise the reach"
        )
    if end > shape.slots:
        raise BudgetError(
            f"{prompt.name}: the images of its data shard fill {end} slots and more, but the batch has {shape.slots}:"
            " take a larger bucket or balance the shards"
        )


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
