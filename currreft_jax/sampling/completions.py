"""Rollouts as text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from currreft_jax.data.processor import Processor
from currreft_jax.runtime.multihost import local_rows
from currreft_jax.sampling.continuous import SampledGroup
from currreft_jax.structs import Completion, Rollout


class Completions(NamedTuple):
    """This host's completions of a rollout.

    Attributes:
        texts: `[P][G]`.
        lengths: int32 `[P, G]`, tokens with the end token.
        finished: bool `[P, G]`, False where the token limit cut the completion off.
    """

    texts: list[list[Completion]]
    lengths: np.ndarray
    finished: np.ndarray


def decode_completions(processor: Processor, rollout: Rollout) -> Completions:
    """Fetches this host's rows of a rollout and decodes them."""
    tokens, lengths, finished = local_rows(rollout.tokens), local_rows(rollout.lengths), local_rows(rollout.finished)
    texts = [
        [
            Completion(processor.decode(group[g, : lengths[p, g]]), int(lengths[p, g]), bool(finished[p, g]))
            for g in range(len(group))
        ]
        for p, group in enumerate(tokens)
    ]
    return Completions(texts, lengths, finished)


def decode_group(processor: Processor, group: SampledGroup) -> list[Completion]:
    """Decodes the completions of one prompt of `sample_stream`, `[G]`."""
    pairs = zip(group.tokens, group.finished, strict=True)
    return [Completion(processor.decode(tokens), len(tokens), finished) for tokens, finished in pairs]
