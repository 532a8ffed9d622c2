"""The seven jitted programs of the sampler.

`prefill` reads the prompts and samples the first token. `decode` samples tokens up to a slot, or until all completions
end. Between two segments `count_active`, `compact` and `grow` shrink the batch and lengthen the caches; `scatter` and
`join` put a segment's tokens back into the order of the prompts and all segments into one rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.models.cache import grow_cache
from currreft_jax.models.decoder import Decoder, bind_decoder, prompt_caches
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.models.sampling import sample_token, sample_token_by_prompt
from currreft_jax.models.text import splits_heads
from currreft_jax.runtime.sharding import BATCH, constrain
from currreft_jax.sampling.state import DecodeState, PromptState, SamplerSpec, Segment
from currreft_jax.structs import Array, Prefix, PromptBatch, Rollout, TokenSampling


class SamplerPrograms(NamedTuple):
    """The programs, jitted for one specification."""

    prefill: Any
    decode: Any
    count_active: Any
    compact: Any
    grow: Any
    scatter: Any
    join: Any


@lru_cache(maxsize=32)
def sampler_programs(spec: SamplerSpec) -> SamplerPrograms:
    """Makes the programs of a specification once."""
    mesh = spec.decoding.mesh
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))
    prompts, state = state_shardings(spec)
    return SamplerPrograms(
        prefill=jax.jit(partial(prefill, spec), out_shardings=(prompts, state)),
        decode=jax.jit(
            partial(decode, spec), out_shardings=state, donate_argnums=2, compiler_options=decode_options(mesh)
        ),
        count_active=jax.jit(partial(count_active, spec), out_shardings=replicated),
        compact=jax.jit(partial(compact, spec), out_shardings=(prompts, state), static_argnames="rows"),
        grow=jax.jit(partial(grow, spec), out_shardings=state),
        scatter=jax.jit(partial(scatter, spec), out_shardings=rows, static_argnames="rows_per_shard"),
        join=jax.jit(
            partial(join, spec),
            out_shardings=NamedSharding(spec.model.mesh, P(BATCH)),
            static_argnames=("num_prompts", "length"),
        ),
    )


def state_shardings(spec: SamplerSpec) -> tuple[Any, Any]:
    """Returns the shardings of `PromptState` and `DecodeState` on the decoding mesh, as prefixes of their trees."""
    mesh = spec.decoding.mesh
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))
    caches = NamedSharding(mesh, P(BATCH, "tensor" if splits_heads(spec.model.config, mesh) else None))
    prompts: Any = PromptState(caches, rows, rows, rows, rows, rows, rows)  # pyright: ignore[reportArgumentType]
    state: Any = DecodeState(rows, replicated, rows, rows, caches, rows, rows, rows)  # pyright: ignore[reportArgumentType]
    return prompts, state


def decode_options(mesh: Mesh) -> dict[str, int]:
    """Keeps XLA on GPUs from merging the products of a layer: merging copies the layer's weights for every token."""
    return {"xla_gpu_dot_merger_threshold_mb": 0} if mesh.devices.flat[0].platform == "gpu" else {}


def prefill(
    spec: SamplerSpec,
    params: Parameters,
    decoding_params: Parameters,
    batch: PromptBatch,
    done: Array,
    seeds: Array,
    sampling: TokenSampling | None = None,
) -> tuple[PromptState, DecodeState]:
    """Reads each prompt once, and samples the first token of its G completions.

    Args:
        spec: sampler specification.
        params: model parameters.
        decoding_params: the copy that decoding reads.
        batch: P prompts.
        done: bool `[R, G]`, completions that only fill the batch. R is P, or a multiple of P where each prompt's
            completions are split over that many rows of the decoding mesh.
        seeds: uint32 `[3]`: seed, stage, step.
        sampling: how each prompt's tokens are sampled, arrays `[P]`; by default, as the specification says.
    """
    num_rows, group_size = done.shape
    parts = num_rows // batch.tokens.shape[0]
    prefix = _repeat_rows(spec.model.bind(params).prefix(batch), parts)
    decoder = bind_decoder(spec.decoding, decoding_params)
    sample_ids = jnp.asarray(batch.first_sample)[:, None] + jnp.arange(parts * group_size, dtype=jnp.int32)
    prompts = PromptState(
        caches=prompt_caches(spec.model, prefix, spec.decoding, jnp.dtype(spec.cache_dtype)),
        lengths=prefix.lengths,
        next_position=prefix.next_position,
        last_hidden=constrain(prefix.last_hidden.astype(spec.decoding.dtype), spec.decoding.mesh, BATCH),
        keys=completion_keys(seeds, jnp.asarray(batch.key), sample_ids).reshape(num_rows, group_size, 2),
        rows=jnp.tile(jnp.arange(num_rows // spec.num_shards, dtype=jnp.int32), spec.num_shards),
        sampling=jax.tree.map(lambda x: jnp.repeat(x, parts), sampling),
    )
    return prompts, start_completions(spec, decoder, prompts, done)


def start_completions(spec: SamplerSpec, decoder: Decoder, prompts: PromptState, done: Array) -> DecodeState:
    """Samples the first token of each completion, `[R, G]`; those that are `done` only fill the batch."""
    num_rows, group_size = done.shape
    state = DecodeState(
        slot=jnp.zeros(num_rows, jnp.int32),
        place=jnp.int32(0),
        token=jnp.zeros((num_rows, group_size), jnp.int32),
        done=jnp.asarray(done),
        caches=decoder.init_caches(num_rows, group_size, spec.segment, jnp.dtype(spec.cache_dtype)),
        **empty_segment(spec, num_rows, group_size)._asdict(),
    )
    logits = jnp.repeat(_logits(spec, decoder, prompts, prompts.last_hidden[:, None]), group_size, axis=1)
    return _append(spec, state, logits, prompts, 0)


def decode(
    spec: SamplerSpec, decoding_params: Parameters, prompts: PromptState, state: DecodeState, stop: Array
) -> DecodeState:
    """Samples tokens until slot `stop`, or until all completions have ended."""
    decoder = bind_decoder(spec.decoding, decoding_params)
    first_slot = state.caches[0].values.shape[3] - spec.segment

    def step(state: DecodeState) -> DecodeState:
        return decode_token(spec, decoder, prompts, state, state.place + 1 - first_slot)

    return jax.lax.while_loop(lambda state: (state.place + 1 < stop) & ~jnp.all(state.done), step, state)


def decode_token(
    spec: SamplerSpec, decoder: Decoder, prompts: PromptState, state: DecodeState, index: Array
) -> DecodeState:
    """Reads the latest token of each completion, samples the next one, and records it at `index` of the segment."""
    hidden, caches = decoder(
        state.token, state.slot - 1, state.place, prompts.next_position, prompts.lengths, prompts.caches, state.caches
    )
    logits = _logits(spec, decoder, prompts, hidden)
    return _append(spec, state._replace(place=state.place + 1, caches=caches), logits, prompts, index)


def count_active(spec: SamplerSpec, state: DecodeState) -> jax.Array:
    """Counts the prompts with unfinished completions on the data shard that has most of them."""
    return jnp.max(jnp.sum(is_active(spec, state), axis=1))


def compact(spec: SamplerSpec, prompts: PromptState, state: DecodeState, rows: int) -> tuple[PromptState, DecodeState]:
    """Keeps `rows` prompts of each data shard, the unfinished ones first."""
    order = jnp.argsort(~is_active(spec, state), axis=1, stable=True)[:, :rows]

    def take(x: jax.Array) -> jax.Array:
        by_shard = x.reshape(spec.num_shards, -1, *x.shape[1:])
        taken = jnp.take_along_axis(by_shard, order.reshape(*order.shape, *(1,) * (by_shard.ndim - 2)), axis=1)
        return taken.reshape(-1, *x.shape[1:])

    kept = jax.tree.map(take, state._replace(place=None))
    return jax.tree.map(take, prompts), kept._replace(place=state.place)


def grow(spec: SamplerSpec, state: DecodeState) -> DecodeState:
    """Lengthens the caches by a segment, and starts an empty one."""
    caches = tuple(grow_cache(cache, spec.segment) for cache in state.caches)
    return state._replace(caches=caches, **empty_segment(spec, *state.token.shape)._asdict())


def scatter(spec: SamplerSpec, rows: Array, segment: Segment, rows_per_shard: int) -> Segment:
    """Puts a segment `[R, G, S]` back into the rows of the full batch, `[P, G, S]`; other rows are padding."""
    full = empty_segment(spec, spec.num_shards * rows_per_shard, segment.tokens.shape[1])

    def put(target: jax.Array, x: jax.Array) -> jax.Array:
        targets, values = (a.reshape(spec.num_shards, -1, *a.shape[1:]) for a in (target, x))
        indices = rows.reshape(spec.num_shards, -1)
        return jax.vmap(lambda a, index, b: a.at[index].set(b))(targets, indices, values).reshape(target.shape)

    return jax.tree.map(put, full, segment)


def join(
    spec: SamplerSpec, segments: tuple[Segment, ...], num_sampled: Array, num_prompts: int, length: int
) -> Rollout:
    """Joins segments into a rollout of P prompts, and masks what follows the end of each completion.

    Args:
        spec: sampler specification.
        segments: in order, `[R, g, S]` with R g = P G; the last one may be partly filled.
        num_sampled: int32, slots that were sampled.
        num_prompts: P.
        length: T; what the segments lack is padding.
    """

    def joined(values: Sequence[Array]) -> jax.Array:
        whole = jnp.concatenate(values, axis=2)[:, :, :length]
        padded = jnp.pad(whole, ((0, 0), (0, 0), (0, length - whole.shape[2])))
        return padded.reshape(num_prompts, -1, length)

    tokens, logprobs, entropies = map(joined, zip(*segments, strict=True))
    is_stop = _is_stop(tokens, spec.stop_token_ids)
    stops_before = jnp.cumsum(is_stop, axis=2) - is_stop
    mask = (stops_before == 0) & (jnp.arange(tokens.shape[2]) < num_sampled)
    return Rollout(
        tokens=jnp.where(mask, tokens, spec.pad_token_id),
        mask=mask,
        logprobs=jnp.where(mask, logprobs, 0),
        entropies=jnp.where(mask, entropies, 0),
        lengths=jnp.sum(mask, axis=2, dtype=jnp.int32),
        finished=jnp.any(is_stop & mask, axis=2),
    )


def completion_keys(seeds: Array, prompt_keys: jax.Array, sample_ids: Array) -> jax.Array:
    """Derives the random key of each completion from (seed, stage, step), its prompt's key, and its number.

    Args:
        seeds: uint32 `[3]`.
        prompt_keys: uint32 `[P, 2]`.
        sample_ids: int32 `[P, G]`, numbers of the completions within their groups.

    Returns:
        Key data, uint32 `[P, G, 2]`.
    """
    root = jax.random.key(seeds[0])
    for number in (seeds[1], seeds[2]):
        root = jax.random.fold_in(root, number)

    def key_of(prompt_key: jax.Array, sample_id: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(root, prompt_key[0]), prompt_key[1])
        return jax.random.key_data(jax.random.fold_in(key, sample_id))

    return jax.vmap(jax.vmap(key_of, in_axes=(None, 0)))(prompt_keys, sample_ids)


def _logits(spec: SamplerSpec, decoder: Decoder, prompts: PromptState, hidden: Array) -> jax.Array:
    """Computes logits, divided by the temperature if all prompts have the same."""
    return decoder.masked_logits(hidden, spec.temperature if prompts.sampling is None and spec.temperature else 1.0)


def _append(
    spec: SamplerSpec, state: DecodeState, logits: jax.Array, prompts: PromptState, index: Array | int
) -> DecodeState:
    """Samples a token of each completion from its logits, and records it at `index` of the segment."""
    num_padded, mesh = logits.shape[-1] - spec.decoding.config.vocab_size, spec.decoding.mesh
    if prompts.sampling is None:
        settings = spec.temperature, spec.top_k, spec.top_p
        sampled = sample_token(logits, prompts.keys, state.slot, *settings, num_padded=num_padded, mesh=mesh)
    else:
        sampled = sample_token_by_prompt(logits, prompts.keys, state.slot, prompts.sampling, num_padded, mesh)
    token, logprob, entropy = (
        jnp.where(state.done, padding, x) for padding, x in zip((spec.pad_token_id, 0, 0), sampled, strict=True)
    )
    return state._replace(
        slot=state.slot + 1,
        token=token,
        done=state.done | _is_stop(token, spec.stop_token_ids),
        tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, index, 2),
        logprobs=jax.lax.dynamic_update_index_in_dim(state.logprobs, logprob, index, 2),
        entropies=jax.lax.dynamic_update_index_in_dim(state.entropies, entropy, index, 2),
    )


def _repeat_rows(prefix: Prefix, parts: int) -> Prefix:
    """Repeats each prefilled prompt for the parts of its group."""
    return Prefix(
        keys=jnp.repeat(prefix.keys, parts, axis=1),
        values=jnp.repeat(prefix.values, parts, axis=1),
        lengths=jnp.repeat(prefix.lengths, parts),
        next_position=jnp.repeat(prefix.next_position, parts),
        last_hidden=jnp.repeat(prefix.last_hidden, parts, axis=0),
    )


def empty_segment(spec: SamplerSpec, num_prompts: int, group_size: int) -> Segment:
    """Makes a segment without tokens."""
    shape = num_prompts, group_size, spec.segment
    zeros = jnp.zeros(shape, jnp.float32)
    return Segment(jnp.full(shape, spec.pad_token_id, jnp.int32), zeros, zeros)


def is_active(spec: SamplerSpec, state: DecodeState) -> jax.Array:
    """Returns which prompts have unfinished completions: bool `[N, R / N]`."""
    return jnp.any(~state.done, axis=1).reshape(spec.num_shards, -1)


def _is_stop(tokens: jax.Array, stop_token_ids: tuple[int, ...]) -> jax.Array:
    found = jnp.zeros(tokens.shape, bool)
    for stop_token_id in stop_token_ids:
        found |= tokens == stop_token_id
    return found
