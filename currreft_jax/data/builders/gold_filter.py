"""Filters rows by whether their own reward can read their gold answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from currreft_jax.config import Task
from currreft_jax.data.builders.converter import ConvertedData
from currreft_jax.rewards import MathsPool, check_rows, has_rule
from currreft_jax.structs import Row


def drop_unreadable_golds(data: ConvertedData, pool: MathsPool) -> ConvertedData:
    """Drops rows whose gold boxes or labels cannot be read: negatives are generated from the golds of all rows.

    Math rows stay: their golds are checked by `take_readable`, since math-verify is slow.
    """
    unchecked = [row for row in data.rows if row.task is not Task.MATH]
    readable = {row.id for row in filter_readable(unchecked, data.dropped, pool)}
    return replace(data, rows=[row for row in data.rows if row.task is Task.MATH or row.id in readable])


def take_readable(rows: Sequence[Row], count: int | None, dropped: dict[str, list[str]], pool: MathsPool) -> list[Row]:
    """Returns the first `count` rows whose gold answer can be read, or all of them.

    Args:
        rows: checked in order, and only as many as needed.
        count: maximum number of rows; None for all.
        dropped: reason -> locations; extended by the unreadable rows.
        pool: parses math answers.
    """
    taken, remaining = list[Row](), list(rows)
    wanted = len(remaining) if count is None else count
    while remaining and len(taken) < wanted:
        size = wanted - len(taken)
        taken += filter_readable(remaining[:size], dropped, pool)
        remaining = remaining[size:]
    return taken


def unreadable_gold(task: Task) -> str:
    """Returns the reason that rows of a task are dropped for if their gold answer cannot be read."""
    return f"the gold answer of {task.value} cannot be read"


def filter_readable(rows: Sequence[Row], dropped: dict[str, list[str]], pool: MathsPool) -> list[Row]:
    """Returns the rows whose gold answer can be read, or that no rule scores, and adds the others to `dropped`."""
    errors = check_rows([row for row in rows if has_rule(row)], pool=pool)
    for error in errors:
        dropped.setdefault(unreadable_gold(error.row.task), []).append(str(error))
    unreadable = {id(error.row) for error in errors}
    return [row for row in rows if id(row) not in unreadable]
