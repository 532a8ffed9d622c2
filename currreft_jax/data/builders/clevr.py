"""Counting in CLEVR and Super-CLEVR."""

from __future__ import annotations

from collections.abc import Iterator

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import pixels, tables
from currreft_jax.data.builders.items import BuildError, Dropped, Item, Source, each
from currreft_jax.data.fields import Fields
from currreft_jax.structs import Row

HOW_MANY = "How many different items are there in the image?"  # of R1-V's Super-CLEVR test


def questions(source: Source) -> Iterator[Item]:
    """Published questions files; of their questions those whose answer is a count."""

    def convert(record: Fields) -> Iterator[Item]:
        name = record.text("image_filename")
        id = f"{source.name}-{record.row_id(str(record.keys.get('question_index')))}-{name}"
        if source.split and record.keys.get("split") != source.split:
            return
        answer = str(record.keys.get("answer"))
        if not answer.isdigit():
            yield Dropped(id, "the answer is not a count")
            return
        yield _count(id, record.text("question"), answer, name, record, source)

    for path in tables.files(source.folder, (".json",), "*questions*"):
        yield from each(tables.items(tables.json_object(path), "questions", "a list of questions"), convert)


def scenes(source: Source) -> Iterator[Item]:
    """Published scene files; one question for each image, how many objects it shows."""

    def convert(record: Fields) -> Iterator[Item]:
        name, objects = record.text("image_filename"), record.take("objects", list, "a list of objects")
        yield _count(f"{source.name}-{name}", HOW_MANY, str(len(objects)), name, record, source)

    found = False
    for path in tables.files(source.folder, (".json",)):
        file = tables.json_object(path)
        if "scenes" in file.keys:
            found = True
            yield from each(tables.items(file, "scenes", "a list of scenes"), convert)
        elif "objects" in file.keys:
            found = True
            yield from each([file], convert)
    if not found:
        raise BuildError(f"{source.folder} holds no scenes; it takes CLEVR_*_scenes.json, or one JSON file a scene")


def r1v(source: Source) -> Iterator[Item]:
    """R1-V's Super-CLEVR test: image_path, question and ground_truth."""

    def convert(record: Fields) -> Iterator[Item]:
        answer = str(record.keys.get("ground_truth"))
        if not answer.isdigit():
            record.refuse_value("ground_truth", "a count")
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        yield _count(id, record.text("question"), answer, record.text("image_path"), record, source)

    for path in tables.files(source.folder, (".jsonl",)):
        yield from each(tables.records(path), convert)


def _count(id: str, question: str, answer: str, image: str, record: Fields, source: Source) -> Row:
    path, _ = pixels.find_image(image, source, record)
    row = Row(id, Task.MATH, Kind.OPEN, question, answer, (path,), source=source.name, origin=source.origin)
    return row
