"""The sampler: each prompt is read once, then all completions of all prompts grow together, a token at a time.

A completion depends on its own key alone (seed, stage, step, the prompt's key and its number in the group): the same
tokens come out of any batch, group size, padding, mesh and number of hosts, up to rounding.

The host sees the device once a segment: it runs one program until all completions end, or the segment is full. Between
two segments the caches grow, and prompts whose completions have all ended leave the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from math import ceil, lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import Sampling, split_parts, validate_sampling
from currreft_jax.data.packing import BatchShape, collate, image_slots, slots_per_shard, smallest_bucket
from currreft_jax.data.processor import Processor
from currreft_jax.models.decoder import decoding_model, decoding_weights
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.multihost import max_over_hosts, shards_per_host, to_devices
from currreft_jax.runtime.sharding import data_shards
from currreft_jax.sampling.programs import SamplerPrograms, sampler_programs
from currreft_jax.sampling.state import DecodeState, PromptState, SamplerSpec, Segment, sampler_spec
from currreft_jax.structs import Array, Prompt, PromptBatch, Rollout


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
    completion_lengths: Sequence[int] = (),
    on_prefill: Callable[[Array], None] | None = None,
    **changes: Any,
) -> Rollout:
    """Samples G completions of every prompt.

    Args:
        model: as it is trained, on its own mesh.
        parameters: model parameters.
        processor: its stop tokens end a completion.
        prompts: P prompts, or a batch of them; each host passes its own.
        settings: sampling settings; the defaults where absent.
        weights: the copy for decoding, from `decode_params`; made here where absent.
        seed: seed of the run; with `stage`, `step`, each prompt's key and g it fixes every token.
        stage: index of the stage in the curriculum.
        step: step number within the stage.
        completion_lengths: lengths to which T is padded, rising up to `max_new_tokens`.
        on_prefill: called when the prefill is dispatched, with an array that is ready when the prefill has run.
        changes: settings by name, such as `group_size=4`.

    Returns:
        Arrays on the model's mesh, split over its data shards as the prompts are. T is as many whole segments as were
        needed, or `max_new_tokens`; or the first of `completion_lengths` that holds it.

    Raises:
        TypeError: a change that is no setting.
        ValueError: impossible settings, or a batch that does not divide over the mesh.
        BudgetError: a prompt longer than the largest bucket.
    """
    settings = with_changes(settings, changes)
    run = start(model, parameters, processor, prompts, settings, weights, (seed, stage, step))
    if on_prefill:
        on_prefill(run.prompts.keys)
    *_, last = _decode(run, run.spec.segment)
    return _join(run, last, completion_lengths)


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
    """Yields the rollout of `sample`, with the same arguments, as it grows: after every `every` tokens, last whole."""
    settings = with_changes(settings, changes)
    run = start(model, parameters, processor, prompts, settings, weights, (seed, stage, step))
    for progress in _decode(run, every):
        yield _join(run, progress)


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
    """Samples completion `g` of a prompt again, alone: `P = G = 1`.

    The prompt must have its key; the other arguments are those of the `sample` that made it.
    """
    settings = with_changes(settings, {**changes, "group_size": 1})
    prompt = dataclasses.replace(prompt, first_sample=g)
    run = start(model, parameters, processor, [prompt], settings, weights, (seed, stage, step))
    *_, last = _decode(run, run.spec.segment)
    return _join(run, last)


def decode_params(model: Model, parameters: Parameters, settings: Sampling | None = None) -> Parameters:
    """Copies parameters into the precision and layout of decoding; made once for each version of them."""
    settings = settings or Sampling()
    decoding = decoding_model(model, settings.mesh, jnp.dtype(settings.precision.value))
    return decoding_weights(model, parameters, decoding)


class SamplerRun(NamedTuple):
    """One call of the sampler, prompts read and the first token sampled.

    Attributes:
        spec: sampler specification.
        programs: jitted.
        decoding_params: the copy for decoding.
        prompts: all of them.
        state: decoding state of their completions.
        rows_per_shard: rows of a data shard of the decoding mesh: prompts, or parts of their groups.
        smaller_sizes: sizes to which a shard may shrink, falling.
        batch_size: prompts that fill the mesh.
        num_prompts: prompts asked for, of those that fill the mesh; None for a batch, which is kept whole.
    """

    spec: SamplerSpec
    programs: SamplerPrograms
    decoding_params: Parameters
    prompts: PromptState
    state: DecodeState
    rows_per_shard: int
    smaller_sizes: tuple[int, ...]
    batch_size: int
    num_prompts: int | None


class _Progress(NamedTuple):
    """Segments `[P, G, S]` so far, and the number of slots sampled."""

    segments: tuple[Segment, ...]
    num_sampled: int


def start(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling,
    weights: Parameters | None,
    seeds: tuple[int, int, int],
    *,
    finished: bool = False,
) -> SamplerRun:
    """Reads the prompts; see `sample` for the arguments.

    Args:
        model: as it is trained.
        parameters: model parameters.
        processor: processor of the model.
        prompts: the prompts, or a batch of them.
        settings: sampling settings.
        weights: the copy for decoding, or None.
        seeds: seed, stage, step.
        finished: whether all completions count as ended, to compile the programs alone.
    """
    spec = processor_spec(model, processor, settings)
    programs = sampler_programs(spec)
    decoding_params = decoding_weights(model, parameters, spec.decoding) if weights is None else weights
    num_prompts = None if isinstance(prompts, PromptBatch) else len(prompts)
    batch = prompts if isinstance(prompts, PromptBatch) else collate_prompts(model, spec.decoding, prompts, settings)
    count = batch.tokens.shape[0]
    parts = decoding_parts(count, spec.decoding, settings)
    done = np.full((count // jax.process_count(), settings.group_size), finished)
    if num_prompts is not None:
        done[num_prompts:] = True
    done = to_devices(done.reshape(-1, settings.group_size // parts), model.mesh)
    prompt_state, state = programs.prefill(parameters, decoding_params, batch, done, np.array(seeds, np.uint32))
    rows = count * parts // spec.num_shards
    sizes = smaller_sizes(rows, settings)
    return SamplerRun(spec, programs, decoding_params, prompt_state, state, rows, sizes, count, num_prompts)


def processor_spec(model: Model, processor: Processor, settings: Sampling) -> SamplerSpec:
    """Makes the specification of a model's sampler, which ends completions at the processor's stop tokens.

    Raises:
        ValueError: the model may sample tokens that the processor's tokenizer does not know.
    """
    if model.vocab_mask.tokenizer_size > processor.tokenizer_size:
        raise ValueError(
            f"the model may sample {model.vocab_mask.tokenizer_size} tokens, but the tokenizer of {processor.folder}"
            f" knows {processor.tokenizer_size}: load both from one folder, or set the model's tokenizer_size"
        )
    return sampler_spec(model, settings, processor.eos_token_ids)


def decoding_parts(count: int, decoding: Model, settings: Sampling) -> int:
    """Returns the parts into which the completions of each of `count` prompts are split over the decoding mesh.

    Raises:
        ValueError: no number of parts spreads them evenly; the message names a mesh that does.
    """
    group_size, num_devices = settings.group_size, decoding.mesh.size
    parts = split_parts(count, group_size, data_shards(decoding.mesh))
    if parts is None:
        tensor = next(
            tensor
            for tensor in range(2, num_devices + 1)
            if num_devices % tensor == 0 and split_parts(count, group_size, num_devices // tensor)
        )
        raise ValueError(
            f"{count} x {group_size} completions do not spread evenly over the {data_shards(decoding.mesh)} data shards"
            f" of sampling.mesh = {settings.mesh}; sampling.mesh=(-1, {tensor}) would"
        )
    return parts


def smaller_sizes(rows_per_shard: int, settings: Sampling) -> tuple[int, ...]:
    """Returns the smaller sizes to which a data shard's batch may shrink, in falling order."""
    return tuple(sorted({ceil(rows_per_shard * share) for share in settings.ladder} - {rows_per_shard}, reverse=True))


def with_changes(settings: Sampling | None, changes: dict[str, Any]) -> Sampling:
    """Returns the settings, or the defaults, with changes by name; refuses impossible ones."""
    settings = dataclasses.replace(settings or Sampling(), **changes)
    validate_sampling(settings)
    return settings


def _decode(run: SamplerRun, every: int) -> Iterator[_Progress]:
    """Samples to the end; yields after every `every` tokens and at the end of each segment."""
    spec, programs, prompts, state = run.spec, run.programs, run.prompts, run.state
    full: list[Segment] = []
    size, num_sampled, capacity = run.rows_per_shard, 0, spec.segment
    while True:
        num_sampled = min(num_sampled + every, capacity, spec.max_new_tokens)
        state = programs.decode(run.decoding_params, prompts, state, np.int32(num_sampled))
        segment = programs.scatter(prompts.rows, state.sampled, rows_per_shard=run.rows_per_shard)
        yield _Progress((*full, segment), num_sampled)
        active = int(programs.count_active(state))
        if not active or num_sampled == spec.max_new_tokens:
            return
        if num_sampled < capacity:
            continue
        full.append(segment)
        if fitting_sizes := [smaller for smaller in run.smaller_sizes if active <= smaller < size]:
            size = min(fitting_sizes)
            prompts, state = programs.compact(prompts, state, rows=size)
        state = programs.grow(state)
        capacity += spec.segment


def padded_length(num_slots: int, max_new_tokens: int, completion_lengths: Sequence[int] = ()) -> int:
    """Returns the length T of a rollout whose segments have so many slots; see `sample`."""
    length = min(num_slots, max_new_tokens)
    return next((padded for padded in completion_lengths if padded >= length), length)


def _join(run: SamplerRun, progress: _Progress, completion_lengths: Sequence[int] = ()) -> Rollout:
    num_slots = len(progress.segments) * run.spec.segment
    rollout = run.programs.join(
        progress.segments,
        np.int32(progress.num_sampled),
        num_prompts=run.batch_size,
        length=padded_length(num_slots, run.spec.max_new_tokens, completion_lengths),
    )
    if run.num_prompts is None or run.num_prompts == rollout.tokens.shape[0] // jax.process_count():
        return rollout
    return jax.tree.map(lambda x: x[: run.num_prompts], rollout)


def collate_prompts(model: Model, decoding: Model, prompts: Sequence[Prompt], settings: Sampling) -> PromptBatch:
    """Collates prompts in the buckets of their lengths and images; the last one is repeated to fill the mesh."""
    hosts = jax.process_count()
    shards = shards_per_host(model.mesh)
    multiple = lcm(shards, data_shards(decoding.mesh)) if hosts == 1 else 1
    padded = [*prompts, *[prompts[-1]] * (-len(prompts) % multiple)]
    if len(padded) % shards:
        raise ValueError(
            f"{len(prompts)} prompts on each of {hosts} hosts do not divide into its {shards} data shards: pad them or"
            " change the mesh"
        )
    shape = batch_shape(max_over_hosts(prompt_dims(model, padded)), settings)
    return to_devices(collate(padded, model.config, shape, shards), model.mesh)


def prompt_dims(model: Model, prompts: Sequence[Prompt]) -> np.ndarray:
    """Measures a host's prompts: int `[3]`, tokens of the longest, slots of the fullest shard, and of an image."""
    vision = model.config.vision
    largest = max((image_slots(image, vision) for prompt in prompts for image in prompt.images), default=1)
    slots = slots_per_shard(prompts, vision, shards_per_host(model.mesh))
    return np.array([max(len(prompt.tokens) for prompt in prompts), slots, largest])


def batch_shape(dims: np.ndarray, settings: Sampling) -> BatchShape:
    """Returns the shape of a batch whose prompts have these dimensions, or smaller ones.

    Args:
        dims: `prompt_dims`, of which the largest over hosts.
        settings: sampling settings.

    Raises:
        BudgetError: a prompt longer than the largest bucket.
    """
    length, slots, largest = map(int, dims)
    length = smallest_bucket(length, settings.prompt_lengths, "sampling.prompt_lengths")
    return BatchShape(length, next_power_of_two(slots), next_power_of_two(largest))


def next_power_of_two(slots: int) -> int:
    """Rounds up to a power of two; 0 stays 0."""
    return slots and 1 << (slots - 1).bit_length()
