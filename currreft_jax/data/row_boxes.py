"""The boxes of a row: those of its solution and those that its texts refer to."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import boxes
from currreft_jax.rewards.answer import RowError, gold_text
from currreft_jax.structs import Boxes, Frame, Reason, Row

Box = tuple[float, float, float, float]
FramePairs = Sequence[tuple[Frame, Frame]]  # the original and the resized frame of each image


def gold_corners(row: Row) -> np.ndarray:
    """Parses the boxes in the solution of an open detection row: none for `[]`, and none for other rows.

    Returns:
        float64 `[n, 4]`, (x1, y1, x2, y2) in pixels of the row's frame.

    Raises:
        RowError: the solution is not a box or a list of boxes.
    """
    if (row.kind, row.task) != (Kind.OPEN, Task.DETECTION):
        return np.empty((0, 4))
    corners = boxes.parse_corners(gold_text(row))
    if isinstance(corners, Reason):
        raise RowError(row, f"solution {row.solution!r} holds no boxes ({corners})")
    return corners


def text_corners(row: Row) -> np.ndarray:
    """Returns the boxes that the texts refer to, float64 `[n, 4]` in pixels of the row's frame."""
    return np.array(row.boxes, np.float64).reshape(-1, 4)


def resize_boxes(corners: np.ndarray, row: Row, frames: FramePairs) -> list[Box]:
    """Rescales boxes `[n, 4]` of a row to the resized frame of its first image."""
    if not len(corners):
        return []
    original, resized = frames[0]
    rescaled = boxes.rescale(Boxes(corners, row.frame or original), resized)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in rescaled.corners.tolist()]


def option_letters(row: Row, box_index: int) -> list[str]:
    """Returns the letters of the options that refer to a box of the row."""
    lettered = zip(ascii_uppercase, row.options, strict=False)
    return [letter for letter, option in lettered if f"{{box:{box_index}}}" in option]
