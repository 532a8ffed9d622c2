"""The boxes of an answer, drawn on the image that was asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.data.images import open_image
from currreft_jax.data.visualize import draw_boxes
from currreft_jax.rewards.answer import extract_answer
from currreft_jax.rewards.boxes import degenerate, named_corners, rescale
from currreft_jax.structs import Boxes, Completion, Frame, Reason


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


def draw_answer_boxes(image: str | Image.Image, text: str, resized: Frame, original: Frame, path: Path) -> str:
    """Draws the boxes of an answer and writes the image; returns what was written.

    Args:
        image: asked about.
        text: the answer.
        resized: the frame that the model saw.
        original: the image's own frame.
        path: path of the image to write.
    """
    corners = answer_boxes(text, resized, original)
    boxes = [] if isinstance(corners, Reason) else [(float(a), float(b), float(c), float(d)) for a, b, c, d in corners]
    draw_boxes(open_image(image), boxes).save(path)
    why = f" ({corners})" if isinstance(corners, Reason) else ""
    return f"wrote {path} with {len(boxes)} box{'' if len(boxes) == 1 else 'es'}{why}"
