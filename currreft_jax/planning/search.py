"""Looks for the settings that fit, the fastest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from currreft_jax.config import Config, MeshShape, Method, Pretrained, Remat
from currreft_jax.planning.devices import GIB, Slice
from currreft_jax.planning.fit import Measured, Shares, measured, step_seconds
from currreft_jax.planning.parts import Part, Programs, Reader, buckets, parts, programs_of

_LEARNING = ("reference", "gradient", "move")
_TENSOR = (1, 2, 4, 8)  # parts of a product; beyond a host's links they cost more than they save


@dataclass(frozen=True, slots=True)
class Found:
    """Settings that fit.

    Attributes:
        config: with them.
        seconds: of a step.
    """

    config: Config
    seconds: float

    @property
    def flags(self) -> str:
        """As they are written on the command line."""
        config = self.config
        return (
            f"--config.microbatches={config.microbatches} --config.model.remat={config.model.remat.name}"
            f" --config.mesh.data={config.mesh.data} --config.mesh.fsdp={config.mesh.fsdp}"
            f" --config.mesh.tensor={config.mesh.tensor} --config.sampling.mesh={config.sampling.mesh[0]},"
            f"{config.sampling.mesh[1]}"
        )


def search(
    config: Config, number: int, reader: Reader, place: Slice, shares: Shares, say: Callable[[str], None]
) -> Found | None:
    """The fastest settings of microbatches, rematerialisation and meshes that fit; None if none do.

    The fewer the parts of the tensor axis the better, as each sends activations; the rest is compiled and compared.
    Parameters are split over all devices, or over those of a host with a copy on each, where only gradients travel.

    Args:
        config: what it starts from; nothing else of it changes.
        number: of the stage.
        reader: of the model.
        place: the devices.
        shares: what is reached of their figures.
        say: told of everything that is tried.
    """

    def tried(config: Config, learning: bool) -> list[Measured] | None:
        """The parts that learn, or those that draw; None if one does not fit, or the batch does not divide."""
        told = f"  remat {config.model.remat.name}, microbatches {config.microbatches}" if learning else "  sampling"
        told += f", data {config.mesh.data}, tensor {config.mesh.tensor}"
        told += "" if learning else f", sampling.mesh {config.sampling.mesh}"
        try:
            programs = programs_of(config, number, reader, place.devices)
            wanted = [it for it in parts(programs, buckets(programs)[-1]) if (it.name in _LEARNING) == learning]
        except ValueError as error:
            say(f"{told}: {error}")
            return None
        seen = []
        for it in _compiled(wanted, programs, place):
            if isinstance(it, Part) or (place.usable is not None and it.peak > place.usable):
                name, peak = (it.name, it.lying) if isinstance(it, Part) else (it.part.name, it.peak)
                say(f"{told}: {name} takes {peak / GIB:.1f} GiB")
                return None
            seen.append(it)
        say(f"{told}: fits, {step_seconds(seen, place, shares):.2f} s a step")
        return seen

    def smallest(model: Pretrained, mesh: MeshShape, shards: int) -> tuple[float, Config] | None:
        """Seconds of the parts that learn, with the fewest microbatches that fit; None if none do."""
        for microbatches in _divisors(config.data.batch_size // (minibatches * shards)):
            there = replace(config, mesh=mesh, microbatches=microbatches, model=model)
            if seen := tried(there, learning=True):
                return step_seconds(seen, place, shares), there
        return None

    minibatches = config.grpo.minibatches if config.method is Method.GRPO else 1
    for tensor in _TENSOR:
        if len(place.devices) % tensor or tensor > place.of_host:
            continue
        shards = len(place.devices) // tensor
        if config.data.batch_size % (minibatches * shards):
            say(
                f"  tensor {tensor}: data.batch_size {config.data.batch_size} does not divide into {shards} data shards"
            )
            continue
        learnt: list[tuple[float, Config]] = []
        for copies in sorted({1, len(place.devices) // place.of_host}):
            for remat in (Remat.NONE, Remat.DOTS, Remat.BLOCK):
                if fits := smallest(replace(config.model, remat=remat), MeshShape(copies, -1, tensor), shards):
                    learnt.append(fits)
                    if fits[1].microbatches == 1:
                        break  # what follows computes more, and has no less to do at a time
        if not learnt:
            continue
        seconds, best = min(learnt, key=lambda it: it[0])
        for parts_of in _TENSOR:
            there = replace(best, sampling=replace(config.sampling, mesh=(-1, parts_of)))
            if len(place.devices) % parts_of == 0 and (seen := tried(there, learning=False)):
                return Found(there, seconds + step_seconds(seen, place, shares))
    return None


def _compiled(wanted: list[Part], programs: Programs, place: Slice) -> Iterator[Measured | Part]:
    """Each part compiled; a part itself, before any is, where what lies there is too much already."""
    for it in wanted:
        if place.usable is not None and it.lying > place.usable:
            yield it
            return
    for it in wanted:
        yield measured(it, programs, place)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
