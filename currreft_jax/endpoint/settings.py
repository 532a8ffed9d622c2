"""Settings of an endpoint, and its API key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from currreft_jax.config import EndpointLimits
from currreft_jax.config.checks import refuse
from currreft_jax.endpoint.budget import JobBudget
from currreft_jax.endpoint.reply import SETTLED, FailureReason

# Shorter keys are words such as EMPTY, which answers may contain.
_SHORTEST_SECRET = 8
_URL = re.compile(r"https?://(?P<host>(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(:\d{1,5})?)(/[^\s?#@]*)?")
# Fields of the body that requests set, or that change the form of responses.
_OWN_FIELDS = {
    *("model", "messages", "n", "temperature", "top_p", "seed", "response_format", "stream"),
    *("max_tokens", "max_completion_tokens"),
}


@dataclass(kw_only=True)
class EndpointSettings(EndpointLimits):
    """A model at a server, the ledger of its calls, and their limits.

    Attributes:
        url: base URL, such as `http://localhost:8000/v1`; `/chat/completions` is appended.
        model: name of the model at the server.
        ledger: file of the ledger, which is appended to; one process at a time.
        extra_body: further fields of every request body, such as `{"repetition_penalty": 1.0}`.
        ask_again: failures of earlier runs that are asked again.
        job_budget: calls of all endpoints of a job; None for no limit but the endpoint's own.
    """

    url: str
    model: str
    ledger: Path
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    ask_again: frozenset[FailureReason] = frozenset(FailureReason) - SETTLED
    job_budget: JobBudget | None = None


def validate_endpoint(settings: EndpointSettings) -> None:
    """Refuses impossible settings.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    demands = [
        (bool(settings.model), "model", repr(settings.model), "the name of a model at the server"),
        (
            not settings.extra_body.keys() & _OWN_FIELDS,
            "extra_body",
            f"{dict(settings.extra_body)}",
            f"other fields than {', '.join(sorted(_OWN_FIELDS))}",
        ),
    ]
    refuse("endpoint", demands)
    validate_server(settings.url, settings)


def validate_server(
    url: str, limits: EndpointLimits, *, url_name: str = "endpoint.url", name: str = "endpoint"
) -> None:
    """Refuses what is no URL of a server, and impossible limits of the calls to it.

    Args:
        url: base URL.
        limits: limits of the calls.
        url_name: name of the URL's setting in the message.
        name: name of the limits' settings.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    demands = [
        (bool(limits.key_variable), "key_variable", "empty", "the name of an environment variable"),
        (limits.attempts >= 1, "attempts", limits.attempts, "1 or more"),
        (limits.concurrency >= 1, "concurrency", limits.concurrency, "1 or more"),
        (
            limits.max_concurrency >= limits.concurrency,
            "max_concurrency",
            limits.max_concurrency,
            f"{limits.concurrency}, which is concurrency, or more",
        ),
    ]
    positive = {
        "timeout_s": limits.timeout_s,
        "deadline_s": limits.deadline_s,
        "calls_per_minute": limits.calls_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
    }
    not_negative = {
        "backoff_s": limits.backoff_s,
        "max_backoff_s": limits.max_backoff_s,
        "max_calls": limits.max_calls,
        "max_tokens": limits.max_tokens,
    }
    demands += [(value is None or value > 0, name, value, "more than 0") for name, value in positive.items()]
    demands += [(value is None or value >= 0, name, value, "0 or more") for name, value in not_negative.items()]
    refuse(name, demands)
    host_of(url, url_name)


def host_of(url: str, name: str = "endpoint.url") -> str:
    """Returns host and port of a base URL.

    Args:
        url: base URL.
        name: name of its setting in the message.

    Raises:
        ValueError: it is not the URL of a server, or it has a password or a query, which would be written to files; the
            message does not repeat these.
    """
    match = _URL.fullmatch(url)
    if match:
        return match["host"]
    if "@" in url or "?" in url:
        raise ValueError(
            f"{name} has a user, a password or a query; it takes a plain base URL, and the key comes from the"
            " environment variable that key_variable names"
        )
    raise ValueError(f"{name} is {url!r}; it takes a base URL, such as http://localhost:8000/v1")


class ApiKey:
    """An API key that is neither shown nor written."""

    def __init__(self, variable: str):
        """Reads the key.

        Args:
            variable: the environment variable; unset or empty for no key.

        Raises:
            ValueError: the key cannot be sent in an HTTP header; the message does not repeat it.
        """
        self._key = os.environ.get(variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            raise ValueError(
                f"${variable} is no API key: it has spaces, line breaks or letters beyond ASCII; set it again"
            )

    def headers(self) -> dict[str, str]:
        """Returns the header that authorizes a call; none without a key."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def redact(self, text: str) -> str:
        """Returns a message without the key, which some servers repeat."""
        return text.replace(self._key, "[key]") if self._key else text

    def redact_json(self, value: Any) -> Any:
        """Returns a JSON value whose texts are without the key, unless the key is too short to be a secret."""
        if len(self._key) < _SHORTEST_SECRET:
            return value
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.redact_json(item) for item in value]
        if isinstance(value, dict):
            return {self.redact(key): self.redact_json(item) for key, item in value.items()}
        return value
