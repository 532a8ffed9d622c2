"""From a row to what the model reads and, in supervised training, learns to write."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from currreft_jax.data.packing import row_key
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import Template, answer, question
from currreft_jax.structs import Frame, Prompt, Row


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready for a batch.

    Attributes:
        row: where it comes from, with the frame that its boxes are measured in.
        prompt: what the model reads.
        tokens: int32 `[T]`, the gold completion; empty where none was asked for.
        mask: bool `[T]`, which of its tokens are learnt.
    """

    row: Row
    prompt: Prompt
    tokens: np.ndarray
    mask: np.ndarray

    @property
    def frame(self) -> Frame | None:
        """The resized frame in which the model saw the first image: rewards compare boxes in it."""
        return self.prompt.images[0].resized if self.prompt.images else None


def example(
    row: Row, processor: Processor, wording: Template, *, where: str, occurrence: int = 0, with_answer: bool = False
) -> Example:
    """Reads a row's images and renders its text.

    Images come first, so that the boxes in a text are written in the frame that the model will see.

    Args:
        row: of a file.
        processor: of the model.
        wording: of the prompt.
        where: file and line, for errors.
        occurrence: how many times the row was met before; with the row's id it seeds what is sampled.
        with_answer: whether the gold completion is wanted.

    Raises:
        ImageError: an image cannot be read or shown.
        PromptError: the conversation does not fit its images.
        RowError: the gold answer cannot be read.
    """
    pictures = [processor.process_image(image, where) for image in row.images]
    frames = [(picture.original, picture.resized) for picture in pictures]
    if frames and not row.frame:
        row = replace(row, frame=frames[0][0])
    messages = question(row, wording, frames)
    key = row_key(row.id, occurrence)
    prompt = processor.prompt(messages, pictures, name=where, key=key)
    if not with_answer:
        return Example(row, prompt, np.empty(0, np.int32), np.empty(0, bool))
    tokens, mask = processor.completion(messages, answer(row, frames), name=where)
    return Example(row, prompt, tokens, mask)
