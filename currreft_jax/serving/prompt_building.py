"""Makes the prompt of a request, within the server's limits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from jinja2 import TemplateError

from currreft_jax.data.images import ImageError, image_size
from currreft_jax.data.processor import Processor, PromptError
from currreft_jax.serving.chat_request import ChatRequest
from currreft_jax.serving.errors import ApiError
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.structs import Prompt


def build_prompt(request: ChatRequest, processor: Processor, limits: ServerLimits, seed: int, name: str) -> Prompt:
    """Renders the conversation by the checkpoint's chat template, and reads its images.

    Its content is a hash of tokens and pixels; its key, which seeds its completions, of the seed and the content.

    Args:
        request: the request.
        processor: processor of the model.
        limits: what the server takes; sizes are checked before pixels are decoded.
        seed: seed of the request.
        name: name of the prompt.

    Raises:
        ApiError: the template, an image or a limit refuses it.
    """
    _check_text_length(request, processor, limits)
    try:
        for number, image in enumerate(request.images, 1):
            frame = image_size(image)
            if frame.width * frame.height > limits.max_image_pixels:
                raise ApiError(
                    400,
                    f"image {number} has {frame.width} x {frame.height} pixels, but this server takes"
                    f" {limits.max_image_pixels:,}: shrink it first",
                    "messages",
                )
        measured = [processor.measure_image(image, f"image {n}") for n, image in enumerate(request.images, 1)]
        prompt = processor.prompt(request.messages, measured, name=name)
        _check_length(len(prompt.tokens), limits)
        images = tuple(processor.process_image(image, f"image {n}") for n, image in enumerate(request.images, 1))
    except (ImageError, PromptError) as error:
        raise ApiError(400, str(error), "messages") from None
    except TemplateError as error:
        raise ApiError(400, f"the model's chat template refuses the messages: {error}", "messages") from None
    digest = hashlib.blake2b(prompt.tokens.tobytes(), digest_size=32)
    for image in images:
        digest.update(repr(image.grid).encode())
        digest.update(image.patches.tobytes())
    key = hashlib.blake2b(digest.digest() + str(seed).encode(), digest_size=8)
    return replace(prompt, images=images, content=_number(digest), key=_number(key))


def _number(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big")


def _check_text_length(request: ChatRequest, processor: Processor, limits: ServerLimits) -> None:
    """Refuses texts that are too long whatever their tokens are, without tokenizing them."""
    contents = [message["content"] for message in request.messages]
    texts = [text for item in contents for text in ([item] if isinstance(item, str) else _part_texts(item))]
    fewest_tokens = sum(len(text.encode()) for text in texts) // _longest_token(processor)
    _check_length(fewest_tokens, limits)


def _part_texts(parts: list[dict[str, str]]) -> list[str]:
    return [part["text"] for part in parts if part["type"] == "text"]


def _check_length(num_tokens: int, limits: ServerLimits) -> None:
    if num_tokens > limits.max_prompt_tokens:
        raise ApiError(
            400,
            f"the prompt has {num_tokens} tokens or more, and this server's maximum context length is"
            f" {limits.max_prompt_tokens} for prompts: shorten it or shrink its images, or start the server with a"
            " larger --max-prompt-tokens",
            "messages",
        )


@lru_cache(maxsize=4)
def _longest_token(processor: Processor) -> int:
    """Returns the most bytes of a token, or more."""
    return max(len(token.encode()) for token in processor.tokenizer.get_vocab())
