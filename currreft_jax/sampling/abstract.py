"""The sampler's programs with abstract arguments, for completions of the greatest length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from currreft_jax.config import Sampling
from currreft_jax.models.decoder import decoding_weights_fn
from currreft_jax.runtime.programs import StepProgram, abstract_rows
from currreft_jax.sampling.programs import sampler_programs
from currreft_jax.sampling.sampler import refuse_uneven
from currreft_jax.sampling.state import SamplerSpec
from currreft_jax.structs import PromptBatch


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
    times: float = 1,
) -> Iterator[StepProgram]:
    """Yields `prefix`, `grow cache` and `decode` with their arguments, in the order in which a step runs them.

    Args:
        spec: sampler specification.
        settings: sampling settings of the specification.
        batch: the prompts, abstract.
        resident: other arrays on the devices all the while, by name.
        cond_fraction: for `StepProgram`.
        prefix: prefix of the programs' names.
        times: rollouts in a step.

    Raises:
        ValueError: the prompts do not divide over the decoding mesh.
    """
    programs, group_size = sampler_programs(spec), settings.group_size
    count, length = batch.tokens.shape
    refuse_uneven(count, spec.decoding, settings)
    prefill = _prefill_arguments(spec, batch, group_size)
    params, decoding_params, *_ = prefill
    slots = f", {batch.images.patches.shape[1]} slots" if batch.images is not None else ""
    shape = f"{count} x {length} tokens{slots}"
    yield StepProgram(f"{prefix}prefix", shape, programs.prefill, prefill, resident, times, 1, cond_fraction)

    prompts, state = jax.eval_shape(programs.prefill, *prefill)
    resident = {**resident, "compute copy": params, "prompts": batch}
    before = state
    for _ in range(spec.num_segments - 1):
        before, state = state, jax.eval_shape(programs.grow, state)
    shape = f"{count} x {group_size} x {spec.num_segments * spec.segment} tokens after {length}"
    if spec.num_segments > 1:
        unread = {**resident, "decoding copy": decoding_params, "prompt caches": prompts}
        calls = times * (spec.num_segments - 1)
        yield StepProgram(f"{prefix}grow cache", shape, programs.grow, (before,), unread, calls)
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    yield StepProgram(
        f"{prefix}decode",
        shape,
        programs.decode,
        (decoding_params, prompts, state, stop),
        resident,
        times * spec.num_segments,
        spec.segment,
        cond_fraction,
    )


def _prefill_arguments(spec: SamplerSpec, batch: PromptBatch, group_size: int) -> tuple[Any, ...]:
    """Returns abstract arguments of `programs.prefill` after the specification."""
    params = spec.model.abstract(spec.model.dtype)
    decoding_params = jax.eval_shape(decoding_weights_fn(spec.model, spec.decoding), params)
    done = abstract_rows((batch.tokens.shape[0],), jnp.bool_, spec.model.mesh)
    seeds, sample_ids = jax.ShapeDtypeStruct((3,), jnp.uint32), jax.ShapeDtypeStruct((group_size,), jnp.int32)
    return params, decoding_params, batch, done, seeds, sample_ids
