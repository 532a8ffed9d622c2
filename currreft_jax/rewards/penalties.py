"""Penalties on length and repetition, off by default."""

from currreft_jax.config import Length, Overlong, Repetition
from currreft_jax.structs import Completion, Reason, Verdict


def length_penalty(num_tokens: int, settings: Length) -> Verdict:
    """Computes −min(n / max_tokens, 1)."""
    return _penalty(min(num_tokens / settings.max_tokens, 1.0), Reason.TOO_LONG)


def overlong_penalty(num_tokens: int, settings: Overlong) -> Verdict:
    """Computes −(n − max_tokens + buffer_tokens) / buffer_tokens, clipped to [−1, 0] (DAPO, equation 13).

    Source: arXiv 2503.14476.
    """
    excess = num_tokens - (settings.max_tokens - settings.buffer_tokens)
    return _penalty(min(max(excess / settings.buffer_tokens, 0.0), 1.0), Reason.TOO_LONG)


def repetition_penalty(completion: Completion, settings: Repetition) -> Verdict:
    """Computes −(1 − distinct / all) over the n-grams of lower-case words."""
    words = completion.text.casefold().split()
    ngrams = [tuple(words[i : i + settings.ngram]) for i in range(len(words) - settings.ngram + 1)]
    return _penalty(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0, Reason.REPEATS)


def _penalty(cost: float, reason: Reason) -> Verdict:
    return Verdict(-cost, reason) if cost else Verdict(0.0)
