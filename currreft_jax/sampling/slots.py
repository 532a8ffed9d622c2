"""The programs of continuous batching, in which every prompt has a slot of a resident batch until its completions end.

`init` makes free slots. The sampler's `prefill` reads a few prompts at a time, and `insert` puts them into free slots.
`fork` fills free slots with prompts that other slots hold: equal prompts are read once. `decode` samples tokens of all
slots until enough of them are free, and `resize` fits the caches of the completions to the oldest one. `end` ends
completions early. When no prompt waits any more, the sampler's `compact` drops free slots.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.models.cache import grow_cache, last_tokens, roll_cache
from currreft_jax.models.decoder import bind_decoder
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.sharding import BATCH
from currreft_jax.sampling.programs import (
    completion_keys,
    count_active,
    decode_options,
    decode_token,
    empty_segment,
    is_active,
    start_completions,
    state_shardings,
)
from currreft_jax.sampling.state import DecodeState, PromptState, SamplerSpec
from currreft_jax.structs import Array, TokenSampling


class SlotPrograms(NamedTuple):
    """The programs, jitted for one specification."""

    init: Any
    insert: Any
    fork: Any
    decode: Any
    resize: Any
    end: Any


class SlotCounts(NamedTuple):
    """Numbers that all hosts decide by.

    Attributes:
        active: int32, prompts with unfinished completions on the data shard that has most of them.
        oldest: int32, tokens sampled of the longest of these completions.
    """

    active: Array
    oldest: Array


class Forks(NamedTuple):
    """E prompts that slots hold, and their next completions.

    Attributes:
        sources: int32 `[E]`, slots that hold the prompts.
        slots: int32 `[E]`, free slots, counted within the data shard; R / N for what is not to enter.
        keys: uint32 `[E, 2]`, keys of the prompts.
        first_samples: int32 `[E]`, number of the first completion within its group.
        sampling: how each prompt's tokens are sampled, `[E]` each; None where the specification says it.
    """

    sources: Array
    slots: Array
    keys: Array
    first_samples: Array
    sampling: TokenSampling | None


@lru_cache(maxsize=32)
def slot_programs(spec: SamplerSpec) -> SlotPrograms:
    """Makes the programs of a specification once."""
    mesh = spec.decoding.mesh
    prompts, state = state_shardings(spec)
    return SlotPrograms(
        init=jax.jit(
            partial(init_slots, spec), out_shardings=(prompts, state), static_argnames=("num_slots", "length")
        ),
        insert=jax.jit(partial(insert, spec), out_shardings=(prompts, state), donate_argnums=(0, 1)),
        fork=jax.jit(
            partial(fork, spec),
            out_shardings=(prompts, state, state._replace(place=None, caches=())),
            donate_argnums=(1, 2),
        ),
        decode=jax.jit(
            partial(decode_slots, spec),
            out_shardings=(state, NamedSharding(mesh, P())),
            donate_argnums=2,
            compiler_options=decode_options(mesh),
        ),
        resize=jax.jit(resize_slots, out_shardings=state, static_argnames="capacity"),
        end=jax.jit(lambda done, ends: done | ends[:, None], out_shardings=NamedSharding(mesh, P(BATCH))),
    )


def init_slots(
    spec: SamplerSpec, prompts: PromptState, state: DecodeState, num_slots: int, length: int
) -> tuple[PromptState, DecodeState]:
    """Makes free slots.

    Args:
        spec: sampler specification.
        prompts: state of any prompts after their prefill, whose shapes and types alone matter.
        state: state of their completions.
        num_slots: R, slots.
        length: prompt tokens that a slot holds.
    """
    caches = tuple(grow_cache(cache, length - cache.values.shape[2]) for cache in prompts.caches)
    free_prompts, free = jax.tree.map(
        lambda x: jnp.zeros((num_slots, *x.shape[1:]), x.dtype),
        (prompts._replace(caches=caches), state._replace(place=None)),
    )
    return free_prompts, free._replace(place=jnp.int32(0), done=jnp.ones_like(free.done))


def insert(
    spec: SamplerSpec,
    prompts: PromptState,
    state: DecodeState,
    entering_prompts: PromptState,
    entering_state: DecodeState,
    slots: Array,
) -> tuple[PromptState, DecodeState]:
    """Puts prompts into free slots, of which it leaves nothing: padding, and empty caches of completions, are put, too.

    Args:
        spec: sampler specification.
        prompts: prompts of the R slots.
        state: their completions.
        entering_prompts: E prompts after their prefill.
        entering_state: their completions, of one token each.
        slots: int32 `[E]`, slots counted within the data shard; R / N for what is not to enter.
    """
    length, capacity = prompts.caches[0].values.shape[2], state.caches[0].values.shape[3]
    entering_caches = tuple(grow_cache(cache, length - cache.values.shape[2]) for cache in entering_prompts.caches)
    entering_prompts = entering_prompts._replace(caches=entering_caches)
    empty = tuple(grow_cache(cache, capacity - spec.segment) for cache in entering_state.caches)
    done = _end_at_limit(spec, entering_state).done
    entering_state = entering_state._replace(place=None, caches=empty, done=done)

    def put(resident: Any, entering: Any, slots: Array) -> Any:
        return jax.tree.map(lambda x, new: x.at[slots].set(new, mode="drop"), resident, entering)

    # Within each shard, whose plain scatter writes in place; a scatter that is batched over shards copies all slots.
    resident = prompts, state._replace(place=None)
    specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings(spec))
    specs = specs[0], specs[1]._replace(place=None)
    put_in_shards = jax.shard_map(
        put, mesh=spec.decoding.mesh, in_specs=(specs, specs, P(BATCH)), out_specs=specs, check_vma=False
    )
    filled_prompts, filled = put_in_shards(resident, (entering_prompts, entering_state), slots)
    return filled_prompts, filled._replace(place=state.place)


def fork(
    spec: SamplerSpec,
    decoding_params: Parameters,
    prompts: PromptState,
    state: DecodeState,
    forks: Forks,
    seeds: Array,
) -> tuple[PromptState, DecodeState, DecodeState]:
    """Copies prompts from their slots into free ones, and samples the first tokens of new completions there.

    Args:
        spec: sampler specification.
        decoding_params: the copy that decoding reads.
        prompts: prompts of the R slots; those of free slots are whole until others enter.
        state: their completions.
        forks: prompts to copy.
        seeds: uint32 `[3]`: seed, stage, step.

    Returns:
        The slots' prompts, their completions, and the E entering completions without caches.
    """
    group_size = state.token.shape[1]
    sample_ids = jnp.asarray(forks.first_samples)[:, None] + jnp.arange(group_size, dtype=jnp.int32)
    copied = jax.tree.map(lambda x: x[forks.sources], prompts)._replace(
        keys=completion_keys(seeds, jnp.asarray(forks.keys), sample_ids), sampling=forks.sampling
    )
    done = jnp.zeros((len(forks.sources), group_size), bool)
    started = start_completions(spec, bind_decoder(spec.decoding, decoding_params), copied, done)
    filled = insert(spec, prompts, state, copied, started, forks.slots)
    return *filled, started._replace(place=None, caches=())


def decode_slots(
    spec: SamplerSpec,
    decoding_params: Parameters,
    prompts: PromptState,
    state: DecodeState,
    num_tokens: Array,
    max_active: Array,
) -> tuple[DecodeState, SlotCounts]:
    """Samples up to `num_tokens` tokens of all slots, until no data shard has more than `max_active` active prompts.

    The tokens are the first ones of the state's segment, `num_tokens` at most its length.
    """
    decoder = bind_decoder(spec.decoding, decoding_params)
    first = state.place

    def step(state: DecodeState) -> DecodeState:
        return _end_at_limit(spec, decode_token(spec, decoder, prompts, state, state.place - first))

    def continues(state: DecodeState) -> jax.Array:
        return (state.place - first < num_tokens) & (count_active(spec, state) > max_active)

    state = state._replace(**empty_segment(spec, *state.token.shape)._asdict())
    state = jax.lax.while_loop(continues, step, state)
    ages = jnp.where(is_active(spec, state), state.slot.reshape(spec.num_shards, -1), 0)
    return state, SlotCounts(count_active(spec, state), jnp.max(ages))


def resize_slots(state: DecodeState, capacity: int) -> DecodeState:
    """Lengthens the caches of the completions to `capacity` tokens, or cuts all but their latest ones off."""
    current = state.caches[0].values.shape[3]
    caches = tuple(roll_cache(cache, state.place % current) for cache in state.caches)
    if capacity < current:
        return state._replace(caches=tuple(last_tokens(cache, capacity) for cache in caches), place=jnp.int32(capacity))
    grown = tuple(grow_cache(cache, capacity - current) for cache in caches)
    return state._replace(caches=grown, place=jnp.int32(current))


def _end_at_limit(spec: SamplerSpec, state: DecodeState) -> DecodeState:
    return state._replace(done=state.done | (state.slot >= spec.max_new_tokens)[:, None])
