"""Conversations for supervised training and for judges: the sets of the paper's self-improvement phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.converter import ConvertedItem, DatasetSource, DroppedRecord, convert_records
from currreft_jax.data.builders.image_files import find_image, load_image_cell
from currreft_jax.data.builders.records import (
    find_files,
    list_entries,
    list_objects,
    nested_object,
    read_json_object,
    read_records,
    record_name,
    whole_number,
)
from currreft_jax.data.fields import Fields
from currreft_jax.data.grounding import OBJECTS
from currreft_jax.data.rows import UNREAD_MEDIA, parse_row
from currreft_jax.rewards.choice import format_options
from currreft_jax.structs import Row, Turn


def convert_llava(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts conversations of LLaVA and ms-swift, with the names and boxes of their objects filled in."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        cells = record.keys.get("image") or record.keys.get("images") or []
        if not isinstance(cells, list):
            cells = [cells]
        images = [load_image_cell(cell, source, record)[0] for cell in cells]
        keys = {
            key: record.keys[key] for key in ("messages", "conversations", OBJECTS, *UNREAD_MEDIA) if key in record.keys
        }
        row = parse_row(Fields({**keys, "images": images}, record.location), image_root=Path(), kind=Kind.CHAT)
        yield replace(
            row,
            id=f"{source.name}-{record_name(record)}",
            task=Task.OTHER,
            source=source.name,
            origin=source.origin,
        )

    for path in find_files(source.folder):
        yield from convert_records(read_records(path), convert)


def convert_cauldron(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts The Cauldron's records of images and texts; each pair of user and assistant text makes a row."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        cells = record.take("images", list, "a list of images")
        images = [load_image_cell(cell, source, record)[0] for cell in cells]
        for index, text in enumerate(list_objects(record, "texts", "a list of texts")):
            turns = [Turn("user", text.text("user")), Turn("assistant", text.text("assistant"))]
            yield _chat_row(f"{source.name}-{record_name(record)}-{index}", turns, images, source)

    for path in find_files(source.folder):
        yield from convert_records(read_records(path), convert)


def convert_science_qa(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts ScienceQA, `problems.json` with an image folder or parquet; replies are the solution and the option."""

    def convert(record: Fields, key: str = "") -> Iterator[ConvertedItem]:
        split = str(record.keys.get("split", ""))
        if source.split and split and split != source.split:
            return
        row_id = f"{source.name}-{key or record_name(record)}"
        choices = record.texts("choices", "a list of options")
        answer = whole_number(record, "answer")
        if not 0 <= answer < len(choices):
            record.refuse_value("answer", f"the index of one of the {len(choices)} choices, from 0")
        image = record.keys.get("image")
        if image and key:
            image = f"{split}/{key}/{image}"
        images = [load_image_cell(image, source, record)[0]] if image else []
        question = _format_question(record.text("question"), choices, str(record.keys.get("hint") or ""))
        solution = str(record.keys.get("solution") or "").strip()
        conclusion = f"The answer is {ascii_uppercase[answer]}. {choices[answer]}"
        reply = f"{solution}\n{conclusion}" if solution else conclusion
        yield _chat_row(row_id, [Turn("user", question), Turn("assistant", reply)], images, source, split)

    for path in find_files(source.folder, (".json", ".parquet")):
        if path.suffix == ".parquet":
            yield from convert_records(read_records(path), convert)
        elif path.suffix != ".json" or path.name == "problems.json":
            file = read_json_object(path)
            for key in file.keys:
                yield from convert_records([nested_object(file, key)], lambda record, key=key: convert(record, key))


def convert_visual7w(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts Visual7W's telling questions with their four options."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        split = record.text("split", "")
        if source.split and split != source.split:
            return
        image, _ = find_image(record.text("filename"), source, record)
        for pair in list_objects(record, "qa_pairs", "a list of questions"):
            right, wrong = pair.text("answer"), pair.texts("multiple_choices", "a list of options")
            question_id = whole_number(pair, "qa_id")
            # The file does not order the options: the id determines the index of the right one.
            index = question_id % (len(wrong) + 1)
            question = _format_question(pair.text("question"), [*wrong[:index], right, *wrong[index:]])
            reply = f"The answer is {ascii_uppercase[index]}. {right}"
            turns = [Turn("user", question), Turn("assistant", reply)]
            yield _chat_row(f"{source.name}-{question_id}", turns, [image], source, split)

    for path in find_files(source.folder, (".json",), "*v7w*"):
        yield from convert_records(list_entries(read_json_object(path), "images", "a list of images"), convert)


def convert_vsr(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts VSR: statements about images, true or false."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        label = record.keys.get("label")
        if label not in (0, 1):
            record.refuse_value("label", "0 or 1")
        image, _ = load_image_cell(record.keys.get("image"), source, record)
        question = f"Is this statement about the image true? Answer yes or no. {record.text('caption')}"
        turns = [Turn("user", question), Turn("assistant", "Yes" if label else "No")]
        yield _chat_row(f"{source.name}-{record_name(record)}", turns, [image], source)

    for path in find_files(source.folder, (".jsonl", ".parquet")):
        yield from convert_records(read_records(path), convert)


def convert_geomverse(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts GeomVerse: question, image_path, a chain of thought as cot, and the label; to math rows unless chat."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        image, _ = find_image(record.text("image_path"), source, record)
        label = record.keys.get("label")
        if type(label) not in (str, int, float):
            record.refuse_value("label", "the answer")
        row_id = f"{source.name}-{record_name(record)}"
        if source.kind is Kind.CHAT:
            reply = f"{record.text('cot')}\nThe answer is {label}."
            turns = [Turn("user", record.text("question")), Turn("assistant", reply)]
            yield _chat_row(row_id, turns, [image], source)
        else:
            question, gold = record.text("question"), str(label)
            yield Row(row_id, Task.MATH, Kind.OPEN, question, gold, (image,), source=source.name, origin=source.origin)

    for path in find_files(source.folder, (".jsonl",)):
        yield from convert_records(read_records(path), convert)


def convert_text(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts questions without images, as in s1K-1.1; its splits are math, science and crossword."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        split = str(record.keys.get("cot_type", ""))
        if source.split and split != source.split:
            return
        row_id = f"{source.name}-{record_name(record)}"
        answer = str(record.keys.get("solution") or record.keys.get("answer") or "").strip()
        if not answer:
            yield DroppedRecord(row_id, "no solution")
            return
        turns = [Turn("user", record.text("question")), Turn("assistant", answer)]
        yield _chat_row(row_id, turns, [], source, split)

    for path in find_files(source.folder):
        yield from convert_records(read_records(path), convert)


def _format_question(question: str, options: Sequence[str], context: str = "") -> str:
    prefix = f"Context: {context.strip()}\n" if context.strip() else ""
    return f"{prefix}{question}\nOptions:{format_options(options)}"


def _chat_row(row_id: str, turns: Sequence[Turn], images: Sequence[str], source: DatasetSource, split: str = "") -> Row:
    return Row(
        id=row_id,
        task=Task.OTHER,
        kind=Kind.CHAT,
        problem="",
        solution="",
        images=tuple(images),
        messages=tuple(turns),
        source=source.name,
        split=split,
        origin=source.origin,
    )
