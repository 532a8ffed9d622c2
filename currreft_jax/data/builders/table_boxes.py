"""Boxes of a custom table: the format that fits all of them, and one row for all boxes that a question asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.config.wording import plural
from currreft_jax.data.builders.box_formats import BOX_FORMATS, Box, format_boxes, parse_box
from currreft_jax.data.builders.converter import BuildError, ConvertedItem, DroppedRecord, Remark
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.rewards.boxes import parse_corners
from currreft_jax.structs import Frame, Reason, Row

AskedOfImage = tuple[tuple[str, ...], str]  # images and question
# What the numbers of each format are, for those who have to choose.
_MEANINGS = {
    "xyxy": "corners counted from 0, the second one outside the box",
    "xywh": "the upper left corner, width and height",
    "voc": "corners counted from 1, the second one inside the box (Pascal VOC)",
}


@dataclass(frozen=True, slots=True)
class RawBox:
    """A box as a table has it.

    Attributes:
        value: four numbers, or an object of them.
        frame: size of its image.
        record: names file and line.
    """

    value: Any
    frame: Frame
    record: Fields


def choose_box_format(boxes: Sequence[RawBox], scale: str) -> tuple[str, str]:
    """Returns the only box format that fits all boxes, and a line that says so; any format if there are no boxes.

    A box fits if it has an area and lies in its image; one of format `voc` also counts from 1, and `bbox_2d`, Qwen's
    key, is xyxy.

    Raises:
        BuildError: several formats fit, or none; the message asks for `--box-form` and gives counts.
    """
    if not boxes:
        return next(iter(BOX_FORMATS)), ""
    if scale == "pixels" and all(max(_numbers(box), default=0) <= 1 for box in boxes):
        raise BuildError("no number of a box is above 1: give --box-scale unit, for fractions of the image")
    problems = {name: [p for box in boxes if (p := _misfit(box, name, scale))] for name in BOX_FORMATS}
    fitting = [name for name, misfits in problems.items() if not misfits]
    counted = plural(len(boxes), "box", "boxes")
    if len(fitting) == 1:
        others = ", ".join(f"{name} {len(boxes) - len(p)}" for name, p in problems.items() if p)
        return fitting[0], f"boxes are {fitting[0]}, {_MEANINGS[fitting[0]]}: that alone fits all {counted} ({others})"
    if fitting:
        listed = "; ".join(f"{name}: {_MEANINGS[name]}" for name in fitting)
        raise BuildError(f"--box-form is missing: {' and '.join(fitting)} fit all {counted}. {listed}")
    best = min(problems, key=lambda name: len(problems[name]))
    counts = ", ".join(f"{name} fits {len(boxes) - len(p)}" for name, p in problems.items())
    raise BuildError(
        f"--box-form is missing, and no format fits all {counted}: {counts}. The first that {best} does not fit:"
        f" {problems[best][0]}"
    )


def merge_rows(items: Iterable[ConvertedItem], broken: Set[AskedOfImage]) -> Iterator[ConvertedItem]:
    """Merges open detection rows that ask the same of one image: their right answer is all of their boxes.

    Args:
        items: what the records became.
        broken: questions of which a record was refused; read when all items are. Without its box the others would be a
            wrong answer, so these are dropped.

    Yields:
        The other items as they come, then the rows, and a remark where rows were merged.
    """
    groups: dict[Row, list[Row]] = {}
    for item in items:
        if isinstance(item, Row) and (item.kind, item.task) == (Kind.OPEN, Task.DETECTION):
            groups.setdefault(replace(item, id="", solution="", extra={}), []).append(item)
        else:
            yield item
    differing: set[str] = set()
    for row in [row for row in groups if (row.images, row.problem) in broken]:
        yield from (DroppedRecord(dropped.id, "a record of the same question is broken") for dropped in groups.pop(row))
    for rows in groups.values():
        yield _merge(rows, differing)
    count = sum(map(len, groups.values()))
    if count > len(groups):
        left_out = f"; left out of them, as they differ: {', '.join(sorted(differing))}" if differing else ""
        became = f"{plural(count, 'record')} became {plural(len(groups), 'row')}"
        yield Remark(f"{became}: all boxes of one question about one image are one answer{left_out}")


def _merge(rows: Sequence[Row], differing: set[str]) -> Row | LineError:
    boxes: dict[Box, None] = {}
    for row in rows:
        corners = parse_corners(row.solution)
        assert not isinstance(corners, Reason)  # written by `format_boxes`
        boxes |= dict.fromkeys((x1, y1, x2, y2) for x1, y1, x2, y2 in corners.tolist())
    if boxes and any(row.solution == "[]" for row in rows):
        problem = f"{rows[0].problem!r}: one record has a box, and another says that there is none; correct one of them"
        return LineError(rows[0].id, problem)
    first = rows[0]
    extra = {key: value for key, value in first.extra.items() if all(row.extra.get(key) == value for row in rows)}
    differing |= {key for row in rows for key in row.extra} - extra.keys()
    return replace(first, solution=format_boxes(list(boxes)), extra=extra)


def _misfit(box: RawBox, box_format: str, scale: str) -> str:
    """Returns why a box cannot be of a format; empty if it can."""
    if isinstance(box.value, dict) and "bbox_2d" in box.value and box_format != "xyxy":
        return f"{box.record.location}: bbox_2d is xyxy"
    try:
        parse_box(box.value, box_format, box.frame, box.record, scale)
    except LineError as error:
        return str(error)
    if box_format == "voc" and scale == "pixels" and min(_numbers(box)) < 1:
        return f"{box.record.location}: the box {box.value} counts from 0"
    return ""


def _numbers(box: RawBox) -> list[float]:
    values = box.value.values() if isinstance(box.value, dict) else box.value
    flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
    return [x for x in flat if type(x) in (int, float)]
