"""The sampler's programs with abstract arguments, for completions of the greatest length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from currreft_jax.config import Sampling, validate_sampling
from currreft_jax.data.processor import Processor
from currreft_jax.models.decoder import decoding_weights_fn
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.programs import StepProgram, abstract_rows
from currreft_jax.sampling.programs import sampler_programs
from currreft_jax.sampling.sampler import decoding_parts, padded_length, smaller_sizes, start
from currreft_jax.sampling.state import DecodeState, PromptState, SamplerSpec
from currreft_jax.structs import Prompt, PromptBatch


def reshard_program(spec: SamplerSpec, resident: dict[str, Any]) -> StepProgram:
    """Makes the program that makes the decoding copy of the parameters."""
    params = spec.model.abstract(spec.model.dtype)
    return StepProgram("reshard", "", decoding_weights_fn(spec.model, spec.decoding), (params,), resident)


def abstract_sampler_programs(
    spec: SamplerSpec,
    settings: Sampling,
    batch: PromptBatch,
    resident: dict[str, Any],
    *,
    cond_fraction: float,
    prefix: str = "",
) -> Iterator[StepProgram]:
    """Yields `prefix`, `grow cache` and `decode` with their arguments, in the order in which a step runs them.

    Args:
        spec: sampler specification.
        settings: sampling settings of the specification.
        batch: the prompts, abstract.
        resident: other arrays on the devices all the while, by name.
        cond_fraction: for `StepProgram`.
        prefix: prefix of the programs' names.

    Raises:
        ValueError: the completions do not spread evenly over the decoding mesh.
    """
    programs = sampler_programs(spec)
    count, length = batch.tokens.shape
    prefill = _prefill_arguments(spec, batch, settings)
    params, decoding_params, _, done, _ = prefill
    slots = f", {batch.images.patches.shape[1]} slots" if batch.images is not None else ""
    shape = f"{count} x {length} tokens{slots}"
    yield StepProgram(f"{prefix}prefix", shape, programs.prefill, prefill, resident, 1, 1, cond_fraction)

    prompts, state = jax.eval_shape(programs.prefill, *prefill)
    resident = {**resident, "compute copy": params, "prompts": batch}
    before = state
    for _ in range(spec.num_segments - 1):
        before, state = state, jax.eval_shape(programs.grow, state)
    shape = f"{done.shape[0]} x {done.shape[1]} x {spec.num_segments * spec.segment} tokens after {length}"
    if spec.num_segments > 1:
        unread = {**resident, "decoding copy": decoding_params, "prompt caches": prompts}
        yield StepProgram(f"{prefix}grow cache", shape, programs.grow, (before,), unread, spec.num_segments - 1)
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    yield StepProgram(
        f"{prefix}decode",
        shape,
        programs.decode,
        (decoding_params, prompts, state, stop),
        resident,
        spec.num_segments,
        spec.segment,
        cond_fraction,
        awaits_collectives=True,
    )


def every_sampler_program(
    spec: SamplerSpec, settings: Sampling, batch: PromptBatch, completion_lengths: Sequence[int] = ()
) -> Iterator[StepProgram]:
    """Yields every program that sampling for a batch of this shape can call, whichever completions end first.

    Args:
        spec: sampler specification.
        settings: sampling settings of the specification.
        batch: the prompts, abstract.
        completion_lengths: as in `sample`.
    """
    prefill = _prefill_arguments(spec, batch, settings)
    slots = f", {batch.images.patches.shape[1]} slots" if batch.images is not None else ""
    shape = f"{batch.tokens.shape[0]} x {batch.tokens.shape[1]} tokens{slots}"
    programs = sampler_programs(spec)
    yield StepProgram("prefix", shape, programs.prefill, prefill, {})
    prompts, state = jax.eval_shape(programs.prefill, *prefill)
    yield from programs_after_prefill(
        spec, settings, prefill[1], prompts, state, batch.tokens.shape, completion_lengths
    )


def programs_after_prefill(
    spec: SamplerSpec,
    settings: Sampling,
    decoding_params: Parameters,
    prompts: PromptState,
    state: DecodeState,
    batch_shape: tuple[int, ...],
    completion_lengths: Sequence[int] = (),
) -> Iterator[StepProgram]:
    """Yields the programs that follow the prefill, for every length of the caches and every size of the batch.

    Args:
        spec: sampler specification.
        settings: sampling settings of the specification.
        decoding_params: the copy for decoding, abstract or not, as the states.
        prompts: state of the prompts after the prefill.
        state: state of the completions after the prefill.
        batch_shape: number and length of the prompts.
        completion_lengths: as in `sample`.
    """
    programs, (count, length) = sampler_programs(spec), batch_shape
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    full_size = state.token.shape[0] // spec.num_shards
    sizes = smaller_sizes(full_size, settings)
    states, segments = {full_size: (prompts, state)}, []
    for number in range(1, spec.num_segments + 1):
        decoded = {}
        for size, (prompts, state) in states.items():
            rows, group_size = state.token.shape
            shape = f"{rows} x {group_size} x {number * spec.segment} tokens"
            yield StepProgram(
                "decode", f"{shape} after {length}", programs.decode, (decoding_params, prompts, state, stop), {}
            )
            decoded[size] = prompts, jax.eval_shape(programs.decode, decoding_params, prompts, state, stop)
            yield StepProgram("count active", shape, programs.count_active, (state,), {})
            arguments, static = (prompts.rows, state.sampled), {"rows_per_shard": full_size}
            yield StepProgram("scatter", f"{rows} x {group_size}", programs.scatter, arguments, {}, static=static)
            if size == full_size:
                segments.append(jax.eval_shape(programs.scatter, *arguments, **static))
        static = {
            "num_prompts": count,
            "length": padded_length(number * spec.segment, spec.max_new_tokens, completion_lengths),
        }
        yield StepProgram("join", f"{number} segments", programs.join, (tuple(segments), stop), {}, static=static)
        if number == spec.num_segments:
            return
        for size in sorted(decoded, reverse=True):
            for smaller in (smaller for smaller in sizes if smaller < size):
                shape = f"{size} to {smaller} rows x {number * spec.segment} tokens after {length}"
                static = {"rows": smaller}
                yield StepProgram("compact", shape, programs.compact, decoded[size], {}, static=static)
                decoded[smaller] = jax.eval_shape(programs.compact, *decoded[size], **static)
        states = {}
        for size, (prompts, state) in decoded.items():
            shape = f"{state.token.shape[0]} x {state.token.shape[1]} x {number * spec.segment} tokens"
            yield StepProgram("grow cache", shape, programs.grow, (state,), {})
            states[size] = prompts, jax.eval_shape(programs.grow, state)


def warm_up(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt] | PromptBatch,
    settings: Sampling | None = None,
    *,
    weights: Parameters | None = None,
    **changes: Any,
) -> None:
    """Compiles every program that sampling for prompts of this batch's shape can need; samples first tokens alone."""
    settings = dataclasses.replace(settings or Sampling(), **changes)
    validate_sampling(settings)
    run = start(model, parameters, processor, prompts, settings, weights, (0, 0, 0), finished=True)
    batch_shape = run.batch_size, run.prompts.caches[0].values.shape[2]
    states = run.decoding_params, run.prompts, run.state
    for program in programs_after_prefill(run.spec, settings, *states, batch_shape):
        program.function.lower(*program.arguments, **program.static).compile()


def _prefill_arguments(spec: SamplerSpec, batch: PromptBatch, settings: Sampling) -> tuple[Any, ...]:
    """Returns abstract arguments of `programs.prefill` after the specification."""
    params = spec.model.abstract(spec.model.dtype)
    decoding_params = jax.eval_shape(decoding_weights_fn(spec.model, spec.decoding), params)
    count = batch.tokens.shape[0]
    parts = decoding_parts(count, spec.decoding, settings)
    done = abstract_rows((count * parts, settings.group_size // parts), jnp.bool_, spec.model.mesh)
    return params, decoding_params, batch, done, jax.ShapeDtypeStruct((3,), jnp.uint32)
