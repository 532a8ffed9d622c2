"""Error responses of servers: their reasons and remedies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from currreft_jax.endpoint.pacing import retry_after_s
from currreft_jax.endpoint.reply import CallError, FailureReason

_SHOWN_CHARACTERS = 400

# How servers say it.
_OVERFLOW = re.compile(
    "|".join(
        (
            r"maximum context length",  # OpenAI, vLLM
            r"context_length_exceeded",
            r"exceed\w* .{0,40}context|context .{0,20}exceed",  # OpenAI, llama.cpp
            r"(longer|greater) than .{0,20}(context|maximum model) length",  # vLLM, SGLang, LM Studio
            r"max_(completion_)?tokens'? .{0,20}too large",  # OpenAI, vLLM
            r"tokens.{0,40} must be <=",  # Text Generation Inference
            r"prompt is too long|token count .{0,40}exceeds",  # gateways to other makers
        )
    ),
    re.IGNORECASE,
)
_REMEDIES = {
    FailureReason.OVERFLOW: "lower max_tokens or the size of the images, or serve the model with a longer context",
    FailureReason.ACCESS: "set the environment variable of the API key, or see to the account behind it",
    FailureReason.MODEL: "name a model that the server has; GET /models lists them",
    FailureReason.URL: "correct the endpoint's URL; it usually ends in /v1",
    FailureReason.RATE_LIMIT: "lower max_concurrency, or set calls_per_minute or tokens_per_minute",
    FailureReason.SERVER: "see the server's log",
}


class EndpointError(RuntimeError):
    """No request can be answered: the server, its URL, the model or the key is wrong; the message gives the remedy."""


class _ErrorFields(NamedTuple):
    """An error response.

    Attributes:
        message: what the server says, in one line.
        kind: its type, code and parameter.
    """

    message: str
    kind: str


def response_error(status: int, headers: Mapping[str, str], text: str, redact: Callable[[str], str]) -> CallError:
    """Returns the error of a response that is not a success.

    Args:
        status: HTTP status.
        headers: the response's headers; their names are not case-sensitive.
        text: the body: JSON in one of the forms that servers use, HTML or text.
        redact: takes the API key out of a text.
    """
    fields = _error_fields(text, redact)
    reason = _reason(status, fields)
    message = f"HTTP {status}: {fields.message.rstrip('.') or 'no message'}"
    if 300 <= status < 400:
        message += f" (redirected to {redact(headers.get('location', 'nowhere'))})"
    remedy = _remedy(reason, status, fields)
    pause = retry_after_s(headers)
    return CallError(reason, f"{message}: {remedy}" if remedy else message, status, pause, tokens=0)


def parse_body(status: int, headers: Mapping[str, str], text: str, redact: Callable[[str], str]) -> Any:
    """Returns the JSON of a successful response; the arguments are those of `response_error`.

    Raises:
        CallError: it is not JSON, or an error in spite of its status.
    """
    if not 200 <= status < 300:
        raise response_error(status, headers, text, redact)
    try:
        body = json.loads(text)
    except ValueError:
        shown = _one_line(redact(text)) or "nothing"
        hint = "; does the endpoint's URL end in /v1?" if "<html" in text[:1000].lower() else ""
        raise CallError(FailureReason.MALFORMED, f"the response is not JSON: {shown}{hint}", status) from None
    if isinstance(body, dict) and body.get("error") and "choices" not in body:
        code = body["error"].get("code") if isinstance(body["error"], dict) else None
        raise response_error(code if isinstance(code, int) and 400 <= code < 600 else 500, headers, text, redact)
    return body


def _error_fields(text: str, redact: Callable[[str], str]) -> _ErrorFields:
    """Reads `{"error": {...}}`, `{"error": "..."}`, `{"object": "error", ...}`, `{"detail": ...}`, or plain text."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(error, str):
        return _ErrorFields(_one_line(redact(error)), "")
    if not isinstance(error, dict):
        return _ErrorFields(_one_line(re.sub(r"<[^>]*>", " ", redact(text))), "")
    message = error.get("message", error.get("detail", ""))
    kind = " ".join(str(error.get(name) or "") for name in ("type", "code", "param"))
    message = message if isinstance(message, str) else json.dumps(message)
    return _ErrorFields(_one_line(redact(message)), kind.strip())


def _reason(status: int, fields: _ErrorFields) -> FailureReason:
    both = f"{fields.message} {fields.kind}"
    if status == 429:
        return FailureReason.ACCESS if "insufficient_quota" in fields.kind else FailureReason.RATE_LIMIT
    if _OVERFLOW.search(both):
        return FailureReason.OVERFLOW
    if status in (401, 402, 403):
        return FailureReason.ACCESS
    if "model_not_found" in fields.kind or (status == 404 and "model" in both.lower()):
        return FailureReason.MODEL
    if status in (404, 405) or 300 <= status < 400:
        return FailureReason.URL
    if status in (408, 409) or status >= 500:
        return FailureReason.SERVER
    return FailureReason.REJECTED if status >= 400 else FailureReason.MALFORMED


def _remedy(reason: FailureReason, status: int, fields: _ErrorFields) -> str:
    if reason is FailureReason.REJECTED and "max_completion_tokens" in fields.message:
        return "set token_limit_field=max_completion_tokens"
    if reason is FailureReason.REJECTED and re.search("response_format|json_schema", fields.message + fields.kind):
        return "the server does not take this response_format: ask without it"
    if status == 413:
        return "send fewer or smaller images"
    return _REMEDIES.get(reason, "")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
