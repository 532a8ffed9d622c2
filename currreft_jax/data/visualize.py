"""Drawing boxes on images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from currreft_jax.config import Kind
from currreft_jax.data.row_boxes import Box, FramePairs, gold_corners, option_letters, resize_boxes, text_corners
from currreft_jax.rewards import choice
from currreft_jax.structs import Row

Color = tuple[int, int, int]
Corners = tuple[int, int, int, int]

GREEN = (0, 200, 60)
ORANGE = (255, 140, 0)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MAX_CHARACTERS = 40


def draw_row(row: Row, image: Image.Image, frames: FramePairs) -> Image.Image:
    """Draws the boxes of a row on its first, resized image.

    Boxes of the texts are labelled with the letter of their option, or else numbered from 1. Gold boxes and boxes of
    correct options are green, the others orange.

    Raises:
        RowError: the gold answer is malformed.
    """
    correct = choice.gold_letters(row) if row.kind is Kind.CHOICE else frozenset[str]()
    for index, box in enumerate(resize_boxes(text_corners(row), row, frames)):
        letters = option_letters(row, index)
        color = GREEN if correct & set(letters) else ORANGE
        image = draw_boxes(image, [box], ["/".join(letters) or str(index + 1)], color)
    gold = resize_boxes(gold_corners(row), row, frames)
    return draw_boxes(image, gold, ["gold"] * len(gold), GREEN)


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] = (), color: Color = ORANGE
) -> Image.Image:
    """Draws boxes on an RGB copy of an image.

    Line width scales with the image. A black or white rim, whichever contrasts with the color, makes lines visible on
    any background. The outer edge of a line is the edge of its box.

    Args:
        image: image of any mode.
        boxes: (x1, y1, x2, y2) in pixels of the image, 0-based and half-open; may exceed the image.
        labels: one for each box, or none; untrusted text, shown as one short printable line.
        color: red, green, blue of lines and labels.

    Raises:
        ValueError: the number of labels differs from that of boxes, or a box has no area.
    """
    if labels and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes; give one for each box, or none")
    copy = image.convert("RGB")
    copy = copy.copy() if copy is image else copy
    canvas = ImageDraw.Draw(copy)
    line_width = max(2, round(max(image.size) / 300))
    rounded = [_round_box(box, copy.size) for box in boxes]
    for corners in rounded:
        _draw_outline(canvas, corners, line_width, color)
    font = ImageFont.load_default(size=max(10, 6 * line_width))
    for corners, label in zip(rounded, labels, strict=False):
        _draw_label(canvas, copy.size, corners, _shorten(label), font, color)
    return copy


def _round_box(box: Box, size: tuple[int, int]) -> Corners:
    """Rounds a box to at least one pixel, and clips it to within one image size around the image."""
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"box {tuple(box)} has no area; a box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2")
    x1, y1, x2, y2 = (round(max(-side, min(x, 2 * side))) for x, side in zip(box, size * 2, strict=True))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw_outline(canvas: ImageDraw.ImageDraw, corners: Corners, line_width: int, color: Color) -> None:
    x1, y1, x2, y2 = corners
    line_width = min(line_width, x2 - x1, y2 - y1)
    rim = max(1, line_width // 2)
    outer = (x1 - rim, y1 - rim, x2 - 1 + rim, y2 - 1 + rim)
    canvas.rectangle(outer, outline=_contrasting(color), width=line_width + 2 * rim)
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=line_width)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: Corners,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: Color,
) -> None:
    """Draws a label above the top left corner of a box, or inside the box if there is no room above it."""
    if not text:
        return
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    padding = 3
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x = max(0, min(corners[0], size[0] - width))
    above = corners[1] - height
    y = max(0, min(above if above >= 0 else corners[1], size[1] - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color, outline=_contrasting(color))
    canvas.text((x + padding - left, y + padding - top), text, font=font, fill=_contrasting(color))


def _shorten(label: str) -> str:
    """Reduces a text to one short printable line."""
    text = "".join(character if character.isprintable() else " " for character in label[: 4 * _MAX_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _contrasting(color: Color) -> Color:
    red, green, blue = color
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else _WHITE
