"""Counting questions of CLEVR and Super-CLEVR."""

from __future__ import annotations

from collections.abc import Iterator

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.converter import (
    BuildError,
    ConvertedItem,
    DatasetSource,
    DroppedRecord,
    convert_records,
)
from currreft_jax.data.builders.image_files import find_image
from currreft_jax.data.builders.records import find_files, list_entries, read_json_object, read_records, record_name
from currreft_jax.data.fields import Fields
from currreft_jax.structs import Row

COUNT_QUESTION = "How many different items are there in the image?"  # of R1-V's Super-CLEVR test


def convert_questions(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts published question files; questions whose answer is not a count are dropped."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        image = record.text("image_filename")
        row_id = f"{source.name}-{record.row_id(str(record.keys.get('question_index')))}-{image}"
        if source.split and record.keys.get("split") != source.split:
            return
        answer = str(record.keys.get("answer"))
        if not answer.isdigit():
            yield DroppedRecord(row_id, "the answer is not a count")
            return
        yield _counting_row(row_id, record.text("question"), answer, image, record, source)

    for path in find_files(source.folder, (".json",), "*questions*"):
        entries = list_entries(read_json_object(path), "questions", "a list of questions")
        yield from convert_records(entries, convert)


def convert_scenes(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts published scene files to one question per image: how many objects there are.

    Raises:
        BuildError: no file holds a scene.
    """

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        image, objects = record.text("image_filename"), record.take("objects", list, "a list of objects")
        yield _counting_row(f"{source.name}-{image}", COUNT_QUESTION, str(len(objects)), image, record, source)

    found = False
    for path in find_files(source.folder, (".json",)):
        file = read_json_object(path)
        if "scenes" in file.keys:
            found = True
            yield from convert_records(list_entries(file, "scenes", "a list of scenes"), convert)
        elif "objects" in file.keys:
            found = True
            yield from convert_records([file], convert)
    if not found:
        raise BuildError(f"{source.folder} holds no scenes; it takes CLEVR_*_scenes.json, or one JSON file per scene")


def convert_r1v(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts R1-V's Super-CLEVR test: image_path, question and ground_truth."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        answer = str(record.keys.get("ground_truth"))
        if not answer.isdigit():
            record.refuse_value("ground_truth", "a count")
        row_id = f"{source.name}-{record_name(record)}"
        yield _counting_row(row_id, record.text("question"), answer, record.text("image_path"), record, source)

    for path in find_files(source.folder, (".jsonl",)):
        yield from convert_records(read_records(path), convert)


def _counting_row(row_id: str, question: str, answer: str, image: str, record: Fields, source: DatasetSource) -> Row:
    path, _ = find_image(image, source, record)
    return Row(row_id, Task.MATH, Kind.OPEN, question, answer, (path,), source=source.name, origin=source.origin)
