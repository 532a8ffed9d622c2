"""Boxes: parsing, formatting, rescaling and intersection over union (IoU).

`corners` are float64 `[n, 4]`: (x1, y1, x2, y2) in pixels, 0-based and half-open.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import numpy as np

from currreft_jax.rewards.answer import DamagedAnswer, parse_json, strip_fence
from currreft_jax.structs import Boxes, Frame, Reason

_LARGEST_COORDINATE = 1e6

# Possessive quantifiers keep the time linear in the length of any text.
_NUMBER = r"(?<![\w.+\-])[-+]?(?:[0-9]{1,16}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?(?![\w.])"
_CUT_NUMBER = re.compile(r"[\]］{}][-+.]?[0-9]|[0-9]\.?[\[［{]")
_GAP = r"""[\s,，、;；"'`]"""
_GAPS = re.compile(rf"{_GAP}+")
_BRACKETED_NUMBERS = re.compile(rf"([\[［]{_GAP}*+)?({_NUMBER}(?:{_GAP}++{_NUMBER})*+)({_GAP}*+[\]］])?")
_NO_BOXES = re.compile(rf"{_GAP}*+\[\s*+\](?:{_GAP}|\])*+")


def parse_corners(answer: str) -> np.ndarray | Reason:
    """Parses the boxes of an answer in JSON.

    A box is `[x1, y1, x2, y2]` or `{"bbox_2d": [x1, y1, x2, y2], …}`; an answer is one box or a list of them. The empty
    list says that there is nothing to find.

    Returns:
        The distinct boxes, float64 `[n, 4]`, or the reason why they cannot be read.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    try:
        value = parse_json(answer)
    except ValueError:
        return Reason.BAD_JSON
    items = value if isinstance(value, list) and not _is_box(value) else [value]
    corners = [item.get("bbox_2d") if isinstance(item, dict) else item for item in items]
    boxes = [box for box in corners if _is_box(box)]
    return _distinct(boxes) if len(boxes) == len(corners) else Reason.BAD_JSON


def read_corners(answer: str) -> np.ndarray | DamagedAnswer[np.ndarray] | Reason:
    """Parses the boxes of an answer, also from damaged JSON or another layout if they are unambiguous.

    There, every bracket of four numbers is a box, wherever it is; quotes between the numbers, missing commas and one
    missing bracket do not matter. Numbers without a bracket are no box. A bracket that may have been a box makes the
    answer unreadable, so that damage hides no wrong box: one of three or five numbers, one of too large numbers,
    several numbers with a bracket on one side only, unless they are four, and a bracket or brace that cuts a number in
    two.

    Returns:
        The distinct boxes, float64 `[n, 4]`, or the reason why they cannot be read.
    """
    corners = parse_corners(answer)
    if corners is not Reason.BAD_JSON or _CUT_NUMBER.search(answer):
        return corners
    boxes = []
    for opening, run, closing in _BRACKETED_NUMBERS.findall(answer):
        numbers = _GAPS.split(run) if opening or closing else []
        if len(numbers) == 4:
            boxes.append([float(number) for number in numbers])
            if not _is_box(boxes[-1]):
                return Reason.BAD_JSON
        elif len(numbers) in (3, 5) or (len(numbers) > 1 and not (opening and closing)):
            return Reason.BAD_JSON
    if boxes or _NO_BOXES.fullmatch(strip_fence(answer)):
        return DamagedAnswer(_distinct(boxes), Reason.BAD_JSON)
    return Reason.BAD_JSON


def named_corners(answer: str) -> np.ndarray | Reason:
    """Returns the boxes of `read_corners`, whether or not the answer is damaged."""
    corners = read_corners(answer)
    return corners.value if isinstance(corners, DamagedAnswer) else corners


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


def _distinct(boxes: Iterable[Sequence[float]]) -> np.ndarray:
    return np.array(list(dict.fromkeys(map(tuple, boxes))), np.float64).reshape(-1, 4)


def _is_box(value: object) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(x) in (int, float) and abs(x) <= _LARGEST_COORDINATE for x in value)
    )
