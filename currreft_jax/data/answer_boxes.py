"""The boxes of an answer, drawn on the image that was asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.config.wording import plural
from currreft_jax.data.images import open_image
from currreft_jax.data.row_boxes import Box, gold_corners
from currreft_jax.data.visualize import GREEN, draw_boxes
from currreft_jax.rewards.answer import extract_answer
from currreft_jax.rewards.boxes import degenerate, named_corners, rescale
from currreft_jax.structs import Boxes, Completion, Frame, Reason, Row


def answer_boxes(text: str, resized: Frame, original: Frame) -> np.ndarray | Reason:
    """Reads the boxes of a text from its `<answer>`, or from the whole text without one.

    Args:
        text: with boxes in the frame that the model saw.
        resized: that frame.
        original: the image's own frame.

    Returns:
        float64 `[n, 4]` in the original frame, boxes without area left out; or the reason why there are none.
    """
    answer = extract_answer(Completion(text))
    if answer is Reason.NO_ANSWER_TAG:
        answer = text.strip()
    corners = answer if isinstance(answer, Reason) else named_corners(answer)
    if isinstance(corners, Reason):
        return corners
    return rescale(Boxes(corners[~degenerate(corners)], resized), original).corners


def draw_answer_boxes(
    image: str | Image.Image,
    text: str,
    resized: Frame,
    original: Frame,
    path: Path,
    *,
    row: Row | None = None,
    scale: int = 1,
) -> str:
    """Draws the boxes of an answer in orange and writes the image; returns what was written.

    Args:
        image: asked about.
        text: the answer.
        resized: the frame that the model saw.
        original: the image's own frame.
        path: path of the image to write.
        row: question whose right boxes are drawn in green, measured in the image's own frame.
        scale: width and height of a pixel of the image in the written one.
    """
    drawn = Frame(original.width * scale, original.height * scale)
    corners = answer_boxes(text, resized, drawn)
    boxes = [] if isinstance(corners, Reason) else _boxes(corners)
    picture = open_image(image)
    if scale > 1:
        picture = picture.resize((drawn.width, drawn.height), Image.Resampling.NEAREST)
    if row:
        picture = draw_boxes(picture, _boxes(rescale(Boxes(gold_corners(row), original), drawn).corners), color=GREEN)
    draw_boxes(picture, boxes).save(path)
    right = "; the right one is green" if row else ""
    if not boxes:
        why = f" ({corners})" if row and isinstance(corners, Reason) else ""
        return f"wrote {path}; the answer names no box{why}{right}"
    return f"wrote {path} with {plural(len(boxes), 'box', 'boxes')} of the answer in orange{right}"


def _boxes(corners: np.ndarray) -> list[Box]:
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in corners]
