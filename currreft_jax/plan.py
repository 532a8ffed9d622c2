"""Check whether a config fits devices that need not be attached, and estimate the seconds of a step.

  python -m currreft_jax.plan --config=configs/stage3.py:3b --topology=a800:1x8
  python -m currreft_jax.plan --config=configs/sft.py:7b --topology=a800:2x8 --config.data.batch_size=64 --search

Compiles the programs that `train` runs with the devices' own compiler, for abstract arrays of the largest shape that
the settings allow; no rows are read. A topology is GPU:HOSTSxGPUS, or TPU: and the shape of the slice; `here` is this
machine's devices. Stages that are batched alike and store the same optimizer state are planned once. The last line says
whether the config fits, how many hours and how much disk it takes, and what was assumed. Exits with 1 if a program does
not fit, and prints settings that do.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from currreft_jax.config import ELSEWHERE, validate
from currreft_jax.config.flags import define_config, flags_parser, refuse_command_line
from currreft_jax.config.missing import describe_error
from currreft_jax.planning.compiled import Efficiency
from currreft_jax.planning.devices import DEVICES, GB, attached_topology, topology_by_name
from currreft_jax.rewards.registry import validate_reward_names
from currreft_jax.runtime.compilation_cache import enable_compilation_cache
from currreft_jax.runtime.timing import ended_by_ctrl_c
from currreft_jax.training.plans import plan_stages

_HERE = "here"


def define_flags() -> None:
    """Defines the program's flags, only when it runs: `train` has a flag of the same name."""
    defaults = Efficiency()
    define_config()
    flags.DEFINE_string("topology", None, f"devices, such as a800:2x8 or v5e:2x4, of {', '.join(DEVICES)}; or here")
    flags.DEFINE_integer("stage", None, "index of a stage, from 0, to plan alone; by default all are planned")
    flags.DEFINE_bool("all", False, "compile every shape that a batch may take, not the largest alone (hours)")
    flags.DEFINE_bool("search", False, "search for the fastest settings that fit, even if the given ones do")
    flags.DEFINE_float("compute_share", defaults.compute, "achieved fraction of the bf16 peak")
    flags.DEFINE_float("memory_share", defaults.memory, "achieved fraction of the memory bandwidth")
    flags.DEFINE_float("link_share", defaults.links, "achieved fraction of the link bandwidth")
    flags.DEFINE_float("network_gbs", defaults.network / GB, "achieved GB/s from each device to other hosts")
    flags.DEFINE_float("latency_us", defaults.latency * 1e6, "microseconds of a collective within a host or slice")
    flags.DEFINE_float("network_latency_us", defaults.network_latency * 1e6, "microseconds of a collective of hosts")


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    args = flags.FLAGS
    if not args["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX logs the backends that are missing
    try:
        validate_reward_names(args.config.rewards)
    except ValueError as error:
        refuse_command_line("plan", str(error))
    if args.topology is None:
        refuse_command_line("plan", "--topology is missing, such as --topology=a800:1x8")
    if args.stage is not None and not 0 <= args.stage < len(args.config.stages):
        refuse_command_line("plan", f"--stage={args.stage}: it takes 0 to {len(args.config.stages) - 1}")
    shares = {"compute_share": args.compute_share, "memory_share": args.memory_share, "link_share": args.link_share}
    for name, share in shares.items():
        if not 0 < share <= 1:
            refuse_command_line("plan", f"--{name}={share}: it takes a share in (0, 1]")
    if not 0 < args.network_gbs < math.inf:
        refuse_command_line("plan", f"--network_gbs={args.network_gbs}: it takes a positive number")
    for name, latency in {"latency_us": args.latency_us, "network_latency_us": args.network_latency_us}.items():
        if not 0 <= latency < math.inf:
            refuse_command_line("plan", f"--{name}={latency}: it takes 0 or a positive number")
    if args.topology == _HERE:
        enable_compilation_cache()  # `train` loads what is compiled here
    else:
        jax.config.update("jax_platforms", "cpu")  # leaves the attached devices free
    efficiency = Efficiency(
        args.compute_share,
        args.memory_share,
        args.link_share,
        args.network_gbs * GB,
        args.latency_us * 1e-6,
        args.network_latency_us * 1e-6,
    )
    try:
        validate(args.config)  # before the devices, whose compiler may be missing
        topology = attached_topology() if args.topology == _HERE else topology_by_name(args.topology)
        with ended_by_ctrl_c():
            fit = plan_stages(args.config, topology, efficiency, args.stage, all_shapes=args.all, search=args.search)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # what the package raises for bad input
        sys.exit(f"plan: {describe_error(error)}")
    sys.exit(0 if fit else 1)


if __name__ == "__main__":
    os.environ[ELSEWHERE] = "1"  # read when the config file is loaded, before `main`
    define_flags()
    app.run(main, flags_parser=flags_parser("plan"))
