"""The answer of a completion and the gold answer of a row, as text."""

import json
import re
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from currreft_jax.structs import Completion, Reason, Row

T = TypeVar("T")

_FENCE = re.compile(r"```(?:json)?(.*)```", re.IGNORECASE | re.DOTALL)


class RowError(ValueError):
    """A row that cannot be scored.

    Attributes:
        row: the row.
        problem: what is wrong with it and how to fix it.
        cause: the same for all rows with one mistake, whatever solutions `problem` shows.
    """

    def __init__(self, row: Row, problem: str, cause: str = ""):
        super().__init__(f"row {row.id}: {problem}")
        self.row = row
        self.problem = problem
        self.cause = cause or problem


@dataclass(frozen=True, slots=True)
class DamagedAnswer(Generic[T]):
    """An answer that can be read although it is malformed: it has an accuracy, but no format reward.

    Attributes:
        value: what it says.
        reason: why it is malformed.
    """

    value: T
    reason: Reason


def extract_answer(completion: Completion) -> str | Reason:
    """Returns the stripped text of the only closed `<answer>` element; it may be empty."""
    if not completion.finished:
        return Reason.TRUNCATED
    return _answer_element(completion.text)


def gold_text(row: Row) -> str:
    """Returns the gold answer, stripped and without its tags.

    Raises:
        RowError: the solution has no answer, several, or an empty one.
    """
    has_tag = "<answer>" in row.solution or "</answer>" in row.solution
    text = _answer_element(row.solution) if has_tag else row.solution.strip()
    if isinstance(text, Reason):
        refuse_gold(row, text, "one <answer>…</answer> element, or the bare answer")
    if not text:
        refuse_gold(row, Reason.EMPTY_ANSWER, "an answer")
    return text


def refuse_gold(row: Row, reason: Reason, expected: str) -> NoReturn:
    """Raises the `RowError` of a gold answer that cannot be parsed."""
    shown = row.solution if len(row.solution) <= 80 else f"{row.solution[:80]}…"
    cause = f"is no gold answer ({reason}); kind {row.kind.value}, task {row.task.value} expects"
    raise RowError(row, f"solution {shown!r} {cause} {expected}", cause)


def parse_json(text: str) -> object:
    """Parses strict JSON, bare or in a Markdown fence.

    Raises:
        ValueError: anything else, or nested too deeply.
    """
    try:
        return json.loads(strip_fence(text), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def strip_fence(text: str) -> str:
    """Returns the content of a Markdown fence, or the text itself if it is none."""
    fence = _FENCE.fullmatch(text)
    return fence[1] if fence else text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _answer_element(text: str) -> str | Reason:
    opened, closed = text.count("<answer>"), text.count("</answer>")
    if opened > 1 or closed > 1:
        return Reason.SEVERAL_ANSWERS
    before, _, after = text.partition("<answer>")
    if not opened or not closed or "</answer>" in before:
        return Reason.NO_ANSWER_TAG
    return after.partition("</answer>")[0].strip()
