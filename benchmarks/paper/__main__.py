r"""Compares the paper's method with its baselines and controls, over seeds, and judges its claims.

  python -m benchmarks.paper --plan                  # what it would cost
  python -m benchmarks.paper --seeds 1               # a quick look
  python -m benchmarks.paper                         # five seeds of every arm
  python -m benchmarks.paper --page                  # writes the page again, from the workdirs alone
  python -m benchmarks.paper --config configs/curriculum.py:3b --sft-config configs/sft.py:3b \
      --rows-in rows/paper --rows-out rows/paper --runs runs/paper-3b

Each run, an arm on a world with a seed, has a workdir in --runs and a log beside it. The same command goes on where it
was stopped, and skips what is finished. Page and figures go to --out; all their numbers are read from the workdirs.
docs/baselines.md has the arms, the measures and the rule by which a claim is judged.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.arms import ARMS
from benchmarks.paper.cost import format_cost
from benchmarks.paper.page import write_page
from benchmarks.paper.plan import DIAL_ARMS, Plan, Sizes, keep_plan, make_plan
from benchmarks.paper.rows import WORLDS, rows_of_user, rows_of_world
from currreft_jax.config import ELSEWHERE, Config
from currreft_jax.config.files import load_config
from currreft_jax.config.output import output_path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    page = options.out or options.runs / "miniature.md"
    try:
        if options.page:
            print(write_page(options.runs, page))
            return
        if options.plan:
            os.environ[ELSEWHERE] = "1"  # read when a config is loaded: a plan needs no accelerator
        plan = _plan_of(options)
        if options.plan:
            print(format_cost(plan, options.jobs, options.step_seconds))
            return
        if options.only:
            _make_one(plan, options.only)
            return
        keep_plan(plan)
        from benchmarks.paper.execute import make_runs

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the processes, as Ctrl-C does
        failed = make_runs(plan, arguments, options.jobs)
        print(write_page(options.runs, page))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"paper: {error}")
    except KeyboardInterrupt:
        sys.exit("paper: stopped and saved; the same command goes on")
    if failed:
        sys.exit(f"paper: not finished: {', '.join(failed)}; the same command tries again")


def _make_one(plan: Plan, name: str) -> None:
    from benchmarks.paper.execute import make_run
    from currreft_jax.runtime.distributed import REQUEUE

    runs = {run.name: run for run in plan}
    if name not in runs:
        raise ValueError(f"--only={name}: the plan has no such run")
    if not make_run(plan, runs[name]):
        sys.exit(REQUEUE)


def _plan_of(options: argparse.Namespace) -> Plan:
    if bool(options.rows_in) != bool(options.rows_out):
        raise ValueError("--rows-in and --rows-out need each other")
    if options.rows_in:
        worlds = [rows_of_user(options.rows_in, options.rows_out)]
    else:
        worlds = [rows_of_world(name, options.runs.absolute()) for name in options.worlds]
    sizes = Sizes(
        options.steps, options.rows_in_domain, options.rows_out_of_domain, options.filter_rows, options.filter_samples
    )
    curriculum, sft = load_config(options.config, Config), load_config(options.sft_config, Config)
    return make_plan(options.runs, curriculum, sft, worlds, options.arms, options.seeds, sizes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="tell what the comparison costs, and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page from the workdirs, and run nothing")
    parser.add_argument("--only", help="make one run, WORLD/ARM-SEED, in this process")
    parser.add_argument("--runs", type=output_path, default=Path("runs/paper"), help="folder (default %(default)s)")
    parser.add_argument("--out", type=output_path, help="the page; by default miniature.md in --runs")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 (default %(default)s)")
    names = ", ".join(arm.name for arm in ARMS)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        help=f"some of {names} (default all on the first world, {', '.join(DIAL_ARMS)} on the others)",
    )
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), help="embedded worlds (default %(default)s)")
    parser.add_argument(
        "--rows-in", type=Path, help="rows of your own: folder of `dataset build`, to train and test on"
    )
    parser.add_argument("--rows-out", type=Path, help="the same, or a file: test rows out of domain")
    parser.add_argument("--config", default="configs/curriculum.py:tiny", help="Curr-ReFT (default %(default)s)")
    parser.add_argument("--sft-config", default="configs/sft.py:tiny", help="fine-tuning (default %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="updates of every arm (default: the curriculum's)")
    parser.add_argument(
        "--rows-in-domain", type=int, default=300, help="test rows of each file; 0 for all (%(default)s)"
    )
    parser.add_argument("--rows-out-of-domain", type=int, default=150, help="the same out of domain (%(default)s)")
    parser.add_argument("--filter-rows", type=int, default=0, help="rows whose pass rates are measured (default all)")
    parser.add_argument("--filter-samples", type=int, default=4, help="answers to each of them (default %(default)s)")
    jobs = max(1, min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--jobs", type=int, default=jobs, help="runs at a time (default %(default)s; 1 on accelerators)"
    )
    parser.add_argument(
        "--step-seconds", type=float, help="of a step of GRPO, for --plan; `currreft_jax.plan` tells it"
    )
    return parser


if __name__ == "__main__":
    main()
