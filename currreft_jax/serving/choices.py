"""A choice of a response: a completion as it grows, cut off at its token limit or at a stop string."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class TokenDecoder(Protocol):
    """Decodes tokens, as `Processor` does."""

    eos_token_ids: tuple[int, ...]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes a completion, without special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What has been added to a choice.

    Attributes:
        index: number of the choice in its response.
        text: text that follows.
        tokens: tokens that follow; those of `text`, or some more.
        logprobs: log-probs of the tokens.
        finish_reason: stop or length at the end; None before.
    """

    index: int
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str | None


class GrowingChoice:
    """Turns the tokens of a completion into deltas, which are the same however the tokens arrive, once joined.

    Attributes:
        finish_reason: stop or length at the end; None before.
    """

    def __init__(self, index: int, decoder: TokenDecoder, max_tokens: int, stops: tuple[str, ...]) -> None:
        self.finish_reason: str | None = None
        self._index, self._decoder, self._max_tokens, self._stops = index, decoder, max_tokens, stops
        self._tokens: list[int] = []
        self._num_sent = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens so far."""
        return len(self._tokens)

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float]) -> ChoiceDelta:
        """Appends tokens; after the end of the choice there may be none."""
        first = len(self._tokens)
        self._tokens = [*self._tokens, *map(int, tokens)][: self._max_tokens]
        text = self._cut_at_stop(first)
        if self.finish_reason is None and self._tokens and self._tokens[-1] in self._decoder.eos_token_ids:
            self.finish_reason = "stop"
        elif self.finish_reason is None and len(self._tokens) == self._max_tokens:
            self.finish_reason = "length"
        visible = text if self.finish_reason else text[: len(text) - self._held_back(text)]
        new, self._num_sent = visible[self._num_sent :], max(self._num_sent, len(visible))
        added = self._tokens[first:]
        return ChoiceDelta(self._index, new, added, [float(x) for x in logprobs[: len(added)]], self.finish_reason)

    def _cut_at_stop(self, first: int) -> str:
        """Returns the text, up to the first stop string; drops the tokens after it."""
        text = self._decoder.decode(self._tokens)
        if not self._has_stop(text):
            return text

        def has_stop(count: int) -> bool:
            return self._has_stop(self._decoder.decode(self._tokens[:count]))

        count = bisect.bisect_left(range(len(self._tokens) + 1), True, lo=first, key=has_stop)
        self._tokens, self.finish_reason = self._tokens[:count], "stop"
        text = self._decoder.decode(self._tokens)
        return text[: min(text.index(stop) for stop in self._stops if stop in text)]

    def _has_stop(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def _held_back(self, text: str) -> int:
        """Returns the number of last characters that may change: half a one, or the beginning of a stop string."""
        whole = text.rstrip("\ufffd")
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        beginnings = (n for n in range(min(longest, len(whole)), 0, -1) if self._begins_stop(whole[-n:]))
        return len(text) - len(whole) + next(beginnings, 0)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
