"""Rows whose gold answer their own reward can read."""

from __future__ import annotations

from collections.abc import Sequence

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.items import Material
from currreft_jax.data.builders.keyed import ranked
from currreft_jax.rewards import MathsPool, check_rows
from currreft_jax.structs import Row


def sample(material: Material, count: int | None, seed: int, pool: MathsPool) -> list[Row]:
    """Rows whose gold answer can be read: all of them, or `count` of each task. The others are counted as dropped."""
    if count is None:
        return readable(material.rows, material.dropped, pool)
    chosen = []
    for task in Task:
        waiting = ranked((row for row in material.rows if row.task is task), seed, "sample")
        found: list[Row] = []
        while waiting and len(found) < count:
            size = count - len(found)
            found += readable(waiting[:size], material.dropped, pool)
            waiting = waiting[size:]
        chosen += found
    return chosen


def readable(rows: Sequence[Row], dropped: dict[str, list[str]], pool: MathsPool) -> list[Row]:
    """The rows that their reward can score; the others are noted."""
    errors = check_rows([row for row in rows if row.kind is not Kind.CHAT], pool=pool)
    for error in errors:
        reason = f"the gold answer of {error.row.task.value} cannot be read"
        dropped.setdefault(reason, []).append(str(error))
    unfit = {id(error.row) for error in errors}
    return [row for row in rows if id(row) not in unfit]
