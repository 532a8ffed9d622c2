"""Completions printed while they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from currreft_jax.structs import Rollout


def print_completions(rollouts: Iterable[Rollout], decode: Callable[[np.ndarray], str], token_limit: int) -> list[str]:
    """Prints the completions of one prompt as they grow, one after another: each waits for those before it.

    Args:
        rollouts: rollouts of one prompt, each longer than the one before, from `stream`.
        decode: tokens to text.
        token_limit: token limit of a completion.

    Returns:
        The texts.
    """
    current = printed = 0  # the completion that is printed, and its characters so far
    texts: list[str] = []
    for rollout in rollouts:
        tokens, mask, lengths, finished = (
            np.asarray(x)[0] for x in (rollout.tokens, rollout.mask, rollout.lengths, rollout.finished)
        )
        texts = [decode(row[real]) for row, real in zip(tokens, mask, strict=True)]
        while current < len(texts):
            complete = finished[current] or lengths[current] == token_limit
            # The last bytes of a character may not have been sampled yet.
            text = texts[current] if complete else texts[current].rstrip("\ufffd")
            heading = f"--- {current + 1} of {len(texts)}\n" if len(texts) > 1 and not printed and text else ""
            print(heading + text[printed:], end="", flush=True)
            printed = max(printed, len(text))
            if not complete:
                break
            print("" if finished[current] else " [cut off: raise --max-new-tokens]", flush=True)
            current, printed = current + 1, 0
    return texts
