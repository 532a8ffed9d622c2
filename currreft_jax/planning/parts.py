"""The programs that `train` runs, with abstract arrays in place of real ones, and what else lies on a device then."""

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
from currreft_jax.data.packing import BatchShape, collate, max_slots_per_image, smallest_bucket
from currreft_jax.data.processor import MAX_PIXELS
from currreft_jax.experience import scorer, shard_prompts, whole_ladders
from currreft_jax.models.config import PUBLISHED, ModelConfig
from currreft_jax.models.decoder import decoding_weights_fn
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

_PUBLISHED = re.compile(r"Qwen/Qwen2\.5-VL-(\d+)B-Instruct")
_TOKENIZER = 151_665  # ids that the published tokenizer knows


class Reader(NamedTuple):
    """What a plan needs of a processor, whose checkpoint may not be here.

    Attributes:
        config: of the model.
        max_pixels: area that larger images are shrunk to.
        tokenizer_size: ids that the tokenizer knows; None where nobody knows.
        eos_token_ids: each of them ends a completion.
    """

    config: ModelConfig
    max_pixels: int
    tokenizer_size: int | None
    eos_token_ids: tuple[int, ...]


def reader_of(config: Config) -> Reader:
    """The shape of the model that a config trains: of its folder, or of the published one that it starts from.

    Raises:
        FileNotFoundError: there is no folder and no published name.
    """
    pixels = config.model.max_pixels or MAX_PIXELS
    named = [path for path in (config.model.path, config.grpo.reference_path) if path]
    for path in named:
        if Path(path).is_dir():
            folder = Path(path)
            return Reader(read_config(folder), pixels, tokenizer_size(folder), eos_token_ids(folder))
    for path in named:
        if (found := _PUBLISHED.fullmatch(path)) and (name := f"{found[1]}b") in PUBLISHED:
            shape = PUBLISHED[name]
            return Reader(shape, pixels, _TOKENIZER, (shape.eos_token_id, shape.bos_token_id))
    raise FileNotFoundError(
        f"{' and '.join(named)}: not here, and no published model's name: a plan needs the config.json of the model;"
        " give its folder as --config.model.path"
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One program of a step, for arrays of one shape.

    Attributes:
        name: of the program.
        bucket: of the shape, for people.
        program: jitted, as `train` runs it.
        arguments: abstract ones, with their layouts.
        beside: what else lies on a device while it runs, name -> abstract arrays.
        times: how often a step runs it.
        trips: how often a loop of it runs that ends when completions do.
    """

    name: str
    bucket: str
    program: Any
    arguments: tuple[Any, ...]
    beside: dict[str, Any]
    times: float = 1.0
    trips: int = 1

    @property
    def lying(self) -> int:
        """Bytes on a device before it runs."""
        return device_bytes(self.arguments) + device_bytes(self.beside)


class Bucket(NamedTuple):
    """The static shape of a batch: of its prompts, and the length T of its completions."""

    shape: BatchShape
    completion: int

    def __str__(self) -> str:
        images = f", {self.shape.slots} slots, {self.shape.max_slots_per_image} an image" if self.shape.slots else ""
        return f"{self.shape.length} + {self.completion} tokens{images}"


@dataclass(frozen=True, slots=True)
class Programs:
    """What a stage runs.

    Attributes:
        config: all settings.
        reader: the processor, or what stands for it.
        ends: the tokens that end a completion.
        model: as it is trained.
        state: abstract.
        update: programs of the update.
    """

    config: Config
    reader: pipeline.Budgeted
    ends: tuple[int, ...]
    model: Model
    state: TrainState
    update: UpdatePrograms

    @property
    def grpo(self) -> bool:
        """Whether completions are drawn in training."""
        return self.config.method is Method.GRPO

    @property
    def copy(self) -> Any:
        """The parameters in the precision that the model computes in."""
        return self.model.abstract(self.model.dtype)

    @property
    def reference(self) -> dict[str, Any]:
        """The frozen reference, where there is one."""
        return {"reference": self.copy} if self.grpo and self.config.grpo.kl_coef else {}

    @property
    def resident(self) -> dict[str, Any]:
        """What stays on the devices from the first step to the last."""
        return {"masters": self.state.params, "moments": self.state.optimizer, **self.reference}


def programs_of(config: Config, number: int, reader: Reader, devices: Sequence[Any]) -> Programs:
    """What stage `number` runs on these devices.

    Raises:
        ValueError: the mesh does not fill them.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    model = trained_model(config.model, reader.config, mesh, reader.tokenizer_size)
    how = learning(config, number)
    update = update_programs(model, how.optimizer, how.settings, how.gradient)
    return Programs(config, reader, reader.eos_token_ids, model, abstract_state(model, how.optimizer), update)


def buckets(programs: Programs) -> list[Bucket]:
    """The shapes that microbatches may take, the largest last; those without images first."""
    config = programs.config
    ladders = pipeline.ladders(config.data, programs.reader, shard_prompts(config, programs.model.mesh))
    segment, most = _segment(config.sampling), config.sampling.max_new_tokens
    drawn = tuple(min(length, most) for length in range(segment, most + segment, segment))
    completions = drawn if programs.grpo else ladders.completions
    images = [(0, 0), *((s, r) for s, r in product(ladders.slots, ladders.reaches) if s >= r > 0)]
    return [
        Bucket(BatchShape(length, *image), completion)
        for image, length, completion in product(images, ladders.lengths, completions)
    ]


def parts(programs: Programs, bucket: Bucket) -> Iterator[Part]:
    """The programs of a step whose microbatches take one shape, in the order in which they run."""
    config, held_out = programs.config, any(stage.held_out for stage in programs.config.stages)
    if programs.grpo or held_out:
        yield from _copies(programs)
    if programs.grpo:
        whole, cut = _whole(programs, bucket), _cut(config)
        lying = {"microbatches": [_groups(programs, bucket).prompts] * cut} if cut > 1 else {}
        yield from _drawing(programs, whole, config.sampling, lying)
        if programs.reference:
            yield _reference(programs, bucket, whole)
    yield from _update(programs, bucket)
    if held_out:
        yield from _held_out(programs)


def count(programs: Programs) -> int:
    """Programs that a run may compile at most: of every bucket, and of every size to which a batch may shrink."""
    config, shapes = programs.config, buckets(programs)
    prompts = len({bucket.shape for bucket in shapes})
    total = len(shapes) + 4  # gradients; zeros, move, combine and the copy
    if programs.grpo:
        segments = -(-config.sampling.max_new_tokens // _segment(config.sampling))
        rows = shard_prompts(config, programs.model.mesh) * _cut(config)
        sizes = 1 + len(rungs(rows, config.sampling))
        lengths = len(programs.config.data.prompt_lengths)
        total += prompts + (len(shapes) if programs.reference else 0) + 1
        total += lengths * segments * sizes * 2 + segments * (sizes + 2)
    return total


def _copies(programs: Programs) -> Iterator[Part]:
    state, copy = programs.state, programs.copy
    moments = {"moments": state.optimizer, **programs.reference}
    if programs.reference:  # comes as masters do
        loaded = {"masters": state.params, "moments": state.optimizer}
        yield Part("load reference", "", caster(programs.model), (state.params,), loaded, 0.0)
    yield Part("cast", "", caster(programs.model), (state.params,), moments)
    drawing = sampler(programs.model, programs.config.sampling, programs.ends)
    yield Part("reshard", "", decoding_weights_fn(programs.model, drawing.decoding), (copy,), programs.resident)


def _drawing(
    programs: Programs,
    whole: PromptBatch,
    settings: Sampling,
    lying: dict[str, Any],
    prefix: str = "",
    times: float = 1,
) -> Iterator[Part]:
    """The sampler's programs, for completions of the greatest length.

    Args:
        programs: of the stage.
        whole: the prompts.
        settings: how to draw.
        lying: what else lies there all the while.
        prefix: of the parts' names.
        times: how often a step draws.
    """
    model, group = programs.model, settings.group_size
    drawing = sampler(model, settings, programs.ends)
    weights = jax.eval_shape(decoding_weights_fn(model, drawing.decoding), programs.copy)
    count, length = whole.tokens.shape
    refuse_uneven(count, drawing.decoding, settings)
    rows = NamedSharding(model.mesh, P(BATCH))
    done = jax.ShapeDtypeStruct((count,), jnp.bool_, sharding=rows)
    numbers, members = jax.ShapeDtypeStruct((3,), jnp.uint32), jax.ShapeDtypeStruct((group,), jnp.int32)
    start = (programs.copy, weights, whole, done, numbers, members)
    slots = f", {whole.images.patches.shape[1]} slots" if whole.images is not None else ""
    yield Part(
        f"{prefix}prefix",
        f"{count} x {length} tokens{slots}",
        drawing.programs.start,
        start,
        programs.resident | lying,
        times,
    )

    fixed, state = jax.eval_shape(drawing.programs.start, *start)
    segments, trips = -(-settings.max_new_tokens // drawing.plan.segment), drawing.plan.segment
    beside = {**programs.resident, **lying, "copy": programs.copy, "prompts": whole}
    before = state
    for _ in range(segments - 1):
        before, state = state, jax.eval_shape(drawing.programs.lengthen, state)
    told = f"{count} x {group} x {segments * trips} tokens behind {length}"
    if segments > 1:
        unread = {**beside, "decode copy": weights, "prompt caches": fixed}
        yield Part(f"{prefix}grow", told, drawing.programs.lengthen, (before,), unread, times * (segments - 1))
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = (weights, fixed, state, stop)
    yield Part(f"{prefix}decode", told, drawing.programs.decode, arguments, beside, times * segments, trips)


def _reference(programs: Programs, bucket: Bucket, whole: PromptBatch) -> Part:
    batch, cut = _groups(programs, bucket), _cut(programs.config)
    others = {"prompts": whole, "microbatches": [batch.prompts] * (cut - 1)} if cut > 1 else {}
    beside = {"masters": programs.state.params, "moments": programs.state.optimizer, "copy": programs.copy, **others}
    program = scorer(programs.model, programs.config.sampling.temperature)
    return Part("reference", str(bucket), program, (programs.copy, batch.prompts, batch.tokens), beside, cut)


def _update(programs: Programs, bucket: Bucket) -> Iterator[Part]:
    config, state, update = programs.config, programs.state, programs.update
    batch, passes = _groups(programs, bucket), config.grpo.num_updates if programs.grpo else 1
    moves = passes * _cut(config) // config.microbatches
    weights = jax.ShapeDtypeStruct(batch.tokens.shape, jnp.float32, sharding=batch.tokens.sharding)
    rows = NamedSharding(programs.model.mesh, P(BATCH))
    advantages = jax.ShapeDtypeStruct(batch.tokens.shape[:2], jnp.float32, sharding=rows)
    sampled = (Sampled(advantages, weights, weights if programs.reference else None),) if programs.grpo else ()
    total = jax.eval_shape(update.zeros)
    moments = {"moments": state.optimizer, **programs.reference}
    others = {"microbatches": [batch.prompts] * (_cut(config) - 1)}
    arguments = (state.params, total, batch, weights, *sampled)
    yield Part("gradient", str(bucket), update.add, arguments, moments | others, moves * config.microbatches)
    yield Part(
        "move", "", update.move, (state, total), {**programs.reference, "microbatches": [batch] * _cut(config)}, moves
    )


def _held_out(programs: Programs) -> Iterator[Part]:
    """One completion of as many held-out prompts as a step draws completions, none longer than those of training."""
    config, model = programs.config, programs.model
    shards, vision = data_shards(model.mesh), programs.reader.config.vision
    settings = dataclasses.replace(config.sampling, group_size=1)
    decoding = data_shards(sampler(model, settings, programs.ends).decoding.mesh)
    size = config.data.batch_size * config.sampling.group_size
    multiple = int(np.lcm(shards, decoding))
    filled = -(-size // multiple) * multiple
    largest = max_slots_per_image(programs.reader.max_pixels, vision)
    length = smallest_bucket(max(config.data.prompt_lengths), settings.prompt_lengths, "sampling.prompt_lengths")
    shape = BatchShape(length, power_of_two(largest * (filled // shards)), power_of_two(largest))
    yield from _drawing(programs, _prompts(model, shape, filled), settings, {}, "held-out ", 0.0)


def _whole(programs: Programs, bucket: Bucket) -> PromptBatch:
    """All prompts of a step, whose microbatches take a bucket: drawn together, in slots of their own."""
    config, mesh, shape = programs.config, programs.model.mesh, bucket.shape
    prompts, cut = shard_prompts(config, mesh), _cut(config)
    if cut > 1 and shape.slots:
        rungs = whole_ladders(config, programs.reader, prompts * cut).slots
        shape = dataclasses.replace(
            shape, slots=smallest_bucket(min(shape.slots * cut, rungs[-1]), rungs, "data.slots")
        )
    return _prompts(programs.model, shape, prompts * cut * data_shards(mesh))


def _cut(config: Config) -> int:
    """Parts that a step's prompts are learnt from in."""
    return config.microbatches * (config.grpo.minibatches if config.method is Method.GRPO else 1)


def _prompts(model: Model, shape: BatchShape, count: int) -> PromptBatch:
    """So many prompts of one shape, without their arrays."""
    nothing = Prompt(np.zeros(1, np.int32), np.zeros((3, 1), np.int32), 1, (), "a prompt")
    batch = collate([nothing] * count, model.config, shape, data_shards(model.mesh))
    layout = NamedSharding(model.mesh, P(BATCH))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), batch)


def _groups(programs: Programs, bucket: Bucket) -> GroupBatch:
    """A microbatch."""
    config, mesh = programs.config, programs.model.mesh
    count = shard_prompts(config, mesh) * data_shards(mesh)
    shape = count, config.sampling.group_size if programs.grpo else 1, bucket.completion
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, P(BATCH)))
    return GroupBatch(_prompts(programs.model, bucket.shape, count), tokens)


def _segment(settings: Sampling) -> int:
    return min(settings.segment, settings.max_new_tokens)


def device_bytes(tree: Any) -> int:
    """Bytes that abstract arrays take on each device."""

    def one(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return prod(shape) * np.dtype(x.dtype).itemsize

    return sum(one(x) for x in jax.tree.leaves(tree))
