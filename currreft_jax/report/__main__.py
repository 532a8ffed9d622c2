"""Write the report of a run, an evaluation or a job of rejected sampling, in one HTML file that opens anywhere.

  python -m currreft_jax.report runs/demo
  python -m currreft_jax.report runs/demo --compare runs/other --out compared.html
  python -m currreft_jax.report runs/demo --replay stage1:1:3:5
  python -m currreft_jax.report runs/eval-tiny
  python -m currreft_jax.report runs/eval-tiny/base runs/eval-tiny/stage3 --out compared.html
  python -m currreft_jax.report runs/reject-tiny

A run's page has its curves, its forgetting matrix and its rollouts, and can be written while the run is going. An
evaluation's page has the tables and bars of its models, and rows that two of them answer otherwise; name the folders of
models to choose them and their order. A job's page has what was kept and why, some of the kept answers, and those
on which two judges disagree. No page needs a network. docs/report.md describes their sections.
With --replay, prints the command that samples one completion again; it is named by stage, step, row and g.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.missing import describe_error, describe_missing
from currreft_jax.config.output import output_path
from currreft_jax.config.wording import plural
from currreft_jax.report.comparisons import answer_folders, read_evaluated_models
from currreft_jax.report.page import render_comparison, render_page, render_rejection
from currreft_jax.report.rejections import is_rejection, read_rejection
from currreft_jax.report.rollouts import find_groups
from currreft_jax.report.runs import Run, read_run

FILE_NAME = "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    options = _parser().parse_args(arguments)
    try:
        for folder in (*options.folders, *options.compare):
            if not folder.is_dir():
                raise ValueError(describe_missing(folder, "folder"))
        if any(map(answer_folders, options.folders)):
            _write(*_comparison_page(options))
            return
        if any(map(is_rejection, options.folders)):
            _write(*_rejection_page(options))
            return
        if len(options.folders) > 1:
            raise ValueError(f"{options.folders[1]} is another run; add runs with --compare")
        run = read_run(options.folders[0])
        if options.replay:
            print(replay_command(run, options.replay))
            return
        text, counts = render_page(run, [read_run(workdir) for workdir in options.compare])
        groups = f"{counts['shown']} of {plural(counts['found'], 'group')} of completions"
        if counts["before_after"]:
            groups += f", {plural(counts['before_after'], 'row')} before and after training"
        _write(options.out or options.folders[0] / FILE_NAME, text, groups, counts["missing"])
    except (ValueError, OSError) as error:
        sys.exit(f"report: {describe_error(error)}")


def _comparison_page(options: argparse.Namespace) -> tuple[Path, str, str, int]:
    """Returns the path and the text of an evaluation's page, its contents in words, and the number of missing images.

    Raises:
        ValueError: a folder holds no answers, or an option is for runs.
    """
    folders: list[Path] = options.folders
    if options.compare or options.replay:
        raise ValueError("--compare and --replay are for runs; name all folders of models one after another")
    if others := [folder for folder in folders if not answer_folders(folder)]:
        raise ValueError(f"{others[0]} holds no answers; name folders of models of an evaluation, or a run alone")
    evaluated = read_evaluated_models(folders)
    text, counts = render_comparison(evaluated)
    is_evaluation = len(folders) == 1 and answer_folders(folders[0]) != folders
    out = options.out or (folders[0] if is_evaluation else folders[0].parent) / FILE_NAME
    contents = f"{plural(len(evaluated.models), 'model')}, {plural(counts['shown'], 'row')} that two answer otherwise"
    if counts["suites"]:
        contents += f"; rows of {plural(counts['suites'], 'suite')} cannot be shown, the page says why"
    return out, text, contents, counts["missing"]


def _rejection_page(options: argparse.Namespace) -> tuple[Path, str, str, int]:
    """Returns the same of a job of rejected sampling.

    Raises:
        ValueError: there are several folders, an option is for runs, or a file is damaged.
    """
    if len(options.folders) > 1 or options.compare or options.replay:
        raise ValueError("the page of a job of rejected sampling is its own; name its folder alone")
    (folder,) = options.folders
    text, counts = render_rejection(read_rejection(folder))
    contents = plural(counts["shown"], "kept row")
    if counts["disputed"]:
        contents += f", {plural(counts['disputed'], 'answer')} on which the judges disagree"
    return options.out or folder / FILE_NAME, text, contents, counts["missing"]


def _write(out: Path, text: str, contents: str, missing_images: int) -> None:
    """Writes a page, whole or not at all, and prints what is in it, and its path."""
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(out)
    missing = f", {plural(missing_images, 'image')} missing" if missing_images else ""
    print(f"report: {contents}{missing}, {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
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
    add("folders", metavar="FOLDER", type=output_path, nargs="+", help="a run, an evaluation, models of one, or a job")
    add("--compare", metavar="WORKDIR", type=Path, nargs="+", default=[], help="runs to add to the curves")
    add(
        "--out",
        metavar="FILE",
        type=output_path,
        help=f"path of the page (default {FILE_NAME} in the run or the evaluation)",
    )
    add("--replay", metavar="STAGE:STEP:ROW:G", help="print the command that samples this completion again")
    return parser


if __name__ == "__main__":
    main()
