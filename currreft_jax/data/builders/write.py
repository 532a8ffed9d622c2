"""Built rows on disk: one file for each kind and task, and beside them what negatives can be made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from currreft_jax.config import Kind
from currreft_jax.data.builders.formats import SCENES, WRONG, scene_keys
from currreft_jax.data.builders.items import BuildError, Material
from currreft_jax.data.row_files import RowFile, parse_rows, write_rows
from currreft_jax.structs import Row


def file_name(row: Row) -> str:
    """The file that a row belongs to."""
    return "chat.jsonl" if row.kind is Kind.CHAT else f"{row.kind.value}-{row.task.value}.jsonl"


def write_parts(folder: Path, rows: Iterable[Row]) -> dict[str, int]:
    """Writes rows to the file of their kind and task, and reads them back; returns file -> rows.

    Raises:
        BuildError: a row that was written cannot be read.
    """
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(file_name(row), []).append(row)
    return {str(folder / name): write_checked(folder / name, those) for name, those in sorted(files.items())}


def write_checked(path: Path, rows: Sequence[Row]) -> int:
    """Writes one file and reads it back; returns how many rows it has."""
    count = write_rows(path, rows)
    with RowFile(path) as file:
        errors = parse_rows(file).errors
    if errors:
        raise BuildError(f"{len(errors)} rows cannot be read back, the first: {errors[0]}")
    return count


def write_material(folder: Path, rows: Sequence[Row], material: Material) -> None:
    """Writes the scenes and wrong answers of rows, so that further stages can be made of them later."""
    images, ids = {path for row in rows for path in row.images}, {row.id for row in rows}
    root = (folder / SCENES).parent.absolute()
    scenes = (scene_keys(it, os.path.relpath(it.image, root)) for it in material.scenes.values() if it.image in images)
    wrong = ({"id": it, "answers": list(answers)} for it, answers in material.wrong.items() if it in ids)
    for name, lines in ((SCENES, scenes), (WRONG, wrong)):
        texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        if texts:
            write_text(folder / name, "".join(texts))


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def report(files: Mapping[str, int], dropped: Mapping[str, Sequence[str]], bad: Sequence[Any]) -> str:
    """What was written, and what was not and why."""
    lines = [f"{count:>8}  {name}" for name, count in files.items()]
    if dropped:
        lines += ["dropped:"]
        lines += [f"{len(where):>8}  {reason} (first: {where[0]})" for reason, where in sorted(dropped.items())]
    if bad:
        lines += [f"bad records left out: {len(bad)}", *(f"          {error}" for error in bad[:5])]
    return "\n".join(lines)
