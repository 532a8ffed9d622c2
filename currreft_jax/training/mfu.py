"""Model FLOPs utilization of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import fmean

import jax

from currreft_jax.config import Remat
from currreft_jax.planning.devices import device_spec
from currreft_jax.planning.flops import matmul_flops
from currreft_jax.training.batches import Bucket
from currreft_jax.training.programs import StagePrograms
from currreft_jax.training.update import gradient_function

Mfu = Callable[[Sequence[Bucket], float, float], float]  # (buckets of a step, completion tokens, seconds) -> MFU


def make_mfu(stage: StagePrograms) -> Mfu | None:
    """Makes the function that computes the model FLOPs utilization of a step.

    The utilization is the FLOPs of the step's matrix products, without recomputation (arXiv 2204.02311, appendix B), as
    a fraction of the devices' bf16 peak. Padding of prompts, images and trained completions counts, since the programs
    compute it; of decoding, the sampled tokens alone count.

    Returns:
        None if the peak of the devices is unknown.
    """
    devices = stage.model.mesh.devices
    spec = device_spec(devices.flat[0])
    if spec is None:
        return None
    peak, counted = devices.size * spec.peak_flops, cache(partial(bucket_flops, stage))

    def mfu(buckets: Sequence[Bucket], num_completion_tokens: float, seconds: float) -> float:
        fixed, per_token = (fmean(flops) for flops in zip(*map(counted, buckets), strict=True))
        return (fixed + per_token * num_completion_tokens) / (peak * seconds)

    return mfu


def bucket_flops(stage: StagePrograms, bucket: Bucket) -> tuple[float, float]:
    """Counts the model FLOPs of a step whose microbatches take one shape, over all devices.

    Returns:
        All but those of decoding; and those of decoding one token of one completion.
    """
    fixed = per_token = 0.0
    for program in stage.step(bucket):
        if not program.times:  # of the evaluation
            continue
        function = program.function
        if program.name == "gradient":
            model = replace(stage.model, remat=Remat.NONE)
            function = jax.jit(partial(gradient_function(stage.config), model))
        jaxpr = function.trace(*program.arguments).jaxpr.jaxpr
        if program.name == "decode":
            _, _, state, _ = program.arguments
            per_token = matmul_flops(jaxpr, 1, program.cond_fraction) / state.token.size
        else:
            fixed += program.times * matmul_flops(jaxpr, program.iterations, program.cond_fraction)
    return fixed, per_token
