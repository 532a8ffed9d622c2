"""Boxes of published data sets, converted to float (x1, y1, x2, y2) in pixels, 0-based and half-open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame

Box = tuple[float, float, float, float]

BOX_FORMATS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x, y, width, height: (x, y, x + width, y + height),
    "voc": lambda x1, y1, x2, y2: (x1 - 1, y1 - 1, x2, y2),  # 1-based, inclusive
}
BOX_SCALES: dict[str, float | None] = {"pixels": None, "unit": 1.0, "thousand": 1000.0}
# Keys of a box written as an object: one that holds its four numbers, or four whose names fit some of the formats.
_LIST_KEYS = ("bbox_2d", "bbox", "box")
NUMBER_KEYS: dict[tuple[str, str, str, str], tuple[str, ...]] = {
    ("x1", "y1", "x2", "y2"): ("xyxy", "voc"),
    ("xmin", "ymin", "xmax", "ymax"): ("xyxy", "voc"),
    ("left", "top", "right", "bottom"): ("xyxy", "voc"),
    ("left", "top", "width", "height"): ("xywh",),
    ("x", "y", "width", "height"): ("xywh",),
    ("x", "y", "w", "h"): ("xywh",),
}
_MAX_OVERSHOOT = 1.0  # pixels: annotators' boxes leave their image by fractions of one


class EmptyBoxError(LineError):
    """A box has no area: a side is zero or negative."""


def parse_box(value: Any, box_format: str, frame: Frame | None, record: Fields, scale: str = "pixels") -> Box:
    """Converts a box to pixels of the frame, rounded to hundredths.

    A box that leaves the frame by up to one pixel is clipped.

    Args:
        value: four numbers, or an object of them, such as `{"bbox_2d": [1, 2, 3, 4]}` or
            `{"x": 1, "y": 2, "width": 3, "height": 4}`.
        box_format: a key of `BOX_FORMATS`.
        frame: size of the image; None if unknown, which takes boxes in pixels and skips the bounds check.
        record: names file and line in errors.
        scale: a key of `BOX_SCALES`.

    Raises:
        LineError: the value is not four numbers, leaves the frame by more than one pixel, or is an object with keys of
            another format.
        EmptyBoxError: the box has no area.
    """
    if isinstance(value, dict):
        value = _numbers_of_object(value, box_format, record)
    numbers = [float(x) for x in value if type(x) in (int, float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or len(value) != 4:
        record.refuse(f"the box is {value!r}; it takes four numbers", cause="a box takes four numbers")
    box = BOX_FORMATS[box_format](*numbers)
    unit = BOX_SCALES[scale]
    if unit:
        if frame is None:
            record.refuse(f"a box of scale {scale} needs the size of its image")
        box = tuple(x / unit * side for x, side in zip(box, (frame.width, frame.height) * 2, strict=True))
    _check_area(box, value, box_format, record)
    if frame:
        limits = (frame.width, frame.height) * 2
        if not all(-_MAX_OVERSHOOT <= x <= limit + _MAX_OVERSHOOT for x, limit in zip(box, limits, strict=True)):
            record.refuse(
                f"the box {value} ({box_format}, {scale}) leaves its image of {frame.width} x {frame.height} pixels;"
                " correct the box or --frame, and of a table --box-form or --box-scale",
                cause="a box leaves its image",
            )
        box = tuple(min(max(x, 0.0), float(limit)) for x, limit in zip(box, limits, strict=True))
    x1, y1, x2, y2 = (round(x, 2) for x in box)
    _check_area((x1, y1, x2, y2), value, box_format, record)
    return (x1, y1, x2, y2)


def _numbers_of_object(value: Mapping[str, Any], box_format: str, record: Fields) -> Any:
    list_keys = [key for key in _LIST_KEYS if key in value]
    number_keys = [keys for keys in NUMBER_KEYS if value.keys() >= set(keys)]
    if len(list_keys) + len(number_keys) != 1:
        known = ", ".join((*_LIST_KEYS, *map(" ".join, NUMBER_KEYS)))
        record.refuse(f"the box is {value!r}; as an object it has one of these: {known}", cause="a box has other keys")
    if list_keys:
        return value[list_keys[0]]
    formats = NUMBER_KEYS[number_keys[0]]
    if box_format not in formats:
        remedy = f"give --box-form {' or '.join(formats)}"
        record.refuse(f"the box {value!r} is not {box_format}; {remedy}", cause=remedy)
    return [value[key] for key in number_keys[0]]


def format_boxes(boxes: Sequence[Box]) -> str:
    """Formats boxes as the gold answer of a detection row: one list, or a list of lists."""
    texts = [f"[{', '.join(str(int(x)) if x.is_integer() else repr(x) for x in box)}]" for box in boxes]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _check_area(box: Sequence[float], value: Any, box_format: str, record: Fields) -> None:
    if not (box[0] < box[2] and box[1] < box[3]):
        raise EmptyBoxError(
            record.location,
            f"the box {value} ({box_format}) has no area; correct it or remove the record, or of a table --box-form",
            cause="a box has no area",
        )
