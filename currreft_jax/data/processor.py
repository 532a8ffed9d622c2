"""Turns messages and images into a `Prompt`: chat template, tokens, M-RoPE positions, patches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Without this, transformers advises at import to install torch, which is not needed here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from currreft_jax.data.images import ImageError, extract_patches, image_size, open_image, without_patches
from currreft_jax.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from currreft_jax.models.folder import (
    copy_auxiliary_files,
    eos_token_ids,
    read_json,
    read_model_config,
    resolve,
    write_json,
)
from currreft_jax.structs import ImagePatches, Prompt, Turn

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Inserted into placeholders that occur in a user's text. The text is split here before it is tokenised, so that these
# placeholders are encoded as ordinary text.
_SEPARATOR = "\ufdd0"


class PromptError(ValueError):
    """Messages and images that do not form a prompt; the message names the prompt."""


class Processor:
    """A checkpoint's tokenizer, chat template and image settings.

    Attributes:
        config: configuration of the model.
        tokenizer: the Hugging Face tokenizer.
        min_pixels: smaller images are enlarged to this area.
        max_pixels: larger images are shrunk to this area.
        eos_token_ids: stop tokens.
        tokenizer_size: number of ids that the tokenizer knows.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        min_pixels: int,
        max_pixels: int,
    ):
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.template = template
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.eos_token_ids = eos_token_ids(folder)
        self.tokenizer_size = max(tokenizer.get_vocab().values()) + 1
        if not 0 < min_pixels <= max_pixels:
            raise ValueError(
                f"min_pixels = {min_pixels} and max_pixels = {max_pixels} leave no size for an image:"
                " choose 0 < min_pixels <= max_pixels"
            )
        placeholders = [tokenizer.convert_ids_to_tokens(token) for token in config.forbidden_tokens]
        self._placeholders = [placeholder for placeholder in placeholders if isinstance(placeholder, str)]

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[str | Path | bytes | Image.Image | ImagePatches] = (),
        *,
        name: str = "prompt",
        key: int = 0,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Renders and tokenises a conversation and computes its positions.

        Args:
            messages: `{"role", "content"}` each; content is a string or a list of `{"type": "text", "text"}` and
                `{"type": "image"}`. Placeholders in a user's text are encoded as text.
            images: one for each image item, in order; `ImagePatches` are used as they are.
            name: name of the prompt in error messages, such as file and line.
            key: seeds the prompt's completions.
            add_generation_prompt: whether to end with the opening of the assistant's turn.

        Raises:
            PromptError: the images do not match the messages, or an item is neither text nor image.
            ImageError: an image cannot be decoded or used.
        """
        num_items = sum(item["type"] == "image" for item in self._content_items(messages, name))
        if num_items != len(images):
            raise PromptError(
                f"{name}: the messages have {num_items} image items, but {len(images)} images came with them"
            )
        processed = tuple(
            image if isinstance(image, ImagePatches) else self.process_image(image, name) for image in images
        )
        unexpanded = self.encode(self._render(messages, add_generation_prompt))
        placeholders = np.flatnonzero(unexpanded == self.config.image_token_id)
        if len(placeholders) != len(processed):
            raise PromptError(
                f"{name}: the chat template of {self.folder} rendered {len(placeholders)} image placeholders for"
                f" {len(processed)} images"
            )
        repeats = np.ones(len(unexpanded), int)
        repeats[placeholders] = [num_image_tokens(image.grid, self.config) for image in processed]
        tokens = np.repeat(unexpanded, repeats)
        positions, next_position = rope_index(tokens, [image.grid for image in processed], self.config)
        return Prompt(tokens, positions, next_position, processed, name, key)

    def process_image(self, image: str | Path | bytes | Image.Image, name: str) -> ImagePatches:
        """Decodes and resizes an image and splits it into patches.

        Raises:
            ImageError: it cannot be decoded or used; the message begins with `name`.
        """
        try:
            return extract_patches(open_image(image), self.config.vision, self.min_pixels, self.max_pixels)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def measure_image(self, image: str | Path | bytes | Image.Image, name: str) -> ImagePatches:
        """Returns what `process_image` does, without patches, from the head of the file alone.

        Raises:
            ImageError: it is no image, or too thin; the message begins with `name`.
        """
        try:
            return without_patches(image_size(image), self.config.vision, self.min_pixels, self.max_pixels)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def completion(
        self, messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn], *, name: str = "prompt"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises the turns that follow a prompt, for supervised training.

        Args:
            messages: messages of the prompt.
            turns: turns after the prompt, without images; the first and the last are the assistant's. Consecutive turns
                may have the same role.
            name: name of the conversation in error messages.

        Returns:
            int32 `[T]`, tokens up to the end token of the last turn; bool `[T]`, true for the assistant's tokens.

        Raises:
            PromptError: the chat template does not append turns, or does not end them with the end token.
        """
        end_token = str(self.tokenizer.eos_token)
        pieces, conversation = [], list(messages)
        tokenised = self._render(conversation, True)
        for turn in turns:
            before = self._render(conversation, True)
            conversation.append({"role": turn.role, "content": turn.text})
            if turn.role != "assistant":
                continue
            after = self._render(conversation, False)
            answer, ended, _ = after[len(before) :].rpartition(end_token)
            if not (before.startswith(tokenised) and after.startswith(before) and ended):
                raise PromptError(
                    f"{name}: the chat template of {self.folder} does not end a turn with {end_token} and append the"
                    " next turn"
                )
            pieces += [(before[len(tokenised) :], False), (answer + ended, True)]
            tokenised = before + answer + ended
        tokens = [self.encode(text) for text, _ in pieces]
        mask = [np.full(len(piece), is_loss) for piece, (_, is_loss) in zip(tokens, pieces, strict=True)]
        return np.concatenate(tokens), np.concatenate(mask)

    def encode(self, text: str) -> np.ndarray:
        """Tokenises a text, int32 `[tokens]`; special tokens in it become their ids."""
        pieces = self.tokenizer(text.split(_SEPARATOR), add_special_tokens=False)["input_ids"]
        return np.concatenate([np.asarray(piece, np.int32) for piece in pieces])

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Decodes a completion, without special tokens."""
        return str(self.tokenizer.decode(list(map(int, tokens)), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Copies the checkpoint's files, and writes this processor's pixel bounds and chat template."""
        copy_auxiliary_files(self.folder, folder)
        (folder / PROCESSOR).unlink(missing_ok=True)  # it holds the checkpoint's pixel bounds and would be read first
        if not any((folder / name).exists() for name in TEMPLATES):
            (folder / TEMPLATES[0]).write_text(self.template, "utf-8")
        settings = read_preprocessor_config(self.folder, self.config)
        write_json(folder / PREPROCESSOR, {**settings, "min_pixels": self.min_pixels, "max_pixels": self.max_pixels})

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Renders the chat template, with placeholders in texts escaped."""
        conversation: list[Any] = [
            {**message, "role": self._escape(message["role"]), "content": self._escape(message["content"])}
            for message in messages
        ]
        return str(
            self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )

    def _content_items(self, messages: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
        """Checks the messages and returns the items of their content lists."""
        items = []
        for message in messages:
            content = message.get("content")
            if not isinstance(message.get("role"), str) or not isinstance(content, str | list):
                raise PromptError(f"{name}: a message is a role and a content, a string or a list, not {message!r}")
            items += content if isinstance(content, list) else []
        for item in items:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind not in ("text", "image") or (kind == "text" and not isinstance(item.get("text"), str)):
                raise PromptError(f"{name}: a content item is an image or a text with its string, not {item!r}")
        return items

    def _escape(self, content: str | Sequence[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
        """Breaks up placeholders in texts with `_SEPARATOR`."""
        if not isinstance(content, str):
            texts = [str(self._escape(item["text"])) if item["type"] == "text" else _SEPARATOR for item in content]
            if any(placeholder in "".join(texts) for placeholder in self._placeholders):  # split over several items
                texts = [_SEPARATOR + text for text in texts]
            return [
                {**item, "text": text} if item["type"] == "text" else item
                for item, text in zip(content, texts, strict=True)
            ]
        for placeholder in self._placeholders:
            content = content.replace(placeholder, placeholder[0] + _SEPARATOR + placeholder[1:])
        return content


def num_image_tokens(grid: tuple[int, int], config: ModelConfig) -> int:
    """Returns the number of placeholder tokens of an image."""
    return grid[0] * grid[1] // config.vision.patches_per_unit


def rope_index(tokens: np.ndarray, grids: Sequence[tuple[int, int]], config: ModelConfig) -> tuple[np.ndarray, int]:
    """Computes the (time, y, x) position of every token.

    A text token advances all three by one. The units of an image have the time of the next position, and count rows and
    columns from it; the text after the image continues after its longer side.

    Args:
        tokens: int `[L]`, with one placeholder for each merged unit.
        grids: number of patches along (y, x) of each image, in order.
        config: configuration of the model.

    Returns:
        int32 `[3, L]`, and the position of the next token.
    """
    merge = config.vision.spatial_merge_size
    positions = np.empty((3, len(tokens)), np.int32)
    is_image = tokens == config.image_token_id
    start = position = 0
    for grid in grids:
        height, width = grid[0] // merge, grid[1] // merge
        image = start + int(np.argmax(is_image[start:]))
        end = image + height * width
        text = image - start
        positions[:, start:image] = position + np.arange(text)
        position += text
        y, x = np.divmod(np.arange(height * width), width)
        positions[:, image:end] = position + np.stack([np.zeros_like(y), y, x])
        position += max(height, width)
        start = end
    positions[:, start:] = position + np.arange(len(tokens) - start)
    return positions, position + len(tokens) - start


def required_settings(config: ModelConfig) -> dict[str, Any]:
    """Returns the settings that the model was trained with; a `preprocessor_config.json` may not contradict them."""
    return {
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }


def read_preprocessor_config(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Reads a checkpoint's preprocessor settings; fills in the published ones and normalises the names of pixel bounds.

    Raises:
        ValueError: the settings are not those of a Qwen2.5-VL; the message names file and field.
    """
    path, processor_path = folder / PREPROCESSOR, folder / PROCESSOR
    stored = read_json(path) if path.exists() else {}
    # transformers 5 writes the settings here, and reads them from here first.
    if processor_path.exists() and (image_processor := read_json(processor_path).get("image_processor")):
        path, stored = processor_path, image_processor
    stored = {name: value for name, value in stored.items() if value is not None}
    for name, value in required_settings(config).items():
        if stored.get(name, value) != value:
            raise ValueError(f"{path}: {name} = {stored[name]}, but a Qwen2.5-VL is trained with {value}")
    size = stored.pop("size", None) or {}
    pixel_bounds = {
        "min_pixels": size.get("shortest_edge", size.get("min_pixels", MIN_PIXELS)),
        "max_pixels": size.get("longest_edge", size.get("max_pixels", MAX_PIXELS)),
    }
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    return {**names, **required_settings(config), **pixel_bounds, **stored}


def load(source: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor:
    """Loads the processor of a checkpoint.

    Args:
        source: a folder or a hub id.
        min_pixels: replaces the checkpoint's.
        max_pixels: replaces the checkpoint's.

    Raises:
        FileNotFoundError: no such checkpoint, or it has no tokenizer.
        ValueError: a file of the checkpoint is malformed; the message names it.
    """
    folder = resolve(source)
    config = read_model_config(folder)
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        raise FileNotFoundError(f"{folder} has no tokenizer.json: copy it from the model's original folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    stored = read_preprocessor_config(folder, config)
    return Processor(
        folder,
        config,
        tokenizer,
        _chat_template(folder, tokenizer),
        min_pixels or stored["min_pixels"],
        max_pixels or stored["max_pixels"],
    )


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    path = folder / "chat_template.json"
    return str(read_json(path)["chat_template"]) if path.exists() else CHAT_TEMPLATE
