"""Searches for the fastest settings of microbatches, rematerialisation and meshes that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, inf

from currreft_jax.config import BatchLayout, Config, MeshShape, Pretrained, Remat, batch_layout
from currreft_jax.planning.compiled import CompiledProgram, Efficiency, compile_program, step_seconds
from currreft_jax.planning.devices import GIB, Topology
from currreft_jax.runtime.programs import StepProgram

_TRAINING = ("reference", "gradient", "apply gradient")
_TENSOR_SIZES = (1, 2, 4, 8)  # beyond a host's links, tensor parallelism costs more than it saves


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Settings that fit.

    Attributes:
        config: all settings.
        seconds: estimate of a step.
    """

    config: Config
    seconds: float

    @property
    def flags(self) -> str:
        """The settings as command-line flags."""
        config = self.config
        return (
            f"--config.microbatches={config.microbatches} --config.model.remat={config.model.remat.name}"
            f" --config.mesh.data={config.mesh.data} --config.mesh.fsdp={config.mesh.fsdp}"
            f" --config.mesh.tensor={config.mesh.tensor} --config.sampling.mesh={config.sampling.mesh[0]},"
            f"{config.sampling.mesh[1]}"
        )


@dataclass(frozen=True, slots=True)
class Search:
    """Search for the fastest settings that fit: every size of both tensor axes is compiled and compared.

    Parameters are sharded over all devices, or within a host with one copy per host: then only gradients travel between
    hosts. Tensor axes stay within a host.

    Attributes:
        config: the settings to start from; those not searched stay as they are.
        step_programs: yields the programs of the largest step of a config.
        topology: the devices.
        efficiency: achieved fraction of their figures.
        log: called with a line for every setting tried.
    """

    config: Config
    step_programs: Callable[[Config], Iterable[StepProgram]]
    topology: Topology
    efficiency: Efficiency
    log: Callable[[str], None]

    def run(self) -> SearchResult | None:
        """Returns the fastest settings that fit; None if none do."""
        return min(self._results(), key=lambda result: result.seconds, default=None)

    def _results(self) -> Iterator[SearchResult]:
        """Yields settings that fit, but for those whose training alone takes longer than a step of others."""
        fastest, per_host = inf, self.topology.devices_per_host
        sizes = [size for size in _TENSOR_SIZES if per_host % size == 0]
        for tensor, copies in product(sizes, sorted({1, len(self.topology.devices) // per_host})):
            training = self._fastest_training(MeshShape(copies, -1, tensor))
            if not training or training[0] >= fastest:
                continue
            seconds, config = training
            for size in sizes:
                candidate = replace(config, sampling=replace(config.sampling, mesh=(-1, size)))
                sampling = self._compile(candidate, training=False)
                if sampling is not None:
                    result = SearchResult(candidate, seconds + self._seconds(sampling))
                    fastest = min(fastest, result.seconds)
                    yield result

    def _fastest_training(self, mesh: MeshShape) -> tuple[float, Config] | None:
        """Seconds and settings of the fastest training programs on a mesh; None if none fit."""
        try:
            shards = len(self.topology.devices) // mesh.tensor
            layout = batch_layout(replace(self.config, microbatches=1), shards, self._num_hosts)
        except ValueError as error:
            self.log(f"  tensor {mesh.tensor}: {error}")
            return None
        found: list[tuple[float, Config]] = []
        for remat in (Remat.NONE, Remat.DOTS, Remat.BLOCK):
            model = replace(self.config.model, remat=remat)
            if training := self._fewest_microbatches(model, mesh, layout):
                found.append(training)
                if training[1].microbatches == 1:
                    break  # later policies recompute more and cannot save microbatches
        return min(found, key=lambda candidate: candidate[0], default=None)

    def _fewest_microbatches(
        self, model: Pretrained, mesh: MeshShape, layout: BatchLayout
    ) -> tuple[float, Config] | None:
        """Seconds and settings of the training programs with the fewest microbatches that fit; None if none do.

        Groups are split as in `layout`, which has one microbatch: more parts would read each prompt more often.
        """
        for microbatches in _divisors(gcd(layout.rows_per_shard, self.config.data.batch_size // layout.minibatches)):
            candidate = replace(self.config, mesh=mesh, microbatches=microbatches, model=model)
            if programs := self._compile(candidate, training=True):
                return self._seconds(programs), candidate
        return None

    def _compile(self, config: Config, *, training: bool) -> list[CompiledProgram] | None:
        """Compiles the programs of training, or those of sampling.

        Returns None if one does not fit or the batch does not divide.
        """
        tried = f"  remat {config.model.remat.name}, microbatches {config.microbatches}" if training else "  sampling"
        tried += f", data {config.mesh.data}, tensor {config.mesh.tensor}"
        tried += "" if training else f", sampling.mesh {config.sampling.mesh}"
        try:
            programs = [program for program in self.step_programs(config) if (program.name in _TRAINING) == training]
        except ValueError as error:
            self.log(f"{tried}: {error}")
            return None
        compiled: list[CompiledProgram] = []
        for name, peak_bytes, result in self._peaks(programs):
            if self.topology.usable_bytes is not None and peak_bytes > self.topology.usable_bytes:
                self.log(f"{tried}: {name} takes {peak_bytes / GIB:.1f} GiB")
                return None
            compiled += [result] if result else []
        self.log(f"{tried}: fits, {self._seconds(compiled):.2f} s a step")
        return compiled

    def _peaks(self, programs: list[StepProgram]) -> Iterator[tuple[str, float, CompiledProgram | None]]:
        """Yields names and bytes: of the arrays alive before each program runs, then of each compiled program."""
        for program in programs:
            yield program.name, program.bytes_before, None
        for program in programs:
            compiled = compile_program(program, self.topology)
            yield program.name, compiled.peak_bytes, compiled

    def _seconds(self, programs: list[CompiledProgram]) -> float:
        return step_seconds(programs, self.topology, self.efficiency)

    @property
    def _num_hosts(self) -> int:
        return len({device.process_index for device in self.topology.devices})


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
