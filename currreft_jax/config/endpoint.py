"""Settings of the calls to an OpenAI-compatible server."""

from dataclasses import dataclass
from enum import Enum


class ImageEncoding(Enum):
    """How images are sent.

    `PNG` sends the decoded RGB pixels without loss, as an in-process evaluation sees them; `JPEG` with Pillow's default
    quality, 75; `ORIGINAL` the file as it is.
    """

    PNG = "png"
    JPEG = "jpeg"
    ORIGINAL = "original"


@dataclass(slots=True)
class EndpointLimits:
    """How requests are sent, how often, and what they may cost.

    Attributes:
        key_variable: environment variable that holds the API key; no key is sent if it is unset or empty.
        image_encoding: how images are sent.
        token_limit_field: name of the token limit in the body; some servers take `max_completion_tokens` alone.
        attempts: calls at most for one request.
        timeout_s: seconds for one call.
        deadline_s: seconds for all calls of one request and the pauses between them.
        backoff_s: the n-th pause is drawn from 0 to backoff_s * 2^(n - 1) seconds.
        max_backoff_s: longest pause, also where the server asks for a longer one.
        concurrency: calls in flight at first, once the server has answered.
        max_concurrency: calls in flight at most.
        calls_per_minute: calls a minute at most; None for no limit, here and below.
        tokens_per_minute: tokens a minute at most, of prompts and completions.
        max_calls: calls in the whole ledger at most, earlier runs included.
        max_tokens: tokens in the whole ledger at most, of prompts and completions.
    """

    key_variable: str = "OPENAI_API_KEY"
    image_encoding: ImageEncoding = ImageEncoding.PNG
    token_limit_field: str = "max_tokens"
    attempts: int = 8
    timeout_s: float = 300.0
    deadline_s: float = 1800.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    concurrency: int = 20
    max_concurrency: int = 64
    calls_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_calls: int | None = None
    max_tokens: int | None = None
