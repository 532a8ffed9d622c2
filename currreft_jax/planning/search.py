"""Searches for the fastest settings of microbatches, rematerialisation and meshes that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import gcd

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
    """Search for the fastest settings that fit.

    Smaller tensor axes are tried first, as larger ones send more activations; the other settings are compiled and
    compared. Parameters are sharded over all devices, or within a host with one copy per host: then only gradients
    travel between hosts.

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
        num_devices = len(self.topology.devices)
        for tensor in _TENSOR_SIZES:
            if num_devices % tensor or tensor > self.topology.devices_per_host:
                continue
            training = self._fastest_training(tensor, num_devices // tensor)
            if not training:
                continue
            seconds, config = training
            for sampling_tensor in _TENSOR_SIZES:
                candidate = replace(config, sampling=replace(config.sampling, mesh=(-1, sampling_tensor)))
                if num_devices % sampling_tensor == 0 and (sampling := self._compile(candidate, training=False)):
                    return SearchResult(candidate, seconds + self._seconds(sampling))
        return None

    def _fastest_training(self, tensor: int, shards: int) -> tuple[float, Config] | None:
        """Seconds and settings of the fastest training programs with a tensor axis of this size; None if none fit."""
        try:
            layout = batch_layout(replace(self.config, microbatches=1), shards, self._num_hosts)
        except ValueError as error:
            self.log(f"  tensor {tensor}: {error}")
            return None
        found: list[tuple[float, Config]] = []
        for copies in sorted({1, len(self.topology.devices) // self.topology.devices_per_host}):
            for remat in (Remat.NONE, Remat.DOTS, Remat.BLOCK):
                model = replace(self.config.model, remat=remat)
                if training := self._fewest_microbatches(model, MeshShape(copies, -1, tensor), layout):
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
