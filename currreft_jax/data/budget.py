"""How much of a prompt's budget a row takes, told from the sizes of its images alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from currreft_jax.data.images import smart_resize
from currreft_jax.data.processor import MIN_PIXELS, Processor
from currreft_jax.data.prompts import Template, question
from currreft_jax.data.rows import IMAGE
from currreft_jax.models.config import VisionConfig
from currreft_jax.structs import Frame, ImagePatches, Prompt, Row

PAPER_PIXELS = 401_408
PAPER_PROMPT_TOKENS = 2048

Frames = Sequence[tuple[Frame, Frame]]  # of each image the original frame and the resized one


@dataclass(frozen=True, slots=True)
class Budget:
    """What a prompt may take.

    Attributes:
        max_prompt_tokens: of the text and its images together.
        min_pixels: area that smaller images are enlarged to.
        max_pixels: area that larger images are shrunk to.
        vision: of the model.
    """

    max_prompt_tokens: int = PAPER_PROMPT_TOKENS
    min_pixels: int = MIN_PIXELS
    max_pixels: int = PAPER_PIXELS
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels = {self.min_pixels} and max_pixels = {self.max_pixels} leave no size for an image"
            )

    def resized(self, original: Frame) -> Frame:
        """The frame in which the model sees an image.

        Raises:
            ImageError: one side is too many times the other.
        """
        side = self.vision.patch_size * self.vision.spatial_merge_size
        height, width = smart_resize(original.height, original.width, side, self.min_pixels, self.max_pixels)
        return Frame(width, height)

    def grid(self, resized: Frame) -> tuple[int, int]:
        """Patches along (y, x)."""
        return resized.height // self.vision.patch_size, resized.width // self.vision.patch_size

    def image_tokens(self, resized: Frame) -> int:
        """Tokens that an image takes in the prompt."""
        return int(np.prod(self.grid(resized))) // self.vision.patches_per_unit


def prompt_text(row: Row, wording: Template, frames: Frames) -> str:
    """What is asked, as one text with `<image>` where an image stands; without the chat template."""
    contents = [message["content"] for message in question(row, wording, frames)]
    items = [item for content in contents for item in ([content] if isinstance(content, str) else content)]
    return "".join(item if isinstance(item, str) else item.get("text", IMAGE) for item in items)


def prompt_of(row: Row, processor: Processor, wording: Template, frames: Frames, budget: Budget, name: str) -> Prompt:
    """The prompt of a row whose images need not be cut: its pictures have frames and grids, but no patches.

    Raises:
        PromptError: the conversation does not fit its images.
    """
    empty = np.empty((0, budget.vision.values_per_patch), np.uint8)
    pictures = [ImagePatches(empty, budget.grid(resized), original, resized) for original, resized in frames]
    return processor.prompt(question(row, wording, frames), pictures, name=name)
