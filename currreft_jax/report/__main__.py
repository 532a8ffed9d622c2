"""See a run: its curves, its forgetting matrix and its completions, in one HTML file that opens anywhere.

  python -m currreft_jax.report runs/demo
  python -m currreft_jax.report runs/demo --compare runs/other --out compared.html
  python -m currreft_jax.report runs/demo --replay stage1:1:3:5

The page needs no network. It may be made while the run is going. docs/report.md tells what it shows.
With --replay, prints the command that draws a completion again: stage, step, row of the step, completion of the row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.report.book import groups
from currreft_jax.report.page import page
from currreft_jax.report.runs import Run, read_run

NAME = "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    options = _parser().parse_args(arguments)
    try:
        run = read_run(options.workdir)
        if options.replay:
            return print(command(run, options.replay))
        out = options.out or options.workdir / NAME
        text, counts = page(run, [read_run(it) for it in options.compare])
        whole = out.with_name(f"{out.name}.partial")
        whole.write_text(text, "utf-8")
        whole.replace(out)
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")
    told = f"{counts['shown']} of {counts['found']} groups of completions"
    missing = f", {counts['missing']} images missing" if counts["missing"] else ""
    print(f"report: {told}{missing}, {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    print(out)


def command(run: Run, place: str) -> str:
    """What draws a completion again.

    Args:
        run: that drew it.
        place: STAGE:STEP:ROW:G, the last two from 1 on.

    Raises:
        ValueError: there is no such completion.
    """
    stage, *numbers = place.rsplit(":", 3)
    if len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        raise ValueError(f"--replay takes STAGE:STEP:ROW:G, such as stage1:1:3:5, not {place!r}")
    step, row, g = map(int, numbers)
    names = [it.name for it in run.stages]
    if stage not in names:
        raise ValueError(f"{run.workdir} has no stage {stage!r}; it has {', '.join(names)}")
    there = groups(names.index(stage), run.stages[names.index(stage)])
    if step not in {it.step for it in there}:
        raise ValueError(f"no completions of step {step} were written; there are {sorted({it.step for it in there})}")
    rows = [it for it in there if it.step == step]
    if not 1 <= row <= len(rows):
        raise ValueError(f"step {step} has rows 1 to {len(rows)}, not {row}")
    return f"{rows[row - 1].command}{g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m currreft_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("workdir", metavar="WORKDIR", type=Path, help="of a run, of one stage or several")
    add("--compare", metavar="WORKDIR", type=Path, nargs="+", default=[], help="runs whose curves stand beside its own")
    add("--out", metavar="FILE", type=Path, help=f"where the page goes (default WORKDIR/{NAME})")
    add("--replay", metavar="STAGE:STEP:ROW:G", help="print the command that draws this completion again")
    return parser


if __name__ == "__main__":
    main()
