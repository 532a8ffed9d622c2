"""Boxes drawn on images, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

GREEN = (0, 200, 60)
ORANGE = (255, 140, 0)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MAX_CHARACTERS = 40


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] = (), color: Colour = ORANGE
) -> Image.Image:
    """An RGB copy of an image with boxes drawn on it.

    Lines grow with the image and have a rim of black or white, whichever stands off their colour more, so that they
    show on any background. A line's outer edge is the box's.

    Args:
        image: of any mode.
        boxes: (x1, y1, x2, y2) in pixels of the image, 0-based and half-open; they may leave it.
        labels: one for each box, or none; untrusted text, of which one short printable line is shown.
        color: red, green, blue of lines and labels.

    Raises:
        ValueError: there are labels, but not one for each box; or a box has no area.
    """
    if labels and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes; give one for each box, or none")
    copy = image.convert("RGB")
    copy = copy.copy() if copy is image else copy
    canvas = ImageDraw.Draw(copy)
    line = max(2, round(max(image.size) / 300))
    placed = [_pixels(box, copy.size) for box in boxes]
    for corners in placed:
        _outline(canvas, corners, line, color)
    font = ImageFont.load_default(size=max(10, 6 * line))
    for corners, label in zip(placed, labels, strict=False):
        _label(canvas, copy.size, corners, _shown(label), font, color)
    return copy


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of whole pixels, one at least, and no farther outside the image than can be seen."""
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"box {tuple(box)} has no area; a box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2")
    x1, y1, x2, y2 = (round(max(-side, min(x, 2 * side))) for x, side in zip(box, size * 2, strict=True))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _outline(canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], line: int, color: Colour) -> None:
    x1, y1, x2, y2 = corners
    line = min(line, x2 - x1, y2 - y1)
    rim = max(1, line // 2)
    outer = (x1 - rim, y1 - rim, x2 - 1 + rim, y2 - 1 + rim)
    canvas.rectangle(outer, outline=_contrast(color), width=line + 2 * rim)
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=line)


def _label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: tuple[int, int, int, int],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: Colour,
) -> None:
    """Writes above the box's corner, or within it where the image ends; always inside the image."""
    if not text:
        return
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    pad = 3
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(corners[0], size[0] - width))
    above = corners[1] - height
    y = max(0, min(above if above >= 0 else corners[1], size[1] - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color, outline=_contrast(color))
    canvas.text((x + pad - left, y + pad - top), text, font=font, fill=_contrast(color))


def _shown(label: str) -> str:
    """One short line of a text."""
    text = "".join(character if character.isprintable() else " " for character in label[: 4 * _MAX_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _contrast(color: Colour) -> Colour:
    red, green, blue = color
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else _WHITE
