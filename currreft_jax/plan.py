"""Say whether a config fits devices that need not be here, and how fast it should run there.

  python -m currreft_jax.plan --config=configs/stage3.py:3b --topology=a800:1x8
  python -m currreft_jax.plan --config=configs/sft.py:7b --topology=a800:2x8 --config.data.batch_size=64 --search

The programs that `train` runs are compiled ahead of time by the devices' own compiler, for arrays that do not exist, in
the largest shape that the settings allow. A GPU's topology is HOSTSxGPUS, a TPU's the chips of its slice; `here` stands
for the devices of this machine. Exit code 1 says that it does not fit, and which settings do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata

import jax
from absl import app, flags
from ml_collections import config_flags

from currreft_jax.config import ELSEWHERE, Config, validate
from currreft_jax.planning.devices import DEVICES, GB, GIB, Slice, present, topology
from currreft_jax.planning.fit import Measured, Shares, fits, plan, table
from currreft_jax.planning.parts import Programs, Reader, buckets, count, device_bytes, parts, programs_of, reader_of
from currreft_jax.planning.search import search

_HERE = "here"


def run(config: Config, place: Slice, shares: Shares, number: int = 0, *, every: bool = False) -> list[Measured]:
    """Compiles a stage's programs for devices, and prints what they take.

    Args:
        config: all settings.
        place: the devices.
        shares: what is reached of their figures.
        number: of the stage.
        every: all shapes, not the largest alone.

    Raises:
        ValueError: settings that cannot be meant, or that do not divide over the devices.
        FileNotFoundError: the shape of the model is not known.
    """
    validate(config)
    programs = programs_of(config, number, reader_of(config), place.devices)
    print(_head(config, number, programs, place, shares), flush=True)
    chosen = buckets(programs) if every else buckets(programs)[-1:]
    seen = []
    for it in plan((part for bucket in chosen for part in parts(programs, bucket)), programs, place):
        print(f"plan: {it.part.name} {it.part.bucket}: {it.compile_seconds:.1f} s", file=sys.stderr)
        seen.append(it)
    largest = seen if not every else seen[-len(list(parts(programs, chosen[-1]))) :]
    print(table(seen, largest, place, shares))
    compiled = sum(it.compile_seconds for it in seen)
    print(
        f"{len(seen)} programs compiled in {compiled:.0f} s; a run compiles up to {count(programs):,}, as batches come"
    )
    return seen


def _head(config: Config, number: int, programs: Programs, place: Slice, shares: Shares) -> str:
    mesh, decoding = programs.model.mesh.shape, config.sampling.mesh
    resident = {name: device_bytes(arrays) for name, arrays in programs.resident.items()}
    versions = " ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(("jax", "jaxlib", place.compiler)))
    memory = "nobody knows how much" if place.usable is None else f"{place.usable / GIB:.2f} GiB for arrays"
    lines = [
        f"{config.name}, stage {config.stages[number].name}: {programs.model.num_parameters / 1e9:.2f} B parameters,"
        f" batch {config.data.batch_size} in {config.microbatches} microbatches, remat {config.model.remat.value}",
        f"{place.name}: {len(place.devices)} devices, {memory} each; mesh data {mesh['data']}, fsdp {mesh['fsdp']},"
        f" tensor {mesh['tensor']}; sampling.mesh {decoding}; {versions}",
        "resident: " + ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in resident.items()),
    ]
    if place.device:
        lines.append(
            f"at {shares.compute:.0%} of {place.device.peak / 1e12:g} TFLOP/s, {shares.memory:.0%} of"
            f" {place.device.bandwidth / GB:g} GB/s, {shares.links:.0%} of {place.device.link / GB:g} GB/s of links,"
            f" {shares.network / GB:g} GB/s between hosts; what is slowest hides the others"
        )
    return "\n".join([*lines, ""])


def remedy(config: Config, number: int, reader: Reader, place: Slice, shares: Shares) -> str:
    """The settings that fit, as flags; or what else there is to do."""
    found = search(config, number, reader, place, shares, lambda text: print(f"plan: {text}", file=sys.stderr))
    if found:
        return f"fits, in {found.seconds:.2f} s a step: {found.flags}"
    return (
        "no setting of microbatches, remat, meshes and sampling.mesh fits. Take more devices; or keep less for each"
        " parameter (--config.optimizer.moments=bfloat16, --config.optimizer.rule=ADAFACTOR,"
        " --config.model.lora.rank=16, --config.grpo.kl_coef=0); or let batches be smaller (--config.data.batch_size,"
        " --config.data.prompt_lengths, --config.sampling.max_new_tokens, --config.model.max_pixels)"
    )


def define_flags() -> None:
    """Defines the program's flags; `train`, which a process may have loaded too, has one of the same name."""
    config_flags.DEFINE_config_file("config", None, "FILE or FILE:VARIANT; the file has get_config(variant)")
    flags.DEFINE_string("topology", None, f"devices, such as a800:2x8 or v5e:2x4; of {', '.join(DEVICES)}; or here")
    flags.DEFINE_integer("stage", 0, "which stage of the config, from 0 on")
    flags.DEFINE_bool("all", False, "compile every shape that a batch may take, not the largest alone (hours)")
    flags.DEFINE_bool("search", False, "look for the fastest settings that fit, if these do, too")
    usual = Shares()
    flags.DEFINE_float("compute_share", usual.compute, "of the bf16 peak that is reached")
    flags.DEFINE_float("memory_share", usual.memory, "of the memory's bandwidth that is reached")
    flags.DEFINE_float("link_share", usual.links, "of the links' bandwidth that is reached")
    flags.DEFINE_float("network_gbs", usual.network / GB, "GB/s that a device sends to other hosts")


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        sys.exit(f"plan: {argv[1]} is no setting; write --config.NAME=VALUE")
    given = flags.FLAGS
    if given.config is None or given.topology is None:
        sys.exit("plan: --config and --topology are needed, such as --config=configs/stage3.py:3b --topology=a800:1x8")
    if given.topology != _HERE:
        jax.config.update("jax_platforms", "cpu")  # the devices of this machine stay free
    config, number = given.config, given.stage
    shares = Shares(given.compute_share, given.memory_share, given.link_share, given.network_gbs * GB)
    try:
        place = present() if given.topology == _HERE else topology(given.topology)
        fit = fits(run(config, place, shares, number, every=given.all), place)
        if not fit:
            print("does not fit")
        if not fit or given.search:
            print(remedy(config, number, reader_of(config), place, shares))
    except (ValueError, OSError, ModuleNotFoundError) as error:  # what the package refuses with
        sys.exit(f"plan: {error}")
    sys.exit(0 if fit else 1)


if __name__ == "__main__":
    os.environ[ELSEWHERE] = "1"  # read by the config's file, before `main`
    define_flags()
    app.run(main)
