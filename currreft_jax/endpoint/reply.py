"""Replies and failures, read from a server's response."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class FailureReason(StrEnum):
    """Why a request has no answer; the values stand in ledgers."""

    REFUSED = "refused"  # by the model or its content filter
    EMPTY = "empty"  # an answer without text
    OVERFLOW = "overflow"  # prompt and token limit exceed the model's context
    REJECTED = "rejected"  # the server calls the request wrong
    IMAGE = "image"  # an image of the request cannot be read
    ACCESS = "access"  # the key, its rights or its account's quota
    MODEL = "model"  # the server has no such model
    URL = "url"  # the server has no such path
    CONNECTION = "connection"  # unreachable, reset or cut off
    TIMEOUT = "timeout"  # the call took longer than timeout_s
    RATE_LIMIT = "rate_limit"
    SERVER = "server"  # an error of the server
    MALFORMED = "malformed"  # a response that is no chat completion
    DEADLINE = "deadline"  # all calls of the request took longer than deadline_s
    BUDGET = "budget"  # max_calls or max_tokens is spent
    INTERRUPTED = "interrupted"  # the program stopped while the call was in flight


# The server's answer to the request itself: another call would have the same, and may have its price.
SETTLED = frozenset(
    {FailureReason.REFUSED, FailureReason.EMPTY, FailureReason.OVERFLOW, FailureReason.REJECTED},
)


# Where servers put the text between <think> and </think>: vLLM, SGLang and transformers have one of them.
_THOUGHTS = ("reasoning_content", "reasoning")


class Usage(NamedTuple):
    """Tokens of a call.

    Attributes:
        prompt_tokens: of the prompt, images included.
        completion_tokens: of all completions.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    Attributes:
        key: `Request.key`.
        texts: `Decoding.n` completions, at least one of them not empty.
        finish_reasons: of each completion, such as stop, or length if it was cut off; None if the server gives none.
        usage: tokens of the call; None if the server gives none.
        model: name of the model as the server gives it, with its fingerprint if there is one.
        from_ledger: whether an earlier call was answered so.
    """

    key: str
    texts: tuple[str, ...]
    finish_reasons: tuple[str | None, ...]
    usage: Usage | None
    model: str | None
    from_ledger: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        key: `Request.key`.
        reason: the kind of the failure.
        message: what happened, and the remedy.
        from_ledger: whether an earlier call failed so.
    """

    key: str
    reason: FailureReason
    message: str
    from_ledger: bool = False


class CallError(Exception):
    """One call failed.

    Attributes:
        reason: the kind of the failure.
        message: what happened, and the remedy.
        status: HTTP status; None without a response.
        retry_after_s: pause that the server asks for; None without one.
        tokens: tokens that the call took; None if only their estimate is known.
    """

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        status: int | None = None,
        retry_after_s: float | None = None,
        tokens: int | None = None,
    ):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.tokens = tokens


def parse_completion(body: Any, key: str, n: int, max_tokens: int) -> Reply:
    """Reads the JSON of a chat completion.

    Args:
        body: the response's JSON.
        key: `Request.key`.
        n: completions that were asked for.
        max_tokens: token limit of a completion, for messages.

    Raises:
        CallError: it is malformed, or its completions are refused or empty.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _malformed("has no list of choices")
    if len(choices) != n:
        remedy = "; the server may not know n: ask n times with different repetitions" if n > 1 else ""
        raise _malformed(f"has {len(choices)} choices, not {n}{remedy}")
    if all(isinstance(choice.get("index"), int) for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    messages = [choice.get("message") for choice in choices]
    reasons = tuple(choice.get("finish_reason") for choice in choices)
    if not all(isinstance(message, dict) for message in messages):
        raise _malformed("has a choice without a message")
    if not all(reason is None or isinstance(reason, str) for reason in reasons):
        raise _malformed("has a finish_reason that is no text")
    usage = _usage(body.get("usage"))
    texts = tuple(map(_message_text, messages))
    if not any(text.strip() for text in texts):
        raise _without_text(messages, reasons, max_tokens, usage)
    return Reply(key, texts, reasons, usage, _model(body))


def reply_event(reply: Reply) -> dict[str, Any]:
    """Returns the fields of a reply in a ledger."""
    fields = asdict(reply)
    del fields["key"], fields["from_ledger"]
    return fields | {"usage": reply.usage and reply.usage._asdict()}


def stored_reply(event: dict[str, Any], key: str) -> Reply:
    """Returns the reply of a ledger's event."""
    usage = event["usage"] and Usage(**event["usage"])
    return Reply(key, tuple(event["texts"]), tuple(event["finish_reasons"]), usage, event["model"], from_ledger=True)


def _malformed(problem: str) -> CallError:
    return CallError(FailureReason.MALFORMED, f"the response {problem}: is the URL an OpenAI-compatible server's?")


def _without_text(
    messages: list[dict[str, Any]], reasons: tuple[str | None, ...], max_tokens: int, usage: Usage | None
) -> CallError:
    """Returns the error of completions without text: a refusal if all are refused."""
    tokens = sum(usage) if usage else None
    refusals = [message.get("refusal") for message in messages]
    if all(refusal or reason == "content_filter" for refusal, reason in zip(refusals, reasons, strict=True)):
        words = f": {refusals[0]}" if isinstance(refusals[0], str) else " by its content filter"
        return CallError(FailureReason.REFUSED, f"the model refused{words}", 200, tokens=tokens)
    if "length" in reasons:
        problem = f"{max_tokens} tokens were spent before any text, perhaps on reasoning: raise max_tokens"
    else:
        problem = "the answer has no text"
    return CallError(FailureReason.EMPTY, problem, 200, tokens=tokens)


def _message_text(message: dict[str, Any]) -> str:
    """Returns a message's text, after the thought that some servers cut out of it."""
    text = _text(message.get("content"))
    thoughts = [message[field] for field in _THOUGHTS if isinstance(message.get(field), str) and message[field]]
    return f"<think>{thoughts[0]}</think>{text}" if thoughts and text else text


def _text(content: Any) -> str:
    """Returns the text of a message's content: a string, null, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise _malformed(f"has content of type {type(content).__name__}, not a text")
    return content


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is int and type(completion) is int and min(prompt, completion) >= 0:
        return Usage(prompt, completion)
    return None


def _model(body: dict[str, Any]) -> str | None:
    names = [name for name in (body.get("model"), body.get("system_fingerprint")) if isinstance(name, str) and name]
    return " ".join(names) or None
