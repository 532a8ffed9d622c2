"""The sampler: each prompt is read once, then all completions of all prompts grow together, a token at a time.

What a completion draws depends on nothing but its own key (seed, stage, step, the prompt's key and its number g in the
group): the same tokens come out of any batch, group size, padding, mesh and number of hosts, up to rounding.

The host sees the device once a segment. Within one, a single program runs until all have finished; between two, caches
grow by a segment, and prompts whose completions have all finished leave the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil, lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import Sampling, validate_sampling
from currreft_jax.data.packing import BatchShape, collate, image_slots, slots_per_shard, smallest_bucket
from currreft_jax.data.processor import Processor
from currreft_jax.models.cache import Cache, grow_cache
from currreft_jax.models.decoder import bind_decoder, decoding_model, decoding_weights, prompt_caches
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.models.sampling import sample_token
from currreft_jax.models.text import splits_heads
from currreft_jax.sharding import BATCH, constrain, data_shards, to_devices
from currreft_jax.structs import Array, Prompt, PromptBatch, Rollout

_Drawn = tuple[Array, Array, Array]  # tokens of a segment, their log-probs and entropies


def sample(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling | None = None,
    *,
    weights: Parameters | None = None,
    seed: int = 0,
    stage: int = 0,
    step: int = 0,
    **changes: Any,
) -> Rollout:
    """Draws G completions of every prompt.

    Args:
        model: as it is trained, on its own mesh.
        parameters: of the model.
        processor: whose tokens end a completion.
        prompts: P prompts, or a batch of them; each host passes its own.
        settings: how to draw; the defaults where absent.
        weights: the decoding copy, from `decode_params`; made here where absent.
        seed: of the run; with `stage`, `step`, each prompt's key and g it fixes every draw.
        stage: of the curriculum.
        step: of the stage.
        changes: settings by name, such as `group_size=4`.

    Returns:
        Arrays on the model's mesh, split over its data shards as the prompts are. T is as many whole segments as were
        needed, or `max_new_tokens`.

    Raises:
        TypeError: a change that is no setting.
        ValueError: impossible settings, or a batch that does not divide over the mesh.
        BudgetError: a prompt longer than the largest bucket.
    """
    settings = _changed(settings, changes)
    members = np.arange(settings.group_size, dtype=np.int32)
    run = _start(model, parameters, processor, prompts, settings, weights, (seed, stage, step), members)
    *_, whole = _decode(run, settings.segment)
    return _rollout(run, whole)


def stream(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling | None = None,
    *,
    every: int = 8,
    weights: Parameters | None = None,
    seed: int = 0,
    stage: int = 0,
    step: int = 0,
    **changes: Any,
) -> Iterator[Rollout]:
    """`sample`, with the same arguments, handing over what there is after `every` few tokens; the last is the whole."""
    settings = _changed(settings, changes)
    members = np.arange(settings.group_size, dtype=np.int32)
    run = _start(model, parameters, processor, prompts, settings, weights, (seed, stage, step), members)
    for progress in _decode(run, every):
        yield _rollout(run, progress)


def replay(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompt: Prompt,
    g: int,
    settings: Sampling | None = None,
    *,
    weights: Parameters | None = None,
    seed: int = 0,
    stage: int = 0,
    step: int = 0,
    **changes: Any,
) -> Rollout:
    """Draws completion `g` of a prompt again, alone: `P = G = 1`.

    The prompt has the key that it had; the other arguments are those of the `sample` that drew it first.
    """
    settings = _changed(settings, {**changes, "group_size": 1})
    members = np.array([g], np.int32)
    run = _start(model, parameters, processor, [prompt], settings, weights, (seed, stage, step), members)
    *_, whole = _decode(run, settings.segment)
    return _rollout(run, whole)


def decode_params(model: Model, parameters: Parameters, settings: Sampling | None = None) -> Parameters:
    """The weights that decoding reads, in its own precision and layout; made once for each version of the weights."""
    return decoding_weights(model, parameters, _decoding(model, settings or Sampling()))


def warm_up(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling | None = None,
    **changes: Any,
) -> None:
    """Compiles every program that sampling from prompts of this batch's shape can need; it draws almost nothing."""
    settings = _changed(settings, changes)
    members = np.arange(settings.group_size, dtype=np.int32)
    run = _start(model, parameters, processor, prompts, settings, None, (0, 0, 0), members, finished=True)
    parts: list[_Drawn] = []
    full = run.fixed, run.state
    states = {run.per_shard: full}
    while True:
        shrunk: dict[int, tuple[_Fixed, _State]] = {}
        for size, (fixed, state) in states.items():
            state = run.programs.decode(run.weights, fixed, state, np.int32(1))
            run.programs.active(state)
            shrunk[size] = fixed, state
            part = run.programs.spread(fixed.rows, *_drawn(state), per_shard=run.per_shard)
            if size == run.per_shard:
                parts.append(part)
        run.programs.rollout(*zip(*parts, strict=True), np.int32(1))
        if len(parts) * run.plan.segment >= run.plan.max_new_tokens:
            return
        for size in sorted(shrunk, reverse=True):
            for rung in run.rungs:
                if rung < size:
                    shrunk[rung] = run.programs.shrink(*shrunk[size], rows=rung)
        states = {size: (fixed, run.programs.lengthen(state)) for size, (fixed, state) in shrunk.items()}


# ----------------------------------------------------------------------------------------------------------- programs


class _Plan(NamedTuple):
    """What the programs are compiled for, besides shapes."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    segment: int
    cache: str
    ends: tuple[int, ...]
    padding: int


class _Fixed(NamedTuple):
    """What does not change while completions grow, for the R prompts that are still in the batch.

    Attributes:
        prompts: each layer's cache of the prompts.
        lengths: int32 `[R]`.
        next_position: int32 `[R]`.
        keys: uint32 `[R, G, 2]`, key data of each completion.
        rows: int32 `[R]`, each prompt's place in the full batch, counted within its data shard.
    """

    prompts: tuple[Cache, ...]
    lengths: Array
    next_position: Array
    keys: Array
    rows: Array


class _State(NamedTuple):
    """Completions as they grow.

    Attributes:
        slot: int32, tokens drawn so far.
        token: int32 `[R, G]`, the last of them.
        done: bool `[R, G]`.
        suffixes: each layer's cache of the completions, without the last token.
        tokens: int32 `[R, G, S]`, of this segment.
        logprobs: fp32 `[R, G, S]`, likewise; and so are `entropies`.
    """

    slot: Array
    token: Array
    done: Array
    suffixes: tuple[Cache, ...]
    tokens: Array
    logprobs: Array
    entropies: Array


def _drawn(state: _State) -> _Drawn:
    return state.tokens, state.logprobs, state.entropies


class Sampler(NamedTuple):
    """What draws for a model and settings.

    Attributes:
        decoding: the model, laid out for decoding.
        plan: what the programs are compiled for.
        programs: jitted functions.
    """

    decoding: Model
    plan: _Plan
    programs: _Programs


class _Programs(NamedTuple):
    """Jitted functions, made once for a model and a plan."""

    start: Any
    decode: Any
    active: Any
    shrink: Any
    lengthen: Any
    spread: Any
    rollout: Any


@lru_cache(maxsize=32)
def _programs(model: Model, decoding: Model, plan: _Plan) -> _Programs:
    mesh, shards = decoding.mesh, data_shards(decoding.mesh)
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH))
    heads = NamedSharding(mesh, P(BATCH, "tensor" if splits_heads(model.config, mesh) else None))
    fixed_layout = _Fixed(heads, rows, rows, rows, rows)  # pyright: ignore[reportArgumentType]
    state_layout = _State(everywhere, rows, rows, heads, rows, rows, rows)  # pyright: ignore[reportArgumentType]

    def recorded(state: _State, scores: jax.Array, keys: Array, first: int) -> _State:
        drawn = sample_token(scores, keys, state.slot, plan.temperature, plan.top_k, plan.top_p)
        token, logprob, entropy = (
            jnp.where(state.done, it, x) for it, x in zip((plan.padding, 0, 0), drawn, strict=True)
        )
        place = state.slot - first
        return state._replace(
            slot=state.slot + 1,
            token=token,
            done=state.done | _is_end(token, plan.ends),
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, place, 2),
            logprobs=jax.lax.dynamic_update_index_in_dim(state.logprobs, logprob, place, 2),
            entropies=jax.lax.dynamic_update_index_in_dim(state.entropies, entropy, place, 2),
        )

    def start(
        parameters: Parameters, weights: Parameters, batch: PromptBatch, done: Array, numbers: Array, members: Array
    ) -> tuple[_Fixed, _State]:
        prefix = model.bind(parameters).prefix(batch)
        decoder = bind_decoder(decoding, weights)
        caches = prompt_caches(model, prefix, decoding, jnp.dtype(plan.cache))
        count, group = done.shape[0], members.shape[0]
        place = jnp.tile(jnp.arange(count // shards, dtype=jnp.int32), shards)
        keys = _completion_keys(numbers, jnp.asarray(batch.key), members)
        fixed = _Fixed(caches, jnp.asarray(batch.lengths), jnp.asarray(batch.next_position), keys, place)
        state = _State(
            slot=jnp.int32(0),
            token=jnp.zeros((count, group), jnp.int32),
            done=jnp.broadcast_to(done[:, None], (count, group)),
            suffixes=decoder.init_caches(count, group, plan.segment, jnp.dtype(plan.cache)),
            **_blank(count, group),
        )
        hidden = constrain(prefix.last_hidden.astype(decoding.dtype), mesh, BATCH)
        scores = jnp.repeat(decoder.masked_logits(hidden[:, None], plan.temperature or 1.0), group, axis=1)
        return fixed, recorded(state, scores, keys, 0)

    def decode(weights: Parameters, fixed: _Fixed, state: _State, stop: Array) -> _State:
        decoder = bind_decoder(decoding, weights)
        first = state.suffixes[0].values.shape[3] - plan.segment

        def body(state: _State) -> _State:
            hidden, suffixes = decoder(
                state.token, state.slot - 1, fixed.next_position, fixed.lengths, fixed.prompts, state.suffixes
            )
            scores = decoder.masked_logits(hidden, plan.temperature or 1.0)
            return recorded(state._replace(suffixes=suffixes), scores, fixed.keys, first)

        return jax.lax.while_loop(lambda state: (state.slot < stop) & ~jnp.all(state.done), body, state)

    def active(state: _State) -> jax.Array:
        return jnp.max(jnp.sum(_unfinished(state, shards), axis=1))

    def shrink(fixed: _Fixed, state: _State, rows: int) -> tuple[_Fixed, _State]:
        order = jnp.argsort(~_unfinished(state, shards), axis=1, stable=True)[:, :rows]

        def take(x: jax.Array) -> jax.Array:
            split = x.reshape(shards, -1, *x.shape[1:])
            taken = jnp.take_along_axis(split, order.reshape(*order.shape, *(1,) * (split.ndim - 2)), axis=1)
            return taken.reshape(-1, *x.shape[1:])

        kept = jax.tree.map(take, state._replace(slot=None))
        return jax.tree.map(take, fixed), kept._replace(slot=state.slot)

    def lengthen(state: _State) -> _State:
        grown = tuple(grow_cache(cache, plan.segment) for cache in state.suffixes)
        return state._replace(suffixes=grown, **_blank(*state.token.shape))

    def spread(rows: Array, tokens: Array, logprobs: Array, entropies: Array, per_shard: int) -> _Drawn:
        whole = _blank(shards * per_shard, tokens.shape[1])

        def put(target: jax.Array, x: jax.Array) -> jax.Array:
            split, parts = (a.reshape(shards, -1, *a.shape[1:]) for a in (target, x))
            places = rows.reshape(shards, -1)
            return jax.vmap(lambda a, place, b: a.at[place].set(b))(split, places, parts).reshape(target.shape)

        return put(whole["tokens"], tokens), put(whole["logprobs"], logprobs), put(whole["entropies"], entropies)

    def rollout(
        tokens: tuple[Array, ...], logprobs: tuple[Array, ...], entropies: tuple[Array, ...], drawn: Array
    ) -> Rollout:
        joined, of_tokens, of_choices = (
            jnp.concatenate(parts, axis=2)[:, :, : plan.max_new_tokens] for parts in (tokens, logprobs, entropies)
        )
        ended = _is_end(joined, plan.ends)
        before = jnp.cumsum(ended, axis=2) - ended
        mask = (before == 0) & (jnp.arange(joined.shape[2]) < drawn)
        return Rollout(
            tokens=jnp.where(mask, joined, plan.padding),
            mask=mask,
            logprobs=jnp.where(mask, of_tokens, 0),
            entropies=jnp.where(mask, of_choices, 0),
            lengths=jnp.sum(mask, axis=2, dtype=jnp.int32),
            finished=jnp.any(ended & mask, axis=2),
        )

    def _blank(count: int, group: int) -> dict[str, jax.Array]:
        shape = count, group, plan.segment
        nothing = jnp.zeros(shape, jnp.float32)
        return {"tokens": jnp.full(shape, plan.padding, jnp.int32), "logprobs": nothing, "entropies": nothing}

    return _Programs(
        start=jax.jit(start, out_shardings=(fixed_layout, state_layout)),
        decode=jax.jit(decode, out_shardings=state_layout, donate_argnums=2, compiler_options=_apart(mesh)),
        active=jax.jit(active, out_shardings=everywhere),
        shrink=jax.jit(shrink, out_shardings=(fixed_layout, state_layout), static_argnames="rows"),
        lengthen=jax.jit(lengthen, out_shardings=state_layout),
        spread=jax.jit(spread, out_shardings=(rows, rows, rows), static_argnames="per_shard"),
        rollout=jax.jit(rollout, out_shardings=NamedSharding(model.mesh, P(BATCH))),
    )


def _apart(mesh: Mesh) -> dict[str, int]:
    """Keeps XLA for GPUs from joining products of the same tokens, for which it copies the weights of every layer."""
    return {"xla_gpu_dot_merger_threshold_mb": 0} if mesh.devices.flat[0].platform == "gpu" else {}


def _is_end(tokens: jax.Array, ends: tuple[int, ...]) -> jax.Array:
    found = jnp.zeros(tokens.shape, bool)
    for end in ends:
        found |= tokens == end
    return found


def _unfinished(state: _State, shards: int) -> jax.Array:
    """Which prompts have work left, bool `[N, R / N]`."""
    return jnp.any(~state.done, axis=1).reshape(shards, -1)


def _completion_keys(numbers: Array, prompts: jax.Array, members: Array) -> jax.Array:
    """Key data `[P, G, 2]` of (seed, stage, step), each prompt's two halves, and g."""
    root = jax.random.key(numbers[0])
    for number in (numbers[1], numbers[2]):
        root = jax.random.fold_in(root, number)

    def of(prompt: jax.Array, member: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(root, prompt[0]), prompt[1])
        return jax.random.key_data(jax.random.fold_in(key, member))

    return jax.vmap(lambda prompt: jax.vmap(lambda member: of(prompt, member))(members))(prompts)


# ------------------------------------------------------------------------------------------------------------ the run


class _Run(NamedTuple):
    """One call of the sampler.

    Attributes:
        programs: made for it.
        plan: what they are made for.
        weights: the decoding copy.
        fixed: at the start.
        state: at the start, with the first token drawn.
        per_shard: prompts of a data shard.
        rungs: the smaller numbers to which it may shrink, falling.
        kept: prompts that were asked for; the rest fills the mesh. None for a batch that is kept whole.
    """

    programs: _Programs
    plan: _Plan
    weights: Parameters
    fixed: _Fixed
    state: _State
    per_shard: int
    rungs: tuple[int, ...]
    kept: int | None


class _Progress(NamedTuple):
    """Segments `[P, G, S]` so far, and how many tokens of each completion were drawn or were not needed."""

    tokens: tuple[Array, ...]
    logprobs: tuple[Array, ...]
    entropies: tuple[Array, ...]
    drawn: int


def _changed(settings: Sampling | None, changes: dict[str, Any]) -> Sampling:
    settings = dataclasses.replace(settings or Sampling(), **changes)
    validate_sampling(settings)
    return settings


def _decoding(model: Model, settings: Sampling) -> Model:
    return decoding_model(model, settings.mesh, jnp.dtype(settings.precision.value))


def sampler(model: Model, settings: Sampling, ends: tuple[int, ...]) -> Sampler:
    """What draws completions that one of the tokens `ends` closes; made once."""
    decoding = _decoding(model, settings)
    plan = _Plan(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        segment=min(settings.segment, settings.max_new_tokens),
        cache=settings.cache.value,
        ends=ends,
        padding=model.config.bos_token_id,
    )
    return Sampler(decoding, plan, _programs(model, decoding, plan))


def refuse_uneven(count: int, decoding: Model, settings: Sampling) -> None:
    """Refuses prompts that do not divide over the decoding mesh.

    Raises:
        ValueError: naming both.
    """
    if count % (shards := data_shards(decoding.mesh)):
        raise ValueError(
            f"{count} prompts do not divide into the {shards} data parts of sampling.mesh = {settings.mesh}: change the"
            " batch or give more parts to tensor"
        )


def rungs(per_shard: int, settings: Sampling) -> tuple[int, ...]:
    """The smaller numbers of prompts to which a data shard of so many may shrink, falling."""
    return tuple(sorted({ceil(per_shard * share) for share in settings.ladder} - {per_shard}, reverse=True))


def _start(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling,
    weights: Parameters | None,
    numbers: tuple[int, int, int],
    members: np.ndarray,
    *,
    finished: bool = False,
) -> _Run:
    if model.vocab_mask.tokenizer_size > processor.tokenizer_size:
        raise ValueError(
            f"the model may draw {model.vocab_mask.tokenizer_size} tokens, but the tokenizer of {processor.folder}"
            f" knows {processor.tokenizer_size}: load both from one folder, or set the model's tokenizer_size"
        )
    decoding, plan, programs = sampler(model, settings, processor.eos_token_ids)
    weights = decoding_weights(model, parameters, decoding) if weights is None else weights
    kept = None if isinstance(prompts, PromptBatch) else len(prompts)
    batch = prompts if isinstance(prompts, PromptBatch) else _batch(model, decoding, prompts, settings)
    count, shards = batch.tokens.shape[0], data_shards(decoding.mesh)
    refuse_uneven(count, decoding, settings)
    done = np.full(count // jax.process_count(), finished)
    if kept is not None:
        done[kept:] = True
    done = to_devices(done, model.mesh)
    fixed, state = programs.start(parameters, weights, batch, done, np.array(numbers, np.uint32), members)
    per_shard = count // shards
    return _Run(programs, plan, weights, fixed, state, per_shard, rungs(per_shard, settings), kept)


def _decode(run: _Run, every: int) -> Iterator[_Progress]:
    """Runs to the end, and reports after every few tokens and at the end of each segment."""
    plan, programs, fixed, state = run.plan, run.programs, run.fixed, run.state
    whole: list[_Drawn] = []
    rows, drawn, capacity = run.per_shard, 0, plan.segment
    while True:
        drawn = min(drawn + every, capacity, plan.max_new_tokens)
        state = programs.decode(run.weights, fixed, state, np.int32(drawn))
        part = programs.spread(fixed.rows, *_drawn(state), per_shard=run.per_shard)
        tokens, logprobs, entropies = zip(*whole, part, strict=True)
        yield _Progress(tokens, logprobs, entropies, drawn)
        active = int(programs.active(state))
        if not active or drawn == plan.max_new_tokens:
            return
        if drawn < capacity:
            continue
        whole.append(part)
        if smaller := [rung for rung in run.rungs if active <= rung < rows]:
            rows = min(smaller)
            fixed, state = programs.shrink(fixed, state, rows=rows)
        state = programs.lengthen(state)
        capacity += plan.segment


def _rollout(run: _Run, progress: _Progress) -> Rollout:
    rollout = run.programs.rollout(*progress[:-1], np.int32(progress.drawn))
    if run.kept is None or run.kept == rollout.tokens.shape[0] // jax.process_count():
        return rollout
    return jax.tree.map(lambda x: x[: run.kept], rollout)


def _batch(model: Model, decoding: Model, prompts: Sequence[Prompt], settings: Sampling) -> PromptBatch:
    """Collates prompts in the buckets of their lengths and images, the last one repeated to fill the mesh."""
    hosts = jax.process_count()
    shards = data_shards(model.mesh) // hosts
    multiple = lcm(shards, data_shards(decoding.mesh) // hosts) if hosts == 1 else 1
    filled = [*prompts, *[prompts[-1]] * (-len(prompts) % multiple)]
    if len(filled) % shards:
        raise ValueError(
            f"{len(prompts)} prompts on each of {hosts} hosts do not divide into its {shards} data shards: pad them or"
            " change the mesh"
        )
    vision = model.config.vision
    reach = max((image_slots(picture, vision) for prompt in filled for picture in prompt.images), default=1)
    needed = np.array([max(len(prompt.tokens) for prompt in filled), slots_per_shard(filled, vision, shards), reach])
    if hosts > 1:
        needed = np.max(np.asarray(multihost_utils.process_allgather(needed)), axis=0)
    length = smallest_bucket(int(needed[0]), settings.prompt_lengths, "sampling.prompt_lengths")
    shape = BatchShape(length, power_of_two(int(needed[1])), power_of_two(int(needed[2])))
    return to_devices(collate(filled, model.config, shape, shards), model.mesh)


def power_of_two(needed: int) -> int:
    """The bucket of slots that sampling takes where it is given prompts one by one."""
    return needed and 1 << (needed - 1).bit_length()
