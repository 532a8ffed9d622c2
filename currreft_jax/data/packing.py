"""Packs prompts and their images into static shapes.

Attention windows are packed into slots, and each image fills consecutive slots. Attention within a slot, or within a
row of slots and its neighbours, masked by ids, is therefore attention within a window or an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from currreft_jax.models.config import ModelConfig, VisionConfig
from currreft_jax.structs import PADDING, ImagePatches, PackedImages, Prompt, PromptBatch


class BudgetError(ValueError):
    """A prompt or its images exceed the shape of the batch; the message says by how much, and the remedy.

    Attributes:
        excess: setting -> what is needed, and the setting's own values; of settings that list bucket sizes.
    """

    def __init__(self, message: str, excess: Mapping[str, tuple[int, Sequence[int]]] | None = None):
        super().__init__(message)
        self.excess = dict(excess or {})


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The static shape of a batch.

    Attributes:
        length: L, length of the prompts.
        slots: S, image slots of each data shard; 0 for a batch without images.
        max_slots_per_image: bound on the slots of an image, and slots of a row of full attention. An image that crosses
            from one row to the next, on any shard, makes both rows attend to three.
    """

    length: int
    slots: int
    max_slots_per_image: int

    def __str__(self) -> str:
        images = f" with {self.slots} slots, {self.max_slots_per_image} per image" if self.slots else ""
        return f"{self.length} tokens{images}"


@lru_cache(maxsize=4096)
def _pack_windows(grid: tuple[int, int], config: VisionConfig) -> tuple[int, np.ndarray, np.ndarray]:
    """Packs an image's attention windows into slots, first-fit decreasing.

    Returns:
        The number of slots; for each merged unit of the image, its index in the slots and the id of its window in its
        slot.
    """
    merge, side = config.spatial_merge_size, config.window_side
    y, x = np.divmod(np.arange(grid[0] * grid[1] // config.patches_per_unit), grid[1] // merge)
    window = (y // side) * -(-grid[1] // merge // side) + x // side
    unit_index, window_id = np.empty_like(window), np.empty_like(window)
    free: list[int] = []
    windows_in_slot: list[int] = []
    sizes = np.bincount(window)
    for index in np.argsort(-sizes, kind="stable"):
        slot = next((slot for slot, space in enumerate(free) if space >= sizes[index]), len(free))
        if slot == len(free):
            free.append(side**2)
            windows_in_slot.append(0)
        units = window == index
        unit_index[units] = slot * side**2 + side**2 - free[slot] + np.arange(int(sizes[index]))
        window_id[units] = windows_in_slot[slot]
        free[slot] -= int(sizes[index])
        windows_in_slot[slot] += 1
    return len(free), unit_index, window_id


def image_slots(image: ImagePatches, config: VisionConfig) -> int:
    """Returns the number of slots of an image."""
    return _pack_windows(image.grid, config)[0]


@lru_cache
def max_slots_per_image(max_pixels: int, config: VisionConfig) -> int:
    """Returns the largest number of slots of any image of up to `max_pixels`.

    A whole window fills a slot; of the narrower windows at the right and lower edges, as many as fit share one.
    """
    side, unit = config.window_side, config.patch_size * config.spatial_merge_size
    units = max_pixels // unit**2
    height = np.arange(1, units + 1)[:, None]
    largest = 0
    for width_rest in range(side):
        # For each height, the widest image with this remainder; a narrower one needs fewer slots.
        width = (units // height - width_rest) // side * side + width_rest
        rows, columns = height // side, width // side
        right = _slots_of_windows(rows, side * width_rest, side)
        lower = np.where(height % side, -(-columns // np.maximum(side // np.maximum(height % side, 1), 1)), 0)
        corner = (height % side > 0) & (width_rest > 0)
        total = np.where(width > 0, rows * columns + right + lower + corner, 0)
        largest = max(largest, int(total.max()))
    return largest


def _slots_of_windows(windows: np.ndarray, units: int, side: int) -> np.ndarray:
    """Slots of so many windows of `units` units each."""
    return -(-windows // (side**2 // units)) if units else np.zeros_like(windows)


def prompt_slots(prompt: Prompt, config: VisionConfig) -> int:
    """Returns the number of slots of a prompt's images."""
    return sum(image_slots(image, config) for image in prompt.images)


def _split_shards(prompts: Sequence[Prompt], shards: int) -> list[Sequence[Prompt]]:
    if len(prompts) % shards or not prompts:
        raise BudgetError(f"{len(prompts)} prompts do not divide into {shards} data shards")
    size = len(prompts) // shards
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def slots_per_shard(prompts: Sequence[Prompt], config: VisionConfig, shards: int = 1) -> int:
    """Returns S, the slots of the fullest shard."""
    return max(sum(prompt_slots(prompt, config) for prompt in shard) for shard in _split_shards(prompts, shards))


def balanced_order(slots: Sequence[int], shards: int) -> list[int]:
    """Orders prompts with so many slots each: largest first, each to the emptiest shard with room.

    Returns:
        Indices of the prompts, shard after shard.
    """
    shard_size = len(slots) // shards
    members: list[list[int]] = [[] for _ in range(shards)]
    filled = [0] * shards
    for prompt in sorted(range(len(slots)), key=lambda prompt: -slots[prompt]):
        shard = min((i for i in range(shards) if len(members[i]) < shard_size), key=filled.__getitem__)
        members[shard].append(prompt)
        filled[shard] += slots[prompt]
    return [prompt for shard in members for prompt in shard]


def smallest_bucket(needed: int, buckets: Sequence[int], name: str) -> int:
    """Returns the smallest bucket of at least `needed`.

    Raises:
        BudgetError: every bucket is smaller; the message begins with `name`.
    """
    sufficient = [bucket for bucket in buckets if bucket >= needed]
    if not sufficient:
        raise BudgetError(f"{name}: {needed} needed, but the largest bucket is {max(buckets)}; add a larger one")
    return min(sufficient)


def row_key(row_id: str, occurrence: int = 0) -> int:
    """Hashes a row's id and its occurrence to 64 bits, the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{row_id}\0{occurrence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def collate(prompts: Sequence[Prompt], config: ModelConfig, shape: BatchShape, shards: int = 1) -> PromptBatch:
    """Pads and packs prompts and their images to a static shape; nothing is truncated.

    Args:
        prompts: P prompts, in the order of the batch.
        config: configuration of the model.
        shape: the batch's shape.
        shards: N, data shards; consecutive prompts share one.

    Raises:
        BudgetError: a prompt or an image is too large, or there are too many images.
    """
    count, length = len(prompts), shape.length
    tokens = np.full((count, length), config.bos_token_id, np.int32)
    positions = np.zeros((count, 3, length), np.int32)
    embed_index = np.full((count, length), PADDING, np.int32)
    packed, unit_indices = _pack_images(_split_shards(prompts, shards), config.vision, shape)
    for row, (prompt, units) in enumerate(zip(prompts, unit_indices, strict=True)):
        size = len(prompt.tokens)
        if size > length:
            image_tokens = int(np.sum(prompt.tokens == config.image_token_id))
            raise BudgetError(
                f"{prompt.name}: the prompt has {size} tokens, {image_tokens} of them for {len(prompt.images)} images,"
                f" but the batch holds {length}: lower max_pixels, shorten the text or raise the prompt length"
            )
        tokens[row, :size] = prompt.tokens
        positions[row, :, :size] = prompt.positions
        embed_index[row, :size][prompt.tokens == config.image_token_id] = units
    return PromptBatch(
        tokens=tokens,
        lengths=np.array([len(prompt.tokens) for prompt in prompts], np.int32),
        positions=positions,
        next_position=np.array([prompt.next_position for prompt in prompts], np.int32),
        key=prompt_keys(prompts),
        first_sample=np.array([prompt.first_sample for prompt in prompts], np.int32),
        embed_index=embed_index,
        images=packed if shape.slots else None,
    )


def prompt_keys(prompts: Sequence[Prompt]) -> np.ndarray:
    """Returns the keys of prompts in halves, uint32 `[P, 2]`."""
    return np.array([(prompt.key >> 32, prompt.key & 0xFFFFFFFF) for prompt in prompts], np.uint32)


def _pack_images(
    shards: Sequence[Sequence[Prompt]], config: VisionConfig, shape: BatchShape
) -> tuple[PackedImages, list[np.ndarray]]:
    """Packs all images.

    Returns:
        The packed images; for each prompt, the indices of its merged units among those of its shard.
    """
    units_per_slot = config.patches_per_slot // config.patches_per_unit
    by_unit = len(shards), shape.slots * units_per_slot, config.patches_per_unit
    patches = np.zeros((*by_unit, config.values_per_patch), np.uint8)
    coordinates = np.zeros((*by_unit, 2), np.int32)
    window_id = np.full(by_unit, PADDING, np.int32)
    image_id = np.full(by_unit, PADDING, np.int32)
    unit_indices = []
    for shard, prompts in enumerate(shards):
        next_slot = num_images = 0
        slots_left = sum(prompt_slots(prompt, config) for prompt in prompts)
        for prompt in prompts:
            prompt_units = [np.empty(0, np.int32)]
            for image in prompt.images:
                num_slots, unit_index, unit_window = _pack_windows(image.grid, config)
                _check_slots(prompt, image, num_slots, next_slot + num_slots, shape)
                first_slot = _first_slot(next_slot, num_slots, slots_left, shape)
                units = first_slot * units_per_slot + unit_index
                patches[shard, units] = image.patches.reshape(len(units), config.patches_per_unit, -1)
                coordinates[shard, units] = _coordinates(image.grid, config.spatial_merge_size)
                window_id[shard, units] = unit_window[:, None]
                image_id[shard, units] = num_images
                prompt_units.append(units.astype(np.int32))
                next_slot = first_slot + num_slots
                slots_left -= num_slots
                num_images += 1
            unit_indices.append(np.concatenate(prompt_units))
    by_slot = len(shards), shape.slots, config.patches_per_slot
    packed = PackedImages(
        patches.reshape(*by_slot, config.values_per_patch),
        coordinates.reshape(*by_slot, 2),
        window_id.reshape(by_slot),
        image_id.reshape(by_slot),
        shape.max_slots_per_image,
    )
    return packed, unit_indices


def _first_slot(next_slot: int, num_slots: int, slots_left: int, shape: BatchShape) -> int:
    """Returns an image's first slot: at the next row if it would cross into it and all remaining images still fit."""
    row = shape.max_slots_per_image
    next_row = -(-next_slot // row) * row
    crosses = next_slot // row != (next_slot + num_slots - 1) // row
    return next_row if crosses and next_row + slots_left <= shape.slots else next_slot


def _check_slots(prompt: Prompt, image: ImagePatches, num_slots: int, end: int, shape: BatchShape) -> None:
    """Raises `BudgetError` if an image exceeds the slots of an image or of the shard."""
    if num_slots > shape.max_slots_per_image:
        raise BudgetError(
            f"{prompt.name}: an image of {image.resized.width} x {image.resized.height} pixels fills {num_slots} slots,"
            f" but one image may fill {shape.max_slots_per_image}: lower max_pixels or raise max_slots_per_image"
        )
    if end > shape.slots:
        raise BudgetError(
            f"{prompt.name}: the images of its data shard fill {end} slots and more, but the batch has {shape.slots}:"
            " take a larger bucket or balance the shards"
        )


@lru_cache(maxsize=4096)
def _coordinates(grid: tuple[int, int], merge: int) -> np.ndarray:
    """(y, x) of each patch, `[units, merge², 2]`; units, and patches within a unit, in row-major order."""
    yx = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    units = yx.reshape(grid[0] // merge, merge, grid[1] // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return units.reshape(-1, merge**2, 2)


def padding_waste(batch: PromptBatch) -> dict[str, float]:
    """Returns the fractions of padding: `prompt_waste` of the prompt tokens, `patch_waste` of the patches."""
    waste = {"prompt_waste": 1 - float(np.sum(batch.lengths)) / batch.tokens.size}
    if batch.images is not None:
        waste["patch_waste"] = float(np.mean(np.asarray(batch.images.image_id) == PADDING))
    return waste
