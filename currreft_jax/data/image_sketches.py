"""Sketches of images: a difference hash and a thumbnail, by which nearly equal images are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_SIDE = 16  # of the thumbnail, in cells
_HASH_COLUMNS, _HASH_ROWS = 9, 8
_LEAST_STEP = 2  # grey levels; smaller steps between cells are noise
_MAX_BITS = 12  # of 64 by which the hashes of nearly equal images differ
_MAX_DIFFERENCE = 32  # grey levels of any cell and channel of nearly equal images


class Sketch(NamedTuple):
    """What images share that differ in size, compression and noise alone.

    Attributes:
        bits: 64-bit difference hash: whether brightness rises from a cell to its right neighbour.
        thumbnail: RGB values of 16 x 16 cells.
    """

    bits: int
    thumbnail: bytes


def sketch_image(image: Image.Image) -> Sketch:
    """Sketches an RGB image."""
    thumbnail = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = image.convert("L").resize((_HASH_COLUMNS, _HASH_ROWS), Image.Resampling.BOX)
    cells = np.asarray(grey, np.int16)
    rises = cells[:, 1:] > cells[:, :-1] + _LEAST_STEP
    return Sketch(int.from_bytes(np.packbits(rises).tobytes(), "big"), thumbnail.tobytes())


class SketchIndex:
    """Sketches to search. Hashes choose the candidates; thumbnails decide, as plain scenes have similar hashes."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        self._bits = np.array([sketch.bits for sketch in sketches], np.uint64)
        pixels = b"".join(sketch.thumbnail for sketch in sketches)
        self._thumbnails = np.frombuffer(pixels, np.uint8).reshape(-1, _SIDE * _SIDE * 3)

    def near(self, sketch: Sketch) -> list[int]:
        """Returns the indices of all nearly equal images, in rising order."""
        differing = np.bitwise_count(self._bits ^ np.uint64(sketch.bits))
        candidates = np.flatnonzero(differing <= _MAX_BITS)
        thumbnail = np.frombuffer(sketch.thumbnail, np.uint8).astype(np.int16)
        difference = np.abs(self._thumbnails[candidates] - thumbnail).max(axis=1, initial=0)
        return candidates[difference <= _MAX_DIFFERENCE].tolist()
