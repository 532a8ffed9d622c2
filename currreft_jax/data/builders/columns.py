"""Tables of one's own: CSV, TSV, JSON or parquet, with a column for each key of a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import pixels, tables
from currreft_jax.data.builders.items import BuildError, Item, Scene, Source, each
from currreft_jax.data.builders.scenes import written_labels
from currreft_jax.data.fields import Fields
from currreft_jax.rewards import boxes
from currreft_jax.structs import Reason, Row

KEYS = ("id", "problem", "solution", "image", "options", "split")


def convert(source: Source) -> Iterator[Item]:
    """One row for each record; boxes in the solution are moved from the source's form and scale into ours."""
    unknown = set(source.columns) - set(KEYS)
    if unknown:
        raise BuildError(f"--column {unknown.pop()}=…: it takes {', '.join(KEYS)}")

    def record_to_row(record: Fields) -> Iterator[Item]:
        cells = {key: _cell(record, source.columns.get(key, key), key in source.columns) for key in KEYS}
        split = str(cells["split"] or "")
        if source.split and split != source.split:
            return
        if not cells["problem"] or cells["solution"] in (None, ""):
            record.refuse("problem or solution is empty; --column problem=NAME names the column that holds it")
        image, frame = pixels.stored_image(cells["image"], source, record) if cells["image"] else (None, None)
        frame = source.frame or frame
        solution = str(cells["solution"])
        if source.task is Task.DETECTION:
            if image is None or frame is None:
                record.refuse("a detection row without an image")
            found = _boxes(solution, record)
            placed = [pixels.read_box(box, source.box_form, frame, record, source.box_scale) for box in found]
            yield Scene(image, frame, tuple(("", box) for box in placed))
            solution = pixels.written(placed)
        elif source.task is Task.CLASSIFY and isinstance(cells["solution"], list):
            solution = written_labels(cells["solution"])
        yield Row(
            id=f"{source.name}-{cells['id'] or record.location.rpartition('/')[2]}",
            task=source.task,
            kind=source.kind,
            problem=str(cells["problem"]),
            solution=solution,
            images=(image,) if image else (),
            options=_options(cells["options"], record),
            frame=frame if source.task is Task.DETECTION else None,
            source=source.name,
            split=split,
            origin=source.origin,
        )

    if source.kind is Kind.CHAT:
        raise BuildError("--kind=chat: conversations are not tables; `build chat` reads them")
    for path in tables.files(source.folder):
        yield from each(tables.records(path), record_to_row)


def _cell(record: Fields, column: str, named: bool) -> Any:
    if named and column not in record.keys:
        record.refuse(f"no column {column!r}; there are {', '.join(map(str, record.keys))}")
    return record.keys.get(column)


def _boxes(solution: str, record: Fields) -> list[list[float]]:
    corners = boxes.read(solution.strip())
    if isinstance(corners, Reason):
        record.refuse(f"the solution {solution[:80]!r} is no box ({corners}); it takes [a, b, c, d] or a list of these")
    return corners.tolist()


def _options(cell: Any, record: Fields) -> tuple[str, ...]:
    if not cell:
        return ()
    wanted = "a JSON list of strings, or strings with | between them"
    if isinstance(cell, str):
        cell = tables.parsed(cell, record, "options", wanted) if cell.lstrip().startswith("[") else cell.split("|")
    if not isinstance(cell, list) or not all(isinstance(option, str) for option in cell):
        record.refuse(f"options takes {wanted}")
    return tuple(option.strip() for option in cell)
