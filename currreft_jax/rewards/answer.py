"""From a completion to its one answer, and from a row to its gold answer."""

import json
from typing import NoReturn

from currreft_jax.structs import Completion, Reason, Row


class RowError(ValueError):
    """A row that cannot be scored.

    Attributes:
        row: the row.
        problem: what is wrong with it and what would mend it.
    """

    def __init__(self, row: Row, problem: str):
        super().__init__(f"row {row.id}: {problem}")
        self.row = row
        self.problem = problem


def extract(completion: Completion) -> str | Reason:
    """The stripped text of the only closed `<answer>` element, which may be empty."""
    if not completion.finished:
        return Reason.TRUNCATED
    return _element(completion.text)


def gold_text(row: Row) -> str:
    """The gold answer without its tags and the spaces around it.

    Raises:
        RowError: for a solution without exactly one answer, or with an empty one.
    """
    has_tag = "<answer>" in row.solution or "</answer>" in row.solution
    text = _element(row.solution) if has_tag else row.solution.strip()
    if isinstance(text, Reason):
        refuse_gold(row, text, "one <answer>…</answer> element, or the bare answer")
    if not text:
        refuse_gold(row, Reason.EMPTY_ANSWER, "an answer")
    return text


def refuse_gold(row: Row, reason: Reason, wanted: str) -> NoReturn:
    """Raise the `RowError` of a gold answer that is itself unreadable."""
    shown = row.solution if len(row.solution) <= 80 else f"{row.solution[:80]}…"
    raise RowError(
        row,
        f"solution {shown!r} is no gold answer ({reason}); kind {row.kind.value}, task {row.task.value} wants {wanted}",
    )


def read_json(text: str) -> object:
    """The value of strict JSON, which may stand in a Markdown fence.

    Raises:
        ValueError: for anything else.
    """
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _element(text: str) -> str | Reason:
    opened, closed = text.count("<answer>"), text.count("</answer>")
    if opened > 1 or closed > 1:
        return Reason.SEVERAL_ANSWERS
    before, _, after = text.partition("<answer>")
    if not opened or not closed or "</answer>" in before:
        return Reason.NO_ANSWER_TAG
    return after.partition("</answer>")[0].strip()
