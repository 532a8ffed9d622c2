"""What flows between the modules: frozen values whose arrays name their axes.

| axis | meaning |
|---|---|
| P | prompts of a batch (over all hosts) |
| L | slots of a prompt, padded on the right |
| G | completions of a prompt: its group |
| T | slots of a completion, padded on the right |
| D | hidden size of the decoder |
| H, K | query heads, key/value heads |
| V | vocabulary |
| N | data shards of the mesh: a prompt and its images stay on one of them |
| S, C | slots of packed images on a shard, patches of a slot |

The module loads no JAX: arrays are NumPy's on the host and JAX's on the device. `sharding` registers the pytrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # NumPy's on the host, JAX's on the device


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixel frame that coordinates refer to.

    Attributes:
        width: pixels along x.
        height: pixels along y.
    """

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One image, resized and cut into patches.

    Attributes:
        patches: uint8 `[n, channels * patch²]`, a patch's values ordered (channel, y, x), patches in merge-unit order.
        grid: patches along (y, x).
        original: frame of the file.
        resized: frame that the model sees.
    """

    patches: np.ndarray
    grid: tuple[int, int]
    original: Frame
    resized: Frame


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the model reads it, unpadded.

    Attributes:
        tokens: int32 `[L]`; an image stands as one placeholder token per merged unit.
        positions: int32 `[3, L]`, the (time, y, x) position of each token.
        next_position: the position of the first completion token, the same on all three axes.
        pictures: the images in their order of appearance.
        name: what an error about this prompt calls it.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    pictures: tuple[Picture, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images of a batch, packed by whole attention windows into slots; an image fills consecutive slots.

    Attributes:
        patches: uint8 `[N, S, C, channels * patch²]`.
        coordinates: int32 `[N, S, C, 2]`, (y, x) of a patch in its image's grid.
        window: int32 `[N, S, C]`, which window of its slot a patch belongs to; -1 for padding.
        image: int32 `[N, S, C]`, which image of its shard a patch belongs to; -1 for padding.
        reach: slots that the largest image may fill; static, as the arrays' shapes are.
    """

    patches: Array
    coordinates: Array
    window: Array
    image: Array
    reach: int


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts in one static shape.

    Attributes:
        tokens: int32 `[P, L]`.
        lengths: int32 `[P]`.
        positions: int32 `[P, 3, L]`.
        next_position: int32 `[P]`.
        embed_index: int32 `[P, L]`, where a placeholder's feature stands among its shard's merged units; -1 for text.
        pictures: None for a batch without images.
    """

    tokens: Array
    lengths: Array
    positions: Array
    next_position: Array
    embed_index: Array
    pictures: Pictures | None


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a completion needs of its prompt, computed once for the whole group.

    Attributes:
        keys: `[layers, P, L, K, head]`, rotated.
        values: `[layers, P, L, K, head]`.
        lengths: int32 `[P]`.
        next_position: int32 `[P]`.
        last_hidden: `[P, D]` after the final norm: it predicts the first completion token.
    """

    keys: Array
    values: Array
    lengths: Array
    next_position: Array
    last_hidden: Array
