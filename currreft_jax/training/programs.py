"""All programs of a stage's step with abstract arguments, in the order in which the step runs them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import BatchLayout, Config, Method, Remat, Shapes, evaluation_batch_size, stage_settings
from currreft_jax.config.wording import plural
from currreft_jax.data.buckets import BatchDims, ProcessorLike, ShapeBuckets, config_buckets
from currreft_jax.data.packing import BatchShape, collate, max_slots_per_image, smallest_bucket
from currreft_jax.data.shape_fitting import NUM_COMPLETION_LENGTHS, NUM_SHAPES
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.planning.compiled import compile_program
from currreft_jax.planning.devices import GIB, Topology
from currreft_jax.planning.spec import ModelSpec
from currreft_jax.runtime.programs import StepProgram, abstract_rows
from currreft_jax.runtime.sharding import data_shards, make_mesh
from currreft_jax.sampling.abstract import abstract_sampler_programs, every_sampler_program, reshard_program
from currreft_jax.sampling.sampler import decoding_parts, next_power_of_two, smaller_sizes
from currreft_jax.sampling.state import SamplerSpec, sampler_spec
from currreft_jax.session.meshes import choose_meshes
from currreft_jax.session.session import Session, make_model
from currreft_jax.session.sources import to_compute_dtype, to_policy
from currreft_jax.structs import GroupBatch, GrpoTargets, Prompt, PromptBatch
from currreft_jax.training.batches import Bucket, layout_on, microbatch_splitter, row_sampling
from currreft_jax.training.console import say, timed
from currreft_jax.training.grpo import reference_program
from currreft_jax.training.interrupt import Interrupt
from currreft_jax.training.optimizer import StageOptimizer, stage_optimizer
from currreft_jax.training.update import (
    TrainState,
    UpdatePrograms,
    abstract_state,
    gradient_function,
    update_programs,
)

_USABLE_SHARE = 0.9  # of the memory, since a run may take some more than is planned


@dataclass(frozen=True, slots=True)
class StagePrograms:
    """The programs of a stage, and their abstract arguments.

    Attributes:
        config: all settings, with the meshes chosen.
        spec: the processor, or a plan's `ModelSpec`.
        stop_token_ids: each ends a completion.
        model: as it is trained.
        state: abstract.
        update: programs of the update.
        shape_buckets: static shapes of the batches.
        held_out_prompts: held-out rows that are answered at once.
    """

    config: Config
    spec: ProcessorLike
    stop_token_ids: tuple[int, ...]
    model: Model
    state: TrainState
    update: UpdatePrograms
    shape_buckets: ShapeBuckets
    held_out_prompts: int

    @property
    def is_grpo(self) -> bool:
        """True if training samples completions."""
        return self.config.method is Method.GRPO

    @property
    def layout(self) -> BatchLayout:
        """Layout of a step's batch on the mesh."""
        return layout_on(self.config, self.model.mesh)

    @property
    def compute_params(self) -> Any:
        """The parameters in the precision of the model's products."""
        return self.model.abstract(self.model.dtype)

    @property
    def policy_params(self) -> Any:
        """The policy that completions are sampled from, in that precision too."""
        return self.model.merged.abstract(self.model.dtype)

    @property
    def reference(self) -> dict[str, Any]:
        """The frozen reference, if there is one."""
        return {"reference": self.compute_params} if self.is_grpo and self.config.grpo.kl_coef else {}

    @property
    def resident(self) -> dict[str, Any]:
        """The arrays that stay on the devices from the first step to the last."""
        return {"masters": self.state.params, "moments": self.state.optimizer, **self.reference}

    @property
    def sampler(self) -> SamplerSpec:
        """The sampler of training."""
        return sampler_spec(self.model.merged, self.config.sampling, self.stop_token_ids)

    @property
    def cond_fraction(self) -> float:
        """Fraction of vision blocks with full attention: each block picks full or window attention by a `cond`.

        The `cond` nested in full attention, which asks whether an image crosses rows, is assumed true.
        """
        vision = self.spec.config.vision
        return len(vision.fullatt_block_indexes) / vision.depth

    def buckets(self) -> list[Bucket]:
        """Lists the static shapes that microbatches may take, the largest last."""
        return [
            Bucket(shape, length)
            for shape, length in product(self.shape_buckets.shapes, self.shape_buckets.completion_lengths)
        ]

    def step(self, bucket: Bucket) -> Iterator[StepProgram]:
        """Yields the programs of a step whose microbatches take one shape, in the order in which they run."""
        held_out = any(stage.evaluated for stage in self.config.stages)
        if self.is_grpo or held_out:
            yield from self._copies()
        if self.is_grpo:
            yield from self._rollout(bucket)
        if self.reference:
            yield self._reference(bucket)
        yield self.gradient(bucket)
        microbatches = [self._group_batch(bucket)] * self.layout.num_microbatches
        yield self._apply_gradients({**self.reference, "microbatches": microbatches})
        if held_out:
            yield from self._held_out()

    def every_program(self) -> list[StepProgram]:
        """Lists the programs that the steps of a stage call, for every shape: the largest batches first."""
        buckets = self.buckets()[::-1]
        programs = [self.gradient(bucket) for bucket in buckets]
        if self.reference:
            programs += map(self._reference, buckets)
        if self.is_grpo:
            for shape in reversed(self.shape_buckets.step_shapes):
                batch, settings = (
                    self._prompt_batch(shape, self.layout.num_rows),
                    row_sampling(self.config, self.layout),
                )
                programs += every_sampler_program(self.sampler, settings, batch, self.shape_buckets.completion_lengths)
            programs += [*self._copies(), *self._splits()]
        programs += [self._zero_gradient(), self._apply_gradients()]
        return list({(program.name, program.shape): program for program in programs}.values())

    def max_programs(self) -> int:
        """Returns the most programs that a run compiles: those of every shape and every size of a shrinking batch."""
        config, shapes = self.config, self.shape_buckets
        num_shapes, num_step_shapes = len(shapes.shapes), len(shapes.step_shapes)
        num_lengths, num_prompt_lengths = len(shapes.completion_lengths), len({s.length for s in shapes.step_shapes})
        if config.data.shapes is Shapes.AUTO:  # a plan does not know the rows
            num_shapes = num_step_shapes = num_prompt_lengths = NUM_SHAPES
            num_lengths = min(num_lengths, NUM_COMPLETION_LENGTHS)
        num_buckets = num_shapes * num_lengths
        total = num_buckets + 4  # gradients; zeros, apply, combine and the cast
        total += bool(self.reference and self.model.adapters)  # the reference's cast: it merges no adapters
        if self.is_grpo:
            segments = self.sampler.num_segments
            rows = self.layout.num_rows
            rows *= decoding_parts(rows, self.sampler.decoding, row_sampling(self.config, self.layout))
            sizes = 1 + len(smaller_sizes(rows // self.sampler.num_shards, config.sampling))
            total += num_step_shapes + (num_buckets if self.reference else 0) + 1
            total += num_prompt_lengths * segments * sizes * 2 + segments * (sizes + 2)
        return total

    def _copies(self) -> Iterator[StepProgram]:
        masters = self.state.params
        moments = {"moments": self.state.optimizer, **self.reference}
        if self.reference:  # loaded as masters, and cast
            loaded = {"masters": masters, "moments": self.state.optimizer}
            yield StepProgram("load reference", "", to_compute_dtype(self.model), (masters,), loaded, 0.0)
        yield StepProgram("cast", "", to_policy(self.model), (masters,), moments)
        yield reshard_program(self.sampler, self.resident)

    def _rollout(self, bucket: Bucket) -> Iterator[StepProgram]:
        microbatches = self.layout.num_microbatches
        cut = {"microbatches": [self._group_batch(bucket).prompts] * microbatches} if microbatches > 1 else {}
        return abstract_sampler_programs(
            self.sampler,
            row_sampling(self.config, self.layout),
            self._whole_batch(bucket),
            {**self.resident, **cut},
            cond_fraction=self.cond_fraction,
        )

    def _reference(self, bucket: Bucket) -> StepProgram:
        batch, microbatches = self._group_batch(bucket), self.layout.num_microbatches
        resident = {"masters": self.state.params, "moments": self.state.optimizer, "compute copy": self.policy_params}
        if microbatches > 1:
            others = [batch.prompts] * (microbatches - 1)
            resident |= {"prompts": self._whole_batch(bucket), "microbatches": others}
        program = reference_program(self.model, self.config.sampling.temperature)
        arguments = (self.compute_params, batch.prompts, batch.tokens)
        return StepProgram(
            "reference", str(bucket), program, arguments, resident, microbatches, cond_fraction=self.cond_fraction
        )

    @property
    def _num_updates(self) -> int:
        """Number of optimizer updates in a step."""
        return (self.config.grpo.num_updates if self.is_grpo else 1) * self.layout.minibatches

    def _splits(self) -> Iterator[StepProgram]:
        """Yields the splits of a rollout's arrays into microbatches."""
        layout, mesh = self.layout, self.model.mesh
        if layout.num_microbatches == 1:
            return
        program = microbatch_splitter(mesh, layout.num_microbatches)
        for length, dtype in product(self.shape_buckets.completion_lengths, (jnp.int32, jnp.float32)):
            shape = layout.num_rows, layout.completions_per_row, length
            label = f"{' x '.join(map(str, shape))} {dtype.__name__}"
            yield StepProgram("split", label, program, (abstract_rows(shape, dtype, mesh),), {})

    def gradient(self, bucket: Bucket) -> StepProgram:
        """Returns the program of a microbatch's gradient."""
        state, mesh = self.state, self.model.mesh
        batch, layout, microbatches = self._group_batch(bucket), self.layout, self.layout.num_microbatches
        weights = abstract_rows(batch.tokens.shape, jnp.float32, mesh)
        advantages = abstract_rows(batch.tokens.shape[:2], jnp.float32, mesh)
        targets = GrpoTargets(advantages, weights, weights if self.reference else None)
        arguments = (batch, weights, targets) if self.is_grpo else (batch, weights)
        total = jax.eval_shape(self.update.zero_gradient)
        return StepProgram(
            "gradient",
            str(bucket),
            self.update.add_gradient,
            (state.params, total, *arguments),
            {"moments": state.optimizer, **self.reference, "microbatches": [batch.prompts] * (microbatches - 1)},
            self._num_updates * layout.microbatches,
            cond_fraction=self.cond_fraction,
        )

    def _zero_gradient(self) -> StepProgram:
        return StepProgram("zero gradient", "", self.update.zero_gradient, (), {})

    def _apply_gradients(self, resident: dict[str, Any] | None = None) -> StepProgram:
        arguments = self.state, jax.eval_shape(self.update.zero_gradient)
        return StepProgram(
            "apply gradient", "", self.update.apply_gradients, arguments, resident or {}, self._num_updates
        )

    def _held_out(self) -> Iterator[StepProgram]:
        """Yields the evaluation's programs: one completion of as many prompts as a batch of held-out rows has."""
        config, vision = self.config, self.spec.config.vision
        settings = dataclasses.replace(config.sampling, group_size=1)
        spec = sampler_spec(self.model.merged, settings, self.stop_token_ids)
        multiple = int(np.lcm(data_shards(self.model.mesh), spec.num_shards))
        count = -(-self.held_out_prompts // multiple) * multiple
        largest = max_slots_per_image(self.spec.max_pixels, vision)
        length = smallest_bucket(max(config.data.prompt_lengths), settings.prompt_lengths, "sampling.prompt_lengths")
        slots = next_power_of_two(largest * (count // data_shards(self.model.mesh)))
        batch = self._prompt_batch(BatchShape(length, slots, next_power_of_two(largest)), count)
        for program in abstract_sampler_programs(
            spec, settings, batch, self.resident, cond_fraction=self.cond_fraction, prefix="held-out "
        ):
            yield dataclasses.replace(program, times=0.0, evaluation_times=program.times)

    def _whole_batch(self, bucket: Bucket) -> PromptBatch:
        """Returns all rows of a step whose microbatches take a bucket."""
        layout, shape = self.layout, bucket.shape
        if layout.num_microbatches > 1:
            slots = min(shape.slots * layout.num_microbatches, self.shape_buckets.step_shapes[-1].slots)
            shape = self.shape_buckets.fit_step(BatchDims(shape.length, slots, shape.max_slots_per_image, 0))
        return self._prompt_batch(shape, layout.num_rows)

    def _group_batch(self, bucket: Bucket) -> GroupBatch:
        """Returns a microbatch."""
        count = self.layout.rows_per_shard * data_shards(self.model.mesh)
        tokens = abstract_rows((count, self.layout.completions_per_row, bucket.completion), jnp.int32, self.model.mesh)
        return GroupBatch(self._prompt_batch(bucket.shape, count), tokens)

    def _prompt_batch(self, shape: BatchShape, count: int) -> PromptBatch:
        empty = Prompt(np.zeros(1, np.int32), np.zeros((3, 1), np.int32), 1, (), "a prompt")
        batch = collate([empty] * count, self.model.config, shape, data_shards(self.model.mesh))
        return jax.tree.map(lambda x: abstract_rows(x.shape, x.dtype, self.model.mesh), batch)


def stage_programs(
    config: Config, stage_index: int, spec: ModelSpec, devices: Sequence[Any], usable_bytes: float | None = None
) -> StagePrograms:
    """Makes the programs of a stage for these devices, which need not be attached.

    Args:
        config: all settings.
        stage_index: index of the stage.
        spec: the model.
        devices: devices of the mesh.
        usable_bytes: bytes per device available to arrays; None if unknown.

    Raises:
        ValueError: the mesh does not fill them.
    """
    held_out_prompts = evaluation_batch_size(config)
    config = choose_meshes(stage_settings(config, stage_index), spec.config, devices, usable_bytes)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    model = make_model(config.model, spec.config, mesh, spec.tokenizer_size)
    optimizer = stage_optimizer(config, stage_index)
    update = update_programs(model, optimizer.transform, optimizer.settings, gradient_function(config))
    state = abstract_state(model, optimizer.transform)
    shapes = config_buckets(config, spec, layout_on(config, mesh))
    return StagePrograms(config, spec, spec.stop_token_ids, model, state, update, shapes, held_out_prompts)


def fit_remat(
    remat: Remat, programs_with: Callable[[Remat], StagePrograms], topology: Topology, log: Callable[[str], None]
) -> StagePrograms:
    """Returns a stage's programs with the rematerialisation that a setting chooses.

    Args:
        remat: the setting; `AUTO` compiles the gradient of the largest batch.
        programs_with: makes the programs with another rematerialisation.
        topology: the devices.
        log: called with what `AUTO` chooses, and why.
    """
    if remat is not Remat.AUTO:
        return programs_with(remat)
    if topology.usable_bytes is None:
        return programs_with(Remat.BLOCK)
    programs = programs_with(Remat.DOTS)
    gradient = compile_program(programs.gradient(programs.buckets()[-1]), topology)
    needed = f"{gradient.peak_bytes / GIB:.1f} of {topology.usable_bytes / GIB:.1f} GiB"
    if gradient.peak_bytes <= _USABLE_SHARE * topology.usable_bytes:
        log(f"model.remat=auto keeps the products of blocks: the largest gradient takes {needed} per device")
        return programs
    log(f"model.remat=auto recomputes whole blocks: else the largest gradient takes {needed} per device")
    return programs_with(Remat.BLOCK)


def session_programs(
    session: Session,
    optimizer: StageOptimizer,
    programs: UpdatePrograms,
    shapes: ShapeBuckets,
    held_out_prompts: int,
) -> StagePrograms:
    """Makes the programs of a stage from the jitted functions that its steps call."""
    state = abstract_state(session.model, optimizer.transform)
    processor = session.processor
    return StagePrograms(
        session.config,
        processor,
        processor.eos_token_ids,
        session.model,
        state,
        programs,
        shapes,
        held_out_prompts,
    )


def compile_ahead(programs: Sequence[StepProgram], interrupt: Interrupt) -> None:
    """Compiles programs one after another, or loads them from the compilation cache, and tells the progress.

    JAX keeps each compiled program with its jitted function: a call with arrays of the same shapes and shardings finds
    it there. Once the run is asked to stop, the rest is left to the step that it takes before it saves.
    """
    begun = time.perf_counter()
    for number, program in enumerate(programs, 1):
        if interrupt.requested:
            return
        with timed(f"compiling {number} of {len(programs)}: {program.name} {program.shape}".rstrip()):
            program.function.lower(*program.arguments, **program.static).compile()
    seconds = time.perf_counter() - begun
    say(f"compiled {plural(len(programs), 'program')} in {seconds:.0f} s; no step compiles another one")
