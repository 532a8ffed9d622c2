"""The `material/` folder below built rows: annotations and wrong answers, from which stages can be generated later.

It stands below the rows and not among them, so that `*.jsonl` matches rows only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from currreft_jax.config import Kind
from currreft_jax.data.builders.converter import (
    AnnotatedImage,
    BuildError,
    ConvertedData,
    ConvertedItem,
    DatasetSource,
    DroppedRecord,
    WrongAnswers,
    convert_records,
)
from currreft_jax.data.builders.output_files import write_text
from currreft_jax.data.builders.records import list_objects, read_records
from currreft_jax.data.fields import Fields
from currreft_jax.data.row_files import RowFile, parse_rows
from currreft_jax.structs import Row

SCENES = "material/scenes.jsonl"
WRONG_ANSWERS = "material/wrong.jsonl"


def convert_built_rows(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts a folder of built rows, with the annotations and wrong answers in its `material/`.

    Raises:
        BuildError: the folder holds no rows.
    """
    paths = sorted(source.folder.glob("*.jsonl"))
    if not paths:
        below = ", ".join(sorted({str(path.parent) for path in source.folder.rglob("open-*.jsonl")}))
        raise BuildError(
            f"{source.folder} holds no *.jsonl" + (f"; build the stages of each of {below}" if below else "")
        )
    for path in paths:
        with RowFile(path) as file:
            checked = parse_rows(file)
        yield from checked.errors
        for row in checked.rows:
            if row.kind is Kind.OPEN:
                yield replace(row, images=tuple(map(os.path.abspath, row.images)))  # as the annotations name them
            else:
                yield DroppedRecord(row.id, "not an open row")
    scenes, wrong_answers = source.folder / SCENES, source.folder / WRONG_ANSWERS
    if scenes.exists():
        yield from convert_records(read_records(scenes), lambda record: [_parse_annotations(record, scenes.parent)])
    if wrong_answers.exists():
        yield from convert_records(
            read_records(wrong_answers),
            lambda record: [WrongAnswers(record.text("id"), record.texts("answers", "strings"))],
        )


def write_material(folder: Path, rows: Sequence[Row], data: ConvertedData) -> None:
    """Writes the annotations and wrong answers of rows to the `material/` of a folder."""
    images, ids = {path for row in rows for path in row.images}, {row.id for row in rows}
    root = (folder / SCENES).parent
    scenes = (_annotations_to_json(scene, root) for scene in data.images.values() if scene.image in images)
    wrong_answers = (
        {"id": row_id, "answers": list(answers)} for row_id, answers in data.wrong_answers.items() if row_id in ids
    )
    for name, records in ((SCENES, scenes), (WRONG_ANSWERS, wrong_answers)):
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        if lines:
            write_text(folder / name, "".join(lines))


def _annotations_to_json(scene: AnnotatedImage, root: Path) -> dict[str, object]:
    return {
        "image": os.path.relpath(scene.image, root.absolute()),
        "frame": [scene.frame.width, scene.frame.height],
        "objects": [{"label": label, "box": list(box)} for label, box in scene.objects],
        "labels": sorted(scene.labels),
    }


def _parse_annotations(record: Fields, root: Path) -> AnnotatedImage:
    objects = []
    frame = record.frame("frame")
    if frame is None:
        record.refuse_value("frame", "[width, height], in pixels")
    for entry in list_objects(record, "objects", "a list of objects"):
        box = entry.take("box", list, "four numbers")
        objects.append((entry.text("label"), (float(box[0]), float(box[1]), float(box[2]), float(box[3]))))
    image = os.path.abspath(root / record.text("image"))
    return AnnotatedImage(image, frame, tuple(objects), frozenset(record.texts("labels", "strings")))
