"""Files of completions and their scores: parsing, scoring, the table of means and the verdicts of `--out`."""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.config.wording import most_frequent, plural
from currreft_jax.data.fields import BYTE_ORDER_MARK, Fields, LineError, count_causes
from currreft_jax.data.rows import MAX_OPTIONS, extra_keys, parse_solution
from currreft_jax.rewards import MathsPool, RowError, check_rows, score_completions
from currreft_jax.structs import Completion, Frame, RewardFailure, Row, Scores

STDIN = "-"
_SHOWN_REASONS = 5  # of a kind and task
_KEYS = {
    *("kind", "task", "solution", "completion", "id", "problem", "options", "multiple"),
    *("frame", "resized", "num_tokens", "finished"),
}


@dataclass(frozen=True, slots=True)
class CompletionLine:
    """One line of a file of completions.

    Attributes:
        location: file and line, for errors.
        row: the question and its gold answer.
        completion: the model's completion.
        resized: the frame in which the model saw the image; None for the row's own.
    """

    location: str
    row: Row
    completion: Completion
    resized: Frame | None


def read_completions(file: str) -> list[CompletionLine]:
    """Reads a file of JSON lines; `-` reads standard input.

    Raises:
        ValueError: a line is invalid, or the file is empty or not UTF-8.
        OSError: the file cannot be read.
    """
    name = "standard input" if file == STDIN else file
    with nullcontext(sys.stdin) if file == STDIN else open(file, encoding="utf-8-sig") as stream:
        try:
            lines = [
                parse_completion_line(text, f"{name}:{line_number}", line_number)
                for line_number, text in enumerate(stream, 1)
                if text.removeprefix(BYTE_ORDER_MARK).strip()
            ]
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 ({error}); convert it") from error
    if not lines:
        raise ValueError(f"{name} holds no rows; write one JSON object a line")
    return lines


def parse_completion_line(text: str, location: str, line_number: int) -> CompletionLine:
    """Parses and check one line.

    Raises:
        LineError: the line is invalid; the message names the line, the key and the values it takes.
    """
    fields = Fields.from_json(text, location)
    num_tokens = fields.keys.get("num_tokens")
    if num_tokens is not None and (type(num_tokens) is not int or num_tokens < 0):
        fields.refuse_value("num_tokens", "a whole number")
    row = Row(
        id=fields.row_id(str(line_number)),
        task=fields.enum("task", Task),
        kind=fields.enum("kind", Kind),
        problem=fields.text("problem", ""),
        solution=parse_solution(fields),
        options=fields.texts("options", f"a list of at most {MAX_OPTIONS} strings", MAX_OPTIONS),
        multiple=fields.take("multiple", bool, "true or false", False),
        frame=fields.frame("frame"),
        extra=extra_keys(fields.keys, _KEYS),
    )
    completion = Completion(
        fields.text("completion", meaning="what the model wrote"),
        num_tokens,
        fields.take("finished", bool, "true or false", True),
    )
    return CompletionLine(location, row, completion, fields.frame("resized"))


def score_lines(lines: Sequence[CompletionLine], settings: Rewards, pool: MathsPool) -> Scores:
    """Scores one completion a line, `[P, 1]`.

    Raises:
        ValueError: rows cannot be scored; the message has a line for each cause, with the first row and their number.
        RewardError: a reward function failed.
    """
    rows = [line.row for line in lines]
    errors = check_rows(rows, settings, pool=pool)
    try:
        if not errors:
            frames = [line.resized for line in lines]
            return score_completions(rows, [[line.completion] for line in lines], settings, frames=frames, pool=pool)
    except RowError as error:
        errors = [error]
    locations = {id(line.row): line.location for line in lines}
    causes = count_causes(LineError(locations[id(error.row)], error.problem, error.cause) for error in errors)
    raise ValueError("\n       ".join(f"{first} ({plural(count, 'row')})" for count, first in causes))


def list_failures(failures: Sequence[RewardFailure]) -> list[str]:
    """Lists the first failure of each reward at each line of its code, with their number."""
    first: dict[tuple[str, str], RewardFailure] = {}
    for failure in failures:
        first.setdefault((failure.reward, failure.location), failure)
    counts = Counter((failure.reward, failure.location) for failure in failures)
    return [
        f"{f'{counts[place]:,} count as 0, the first' if counts[place] > 1 else 'counts as 0'}: {failure.message}"
        for place, failure in first.items()
    ]


def verdict_records(lines: Sequence[CompletionLine], scores: Scores) -> list[dict[str, Any]]:
    """Returns one JSON object a line: id, total, each reward or null where it does not apply, first reason or null."""
    return [
        {
            "id": line.row.id,
            "total": float(scores.total[p, 0]),
            **{name: None if np.isnan(values[p, 0]) else float(values[p, 0]) for name, values in scores.parts.items()},
            "reason": _first_reason(scores, p),
        }
        for p, line in enumerate(lines)
    ]


def score_table(lines: Sequence[CompletionLine], scores: Scores) -> str:
    """Formats the means of every kind and task, and below them the most frequent reasons; a row may have several."""
    groups = np.array([f"{line.row.kind.value:<8}{line.row.task.value:<10}" for line in lines])
    columns = {"total": scores.total, **scores.parts}
    widths = {name: max(12, len(name) + 2) for name in columns}
    header = "".join(f"{name:>{width}}" for name, width in widths.items())
    report = [f"{'kind':<8}{'task':<10}{'rows':>8}{header}"]
    for group in [*sorted(set(groups)), "all"]:
        members = np.ones(len(lines), bool) if group == "all" else groups == group
        means = "".join(f"{_mean(values[members]):>{widths[name]}}" for name, values in columns.items())
        report.append(f"{group:<18}{members.sum():>8}{means}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for p, group in enumerate(groups):
        counts[group].update({str(reasons[p, 0]) for reasons in scores.reasons.values() if reasons[p, 0]})
    if any(counts.values()):
        report += ["", f"{'kind':<8}{'task':<10}{'rows':>8}   reasons"]
    for group in sorted(counts):
        rows = sum(_first_reason(scores, p) is not None for p in map(int, np.flatnonzero(groups == group)))
        report += [f"{group:<18}{rows:>8}   {most_frequent(counts[group], _SHOWN_REASONS)}"] * bool(rows)
    return "\n".join(report)


def _mean(values: np.ndarray) -> str:
    """Formats the mean over the rows that a reward applies to; a dash where there are none."""
    return "-" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"


def _first_reason(scores: Scores, p: int) -> str | None:
    return next((reasons[p, 0] for reasons in scores.reasons.values() if reasons[p, 0]), None)
