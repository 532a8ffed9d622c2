"""The measurements of `benchmarks.gpu`; each reports its figures as soon as it has them.

Shares of a device's peak are those of its data sheet (`planning.devices.DEVICES`), with

  bandwidth share   bytes that a decoding step must read / its seconds / the device's bandwidth: the weights once, each
                    prompt's cache once for its group, each completion's own cache (`decode_bytes_per_step`)
  MFU               FLOPs of the model / seconds / the device's bf16 peak; those of an update are 3 times those of its
                    forward pass, counted in the jaxpr (`planning.flops`): the backward pass computes two products for
                    each product of the forward pass, and what is computed again (remat) does not count
  HFU               FLOPs of the program, recomputation included / seconds / the device's bf16 peak
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import numerics
from benchmarks.workload import (
    QUESTION,
    SIZES,
    PeerProcess,
    decode_bytes_per_step,
    image_prompt,
    log_compilations,
    prompt_batch,
    write_image,
    write_job,
    write_model_files,
)
from currreft_jax.config import (
    AttentionKernel,
    Config,
    Data,
    Init,
    Kind,
    LossAverage,
    MeshShape,
    Method,
    Optimizer,
    Pretrained,
    Remat,
    Rewards,
    Rule,
    Sampling,
    Stage,
    Task,
)
from currreft_jax.data.buckets import ShapeBuckets
from currreft_jax.data.examples import Example
from currreft_jax.data.packing import BatchShape
from currreft_jax.data.processor import Processor
from currreft_jax.models.flash import choose_kernel
from currreft_jax.models.qwen2_5_vl import Parameters, token_logprobs
from currreft_jax.planning.compiled import CompiledProgram, Efficiency, compile_programs, step_seconds
from currreft_jax.planning.devices import GIB, DeviceSpec, Topology, attached_topology
from currreft_jax.planning.flops import matmul_flops
from currreft_jax.planning.spec import ModelSpec
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.programs import StepProgram, device_bytes
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.sampling.sampler import decode_params, sample, start
from currreft_jax.session.session import load_config_processor
from currreft_jax.session.sources import to_compute_dtype
from currreft_jax.structs import GroupBatch, GrpoTargets, Prompt, PromptBatch, Rollout, Row
from currreft_jax.training.batches import StageContext, collate_prompts, row_sampling
from currreft_jax.training.grpo import advantages_of, grpo_minibatches, grpo_step, reference_logprobs, score_groups
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.programs import Bucket, StagePrograms, stage_programs
from currreft_jax.training.sft import sft_batch, sft_step
from currreft_jax.training.update import TrainState, init_state, loss_and_gradient

LEARNING_RATE = 1e-6
MARGIN = 1.1  # of memory over the plan's; on an H200 a step took 1.07 times what was planned


@dataclass(frozen=True)
class Load:
    """The work of a size.

    Attributes:
        prompts: prompts of a step, each with one image.
        group: completions of a prompt.
        new_tokens: tokens of a completion.
        image: width and height in pixels; an image token covers 28 x 28.
        repeats: timed runs, of which the median counts.
        matmul: side of the square matrices of the device's matmul.
        copy_bytes: size of the array of the device's copy.
        numerics: arguments of `numerics.measure`.
    """

    prompts: int
    group: int
    new_tokens: int
    image: tuple[int, int]
    repeats: int
    matmul: int
    copy_bytes: int
    numerics: dict[str, int]


LOADS = {
    "3b": Load(8, 8, 512, (896, 448), 2, 8192, 4 * 2**30, {}),
    "tiny": Load(4, 2, 8, (112, 56), 1, 256, 2**20, {"num_prompts": 2, "group": 2, "tokens": 4}),
}


@dataclass(frozen=True)
class Bench:
    """What a measurement gets.

    Attributes:
        size: name of the size.
        folder: an empty folder for its files.
        hf_python: Python of an environment with torch and transformers.
        say: prints a line of progress.
        report: adds figures to the results at once.
    """

    size: str
    folder: Path
    hf_python: str
    say: Callable[[str], None]
    report: Callable[..., None]

    @property
    def load(self) -> Load:
        """The work of the size."""
        return LOADS[self.size]


# ------------------------------------------------------------------------------------------------------------ the parts


def measure_device(bench: Bench) -> None:
    """Measures a bf16 matmul of square matrices, and a copy; the copy's bytes count when read and when written."""
    device, load = jax.devices()[0], bench.load
    packages = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax")
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    topology = attached_topology([device])
    bench.report(
        platform=device.platform,
        versions={name: installed[name] for name in packages if name in installed},
        memory_bytes=topology.usable_bytes,
        data_sheet={"peak_flops": topology.spec.peak_flops, "bandwidth": topology.spec.bandwidth}
        if topology.spec
        else None,
    )
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (load.matmul, load.matmul), jnp.bfloat16) for key in keys)
    matmul = jax.jit(jnp.matmul)
    seconds = _median_seconds(lambda: matmul(a, b), 20)
    bench.report(matmul_flops=2 * load.matmul**3 / seconds)
    x = jnp.ones(load.copy_bytes // 4, jnp.float32)
    increment = jax.jit(lambda x: x + 1)
    bench.report(copy_bandwidth=2 * x.nbytes / _median_seconds(lambda: increment(x), 10))


def measure_numerics(bench: Bench) -> None:
    """Compares the device with the CPU."""
    bench.report(**numerics.measure(jax.devices()[0], bench.say, **bench.load.numerics))


def measure_attention(bench: Bench) -> None:
    """Compares the platform's attention kernel with einsum: numbers in bf16, and seconds of an update's gradient."""
    device = jax.devices()[0]
    kernel = choose_kernel(AttentionKernel.AUTO, make_mesh(devices=[device]), jnp.dtype(jnp.bfloat16))
    if kernel is AttentionKernel.EINSUM:
        bench.report(skipped=f"{device.platform} has neither cuDNN's nor splash attention")
        return
    bench.report(**numerics.measure_kernel(device, kernel, bench.say, **bench.load.numerics))
    seconds, opened = {}, _open_model(bench)
    for name in (AttentionKernel.EINSUM, kernel):
        seconds[name.value] = _gradient_seconds(bench, name, *opened)
        bench.report(gradient_seconds=seconds)
        bench.say(f"gradient by {name.value} {seconds[name.value]:.3f} s")


def measure_sampling(bench: Bench) -> None:
    """Measures the prefix and decoding, for half of the prompts and for all of them."""
    load, topology = bench.load, attached_topology(jax.devices()[:1])
    processor, prompts = _open_model(bench)
    config = _config(bench, Method.GRPO, Rule.ADAMW, load.prompts)
    model = _stage(config, processor, topology).model
    params = to_compute_dtype(model)(model.init(0))
    weights = jax.block_until_ready(decode_params(model, params, config.sampling))
    bench.say("parameters are there")
    for num_prompts in (load.prompts // 2, load.prompts):
        settings, some = config.sampling, prompts[:num_prompts]
        batch = to_devices(prompt_batch(some, model.config), model.mesh)
        sampler = (model, params, processor, batch, settings)
        read = partial(start, *sampler, weights, (0, 0, 0))
        draw = partial(sample, *sampler, weights=weights)
        jax.block_until_ready(draw())
        compiled = log_compilations()
        prefix = _median_seconds(lambda read=read: read().state, load.repeats)
        whole = _median_seconds(draw, load.repeats)
        step = (whole - prefix) / max(1, load.new_tokens - 1)  # the prefix samples the first token
        moved = decode_bytes_per_step(model, weights, some, settings)
        completions = num_prompts * load.group
        bench.report(
            **{
                f"B={completions}": {
                    "prompts": num_prompts,
                    "prompt_tokens": len(some[0].tokens),
                    "group": load.group,
                    "new_tokens": load.new_tokens,
                    "prefix_seconds": prefix,
                    "seconds": whole,
                    "decode_step_seconds": step,
                    "tokens_per_second": completions * load.new_tokens / whole,
                    "decode_bytes_per_step": moved,
                    "decode_bandwidth": moved / step,
                    "bandwidth_share": moved / step / topology.spec.bandwidth if topology.spec else None,
                    "compiled_after_warm_up": len(compiled),
                }
            }
        )
        bench.say(f"{completions} completions: prefix {prefix:.3f} s, decoding {1e3 * step:.2f} ms a step")


def measure_step(bench: Bench) -> None:
    """Measures a GRPO step and its phases, and its peak memory against the plan's."""
    chosen = _choose(bench, Method.GRPO)
    with ThreadPoolExecutor(1) as reward_thread:
        state = _init(chosen)
        context = replace(chosen.context, ref_params=to_compute_dtype(chosen.stage.model)(state.params))
        bench.say("parameters are there")

        def take_step(state: TrainState, step: int) -> TrainState:
            with closing(StepTimer()) as timer:
                result = grpo_step(context, chosen.stage.update, reward_thread, state, chosen.examples, step, timer)
            return result.state

        state = jax.block_until_ready(take_step(state, 1))
        chosen.report_peak(bench)
        phases, compiled = Stopwatch(), log_compilations()
        for step in range(2, 2 + bench.load.repeats):
            state = phases.time("step", take_step, state, step)
            state = _grpo_phases(context, chosen, reward_thread, state, step, phases)
            bench.say(f"step {phases.seconds['step'][-1]:.3f} s, gradient {phases.seconds['gradient'][-1]:.3f} s")
    seconds = phases.medians
    planned = chosen.flops
    bench.report(
        seconds=seconds,
        compiled_after_warm_up=len(compiled),
        **_utilisation(
            chosen.topology.spec,
            {
                "mfu_prefix": (planned["prefix"], seconds["prefix"]),
                "mfu_reference": (planned["reference"], seconds["reference"]),
                "mfu_update": (3 * planned["reference"], seconds["gradient"] + seconds["apply"]),
                "hfu_update": (planned["gradient"], seconds["gradient"] + seconds["apply"]),
            },
        ),
    )


def measure_sft(bench: Bench) -> None:
    """Measures a step of supervised fine-tuning, and its peak memory against the plan's."""
    chosen = _choose(bench, Method.SFT)
    state, stage = _init(chosen), chosen.stage
    bench.say("parameters are there")

    def take_step(state: TrainState) -> TrainState:
        with closing(StepTimer()) as timer:
            return sft_step(chosen.context, stage.update, state, chosen.examples, timer).state

    state = jax.block_until_ready(take_step(state))
    chosen.report_peak(bench)
    phases = Stopwatch()
    for _ in range(bench.load.repeats):
        state = phases.time("step", take_step, state)
    ((batch, *_),), _ = sft_batch(chosen.context, chosen.examples)
    forward, seconds = _forward_flops(stage, batch), phases.medians
    flops = {"mfu_update": 3 * forward, "hfu_update": chosen.flops["gradient"]}
    bench.report(
        seconds=seconds,
        **_utilisation(chosen.topology.spec, {name: (count, seconds["step"]) for name, count in flops.items()}),
    )


def measure_generate(bench: Bench) -> None:
    """Measures `generate` of transformers on the same shape, with torch on the GPU, in a process of its own."""
    if subprocess.run([bench.hf_python, "-c", "import torch, transformers"], capture_output=True).returncode:
        bench.report(skipped=f"{bench.hf_python} cannot import torch and transformers")
        return
    load = bench.load
    processor, prompts = _open_model(bench)
    images = [bench.folder / f"{index}.png" for index in range(load.prompts)]
    settings = Sampling(group_size=load.group, max_new_tokens=load.new_tokens)
    write_job(bench.folder, processor, prompts, images, settings)
    peer = PeerProcess("hf", bench.hf_python, bench.folder)
    bench.say("the model is loaded, and has run once")
    runs = [peer() for _ in range(min(2, load.repeats))]
    peer.close()
    seconds = statistics.median(elapsed for elapsed, _ in runs)
    bench.report(completions=load.prompts * load.group, seconds=seconds, tokens_per_second=runs[0][1] / seconds)


PARTS: dict[str, Callable[[Bench], None]] = {
    "device": measure_device,
    "numerics": measure_numerics,
    "attention": measure_attention,
    "sampling": measure_sampling,
    "step": measure_step,
    "sft": measure_sft,
    "generate": measure_generate,
}


# ------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Chosen:
    """The settings that fit the device, and their plan.

    Attributes:
        topology: the device.
        stage: its programs.
        context: context of the step, without a reference.
        examples: the batch.
        compiled: the programs of a step, compiled.
    """

    topology: Topology
    stage: StagePrograms
    context: StageContext
    examples: list[Example]
    compiled: list[CompiledProgram]

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of each program in a step."""
        return {result.program.name: result.program.times * result.flops for result in self.compiled}

    @property
    def planned(self) -> dict[str, Any]:
        """The plan's figures."""
        topology, efficiency = self.topology, Efficiency()
        figures: dict[str, Any] = {
            result.program.name: {
                "peak_bytes": result.peak_bytes,
                "flops": result.flops,
                "moved_bytes": result.traffic.memory,
                "compile_seconds": result.compile_seconds,
                "seconds": step_seconds([result], topology, efficiency) if topology.spec else None,
            }
            for result in self.compiled
        }
        return {
            "peak_bytes": max(result.peak_bytes for result in self.compiled),
            "seconds": step_seconds(self.compiled, topology, efficiency) if topology.spec else None,
            "programs": figures,
        }

    def report_peak(self, bench: Bench) -> None:
        """Reports the most bytes in use so far in this process; CPUs do not tell."""
        stats = self.topology.devices[0].memory_stats() or {}
        measured, planned = stats.get("peak_bytes_in_use"), self.planned["peak_bytes"]
        bench.report(peak_bytes=measured)
        told = f"{measured / GIB:.2f} GiB" if measured else "unknown"
        bench.say(f"peak memory {told}, planned {planned / GIB:.2f} GiB")


def _choose(bench: Bench, method: Method) -> Chosen:
    """Plans a step, and takes the first settings that fit: AdamW, then Adafactor, then fewer prompts.

    Raises:
        SystemExit: none fit.
    """
    load, topology = bench.load, attached_topology(jax.devices()[:1])
    processor, prompts = _open_model(bench)
    refused: list[str] = []
    for rule, divisor in ((Rule.ADAMW, 1), (Rule.ADAFACTOR, 1), (Rule.ADAFACTOR, 2), (Rule.ADAFACTOR, 4)):
        num_prompts = load.prompts // divisor
        config = _config(bench, method, rule, num_prompts)
        some = prompts[:num_prompts]
        batch = prompt_batch(some, processor.config)
        assert batch.images is not None
        shape = BatchShape(batch.tokens.shape[1], batch.images.patches.shape[1], batch.images.max_slots_per_image)
        stage = _stage(config, processor, topology)
        programs = [program for program in stage.step(Bucket(shape, load.new_tokens)) if program.times]
        compiled, reason = _compile(bench, programs, topology)
        if reason:
            refused.append(f"{rule.value}, {num_prompts} prompts: {reason}")
            bench.say(f"does not fit: {refused[-1]}")
            continue
        buckets = ShapeBuckets((shape,), (shape,), (load.new_tokens,))
        context = StageContext(config=config, processor=processor, model=stage.model, stage_index=0, buckets=buckets)
        chosen = Chosen(topology, stage, context, _examples(bench, some, method), compiled)
        bench.report(
            prompts=num_prompts,
            prompt_tokens=shape.length,
            group=load.group if method is Method.GRPO else 1,
            new_tokens=load.new_tokens,
            optimizer=rule.value,
            refused=refused,
            planned=chosen.planned,
        )
        return chosen
    raise SystemExit(f"gpu: no setting fits: {'; '.join(refused)}")


def _compile(
    bench: Bench, programs: Sequence[StepProgram], topology: Topology
) -> tuple[list[CompiledProgram], str | None]:
    """Compiles programs until one does not fit.

    Returns:
        The compiled programs, and why they do not fit, None if they do.
    """
    usable = topology.usable_bytes
    safe = None if usable is None else usable / MARGIN
    for program in programs:
        least = program.bytes_before
        if program.name == "gradient":
            least += device_bytes(program.arguments[1])  # the sum is donated; the microbatch's own gradient is as large
        if safe is not None and least > safe:
            return [], f"{program.name} takes {least / GIB:.1f} GiB and more; {safe / GIB:.1f} are safe"
    compiled: list[CompiledProgram] = []
    for result in compile_programs(programs, topology):
        name, peak = result.program.name, result.peak_bytes
        bench.say(f"compiled {name} in {result.compile_seconds:.1f} s, peak {peak / GIB:.2f} GiB")
        compiled.append(result)
        if safe is not None and peak > safe:
            return compiled, f"{name} takes {peak / GIB:.1f} GiB; {safe / GIB:.1f} are safe"
    return compiled, None


def _config(
    bench: Bench,
    method: Method,
    rule: Rule,
    num_prompts: int,
    attention: AttentionKernel = AttentionKernel.AUTO,
) -> Config:
    """Returns the settings of a step: one update, blocks rematerialised, KL penalty on, completions in one segment."""
    load = bench.load
    return Config(
        name="gpu",
        method=method,
        loss_average=LossAverage.SEQUENCE if method is Method.GRPO else LossAverage.TOKEN,
        model=Pretrained(str(bench.folder / "model"), Init.RANDOM, remat=Remat.BLOCK, attention=attention),
        mesh=MeshShape(1, 1, 1),
        stages=[Stage(steps=100)],
        data=Data(batch_size=num_prompts),
        optimizer=Optimizer(rule=rule, learning_rate=LEARNING_RATE),
        sampling=Sampling(load.group, load.new_tokens, segment=load.new_tokens, ladder=()),
        rewards=Rewards(weights={"benchmarks.workload:hashed_reward": 1.0}),
    )


def _stage(config: Config, processor: Processor, topology: Topology) -> StagePrograms:
    spec = ModelSpec(processor.config, processor.max_pixels, processor.tokenizer_size, tuple(processor.eos_token_ids))
    return stage_programs(config, 0, spec, topology.devices)


def _open_model(bench: Bench) -> tuple[Processor, list[Prompt]]:
    """Writes a model's folder without weights, and makes the prompts, each about an image of noise."""
    load = bench.load
    write_model_files(bench.folder / "model", replace(SIZES[bench.size], dtype="bfloat16"))
    processor = load_config_processor(Pretrained(path=str(bench.folder / "model")))
    processor.eos_token_ids = (-1,)  # no completion ends early
    images = [write_image(bench.folder / f"{index}.png", index, *load.image) for index in range(load.prompts)]
    return processor, [image_prompt(processor, image, index) for index, image in enumerate(images)]


def _examples(bench: Bench, prompts: Sequence[Prompt], method: Method) -> list[Example]:
    length = bench.load.new_tokens if method is Method.SFT else 0
    rng = np.random.default_rng(0)
    return [
        Example(
            Row(
                f"r{index}",
                Task.MATH,
                Kind.OPEN,
                QUESTION,
                "7",
                images=(str(bench.folder / f"{index}.png"),),
                frame=prompt.images[0].original,
            ),
            prompt,
            rng.integers(0, 256, length, np.int32),
            np.ones(length, bool),
        )
        for index, prompt in enumerate(prompts)
    ]


# ------------------------------------------------------------------------------------------------------------- the step


def _gradient_seconds(
    bench: Bench, attention: AttentionKernel, processor: Processor, prompts: Sequence[Prompt]
) -> float:
    """Returns the median seconds of the gradient of a step's update, without optimizer and reference."""
    load, topology = bench.load, attached_topology(jax.devices()[:1])
    config = _config(bench, Method.GRPO, Rule.ADAFACTOR, load.prompts, attention)
    stage = _stage(config, processor, topology)
    shape = (load.prompts, load.group, load.new_tokens)
    tokens = np.random.default_rng(0).integers(0, 256, shape, np.int32)
    weights, logprobs = np.full(shape, 1 / tokens.size, np.float32), np.full(shape, -1.0, np.float32)
    advantages = np.tile(np.linspace(-1, 1, load.group, dtype=np.float32), (load.prompts, 1))
    microbatch = (
        GroupBatch(prompt_batch(prompts, processor.config), tokens),
        weights,
        GrpoTargets(advantages, logprobs, logprobs),
    )
    minibatch = [to_devices(microbatch, stage.model.mesh)]
    params = stage.model.init(0)
    return _median_seconds(lambda: loss_and_gradient(stage.update, params, minibatch), load.repeats)


def _init(chosen: Chosen) -> TrainState:
    """Makes random masters and the optimizer's state."""
    model = chosen.stage.model
    return init_state(model, stage_optimizer(chosen.context.config, 0).transform, model.init(0))


def _grpo_phases(
    context: StageContext,
    chosen: Chosen,
    reward_thread: ThreadPoolExecutor,
    state: TrainState,
    step: int,
    watch: Stopwatch,
) -> TrainState:
    """Takes the step of `grpo_step` in phases that wait for one another, the prefix once more on its own."""
    config, model, programs = context.config, context.model, chosen.stage.update
    prompts, batch = collate_prompts(context, chosen.examples)
    policy = watch.time("cast", to_compute_dtype(model), state.params)
    rollout = _sampling_phases(context, policy, batch, step, watch)
    references = watch.time("reference", reference_logprobs, context, prompts.microbatches, rollout)
    rewards = reward_thread.submit(score_groups, context, prompts, rollout)
    watch.time("score", lambda: rewards.result().scores.total)
    advantages = advantages_of(rewards, config.grpo)
    del policy, batch  # frees device memory for the update, as in `grpo_step`
    (minibatch,), _ = grpo_minibatches(context, prompts, rollout, rewards.result(), advantages, references)
    gradient, _ = watch.time("gradient", loss_and_gradient, programs, state.params, minibatch)
    return watch.time("apply", programs.apply_gradients, state, gradient)[0]


def _sampling_phases(
    context: StageContext, policy: Parameters, batch: PromptBatch, step: int, watch: Stopwatch
) -> Rollout:
    settings, seed = row_sampling(context.config, context.layout), context.config.seed
    sampler = (context.model, policy, context.processor, batch, settings)
    weights = watch.time("decoding copy", decode_params, context.model, policy, settings)
    watch.time("prefix", lambda: start(*sampler, weights, (seed, 0, step)).state)
    return watch.time("sample", lambda: sample(*sampler, weights=weights, seed=seed, step=step))


class Stopwatch:
    """Collects the seconds of phases, each until its arrays are there."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, run: Callable[..., Any], *args: Any) -> Any:
        """Runs a phase."""
        begin = time.perf_counter()
        result = jax.block_until_ready(run(*args))
        self.seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of each phase."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}


def _forward_flops(stage: StagePrograms, batch: GroupBatch) -> float:
    """Counts the FLOPs of the forward pass of a batch, its head included."""
    traced = token_logprobs.trace(stage.model, stage.compute_params, batch.prompts, batch.tokens)
    return matmul_flops(traced.jaxpr.jaxpr, cond_fraction=stage.cond_fraction)


def _utilisation(spec: DeviceSpec | None, counts: dict[str, tuple[float, float]]) -> dict[str, dict[str, float | None]]:
    """Returns `utilisation`: FLOPs / seconds / peak of each pair; None where the peak is unknown."""
    shares = {name: flops / seconds / spec.peak_flops if spec else None for name, (flops, seconds) in counts.items()}
    return {"utilisation": shares}


def _median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds of a run, after one that does not count."""
    jax.block_until_ready(run())
    watch = Stopwatch()
    for _ in range(repeats):
        watch.time("run", run)
    return watch.medians["run"]
