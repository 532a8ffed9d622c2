"""Score a file of completions with the rewards; no model is needed.

Each line of FILE is a JSON object:

  kind        judge, choice or open
  task        detection, classify or math
  solution    the gold answer, bare or inside <answer> tags
  completion  what the model wrote
  id          optional; the line's number where absent
  problem     optional
  options     optional list of the option texts of a choice row, lettered A, B, C ...
  multiple    optional; whether a choice row has several right options
  frame       optional [width, height]: the frame that the solution's boxes are measured in
  resized     optional [width, height]: the frame that the model saw, if another
  num_tokens  optional; the length of the completion, for the weights length and overlong
  finished    optional; false for a completion that the token limit cut off

Prints a table of means and one of reasons. With --out, writes one JSON object for each row: id, total, each part and
the first reason, if any.

  python -m currreft_jax.score answers.jsonl --out verdicts.jsonl
  generate_answers | python -m currreft_jax.score - --detection soft_iou --weight format=0.5
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from currreft_jax.config import DetectionScore, Kind, PartialCredit, Rewards, Task
from currreft_jax.data.fields import Fields
from currreft_jax.data.rows import MAX_OPTIONS
from currreft_jax.rewards import MathsPool, MathsPoolError, RewardError, RowError, check_rows, score_completions
from currreft_jax.structs import Completion, Frame, Reason, Row, Scores

_SHOWN_ERRORS = 20
_KEYS = {
    *("kind", "task", "solution", "completion", "id", "problem", "options", "multiple"),
    *("frame", "resized", "num_tokens", "finished"),
}


@dataclass(frozen=True, slots=True)
class Answered:
    """One line of the file.

    Attributes:
        where: file and line.
        row: the question.
        completion: what the model answered.
        resized: the frame in which the model saw the image; None for the row's own.
        unused: keys that play no part.
    """

    where: str
    row: Row
    completion: Completion
    resized: Frame | None
    unused: frozenset[str]


def main() -> None:
    """Run the program."""
    options = _parser().parse_args()
    try:
        settings = _settings(options)
        lines = _read(options.file)
        unused = frozenset[str]().union(*(line.unused for line in lines))
        if unused:
            print(f"score: keys that play no part: {', '.join(sorted(unused))}", file=sys.stderr)
        with MathsPool(settings.maths) as pool:
            scores = _score(lines, settings, pool)
        if options.out:
            with nullcontext(sys.stdout) if options.out == "-" else open(options.out, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(verdict) + "\n" for verdict in verdicts(lines, scores))
    except (ValueError, OSError, MathsPoolError, RewardError) as error:
        sys.exit(f"score: {error}")
    print(table(lines, scores), file=sys.stderr if options.out == "-" else sys.stdout)


def parse_line(text: str, where: str, line_number: int) -> Answered:
    """One line of a file, checked.

    Raises:
        LineError: naming the line, the key and the values it takes.
    """
    fields = Fields.from_json(text, where)
    tokens = fields.keys.get("num_tokens")
    if tokens is not None and (type(tokens) is not int or tokens < 0):
        fields.refuse_value("num_tokens", "a whole number")
    row = Row(
        id=fields.row_id(str(line_number)),
        task=fields.enum("task", Task),
        kind=fields.enum("kind", Kind),
        problem=fields.text("problem", ""),
        solution=fields.text("solution", meaning="the gold answer"),
        options=fields.texts("options", f"a list of at most {MAX_OPTIONS} strings", MAX_OPTIONS),
        multiple=fields.take("multiple", bool, "true or false", False),
        frame=fields.frame("frame"),
    )
    completion = Completion(
        fields.text("completion", meaning="what the model wrote"),
        tokens,
        fields.take("finished", bool, "true or false", True),
    )
    return Answered(where, row, completion, fields.frame("resized"), frozenset(fields.keys) - _KEYS)


def verdicts(lines: Sequence[Answered], scores: Scores) -> list[dict[str, Any]]:
    """What `--out` writes, one object a row."""
    return [
        {
            "id": line.row.id,
            "total": float(scores.total[p, 0]),
            **{name: float(values[p, 0]) for name, values in scores.parts.items()},
            "reason": _reason(scores, p),
        }
        for p, line in enumerate(lines)
    ]


def table(lines: Sequence[Answered], scores: Scores) -> str:
    """The means of every kind and task, and below them how often each reason was given."""
    kinds = np.array([f"{line.row.kind.value:<8}{line.row.task.value:<10}" for line in lines])
    columns = {"total": scores.total, **scores.parts}
    report = [f"{'kind':<8}{'task':<10}{'rows':>8}" + "".join(f"{name:>12}" for name in columns)]
    for kind in [*sorted(set(kinds)), "all"]:
        chosen = np.ones(len(lines), bool) if kind == "all" else kinds == kind
        means = "".join(f"{values[chosen].mean():>12.3f}" for values in columns.values())
        report.append(f"{kind:<18}{chosen.sum():>8}{means}")
    counts = Counter((kind, reason) for p, kind in enumerate(kinds) if (reason := _reason(scores, p)))
    if counts:
        report += ["", f"{'kind':<8}{'task':<10}{'rows':>8}   reason"]
    report += [f"{kind:<18}{count:>8}   {reason}" for (kind, reason), count in sorted(counts.items())]
    return "\n".join(report)


def _score(lines: Sequence[Answered], settings: Rewards, pool: MathsPool) -> Scores:
    rows = [line.row for line in lines]
    errors = check_rows(rows, settings, pool=pool)
    try:
        if not errors:
            frames = [line.resized for line in lines]
            return score_completions(rows, [[line.completion] for line in lines], settings, frames=frames, pool=pool)
    except RowError as error:
        errors = [error]
    where = {id(line.row): line.where for line in lines}
    shown = [f"{where[id(error.row)]}: {error.problem}" for error in errors[:_SHOWN_ERRORS]]
    raise ValueError(
        "\n       ".join([*shown, *([f"and {len(errors) - len(shown)} more"] if len(shown) < len(errors) else [])])
    )


def _reason(scores: Scores, p: int) -> Reason | None:
    return next((reasons[p, 0] for reasons in scores.reasons.values() if reasons[p, 0]), None)


def _read(name: str) -> list[Answered]:
    with nullcontext(sys.stdin) if name == "-" else open(name, encoding="utf-8") as file:
        shown = "standard input" if name == "-" else name
        try:
            lines = [parse_line(text, f"{shown}:{n}", n) for n, text in enumerate(file, 1) if text.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{shown} is not UTF-8 ({error}); convert it") from error
    if not lines:
        raise ValueError(f"{shown} holds no rows; write one JSON object a line")
    return lines


def _settings(options: argparse.Namespace) -> Rewards:
    settings = Rewards(
        partial_credit=PartialCredit(options.partial_credit),
        detection=DetectionScore(options.detection),
        tau=options.tau,
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
    parser = argparse.ArgumentParser(
        prog="python -m currreft_jax.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="JSON lines; - for standard input")
    parser.add_argument("--out", metavar="FILE", help="where the verdicts go; - for standard output")
    parser.add_argument(
        "--partial-credit",
        choices=[it.value for it in PartialCredit],
        default=default.partial_credit.value,
        help="which incomplete sets of options earn something (default %(default)s)",
    )
    parser.add_argument(
        "--detection",
        choices=[it.value for it in DetectionScore],
        default=default.detection.value,
        help="how boxes are scored (default %(default)s)",
    )
    parser.add_argument(
        "--tau", type=float, default=default.tau, help="least IoU of matched boxes (default %(default)s)"
    )
    parser.add_argument(
        "--weight",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help="weight of a part: one of " + ", ".join(default.weights) + ", or package.module:function; repeatable",
    )
    return parser


if __name__ == "__main__":
    main()
