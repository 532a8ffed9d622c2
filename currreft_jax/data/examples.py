"""Training examples: a row's prompt and, for supervised training, its target tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from currreft_jax.data.packing import row_key
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import Template, answer_turns, question_messages
from currreft_jax.structs import Frame, ImagePatches, Prompt, Row

ReadImage = Callable[[str | Image.Image, str], ImagePatches]  # (path or image, location for error messages) -> patches


@dataclass(frozen=True, slots=True)
class Example:
    """One row, tokenized.

    Attributes:
        row: the source, with the frame that its boxes are measured in.
        prompt: tokens and images of the question.
        completion_tokens: int32 `[T]`, the gold completion; empty unless requested.
        loss_mask: bool `[T]`, true for the tokens that are trained on.
    """

    row: Row
    prompt: Prompt
    completion_tokens: np.ndarray
    loss_mask: np.ndarray

    @property
    def frame(self) -> Frame | None:
        """The resized frame of the first image, in which rewards compare boxes."""
        return self.prompt.images[0].resized if self.prompt.images else None


def make_example(
    row: Row,
    processor: Processor,
    template: Template,
    *,
    location: str,
    occurrence: int = 0,
    with_answer: bool = False,
    images: Sequence[Image.Image] | None = None,
    read_image: ReadImage | None = None,
) -> Example:
    """Reads a row's images, then renders and tokenizes its text, with boxes in the resized frame.

    Args:
        row: to tokenize.
        processor: processor of the model.
        template: prompt template.
        location: file and line, for error messages.
        occurrence: how often the row was used before; seeds the sampling together with the row's id.
        with_answer: whether to tokenize the gold completion.
        images: shown instead of the row's own, in their number and of their sizes.
        read_image: reads an image; `processor.process_image` by default, and `processor.measure_image` for its size
            alone.

    Raises:
        ImageError: an image is unreadable or too thin.
        PromptError: the messages do not match the images.
        RowError: the gold answer is malformed.
    """
    sources = row.images if images is None else images
    read_image = read_image or processor.process_image
    patches = [read_image(source, location) for source in sources]
    frames = [(image.original, image.resized) for image in patches]
    if frames and not row.frame:
        row = replace(row, frame=frames[0][0])
    messages = question_messages(row, template, frames)
    prompt = processor.prompt(messages, patches, name=location, key=row_key(row.id, occurrence))
    if not with_answer:
        return Example(row, prompt, np.empty(0, np.int32), np.empty(0, bool))
    tokens, mask = processor.completion(messages, answer_turns(row, frames), name=location)
    return Example(row, prompt, tokens, mask)
