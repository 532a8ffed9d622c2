"""Boxes: parsing, formatting, rescaling and intersection over union (IoU).

`corners` are float64 `[n, 4]`: (x1, y1, x2, y2) in pixels, 0-based and half-open.
"""

from collections.abc import Sequence

import numpy as np

from currreft_jax.rewards.answer import parse_json
from currreft_jax.structs import Boxes, Frame, Reason

_LARGEST_COORDINATE = 1e6


def parse_corners(answer: str) -> np.ndarray | Reason:
    """Parses the boxes of an answer.

    A box is `[x1, y1, x2, y2]` or `{"bbox_2d": [x1, y1, x2, y2], …}`; an answer is one box or a list of them, in JSON.

    Returns:
        float64 `[n, 4]` with n of at least 1, or the reason why there are none.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    try:
        value = parse_json(answer)
    except ValueError:
        return Reason.BAD_JSON
    items = value if isinstance(value, list) and not _is_box(value) else [value]
    corners = [item.get("bbox_2d") if isinstance(item, dict) else item for item in items]
    if not all(map(_is_box, corners)):
        return Reason.BAD_JSON
    return np.array(corners, np.float64) if corners else Reason.EMPTY_ANSWER


def format_box(box: Sequence[float] | np.ndarray) -> str:
    """Formats a box as prompts and answers show it: `[x1, y1, x2, y2]`, rounded to whole pixels."""
    return f"[{', '.join(str(round(float(coordinate))) for coordinate in box)}]"


def rescale(boxes: Boxes, frame: Frame) -> Boxes:
    """Moves boxes to another frame of the same image; x and y have factors of their own.

    Raises:
        ValueError: the boxes' own frame is unknown.
    """
    if boxes.frame is None:
        raise ValueError(f"boxes of an unknown frame cannot be moved to {frame}: give their row its frame")
    sx, sy = frame.width / boxes.frame.width, frame.height / boxes.frame.height
    return Boxes(boxes.corners * np.array([sx, sy, sx, sy]), frame)


def degenerate(corners: np.ndarray) -> np.ndarray:
    """Marks the boxes `[n, 4]` without an area, as bool `[n]`."""
    return (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])


def inside(corners: np.ndarray, frame: Frame) -> np.ndarray:
    """Marks the boxes `[n, 4]` that lie in their frame, as bool `[n]`.

    One pixel beyond the frame is allowed: annotated boxes overshoot by fractions of a pixel.
    """
    fits = (corners >= -1) & (corners <= np.array([frame.width, frame.height] * 2) + 1)
    return np.asarray(fits.all(axis=1))


def iou(first: Boxes, second: Boxes) -> np.ndarray:
    """Returns the IoU of every pair of boxes of one frame, float64 `[n, m]`.

    Raises:
        ValueError: the frames differ.
    """
    if first.frame != second.frame:
        raise ValueError(f"boxes of {first.frame} cannot be compared with boxes of {second.frame}: rescale one of them")
    return corners_iou(first.corners, second.corners)


def corners_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the IoU of every pair of boxes, float64 `[n, m]` of `[n, 4]` and `[m, 4]`; 0 for a degenerate box."""
    a, b = first[:, None], second[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = _areas(first)[:, None] + _areas(second)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)


def _areas(corners: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0.0), axis=1)


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(x) in (int, float) and abs(x) <= _LARGEST_COORDINATE for x in value)
    )
