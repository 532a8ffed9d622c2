"""The programs that `train` runs, with abstract arrays in place of real ones, and the arrays alive while each runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import Config, Method, Sampling
from currreft_jax.data import pipeline
from currreft_jax.data.packing import BatchShape, collate, fitting, largest_slots
from currreft_jax.data.processor import MAX_PIXELS
from currreft_jax.experience import scorer, shard_prompts, whole_ladders
from currreft_jax.models.config import PUBLISHED, ModelConfig
from currreft_jax.models.decoder import reshard
from currreft_jax.models.folder import eos_token_ids, read_config, tokenizer_size
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.rollout import power_of_two, refuse_uneven, rungs, sampler
from currreft_jax.sharding import BATCH, data_shards, make_mesh
from currreft_jax.step import (
    TrainState,
    UpdatePrograms,
    abstract_state,
    caster,
    learning,
    trained_model,
    update_programs,
)
from currreft_jax.structs import GroupBatch, Prompt, PromptBatch, Sampled

_PUBLISHED_NAME = re.compile(r"Qwen/Qwen2\.5-VL-(\d+)B-Instruct")
_PUBLISHED_TOKENIZER_SIZE = 151_665


class ModelSpec(NamedTuple):
    """What a plan needs of a model's folder, which may not be on this machine.

    Attributes:
        config: shape of the model.
        max_pixels: area that larger images are shrunk to.
        tokenizer_size: number of token ids; None if unknown.
        stop_token_ids: each ends a completion.
    """

    config: ModelConfig
    max_pixels: int
    tokenizer_size: int | None
    stop_token_ids: tuple[int, ...]


def model_spec(config: Config) -> ModelSpec:
    """Reads the spec from the folder of the model that a config trains, or of the published model of that name.

    Raises:
        FileNotFoundError: there is no such folder, and the name is not a published model's.
    """
    max_pixels = config.model.max_pixels or MAX_PIXELS
    paths = [path for path in (config.model.path, config.grpo.reference_path) if path]
    for path in paths:
        if Path(path).is_dir():
            folder = Path(path)
            return ModelSpec(read_config(folder), max_pixels, tokenizer_size(folder), eos_token_ids(folder))
    for path in paths:
        if (found := _PUBLISHED_NAME.fullmatch(path)) and (size := f"{found[1]}b") in PUBLISHED:
            shape = PUBLISHED[size]
            stop_token_ids = (shape.eos_token_id, shape.bos_token_id)
            return ModelSpec(shape, max_pixels, _PUBLISHED_TOKENIZER_SIZE, stop_token_ids)
    raise FileNotFoundError(
        f"{' and '.join(paths)}: neither a folder nor the name of a published model. A plan needs the model's"
        " config.json: give its folder as --config.model.path"
    )


@dataclass(frozen=True, slots=True)
class StepProgram:
    """One jitted function of a step, for arrays of one shape.

    Attributes:
        name: row label in the plan.
        shape: human-readable shape of the batch.
        function: the jitted function that `train` calls.
        arguments: abstract arrays with their shardings.
        resident: other abstract arrays that are alive while it runs, by name.
        times: calls per step.
        iterations: trip count of its `while_loop`, which ends when all completions have.
    """

    name: str
    shape: str
    function: Any
    arguments: tuple[Any, ...]
    resident: dict[str, Any]
    times: float = 1.0
    iterations: int = 1

    @property
    def bytes_before(self) -> int:
        """Bytes alive on each device before it runs."""
        return device_bytes(self.arguments) + device_bytes(self.resident)


class BatchBucket(NamedTuple):
    """The static shape of a microbatch: of its prompts, and T, the length of its completions."""

    prompts: BatchShape
    completion: int

    def __str__(self) -> str:
        images = f", {self.prompts.slots} slots, {self.prompts.reach} per image" if self.prompts.slots else ""
        return f"{self.prompts.length} + {self.completion} tokens{images}"


@dataclass(frozen=True, slots=True)
class StagePrograms:
    """A stage's model, abstract state and update programs.

    Attributes:
        config: all settings.
        spec: the processor, or a `ModelSpec`.
        stop_token_ids: each ends a completion.
        model: the trained model.
        state: abstract train state.
        update: jitted functions of the update.
    """

    config: Config
    spec: pipeline.Budgeted
    stop_token_ids: tuple[int, ...]
    model: Model
    state: TrainState
    update: UpdatePrograms

    @property
    def is_grpo(self) -> bool:
        """True if training samples completions."""
        return self.config.method is Method.GRPO

    @property
    def compute_params(self) -> Any:
        """Abstract parameters in the compute dtype."""
        return self.model.abstract(self.model.dtype)

    @property
    def reference(self) -> dict[str, Any]:
        """The frozen reference by name; empty without a KL penalty."""
        return {"reference": self.compute_params} if self.is_grpo and self.config.grpo.kl_coef else {}

    @property
    def resident(self) -> dict[str, Any]:
        """Arrays that stay on the devices for the whole stage, by name."""
        return {"masters": self.state.params, "moments": self.state.optimizer, **self.reference}

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step, over all minibatches."""
        return self.config.microbatches * (self.config.grpo.minibatches if self.is_grpo else 1)


def stage_programs(config: Config, stage_index: int, spec: ModelSpec, devices: Sequence[Any]) -> StagePrograms:
    """Builds the programs of a stage on these devices.

    Raises:
        ValueError: the mesh does not fill the devices.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    model = trained_model(config.model, spec.config, mesh, spec.tokenizer_size)
    recipe = learning(config, stage_index)
    update = update_programs(model, recipe.optimizer, recipe.settings, recipe.gradient)
    return StagePrograms(config, spec, spec.stop_token_ids, model, abstract_state(model, recipe.optimizer), update)


def batch_buckets(stage: StagePrograms) -> list[BatchBucket]:
    """Lists the shapes that microbatches may take: first those without images, the largest last."""
    config = stage.config
    ladders = pipeline.ladders(config.data, stage.spec, shard_prompts(config, stage.model.mesh))
    segment, longest = _segment(config.sampling), config.sampling.max_new_tokens
    sampled_lengths = tuple(min(length, longest) for length in range(segment, longest + segment, segment))
    completions = sampled_lengths if stage.is_grpo else ladders.completions
    with_images = ((slots, reach) for slots, reach in product(ladders.slots, ladders.reaches) if slots >= reach > 0)
    return [
        BatchBucket(BatchShape(length, *image), completion)
        for image, length, completion in product(((0, 0), *with_images), ladders.lengths, completions)
    ]


def step_programs(stage: StagePrograms, bucket: BatchBucket) -> Iterator[StepProgram]:
    """Yields the programs of a step whose microbatches have one shape, in the order in which they run."""
    config, has_held_out = stage.config, any(settings.held_out for settings in stage.config.stages)
    if stage.is_grpo or has_held_out:
        yield from _weight_programs(stage)
    if stage.is_grpo:
        full_batch, count = _full_batch(stage, bucket), stage.num_microbatches
        microbatches = {"microbatches": [_group_batch(stage, bucket).prompts] * count} if count > 1 else {}
        yield from _sampling_programs(stage, full_batch, config.sampling, microbatches)
        if stage.reference:
            yield _reference_program(stage, bucket, full_batch)
    yield from _update_programs(stage, bucket)
    if has_held_out:
        yield from _held_out_programs(stage)


def max_programs(stage: StagePrograms) -> int:
    """Upper bound on the programs that a run compiles: every bucket, and every size that a shrinking batch may take."""
    config, buckets = stage.config, batch_buckets(stage)
    prompt_shapes = len({bucket.prompts for bucket in buckets})
    total = len(buckets) + 4  # gradients; zeros, apply gradient, combine and cast
    if stage.is_grpo:
        segments = -(-config.sampling.max_new_tokens // _segment(config.sampling))
        rows = shard_prompts(config, stage.model.mesh) * stage.num_microbatches
        sizes = 1 + len(rungs(rows, config.sampling))
        lengths = len(config.data.prompt_lengths)
        total += prompt_shapes + (len(buckets) if stage.reference else 0) + 1
        total += lengths * segments * sizes * 2 + segments * (sizes + 2)
    return total


def _weight_programs(stage: StagePrograms) -> Iterator[StepProgram]:
    """Yields the programs that copy the weights: the reference, the compute copy and the decoding copy."""
    model, state = stage.model, stage.state
    if stage.reference:  # it is loaded in fp32, as the masters are
        resident = {"masters": state.params, "moments": state.optimizer}
        yield StepProgram("load reference", "", caster(model), (state.params,), resident, 0.0)
    yield StepProgram("cast", "", caster(model), (state.params,), {"moments": state.optimizer, **stage.reference})
    decoding = sampler(model, stage.config.sampling, stage.stop_token_ids).decoding
    yield StepProgram("reshard", "", reshard(model, decoding), (stage.compute_params,), stage.resident)


def _sampling_programs(
    stage: StagePrograms,
    prompts: PromptBatch,
    settings: Sampling,
    resident: dict[str, Any],
    prefix: str = "",
    times: float = 1,
) -> Iterator[StepProgram]:
    """Yields the sampler's programs, for completions of the greatest length.

    Args:
        stage: the stage.
        prompts: abstract batch.
        settings: how to sample.
        resident: other abstract arrays that are alive meanwhile, by name.
        prefix: of the programs' names.
        times: calls of the sampler per step.
    """
    model, group_size, compute_params = stage.model, settings.group_size, stage.compute_params
    parts = sampler(model, settings, stage.stop_token_ids)
    weights = jax.eval_shape(reshard(model, parts.decoding), compute_params)
    count, length = prompts.tokens.shape
    refuse_uneven(count, parts.decoding, settings)
    rows = NamedSharding(model.mesh, P(BATCH))
    done = jax.ShapeDtypeStruct((count,), jnp.bool_, sharding=rows)
    seeds = jax.ShapeDtypeStruct((3,), jnp.uint32)
    sample_ids = jax.ShapeDtypeStruct((group_size,), jnp.int32)
    arguments = (compute_params, weights, prompts, done, seeds, sample_ids)
    slots = f", {prompts.pictures.patches.shape[1]} slots" if prompts.pictures is not None else ""
    shape = f"{count} x {length} tokens{slots}"
    yield StepProgram(f"{prefix}prefix", shape, parts.programs.start, arguments, stage.resident | resident, times)

    fixed, state = jax.eval_shape(parts.programs.start, *arguments)
    segment = parts.plan.segment
    num_segments = -(-settings.max_new_tokens // segment)
    resident = {**stage.resident, **resident, "compute copy": compute_params, "prompts": prompts}
    before = state
    for _ in range(num_segments - 1):
        before, state = state, jax.eval_shape(parts.programs.lengthen, state)
    shape = f"{count} x {group_size} x {num_segments * segment} tokens after {length}"
    if num_segments > 1:
        unread = {**resident, "decoding copy": weights, "prompt caches": fixed}
        calls = times * (num_segments - 1)
        yield StepProgram(f"{prefix}grow cache", shape, parts.programs.lengthen, (before,), unread, calls)
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = (weights, fixed, state, stop)
    calls = times * num_segments
    yield StepProgram(f"{prefix}decode", shape, parts.programs.decode, arguments, resident, calls, segment)


def _reference_program(stage: StagePrograms, bucket: BatchBucket, full_batch: PromptBatch) -> StepProgram:
    batch, count, state = _group_batch(stage, bucket), stage.num_microbatches, stage.state
    resident = {"masters": state.params, "moments": state.optimizer, "compute copy": stage.compute_params}
    if count > 1:
        resident |= {"prompts": full_batch, "microbatches": [batch.prompts] * (count - 1)}
    function = scorer(stage.model, stage.config.sampling.temperature)
    arguments = (stage.compute_params, batch.prompts, batch.tokens)
    return StepProgram("reference", str(bucket), function, arguments, resident, count)


def _update_programs(stage: StagePrograms, bucket: BatchBucket) -> Iterator[StepProgram]:
    config, state, update, count = stage.config, stage.state, stage.update, stage.num_microbatches
    batch, passes = _group_batch(stage, bucket), config.grpo.num_updates if stage.is_grpo else 1
    updates_per_step = passes * count // config.microbatches
    per_token = jax.ShapeDtypeStruct(batch.tokens.shape, jnp.float32, sharding=batch.tokens.sharding)
    rows = NamedSharding(stage.model.mesh, P(BATCH))
    advantages = jax.ShapeDtypeStruct(batch.tokens.shape[:2], jnp.float32, sharding=rows)
    sampled = (Sampled(advantages, per_token, per_token if stage.reference else None),) if stage.is_grpo else ()
    gradient = jax.eval_shape(update.zeros)
    resident = {"moments": state.optimizer, **stage.reference, "microbatches": [batch.prompts] * (count - 1)}
    arguments = (state.params, gradient, batch, per_token, *sampled)
    calls = updates_per_step * config.microbatches
    yield StepProgram("gradient", str(bucket), update.add, arguments, resident, calls)
    resident = {**stage.reference, "microbatches": [batch] * count}
    yield StepProgram("apply gradient", "", update.move, (state, gradient), resident, updates_per_step)


def _held_out_programs(stage: StagePrograms) -> Iterator[StepProgram]:
    """Yields the sampler's programs for held-out prompts.

    A batch has as many prompts as a step samples completions, one completion each; no prompt is longer than the longest
    of training.
    """
    config, model = stage.config, stage.model
    shards, vision = data_shards(model.mesh), stage.spec.config.vision
    settings = dataclasses.replace(config.sampling, group_size=1)
    decoding_shards = data_shards(sampler(model, settings, stage.stop_token_ids).decoding.mesh)
    multiple = int(np.lcm(shards, decoding_shards))
    count = -(-config.data.batch_size * config.sampling.group_size // multiple) * multiple
    image_slots = largest_slots(stage.spec.max_pixels, vision)
    length = fitting(max(config.data.prompt_lengths), settings.prompt_lengths, "sampling.prompt_lengths")
    shape = BatchShape(length, power_of_two(image_slots * (count // shards)), power_of_two(image_slots))
    yield from _sampling_programs(stage, _prompt_batch(model, shape, count), settings, {}, "held-out ", 0.0)


def _full_batch(stage: StagePrograms, bucket: BatchBucket) -> PromptBatch:
    """All prompts of a step, sampled together and packed into slots of their own."""
    config, mesh, shape, count = stage.config, stage.model.mesh, bucket.prompts, stage.num_microbatches
    prompts = shard_prompts(config, mesh)
    if count > 1 and shape.slots:
        sizes = whole_ladders(config, stage.spec, prompts * count).slots
        shape = dataclasses.replace(shape, slots=fitting(min(shape.slots * count, sizes[-1]), sizes, "data.slots"))
    return _prompt_batch(stage.model, shape, prompts * count * data_shards(mesh))


def _prompt_batch(model: Model, shape: BatchShape, count: int) -> PromptBatch:
    """Abstract batch of `count` prompts."""
    empty = Prompt(np.zeros(1, np.int32), np.zeros((3, 1), np.int32), 1, (), "a prompt")
    batch = collate([empty] * count, model.config, shape, data_shards(model.mesh))
    sharding = NamedSharding(model.mesh, P(BATCH))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)


def _group_batch(stage: StagePrograms, bucket: BatchBucket) -> GroupBatch:
    """Abstract microbatch."""
    config, mesh = stage.config, stage.model.mesh
    count = shard_prompts(config, mesh) * data_shards(mesh)
    shape = count, config.sampling.group_size if stage.is_grpo else 1, bucket.completion
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, P(BATCH)))
    return GroupBatch(_prompt_batch(stage.model, bucket.prompts, count), tokens)


def _segment(settings: Sampling) -> int:
    return min(settings.segment, settings.max_new_tokens)


def device_bytes(tree: Any) -> int:
    """Bytes that abstract or real arrays take on each device."""

    def leaf_bytes(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return prod(shape) * np.dtype(x.dtype).itemsize

    return sum(leaf_bytes(x) for x in jax.tree.leaves(tree))
