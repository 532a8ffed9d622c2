"""Responses in the form of OpenAI's API, as vLLM gives them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from currreft_jax.data.processor import Processor
from currreft_jax.serving.choices import ChoiceDelta


@dataclass(frozen=True, slots=True)
class ResponseWriter:
    """Writes the responses to one request.

    Attributes:
        id: of the response.
        model: name of the model.
        fingerprint: hash of the weights.
        processor: names tokens.
        logprobs: whether the log-prob of each token is given.
        created: seconds since 1970.
    """

    id: str
    model: str
    fingerprint: str
    processor: Processor
    logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, deltas: Sequence[ChoiceDelta], num_choices: int, prompt_tokens: int) -> dict[str, Any]:
        """Returns a whole response."""
        choices = []
        for index in range(num_choices):
            own = [delta for delta in deltas if delta.index == index]
            message = {"role": "assistant", "content": "".join(delta.text for delta in own), "refusal": None}
            finish_reason = next(delta.finish_reason for delta in own if delta.finish_reason)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(own),
                    "finish_reason": finish_reason,
                }
            )
        usage = token_usage(prompt_tokens, sum(len(delta.tokens) for delta in deltas))
        return self._head("chat.completion") | {"choices": choices, "usage": usage}

    def first_chunk(self, index: int) -> str:
        """Returns the event that opens a choice of a stream."""
        return self._chunk([self._chunk_choice(index, {"role": "assistant", "content": ""}, None, None)])

    def delta_chunk(self, delta: ChoiceDelta) -> str:
        """Returns the event of a delta."""
        content = {"content": delta.text} if delta.text or not delta.finish_reason else {}
        return self._chunk([self._chunk_choice(delta.index, content, self._logprobs([delta]), delta.finish_reason)])

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> str:
        """Returns the event that tells the number of tokens."""
        return self._chunk([], usage=token_usage(prompt_tokens, completion_tokens))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event(self._head("chat.completion.chunk") | {"choices": choices} | more)

    def _chunk_choice(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _logprobs(self, deltas: Sequence[ChoiceDelta]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        pairs = [pair for delta in deltas for pair in zip(delta.tokens, delta.logprobs, strict=True)]
        return {"content": [self._token(token, logprob) for token, logprob in pairs], "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = str(self.processor.tokenizer.decode([token]))
        whole = "\ufffd" not in text  # a token may be a part of a character
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if whole else None,
            "top_logprobs": [],
        }


def token_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Returns the numbers of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(body: dict[str, Any]) -> str:
    """Returns a server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


END = "data: [DONE]\n\n"


def model_list(name: str, created: int, max_model_len: int) -> dict[str, Any]:
    """Returns the answer to `GET /v1/models`."""
    return {"object": "list", "data": [model_entry(name, created, max_model_len)]}


def model_entry(name: str, created: int, max_model_len: int) -> dict[str, Any]:
    """Returns the answer to `GET /v1/models/NAME`."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "currreft_jax",
        "root": name,
        "parent": None,
        "max_model_len": max_model_len,
    }
