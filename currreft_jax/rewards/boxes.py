"""Boxes: reading them, moving them between frames, and their overlap."""

import numpy as np

from currreft_jax.rewards.answer import read_json
from currreft_jax.structs import Boxes, Frame, Reason

_LARGEST_COORDINATE = 1e6


def read(answer: str) -> np.ndarray | Reason:
    """The corners of every box in an answer, float64 `[n, 4]`.

    A box is `[x1, y1, x2, y2]` or `{"bbox_2d": [x1, y1, x2, y2], …}`; an answer is a box or a list of boxes, in JSON.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    try:
        value = read_json(answer)
    except ValueError:
        return Reason.BAD_JSON
    items = value if isinstance(value, list) and not _is_box(value) else [value]
    corners = [item.get("bbox_2d") if isinstance(item, dict) else item for item in items]
    if not all(map(_is_box, corners)):
        return Reason.BAD_JSON
    return np.array(corners, np.float64) if corners else Reason.EMPTY_ANSWER


def rescale(boxes: Boxes, frame: Frame) -> Boxes:
    """The same boxes in another frame of the same image; x and y have their own factors.

    Raises:
        ValueError: for boxes of no known frame.
    """
    if boxes.frame is None:
        raise ValueError(f"boxes of an unknown frame cannot be moved to {frame}: give their row its frame")
    sx, sy = frame.width / boxes.frame.width, frame.height / boxes.frame.height
    return Boxes(boxes.corners * np.array([sx, sy, sx, sy]), frame)


def degenerate(corners: np.ndarray) -> np.ndarray:
    """Which boxes have no area, bool `[n]`."""
    return (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])


def inside(corners: np.ndarray, frame: Frame) -> np.ndarray:
    """Which boxes `[n, 4]` lie in their frame, bool `[n]`.

    One pixel of grace: annotators' boxes overshoot by fractions of one.
    """
    fits = (corners >= -1) & (corners <= np.array([frame.width, frame.height] * 2) + 1)
    return np.asarray(fits.all(axis=1))


def iou(first: Boxes, second: Boxes) -> np.ndarray:
    """Intersection over union of every pair, float64 `[n, m]`; a degenerate box overlaps nothing.

    Raises:
        ValueError: for boxes of two frames.
    """
    if first.frame != second.frame:
        raise ValueError(f"boxes of {first.frame} cannot be compared with boxes of {second.frame}: rescale one of them")
    a, b = first.corners[:, None], second.corners[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = _areas(first)[:, None] + _areas(second)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)


def _areas(boxes: Boxes) -> np.ndarray:
    return np.prod(np.maximum(boxes.corners[:, 2:] - boxes.corners[:, :2], 0.0), axis=1)


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(x) in (int, float) and abs(x) <= _LARGEST_COORDINATE for x in value)
    )
