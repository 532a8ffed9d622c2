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
from currreft_jax.sampling.sampler import decoding_parts
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


def _prefill_arguments(spec: SamplerSpec, batch: PromptBatch, settings: Sampling) -> tuple[Any, ...]:
    """Returns abstract arguments of `programs.prefill` after the specification."""
    params = spec.model.abstract(spec.model.dtype)
    decoding_params = jax.eval_shape(decoding_weights_fn(spec.model, spec.decoding), params)
    count = batch.tokens.shape[0]
    parts = decoding_parts(count, spec.decoding, settings)
    done = abstract_rows((count * parts, settings.group_size // parts), jnp.bool_, spec.model.mesh)
    return params, decoding_params, batch, done, jax.ShapeDtypeStruct((3,), jnp.uint32)
