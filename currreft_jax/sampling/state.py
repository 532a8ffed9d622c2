"""Settings and arrays of a running sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp

from currreft_jax.config import AttentionKernel, Sampling
from currreft_jax.models.cache import Cache
from currreft_jax.models.decoder import decoding_model
from currreft_jax.models.flash import say_einsum
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.runtime.sharding import data_shards
from currreft_jax.structs import Array, TokenSampling


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """Everything, besides shapes, that the sampler's programs are compiled for.

    Attributes:
        model: as it is trained.
        decoding: the model in the precision and on the mesh of decoding.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample from the k likeliest tokens; 0 for all.
        top_p: sample from the fewest likeliest tokens with this total probability; 1 for all.
        segment: tokens by which completions grow.
        cache_dtype: dtype of cached keys and values.
        stop_token_ids: each of them ends a completion.
        pad_token_id: fills completions after their end.
    """

    model: Model
    decoding: Model
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    segment: int
    cache_dtype: str
    stop_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def num_shards(self) -> int:
        """Data shards of the decoding mesh."""
        return data_shards(self.decoding.mesh)

    @property
    def num_segments(self) -> int:
        """Segments of the longest completion."""
        return -(-self.max_new_tokens // self.segment)


def sampler_spec(model: Model, settings: Sampling, stop_token_ids: tuple[int, ...]) -> SamplerSpec:
    """Makes the specification of a model's sampler."""
    decoding = decoding_model(model, settings.mesh, jnp.dtype(settings.precision.value))
    return SamplerSpec(
        model=_prefill_model(model, decoding),
        decoding=decoding,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        segment=min(settings.segment, settings.max_new_tokens),
        cache_dtype=settings.cache.value,
        stop_token_ids=stop_token_ids,
        pad_token_id=model.config.bos_token_id,
    )


@lru_cache(maxsize=16)
def _prefill_model(model: Model, decoding: Model) -> Model:
    """Returns the model that reads the prompts, by einsum where its program has two meshes.

    JAX lowers cuDNN's attention in programs of one mesh alone, and the caches are laid out on the decoding mesh.
    """
    if model.kernel is not AttentionKernel.CUDNN or model.mesh.shape == decoding.mesh.shape:
        return model
    reason = f"mesh {tuple(model.mesh.shape.values())} and decoding mesh {tuple(decoding.mesh.shape.values())}"
    say_einsum(model.kernel, "the prompts of the sampler", f"{reason} in one program")
    return replace(model, attention=AttentionKernel.EINSUM)


class PromptState(NamedTuple):
    """The R prompts that are still in the batch; constant while their completions grow.

    Attributes:
        caches: each layer's keys and values of the prompts.
        lengths: int32 `[R]`.
        next_position: int32 `[R]`.
        last_hidden: `[R, D]`, hidden state of the last token, which predicts the first token of the completions.
        keys: uint32 `[R, G, 2]`, random key data of each completion.
        rows: int32 `[R]`, each prompt's row in the full batch, counted within its data shard.
        sampling: how each prompt's tokens are sampled, `[R]` each; None where the specification says it.
    """

    caches: tuple[Cache, ...]
    lengths: Array
    next_position: Array
    last_hidden: Array
    keys: Array
    rows: Array
    sampling: TokenSampling | None = None


class DecodeState(NamedTuple):
    """Completions as they grow.

    Attributes:
        slot: int32 `[R]`, number of tokens sampled so far of each prompt's completions.
        place: int32, where the latest tokens will be cached; see `models.cache.ring_mask`.
        token: int32 `[R, G]`, the latest.
        done: bool `[R, G]`.
        caches: each layer's keys and values of the completions, without the latest token.
        tokens: int32 `[R, G, S]`, of this segment.
        logprobs: fp32 `[R, G, S]`, of this segment.
        entropies: fp32 `[R, G, S]`, of this segment.
    """

    slot: Array
    place: Array
    token: Array
    done: Array
    caches: tuple[Cache, ...]
    tokens: Array
    logprobs: Array
    entropies: Array

    @property
    def sampled(self) -> Segment:
        """The tokens of this segment."""
        return Segment(self.tokens, self.logprobs, self.entropies)


class Segment(NamedTuple):
    """Sampled tokens with their log-probs and entropies, `[R, G, S]` or `[P, G, S]` each."""

    tokens: Array
    logprobs: Array
    entropies: Array
