"""Reads the body of `POST /v1/chat/completions`.

Fields that the server does not know are ignored, as OpenAI-compatible servers do. Fields that it knows but cannot
honour are refused unless their value changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from currreft_jax.serving.errors import ApiError
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.structs import TokenSampling

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_MESSAGES = 1024
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_GREEDY_BELOW = 1e-3  # temperatures below it decode greedily: logits divided by less lose their digits
# Fields that change the answer of other servers, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "modalities": (["text"],),
    "audio": (),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request to complete a conversation.

    Attributes:
        messages: as `Processor.prompt` takes them.
        images: contents of the image files, in their order.
        num_choices: completions, `n`.
        seed: None for a new one.
        sampling: how tokens are sampled.
        max_tokens: token limit of a completion.
        stops: strings that end a completion and are not part of it.
        logprobs: whether the answer has the log-prob of each token.
        stream: whether the answer comes as it grows.
        include_usage: whether a stream ends with the number of tokens.
    """

    messages: tuple[dict[str, Any], ...]
    images: tuple[bytes, ...]
    num_choices: int
    seed: int | None
    sampling: TokenSampling
    max_tokens: int
    stops: tuple[str, ...]
    logprobs: bool
    stream: bool
    include_usage: bool


def parse_chat_request(body: bytes, model: str, limits: ServerLimits) -> ChatRequest:
    """Reads a request.

    Args:
        body: JSON in UTF-8.
        model: name of the served model.
        limits: what the server takes.

    Raises:
        ApiError: it is malformed, of another model, or beyond a limit.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8 ({type(error).__name__})") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object")
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("model", model) != model:
        raise ApiError(404, f"there is no such model; this server has {model!r}", "model")
    for name, neutral in _NEUTRAL.items():
        if name in fields and fields[name] not in neutral:
            raise ApiError(400, f"this server does not support this value of {name}; leave it out", name)
    messages, images = _messages(fields.get("messages"), limits)
    num_tokens = fields.get("max_completion_tokens", fields.get("max_tokens", limits.max_tokens))
    temperature = _number(fields, "temperature", 1.0, 0, 100)
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        _refuse("stream_options", "an object")
    return ChatRequest(
        messages=messages,
        images=images,
        num_choices=_integer(fields, "n", 1, 1, limits.max_choices),
        seed=_integer(fields, "seed", 0, -(1 << 63), (1 << 64) - 1) if "seed" in fields else None,
        sampling=TokenSampling(
            temperature if temperature >= _GREEDY_BELOW else 0.0,
            max(0, _integer(fields, "top_k", 0, -1, 1 << 30)),
            _number(fields, "top_p", 1.0, 1e-9, 1),
        ),
        max_tokens=min(_integer({"max_tokens": num_tokens}, "max_tokens", 1, 1, 1 << 62), limits.max_tokens),
        stops=_stops(fields.get("stop", [])),
        logprobs=_boolean(fields, "logprobs"),
        stream=_boolean(fields, "stream"),
        include_usage=_boolean(options, "include_usage"),
    )


def _messages(value: Any, limits: ServerLimits) -> tuple[tuple[dict[str, Any], ...], tuple[bytes, ...]]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_MESSAGES:
        _refuse("messages", f"a list of 1 to {_MAX_MESSAGES} messages")
    messages, images = [], list[bytes]()
    for index, message in enumerate(value):
        location = f"messages[{index}]"
        if not isinstance(message, dict):
            _refuse(location, "an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in _ROLES:
            _refuse(f"{location}.role", f"one of {', '.join(_ROLES)}")
        if isinstance(content, str):
            content = _text(content, f"{location}.content")
        elif isinstance(content, list):
            content = [
                _part(part, f"{location}.content[{number}]", images, limits) for number, part in enumerate(content)
            ]
        else:
            _refuse(f"{location}.content", "a string or a list of parts")
        messages.append({"role": _ROLES[role], "content": content})
    return tuple(messages), tuple(images)


def _part(part: Any, location: str, images: list[bytes], limits: ServerLimits) -> dict[str, Any]:
    """Returns a content item; appends its image."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), f"{location}.text")}
    if kind != "image_url":
        _refuse(location, "a part of type text or image_url")
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, dict) else source
    if len(images) == limits.max_images:
        raise ApiError(400, f"more than {limits.max_images} images", location)
    images.append(_image(url, f"{location}.image_url"))
    return {"type": "image"}


def _image(url: Any, location: str) -> bytes:
    """Decodes a data URL; nothing is fetched."""
    if not isinstance(url, str) or not url.startswith("data:"):
        _refuse(location, "a data URL; this server fetches no images")
    header, comma, content = url.partition(",")
    if not comma or not header.endswith(";base64"):
        _refuse(location, "a data URL in base64")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{location}: its base64 is damaged", location) from None


def _text(value: Any, location: str) -> str:
    if not isinstance(value, str):
        _refuse(location, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{location}: half of a surrogate pair, which is no text", location) from None
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        _refuse("stop", f"a string, or up to {_MAX_STOPS} of them")
    for stop in stops:
        if not _text(stop, "stop") or len(stop) > _MAX_STOP_CHARACTERS:
            _refuse("stop", f"strings of 1 to {_MAX_STOP_CHARACTERS} characters")
    return tuple(stops)


def _integer(fields: dict[str, Any], name: str, default: int, least: int, largest: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= largest:
        _refuse(name, f"an integer from {least} to {largest}")
    return value


def _number(fields: dict[str, Any], name: str, default: float, least: float, largest: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or not least <= value <= largest:  # NaN is not between them
        _refuse(name, f"a number from {least} to {largest}")
    return float(value)


def _boolean(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        _refuse(name, "true or false")
    return value


def _refuse(location: str, expected: str) -> NoReturn:
    raise ApiError(400, f"{location} must be {expected}", location)
