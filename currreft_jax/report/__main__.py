"""Write the report of a run: its curves, its forgetting matrix and its rollouts, in one HTML file that opens anywhere.

  python -m currreft_jax.report runs/demo
  python -m currreft_jax.report runs/demo --compare runs/other --out compared.html
  python -m currreft_jax.report runs/demo --replay stage1:1:3:5

The page needs no network, and can be written while the run is going. docs/report.md describes its sections.
With --replay, prints the command that samples one completion again; it is named by stage, step, row and g.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.output import output_path
from currreft_jax.report.page import render_page
from currreft_jax.report.rollouts import find_groups
from currreft_jax.report.runs import Run, read_run

FILE_NAME = "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    options = _parser().parse_args(arguments)
    try:
        run = read_run(options.workdir)
        if options.replay:
            return print(replay_command(run, options.replay))
        out = options.out or options.workdir / FILE_NAME
        text, counts = render_page(run, [read_run(workdir) for workdir in options.compare])
        partial = out.with_name(f"{out.name}.partial")
        partial.write_text(text, "utf-8")
        partial.replace(out)
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")
    groups = f"{counts['shown']} of {counts['found']} groups of completions"
    missing = f", {counts['missing']} images missing" if counts["missing"] else ""
    print(f"report: {groups}{missing}, {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(out)


def replay_command(run: Run, location: str) -> str:
    """Returns the command that samples a completion of a run again.

    Args:
        run: the run that sampled it.
        location: STAGE:STEP:ROW:G; row and g count from 1.

    Raises:
        ValueError: there is no such completion.
    """
    stage, *numbers = location.rsplit(":", 3)
    if len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        raise ValueError(f"--replay takes STAGE:STEP:ROW:G, such as stage1:1:3:5, not {location!r}")
    step, row, g = map(int, numbers)
    names = [stage_run.name for stage_run in run.stages]
    if stage not in names:
        raise ValueError(f"{run.workdir} has no stage {stage!r}; it has {', '.join(names)}")
    groups = find_groups(names.index(stage), run.stages[names.index(stage)])
    steps = sorted({group.step for group in groups})
    if step not in steps:
        raise ValueError(f"no completions of step {step} were written, only of steps {steps}")
    rows = [group for group in groups if group.step == step]
    if not 1 <= row <= len(rows):
        raise ValueError(f"step {step} has rows 1 to {len(rows)}, not {row}")
    return f"{rows[row - 1].replay_command}{g}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m currreft_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", type=output_path, help="workdir of a run with one or several stages")
    add("--compare", metavar="WORKDIR", type=Path, nargs="+", default=[], help="runs to add to the curves")
    add("--out", metavar="FILE", type=output_path, help=f"path of the page (default WORKDIR/{FILE_NAME})")
    add("--replay", metavar="STAGE:STEP:ROW:G", help="print the command that samples this completion again")
    return parser


if __name__ == "__main__":
    main()
