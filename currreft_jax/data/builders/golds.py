"""Rows whose gold answer their own reward can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.items import Material
from currreft_jax.rewards import MathsPool, check_rows
from currreft_jax.structs import Row


def sound(material: Material, pool: MathsPool) -> Material:
    """The material without rows whose boxes or labels cannot be read: negatives are made of all rows' golds."""
    exact = [row for row in material.rows if row.task is not Task.MATH]
    kept = {row.id for row in readable(exact, material.dropped, pool)}
    return replace(material, rows=[row for row in material.rows if row.task is Task.MATH or row.id in kept])


def take(rows: Sequence[Row], count: int | None, dropped: dict[str, list[str]], pool: MathsPool) -> list[Row]:
    """The first `count` rows whose gold answer can be read, or all of them; no more rows are looked at than needed."""
    found, waiting = list[Row](), list(rows)
    wanted = len(waiting) if count is None else count
    while waiting and len(found) < wanted:
        size = wanted - len(found)
        found += readable(waiting[:size], dropped, pool)
        waiting = waiting[size:]
    return found


def readable(rows: Sequence[Row], dropped: dict[str, list[str]], pool: MathsPool) -> list[Row]:
    """The rows that their reward can score; the others are noted."""
    errors = check_rows([row for row in rows if row.kind is not Kind.CHAT], pool=pool)
    for error in errors:
        reason = f"the gold answer of {error.row.task.value} cannot be read"
        dropped.setdefault(reason, []).append(str(error))
    unfit = {id(error.row) for error in errors}
    return [row for row in rows if id(row) not in unfit]
