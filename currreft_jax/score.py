"""Score a file of completions with the rewards; no model is needed.

Each line of FILE is a JSON object:

  kind        judge, choice or open
  task        detection, classify or math; other for a task that a reward of your own scores
  solution    the gold answer, bare or inside <answer> tags; may be a number
  completion  what the model wrote
  id          optional; the line number by default
  problem     optional
  options     optional list of the option texts of a choice row, lettered A, B, C ...
  multiple    optional; whether a choice row has several right options
  frame       optional [width, height]: the frame that the solution's boxes are measured in
  resized     optional [width, height]: the frame that the model saw, if another
  num_tokens  optional; the length of the completion, for the weights length and overlong
  finished    optional; false for a completion that the token limit cut off

Other keys are the `extra` of the row, which rewards of your own see.

Prints a table of means and one of the most frequent reasons. --out writes one JSON object for each row: id, total, each
reward and the first reason, if any.

  python -m currreft_jax.score answers.jsonl --out verdicts.jsonl
  generate_answers | python -m currreft_jax.score - --detection soft_iou --weight format=0.5
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from currreft_jax.config import BoxReading, DetectionScore, OnRewardError, PartialCredit, Rewards
from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.missing import describe_error
from currreft_jax.config.output import output_path
from currreft_jax.evaluation.completions_file import (
    list_failures,
    read_completions,
    score_lines,
    score_table,
    verdict_records,
)
from currreft_jax.rewards import MathsPool, MathsPoolError, RewardError

STDOUT = Path("-")


def main() -> None:
    """Runs the program."""
    options = _parser().parse_args()
    try:
        settings = _settings(options)
        lines = read_completions(options.file)
        extra = {key for line in lines for key in line.row.extra}
        if extra:
            print(f"score: keys that only rewards of your own can use: {', '.join(sorted(extra))}", file=sys.stderr)
        with MathsPool(settings.maths) as pool:
            scores = score_lines(lines, settings, pool)
        for line in list_failures(scores.failures):
            print(f"score: {line}", file=sys.stderr)
        if options.out:
            with nullcontext(sys.stdout) if options.out == STDOUT else open(options.out, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in verdict_records(lines, scores))
    except (ValueError, OSError, MathsPoolError, RewardError) as error:
        sys.exit(f"score: {describe_error(error)}")
    print(score_table(lines, scores), file=sys.stderr if options.out == STDOUT else sys.stdout)


def _settings(options: argparse.Namespace) -> Rewards:
    settings = Rewards(
        partial_credit=PartialCredit(options.partial_credit),
        detection=DetectionScore(options.detection),
        box_reading=BoxReading(options.box_reading),
        tau=options.tau,
        on_error=OnRewardError(options.on_error),
    )
    for setting in options.weight:
        name, equals, value = setting.rpartition("=")
        try:
            settings.weights[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--weight {setting}: write NAME=NUMBER") from error
        if not equals:
            raise ValueError(f"--weight {setting}: write NAME=NUMBER")
    return settings


def _parser() -> argparse.ArgumentParser:
    default = Rewards()
    parser = CommandParser(
        prog="python -m currreft_jax.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="JSON lines; - for standard input")
    parser.add_argument("--out", metavar="FILE", type=output_path, help="file of verdicts; - for standard output")
    parser.add_argument(
        "--partial-credit",
        choices=[credit.value for credit in PartialCredit],
        default=default.partial_credit.value,
        help="which incomplete sets of options earn something (default %(default)s)",
    )
    parser.add_argument(
        "--detection",
        choices=[score.value for score in DetectionScore],
        default=default.detection.value,
        help="how boxes are scored (default %(default)s)",
    )
    parser.add_argument(
        "--box-reading",
        choices=[reading.value for reading in BoxReading],
        default=default.box_reading.value,
        help="whether boxes in damaged JSON have an accuracy (default %(default)s)",
    )
    parser.add_argument(
        "--tau", type=float, default=default.tau, help="least IoU of matched boxes (default %(default)s)"
    )
    parser.add_argument(
        "--weight",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help="weight of a reward: one of " + ", ".join(default.weights) + ", or package.module:function; repeatable",
    )
    parser.add_argument(
        "--on-error",
        choices=[on_error.value for on_error in OnRewardError],
        default=default.on_error.value,
        help="what a completion does for which a reward of your own fails (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
