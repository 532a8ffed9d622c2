"""The token budget of a prompt, computed from the sizes of its images without reading their pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from currreft_jax.config import Data, Pretrained
from currreft_jax.data.images import smart_resize
from currreft_jax.data.processor import MIN_PIXELS, Processor
from currreft_jax.data.prompts import Template, question_messages
from currreft_jax.data.row_boxes import FramePairs
from currreft_jax.data.rows import IMAGE
from currreft_jax.models.config import VisionConfig
from currreft_jax.structs import Frame, ImagePatches, Prompt, Row

DEFAULT_MAX_PIXELS = Pretrained().max_pixels
DEFAULT_MAX_PROMPT_TOKENS = max(Data().prompt_lengths)


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """Limits of a prompt.

    Attributes:
        max_prompt_tokens: token limit of the text and its images together.
        min_pixels: area that smaller images are enlarged to.
        max_pixels: area that larger images are shrunk to.
        vision: config of the model's vision tower.
    """

    max_prompt_tokens: int = DEFAULT_MAX_PROMPT_TOKENS
    min_pixels: int = MIN_PIXELS
    max_pixels: int = DEFAULT_MAX_PIXELS
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels = {self.min_pixels} and max_pixels = {self.max_pixels} leave no size for an image"
            )

    def resized_frame(self, original: Frame) -> Frame:
        """Returns the frame in which the model sees an image.

        Raises:
            ImageError: the aspect ratio is too large.
        """
        factor = self.vision.patch_size * self.vision.spatial_merge_size
        height, width = smart_resize(original.height, original.width, factor, self.min_pixels, self.max_pixels)
        return Frame(width, height)

    def patch_grid(self, resized: Frame) -> tuple[int, int]:
        """Returns the number of patches along (y, x)."""
        return resized.height // self.vision.patch_size, resized.width // self.vision.patch_size

    def image_tokens(self, resized: Frame) -> int:
        """Returns the number of prompt tokens of an image."""
        return int(np.prod(self.patch_grid(resized))) // self.vision.patches_per_unit


def prompt_text(row: Row, template: Template, frames: FramePairs) -> str:
    """Returns the text of a prompt with `<image>` for each image, without the chat template."""
    contents = [message["content"] for message in question_messages(row, template, frames)]
    items = [item for content in contents for item in ([content] if isinstance(content, str) else content)]
    return "".join(item if isinstance(item, str) else item.get("text", IMAGE) for item in items)


def prompt_without_patches(
    row: Row, processor: Processor, template: Template, frames: FramePairs, budget: PromptBudget, name: str
) -> Prompt:
    """Builds the prompt of a row whose images have frames and grids but no patches.

    Raises:
        PromptError: the messages do not match the images.
    """
    empty = np.empty((0, budget.vision.values_per_patch), np.uint8)
    images = [ImagePatches(empty, budget.patch_grid(resized), original, resized) for original, resized in frames]
    return processor.prompt(question_messages(row, template, frames), images, name=name)
