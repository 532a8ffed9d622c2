"""Compares a device with the CPU in fp32, and its attention kernel with einsum in bf16, with a small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import currreft_jax as cr
from benchmarks.workload import prompt_batch
from currreft_jax.config import AttentionKernel, CacheType, Grpo, LossAverage, Precision, Sampling
from currreft_jax.data.processor import Processor
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.structs import GroupBatch, GrpoTargets, Prompt, PromptBatch, Rollout
from currreft_jax.training.gradients import grpo_gradient
from currreft_jax.training.losses import group_advantages, loss_counts, loss_weights
from currreft_jax.world import base
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import domains, make_scene, render_array
from currreft_jax.world.settings import WorldSettings

# Largest differences that pass. On an H200 rounding in fp32 gave up to 4e-6, sampling in bf16 4e-2.
BOUNDS = {
    "logits": 1e-4,
    "logprobs": 1e-4,
    "gradient": 1e-4,
    "greedy": 0.0,
    "sampled": 0.05,
    "sampler_against_trainer": 1e-4,
}

# The error of a kernel in bf16 over that of einsum in bf16, both against fp32: they round at other places.
KERNEL_MARGIN = 2.0


@dataclass(frozen=True)
class Outputs:
    """The results of one device.

    Attributes:
        logits: `[P, L, V]` of the prompts.
        sampled: completions at temperature 1.
        greedy: completions at temperature 0.
        own_logprobs: `[P, G, T]`, the trainer's log-probs of `sampled`.
        logprobs: `[P, G, T]`, the trainer's log-probs of the CPU's completions.
        gradient: of the GRPO loss on the CPU's completions.
    """

    logits: np.ndarray
    sampled: Rollout
    greedy: Rollout
    own_logprobs: np.ndarray
    logprobs: np.ndarray
    gradient: Parameters


def measure(device: Any, say: Callable[[str], None], *, num_prompts: int = 8, group: int = 4, tokens: int = 24) -> dict:
    """Computes the same on the CPU and on a device, and compares.

    Returns:
        `differences`: logits relative to the largest one; log-probs, absolute; gradient by norm,
        ‖device - CPU‖ / ‖CPU‖; shares of the greedy and sampled completions that have another token; and the sampler's
        log-probs against the trainer's, on the device. `failures`: a line for each that is above its bound.
    """
    processor = cr.load_processor(base.checkpoint())
    prompts = world_prompts(processor, num_prompts)
    settings = Sampling(
        group_size=group,
        max_new_tokens=tokens,
        segment=tokens,
        ladder=(),
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
    )
    on_cpu = compute_outputs(*load(jax.devices("cpu")[0]), processor, prompts, settings)
    say("the CPU's results are there")
    on_device = compute_outputs(*load(device), processor, prompts, settings, on_cpu)
    say("the device's results are there")
    return compare(on_cpu, on_device, [len(prompt.tokens) for prompt in prompts])


def measure_kernel(
    device: Any, kernel: AttentionKernel, say: Callable[[str], None], *, num_prompts: int = 8, group: int = 4, tokens=24
) -> dict:
    """Computes logits, log-probs and the GRPO gradient in fp32, and in bf16 by einsum and by a kernel.

    Returns:
        `errors`: each one's distance from fp32, ‖bf16 - fp32‖ / ‖fp32‖, by einsum and by the kernel. `failures`: a line
        for each where the kernel's is more than `KERNEL_MARGIN` times einsum's, or has einsum's bits.
    """
    processor = cr.load_processor(base.checkpoint())
    model, params = load(device)
    prompts = world_prompts(processor, num_prompts)
    tokens_of = np.random.default_rng(1).integers(0, 256, (num_prompts, group, tokens), np.int32)
    computed = []
    for name, dtype in (
        (AttentionKernel.EINSUM, jnp.float32),
        (AttentionKernel.EINSUM, jnp.bfloat16),
        (kernel, jnp.bfloat16),
    ):
        computed.append(
            _forward_and_gradient(replace(model, dtype=jnp.dtype(dtype), attention=name), params, prompts, tokens_of)
        )
        say(f"{name.value} in {jnp.dtype(dtype).name} is there")
    return compare_kernel(kernel, *computed)


def compare_kernel(kernel: AttentionKernel, exact: Parameters, einsum: Parameters, fused: Parameters) -> dict:
    """Returns the `errors` and the `failures` of `measure_kernel`, of its results by name."""
    errors = {
        name: {"einsum": _distance(einsum[name], exact[name]), kernel.value: _distance(fused[name], exact[name])}
        for name in exact
    }
    failures = [
        f"{name}: {kernel.value} is {error[kernel.value]:.1e} from fp32, more than {KERNEL_MARGIN} times einsum's"
        f" {error['einsum']:.1e}"
        for name, error in errors.items()
        if not error[kernel.value] <= KERNEL_MARGIN * error["einsum"]  # NaN fails
    ]
    if not _distance(fused["logits"], einsum["logits"]):
        failures.append(f"logits: {kernel.value} gives einsum's bits, so it did not run")
    return {"kernel": kernel.value, "errors": errors, "failures": failures}


def _forward_and_gradient(
    model: Model, params: Parameters, prompts: Sequence[Prompt], tokens: np.ndarray
) -> Parameters:
    host_batch = prompt_batch(prompts, model.config)
    batch = cr.to_devices(host_batch, model.mesh)
    real = np.arange(host_batch.tokens.shape[1]) < np.asarray(host_batch.lengths)[:, None]
    logprobs = np.asarray(cr.token_logprobs(model, params, batch, tokens))
    mask = np.ones(tokens.shape, bool)
    return {
        "logits": np.asarray(_prompt_logits(model)(params, batch))[real],
        "logprobs": logprobs,
        # Old log-probs of their own, so that every ratio is 1 and no clipping differs.
        "gradient": _gradient(model, params, GroupBatch(host_batch, tokens), mask, logprobs),
    }


def _distance(one: Any, other: Any) -> float:
    """Returns ‖one - other‖ / ‖other‖ over all arrays of two trees."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    squares = [(np.sum(np.square(a.astype(np.float64) - b)), np.sum(np.square(b, dtype=np.float64))) for a, b in pairs]
    distance, norm = np.sqrt(np.sum(squares, axis=0))
    return float(distance / norm)


def load(device: Any) -> tuple[Model, Parameters]:
    """Loads the world's base model, in fp32, on one device."""
    return cr.load_model(base.checkpoint(), mesh=cr.make_mesh(devices=[device]), dtype="float32")


def world_prompts(processor: Processor, count: int) -> list[Prompt]:
    """Makes prompts about scenes of the world, of all tasks and kinds in turn."""
    world = WorldSettings()
    in_domain = domains(world)["in"]
    prompts = []
    for index in range(count):
        scene = make_scene(0, 30_000_000 + index, in_domain, world)
        task, kind = TASKS[index % len(TASKS)], KINDS[index // len(TASKS) % len(KINDS)]
        row = make_question(scene, task, kind, image="x.png", split="test", settings=world).row
        content = [{"type": "image"}, {"type": "text", "text": user_text(row)}]
        image = Image.fromarray(render_array(scene))
        prompts.append(processor.prompt([{"role": "user", "content": content}], [image], key=index))
    return prompts


def compute_outputs(
    model: Model,
    params: Parameters,
    processor: Processor,
    prompts: Sequence[Prompt],
    settings: Sampling,
    reference: Outputs | None = None,
) -> Outputs:
    """Computes all results on the model's device; log-probs and gradient of the reference's completions, if given."""
    host_batch = prompt_batch(prompts, model.config)
    batch = cr.to_devices(host_batch, model.mesh)
    sample = partial(cr.sample, model, params, processor, prompts, seed=3)
    sampled = _on_host(sample(settings))
    target = reference.sampled if reference else sampled
    own = np.asarray(cr.token_logprobs(model, params, batch, sampled.tokens))
    old_logprobs = reference.own_logprobs if reference else own
    return Outputs(
        logits=np.asarray(_prompt_logits(model)(params, batch)),
        sampled=sampled,
        greedy=_on_host(sample(replace(settings, group_size=1, temperature=0.0))),
        own_logprobs=own,
        logprobs=np.asarray(cr.token_logprobs(model, params, batch, target.tokens)),
        gradient=_gradient(model, params, GroupBatch(host_batch, target.tokens), target.mask, old_logprobs),
    )


def compare(cpu: Outputs, device: Outputs, prompt_lengths: Sequence[int]) -> dict:
    """Returns the `differences` and the `failures` of `measure`."""
    real = np.arange(cpu.logits.shape[1]) < np.asarray(prompt_lengths)[:, None]
    mask, own_mask = cpu.sampled.mask, device.sampled.mask
    differences = {
        "logits": np.abs(cpu.logits - device.logits)[real].max() / np.abs(cpu.logits[real]).max(),
        "logprobs": np.abs(cpu.logprobs - device.logprobs)[mask].max(),
        "gradient": _distance(device.gradient, cpu.gradient),
        "greedy": _share_of_other_tokens(cpu.greedy, device.greedy),
        "sampled": _share_of_other_tokens(cpu.sampled, device.sampled),
        "sampler_against_trainer": np.abs(device.own_logprobs - device.sampled.logprobs)[own_mask].max(),
    }
    differences = {name: float(value) for name, value in differences.items()}
    failures = [
        f"{name}: differs by {value:.1e}, more than {BOUNDS[name]:.1e}"
        for name, value in differences.items()
        if not value <= BOUNDS[name]  # NaN fails
    ]
    return {"differences": differences, "failures": failures, "completions": int(mask.shape[0] * mask.shape[1])}


def _share_of_other_tokens(cpu: Rollout, device: Rollout) -> float:
    """Returns the share of completions with another token or another length."""
    same = np.all((cpu.tokens == device.tokens) & (cpu.mask == device.mask), axis=2)
    return 1 - float(same.mean())


@lru_cache
def _prompt_logits(model: Model) -> Any:
    def logits(params: Parameters, batch: PromptBatch) -> jax.Array:
        module = model.bind(params)
        return module.logits(module.prompt_hidden(batch))

    return jax.jit(logits)


@lru_cache
def _gradient_program(model: Model) -> Any:
    return jax.jit(partial(grpo_gradient, model, settings=Grpo(), temperature=1.0))


def _gradient(
    model: Model, params: Parameters, batch: GroupBatch, mask: np.ndarray, old_logprobs: np.ndarray
) -> Parameters:
    """Computes the gradient of the GRPO loss with KL penalty, for random rewards and reference log-probs."""
    rng = np.random.default_rng(0)
    weights = loss_weights(mask, LossAverage.SEQUENCE, loss_counts([mask]))
    old_logprobs = np.where(mask, old_logprobs, 0).astype(np.float32)
    ref_logprobs = old_logprobs - 0.1 * rng.random(old_logprobs.shape, np.float32)
    advantages = group_advantages(rng.random(mask.shape[:2])).astype(np.float32)
    arguments = cr.to_devices((batch, weights, GrpoTargets(advantages, old_logprobs, ref_logprobs)), model.mesh)
    total, _ = _gradient_program(model)(params, jax.tree.map(jnp.zeros_like, params), *arguments)
    return _on_host(total)


def _on_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
