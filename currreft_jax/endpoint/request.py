"""Requests: what is asked, its key in the ledger, and the body that is sent."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from currreft_jax.config import ImageEncoding
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.endpoint.settings import EndpointSettings, host_of

Part = str | bytes | Path

_MEDIA_TYPES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}
_BYTES_PER_TOKEN = 3  # of text; English has 4 or more, so that budgets hold
_PIXELS_PER_TOKEN = 28 * 28  # of an image, in Qwen2.5-VL


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: system, user or assistant.
        parts: in their order; a string is text, bytes are the content of an image file, a path is an image file.
    """

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the server decodes; None leaves a value to the server, whose default may be the model's own.

    Attributes:
        max_tokens: token limit of a completion.
        temperature: 0 decodes greedily.
        top_p: share of the probability that is sampled from.
        n: completions of one call.
        seed: seed of the server's sampling.
    """

    max_tokens: int
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    n: int = 1
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the endpoint.

    Attributes:
        key: the caller's name of the request, which its reply or failure carries.
        messages: the conversation.
        decoding: how the server decodes.
        response_format: form of the answer, such as `schema_format`, sent as it is; None for free text.
        repetition: tells apart requests that are otherwise equal and are each to be asked.
    """

    key: str
    messages: tuple[Message, ...]
    decoding: Decoding
    response_format: Mapping[str, Any] | None = None
    repetition: int = 0


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as it is sent.

    Attributes:
        body: JSON in UTF-8.
        tokens: estimate of the most tokens that the call takes, of prompt and completions.
    """

    body: bytes
    tokens: int


def schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the response format of JSON that satisfies a JSON Schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def ledger_key(request: Request, settings: EndpointSettings) -> str:
    """Computes the request's key in the ledger: a SHA-256 of all that its answer depends on.

    That is the server's host and port, the model, texts, contents of the images and their encoding, decoding, response
    format, extra fields and the repetition; neither `request.key` nor the paths of images.

    Raises:
        ImageError: an image file cannot be read.
    """
    content = {
        "host": host_of(settings.url),
        "model": settings.model,
        "messages": [
            {"role": message.role, "parts": [_part_hash(part, settings.image_encoding) for part in message.parts]}
            for message in request.messages
        ],
        "decoding": asdict(request.decoding),
        "token_limit_field": settings.token_limit_field,
        "response_format": request.response_format,
        "extra_body": settings.extra_body,
        "repetition": request.repetition,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode_request(request: Request, settings: EndpointSettings) -> EncodedRequest:
    """Builds the body of `POST /chat/completions`.

    Raises:
        ImageError: an image cannot be read or sent in this encoding.
    """
    decoding = request.decoding
    body: dict[str, Any] = {"model": settings.model, "messages": []}
    tokens = decoding.n * decoding.max_tokens
    for message in request.messages:
        parts = []
        for part in message.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
                tokens += len(part.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1
            else:
                url, pixels = _data_url(part, settings.image_encoding)
                parts.append({"type": "image_url", "image_url": {"url": url}})
                tokens += pixels // _PIXELS_PER_TOKEN + 1
        only_text = len(parts) == 1 and isinstance(message.parts[0], str)
        body["messages"].append({"role": message.role, "content": message.parts[0] if only_text else parts})
    body[settings.token_limit_field] = decoding.max_tokens
    optional = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed}
    body |= {name: value for name, value in optional.items() if value is not None}
    if decoding.n > 1:
        body["n"] = decoding.n
    if request.response_format is not None:
        body["response_format"] = request.response_format
    return EncodedRequest(json.dumps(body | dict(settings.extra_body), default=dict).encode(), tokens)


def _part_hash(part: Part, encoding: ImageEncoding) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    return {"image": hashlib.sha256(_content(part)).hexdigest(), "encoding": encoding.value}


def _data_url(part: bytes | Path, encoding: ImageEncoding) -> tuple[str, int]:
    """Returns a data URL and the image's number of pixels."""
    content, name = _content(part), str(part) if isinstance(part, Path) else "image"
    image = open_image(content, name)
    if encoding is ImageEncoding.ORIGINAL:
        media_type = _media_type(content, name)
    else:
        buffer, media_type = io.BytesIO(), f"image/{encoding.value}"
        image.save(buffer, encoding.value)
        content = buffer.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}", image.width * image.height


def _media_type(content: bytes, name: str) -> str:
    for start, media_type in _MEDIA_TYPES.items():
        if content.startswith(start):
            return media_type
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise ImageError(f"{name}: servers take PNG, JPEG, GIF and WebP as they are; set image_encoding=png")


def _content(part: bytes | Path) -> bytes:
    if isinstance(part, bytes):
        return part
    try:
        return part.read_bytes()
    except OSError as error:
        raise ImageError(f"{part}: not a readable image ({error.strerror})") from error
