"""Messages and images in, one `Prompt` out: chat template, tokens, 3-D positions, patches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# transformers advises at import to install torch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from currreft_jax.data.images import ImageError, cut, open_image
from currreft_jax.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from currreft_jax.models.folder import copy_companions, eos_token_ids, read_config, read_json, resolve, write_json
from currreft_jax.structs import Picture, Prompt, Turn

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

# Put inside a placeholder that a user's text spells out; tokens are cut here, so that it stays ordinary text.
_CUT = "\ufdd0"


class PromptError(ValueError):
    """Messages and images that do not make a prompt."""


class Processor:
    """A checkpoint's tokenizer, template and pixel budget.

    Attributes:
        config: of the model.
        tokenizer: Hugging Face's.
        min_pixels: area that smaller images are enlarged to.
        max_pixels: area that larger images are shrunk to.
        eos_token_ids: each of them ends a completion.
        tokenizer_size: ids that the tokenizer knows.
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
            raise ValueError(f"min_pixels = {min_pixels} and max_pixels = {max_pixels} leave no size for an image")
        named = [tokenizer.convert_ids_to_tokens(token) for token in config.forbidden_tokens]
        self._placeholders = [token for token in named if isinstance(token, str)]

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[str | Path | bytes | Image.Image | Picture] = (),
        *,
        name: str = "prompt",
        key: int = 0,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Renders, tokenises and positions a conversation.

        Args:
            messages: `{"role", "content"}`, the content a string or a list of `{"type": "text", "text"}` and
                `{"type": "image"}`. Placeholders spelt out in a text stay text.
            images: as many as the messages have image items, in their order; pictures are taken as they are.
            name: what an error calls the prompt, such as file and line.
            key: of its randomness.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            PromptError: the images do not match the messages, or an item is neither text nor image.
            ImageError: an image cannot be read or shown.
        """
        slots = sum(item["type"] == "image" for item in self._items(messages, name))
        if slots != len(images):
            raise PromptError(f"{name}: the messages have {slots} image items, but {len(images)} images came with them")
        pictures = tuple(image if isinstance(image, Picture) else self.picture(image, name) for image in images)
        single = self.encode(self._render(messages, add_generation_prompt))
        counts = np.ones(len(single), int)
        placeholders = np.flatnonzero(single == self.config.image_token_id)
        if len(placeholders) != len(pictures):
            raise PromptError(
                f"{name}: the chat template of {self.folder} rendered {len(placeholders)} image placeholders for"
                f" {len(pictures)} images"
            )
        counts[placeholders] = [grid_units(picture.grid, self.config) for picture in pictures]
        tokens = np.repeat(single, counts)
        positions, next_position = rope_index(tokens, [picture.grid for picture in pictures], self.config)
        return Prompt(tokens, positions, next_position, pictures, name, key)

    def picture(self, image: str | Path | bytes | Image.Image, name: str) -> Picture:
        """Reads, resizes and cuts an image.

        Raises:
            ImageError: it cannot be read or shown; the message begins with the name.
        """
        try:
            return cut(open_image(image), self.config.vision, self.min_pixels, self.max_pixels)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def completion(
        self, messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn], *, name: str = "prompt"
    ) -> tuple[np.ndarray, np.ndarray]:
        """What follows a prompt in a conversation, as supervised training reads it.

        Args:
            messages: of the prompt.
            turns: behind it, the first and the last of them the assistant's; without images. Turns of one role may
                follow each other.
            name: what an error calls the conversation.

        Returns:
            int32 `[T]` tokens up to the last turn's end token, and bool `[T]`: whether the assistant wrote them.

        Raises:
            PromptError: the chat template does not write one turn behind the other, or has no end of a turn.
        """
        end = str(self.tokenizer.eos_token)
        pieces, said = [], list(messages)
        written = self._render(said, True)
        for turn in turns:
            opened = self._render(said, True)
            said.append({"role": turn.role, "content": turn.text})
            if turn.role != "assistant":
                continue
            whole = self._render(said, False)
            answer, ended, _ = whole[len(opened) :].rpartition(end)
            if not (opened.startswith(written) and whole.startswith(opened) and ended):
                raise PromptError(
                    f"{name}: the chat template of {self.folder} does not end a turn with {end} and go on behind it"
                )
            pieces += [(opened[len(written) :], False), (answer + ended, True)]
            written = opened + answer + ended
        tokens = [self.encode(text) for text, _ in pieces]
        mask = [np.full(len(piece), learnt) for piece, (_, learnt) in zip(tokens, pieces, strict=True)]
        return np.concatenate(tokens), np.concatenate(mask)

    def encode(self, text: str) -> np.ndarray:
        """int32 `[tokens]`, special tokens read as such."""
        pieces = self.tokenizer(text.split(_CUT), add_special_tokens=False)["input_ids"]
        return np.concatenate([np.asarray(piece, np.int32) for piece in pieces])

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of a completion, without special tokens."""
        return str(self.tokenizer.decode(list(map(int, tokens)), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Copies the checkpoint's own files, and writes this processor's pixel budget and template."""
        copy_companions(self.folder, folder)
        (folder / PROCESSOR).unlink(missing_ok=True)  # it would hold the checkpoint's budget, and be read first
        if not any((folder / name).exists() for name in TEMPLATES):
            (folder / TEMPLATES[0]).write_text(self.template, "utf-8")
        settings = read_preprocessor(self.folder, self.config)
        write_json(folder / PREPROCESSOR, {**settings, "min_pixels": self.min_pixels, "max_pixels": self.max_pixels})

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        conversation: list[Any] = [
            {**message, "role": self._neutral(message["role"]), "content": self._neutral(message["content"])}
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

    def _items(self, messages: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
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

    def _neutral(self, content: str | Sequence[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
        if not isinstance(content, str):
            texts = [str(self._neutral(item["text"])) if item["type"] == "text" else _CUT for item in content]
            if any(placeholder in "".join(texts) for placeholder in self._placeholders):  # put together out of several
                texts = [_CUT + text for text in texts]
            return [
                {**item, "text": text} if item["type"] == "text" else item
                for item, text in zip(content, texts, strict=True)
            ]
        for placeholder in self._placeholders:
            content = content.replace(placeholder, placeholder[0] + _CUT + placeholder[1:])
        return content


def grid_units(grid: tuple[int, int], config: ModelConfig) -> int:
    """Tokens that an image takes in the prompt."""
    return grid[0] * grid[1] // config.vision.unit


def rope_index(tokens: np.ndarray, grids: Sequence[tuple[int, int]], config: ModelConfig) -> tuple[np.ndarray, int]:
    """The (time, y, x) position of every token.

    Text advances all three by one. An image starts where the text before it ended; its units keep that time and count
    rows and columns from there; the text after it resumes behind the longer side.

    Args:
        tokens: int `[L]`, placeholders expanded.
        grids: patches along (y, x) of each image, in order.
        config: of the model.

    Returns:
        int32 `[3, L]` and the position of the next token.
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


def fixed_settings(config: ModelConfig) -> dict[str, Any]:
    """What a `preprocessor_config.json` must say, where it says it: the tower was trained on nothing else."""
    return {
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }


def read_preprocessor(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """A checkpoint's preprocessor settings with the pixel budget under one name; the published ones if it has none.

    Raises:
        ValueError: the settings are not those of a Qwen2.5-VL; the message names file and field.
    """
    path, whole = folder / PREPROCESSOR, folder / PROCESSOR
    stored = read_json(path) if path.exists() else {}
    if whole.exists() and (
        image := read_json(whole).get("image_processor")
    ):  # as transformers 5 writes, and reads first
        path, stored = whole, image
    stored = {name: value for name, value in stored.items() if value is not None}
    for name, value in fixed_settings(config).items():
        if stored.get(name, value) != value:
            raise ValueError(f"{path}: {name} = {stored[name]}, but a Qwen2.5-VL is trained with {value}")
    size = stored.pop("size", None) or {}
    budget = {
        "min_pixels": size.get("shortest_edge", size.get("min_pixels", MIN_PIXELS)),
        "max_pixels": size.get("longest_edge", size.get("max_pixels", MAX_PIXELS)),
    }
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    return {**names, **fixed_settings(config), **budget, **stored}


def load(source: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor:
    """Loads the processor of a checkpoint.

    Args:
        source: a folder or a hub id, as for the model.
        min_pixels: instead of the checkpoint's.
        max_pixels: instead of the checkpoint's; the paper trains with 401,408.

    Raises:
        FileNotFoundError: no such checkpoint, or one without a tokenizer.
        ValueError: a file of it is malformed; the message names it.
    """
    folder = resolve(source)
    config = read_config(folder)
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        raise FileNotFoundError(f"{folder} has no tokenizer.json: copy it from the model's original folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    stored = read_preprocessor(folder, config)
    return Processor(
        folder,
        config,
        tokenizer,
        _template(folder, tokenizer),
        min_pixels or stored["min_pixels"],
        max_pixels or stored["max_pixels"],
    )


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    path = folder / "chat_template.json"
    return str(read_json(path)["chat_template"]) if path.exists() else CHAT_TEMPLATE
