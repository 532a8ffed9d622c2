"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and RefGTA in their published forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from currreft_jax.data.builders import coco, question_templates
from currreft_jax.data.builders.box_formats import Box, EmptyBoxError, parse_box
from currreft_jax.data.builders.converter import (
    AnnotatedImage,
    BuildError,
    ConvertedItem,
    DatasetSource,
    DroppedRecord,
    convert_records,
)
from currreft_jax.data.builders.image_files import annotation_frame, find_image, load_image_cell
from currreft_jax.data.builders.object_questions import phrase_row
from currreft_jax.data.builders.records import (
    file_split,
    find_files,
    list_entries,
    list_objects,
    nested_object,
    read_records,
    record_name,
    whole_number,
)
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import IMAGE
from currreft_jax.structs import Frame

_FOUR_NUMBERS = re.compile(r"\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")
_BOX_TOLERANCE = 2.0  # pixels between two statements of one box


def convert_refer(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts `refs*.json` next to `instances.json`, the refer toolbox's form; boxes are those of the instances."""
    path = _find_refs(source.folder)
    instances = coco.read_instances(path.with_name("instances.json"))
    annotations = _annotations_by_id(instances)
    yield from instances.bad_entries
    yield from coco.stray_annotations(instances)
    yielded_images: set[int] = set()

    def convert(ref: Fields) -> Iterator[ConvertedItem]:
        image_id, split = whole_number(ref, "image_id"), ref.text("split")
        if source.split and split != source.split:
            return
        if image_id not in instances.images:
            ref.refuse_value("image_id", "the id of an image in instances.json")
        annotation = annotations.get(whole_number(ref, "ann_id"))
        if annotation is None:
            ref.refuse_value("ann_id", "the id of an annotation in instances.json")
        image = coco.image_record(image_id, instances, source, split)
        if image_id not in yielded_images:
            yield image.annotated_image()
            yield from image.problems
        ref_id = ref.row_id(str(ref.keys.get("ref_id")))
        try:
            box = parse_box(annotation.keys.get("bbox"), "xywh", image.frame, annotation)
        except LineError:  # listed with the image's problems
            yield DroppedRecord(f"{source.name}-{ref_id}", "the box of its object cannot be used")
        else:
            for sentence in list_objects(ref, "sentences", "a list of sentences"):
                row_id = f"{source.name}-{ref_id}-{whole_number(sentence, 'sent_id')}"
                yield phrase_row(row_id, sentence.text("sent"), box, image.image, image.frame, split, source)
        yielded_images.add(image_id)  # last: the items of a bad ref are not yielded

    yield from convert_records(read_records(path), convert)


def convert_jxu124(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts parquet files with one referred object per row, checking its box against the raw annotation."""

    def convert(ref: Fields) -> Iterator[ConvertedItem]:
        split = ref.text("split")
        if source.split and split != source.split:
            return
        image, actual = find_image(ref.text("image_path"), source, ref)
        image_info = nested_object(ref, "raw_image_info")
        annotated = Frame(whole_number(image_info, "width"), whole_number(image_info, "height"))
        frame = annotation_frame(annotated, actual, source, ref)
        annotation = nested_object(ref, "raw_anns")
        box = parse_box(annotation.keys.get("bbox"), "xywh", frame, annotation)
        converted = parse_box(ref.keys.get("bbox"), "xyxy", None, ref)
        if max(abs(a - b) for a, b in zip(box, converted, strict=True)) > _BOX_TOLERANCE:
            ref.refuse(f'"bbox" {list(converted)} is not the raw annotation\'s box {list(box)}; correct one of them')
        label = f"category {whole_number(ref, 'category_id')}"
        yield AnnotatedImage(image, frame, ((label, box),), frozenset({label}))
        for index, sentence in enumerate(list_objects(ref, "sentences", "a list of sentences")):
            row_id = f"{source.name}-{whole_number(ref, 'ref_id')}-{index}"
            yield phrase_row(row_id, sentence.text("sent"), box, image, frame, split, source)

    yield from _convert_refs(find_files(source.folder, (".parquet", ".jsonl")), convert)


def convert_lmms(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts parquet files that hold the image, the expressions as answers, and the box as (x, y, width, height)."""

    def convert(ref: Fields) -> Iterator[ConvertedItem]:
        split = file_split(ref)
        if source.split and split != source.split:
            return
        image, actual = load_image_cell(ref.keys.get("image"), source, ref)
        frame = source.frame or actual
        box = parse_box(ref.keys.get("bbox"), "xywh", frame, ref)
        _check_outline(ref, box)
        yield AnnotatedImage(image, frame, (("", box),))
        expressions = ref.keys.get("answer")
        if not isinstance(expressions, list) or not all(isinstance(text, str) for text in expressions):
            ref.refuse('"answer" takes a list of expressions')
        for index, expression in enumerate(expressions):
            row_id = f"{source.name}-{record_name(ref)}-{index}"  # a question_id may stand twice
            yield phrase_row(row_id, expression, box, image, frame, split, source)

    yield from _convert_refs(find_files(source.folder, (".parquet", ".jsonl")), convert)


def convert_vlm_r1(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts VLM-R1's files: problem and solution, or a conversation that ends in the box; corners in pixels."""

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        split = file_split(record)
        if source.split and split != source.split:
            return
        image, actual = find_image(record.text("image"), source, record)
        frame = source.frame or actual
        problem, corners = _problem_and_corners(record)
        box = parse_box(corners, "xyxy", frame, record)
        yield AnnotatedImage(image, frame, (("", box),))
        row_id = f"{source.name}-{record_name(record)}"
        prefix = question_templates.REGION.open
        if not problem.startswith(prefix):
            yield DroppedRecord(row_id, f"the question does not begin with {prefix!r}")
            return
        phrase = problem.removeprefix(prefix).strip().removesuffix(".")
        yield phrase_row(row_id, phrase, box, image, frame, split, source)

    yield from _convert_refs(find_files(source.folder, (".json", ".jsonl")), convert)


def _convert_refs(
    paths: Iterable[Path], convert: Callable[[Fields], Iterable[ConvertedItem]]
) -> Iterator[ConvertedItem]:
    """Converts references that state their own boxes; those whose box has no area are dropped."""

    def convert_or_drop(ref: Fields) -> Iterable[ConvertedItem]:
        try:
            return list(convert(ref))
        except EmptyBoxError as error:
            return [DroppedRecord(error.location, "the box has no area")]

    for path in paths:
        yield from convert_records(read_records(path), convert_or_drop)


def _find_refs(folder: Path) -> Path:
    if folder.is_dir() and not list(folder.glob("refs*.json")):
        pickles = sorted(folder.glob("refs*.p"))
        if pickles:
            raise BuildError(
                f"{pickles[0]} is a pickle, which can run any program when it is opened: it is never read. Use the"
                " parquet form (`build refcoco-jxu124`), or, if you trust the file, write its list as JSON to"
                f" {pickles[0].stem}.json"
            )
    paths = find_files(folder, (".json",), "refs*")
    if len(paths) > 1:
        raise BuildError(
            f"{folder} holds {' and '.join(path.name for path in paths)}, which split the same references in different"
            " ways; --source takes one of these files"
        )
    return paths[0]


def _annotations_by_id(instances: coco.CocoInstances) -> dict[int, Fields]:
    """Returns annotation id -> record; those without an id, or with that of another, become bad entries."""
    annotations: dict[int, Fields] = {}
    for entry in chain.from_iterable(instances.annotations.values()):
        try:
            if annotations.setdefault(whole_number(entry, "id"), entry) is not entry:
                entry.refuse_value("id", "an id that no other of the annotations has")
        except LineError as error:
            instances.bad_entries.append(error)
    return annotations


def _problem_and_corners(record: Fields) -> tuple[str, Any]:
    if "conversations" not in record.keys:
        return record.text("problem").replace(IMAGE, "").strip(), record.keys.get("solution")
    entries = list_entries(record, "conversations", "a list of turns")
    turns = [entry for entry in entries if isinstance(entry, Fields)]
    if len(turns) != 2:
        record.refuse('"conversations" takes one question and one answer')
    boxes = _FOUR_NUMBERS.findall(turns[1].text("value"))
    if len(boxes) != 1:
        record.refuse(f"the answer {turns[1].text('value')[:80]!r} has {len(boxes)} boxes; it takes one")
    return turns[0].text("value").replace(IMAGE, "").strip(), [float(x) for x in boxes[0]]


def _check_outline(ref: Fields, box: Box) -> None:
    """Refuses a box that does not contain its object's outline: it follows another convention."""
    outline = ref.keys.get("segmentation")
    if not isinstance(outline, list) or not outline or not all(type(x) in (int, float) for x in outline):
        return
    xs, ys = outline[::2], outline[1::2]
    outside = max(box[0] - min(xs), box[1] - min(ys), max(xs) - box[2], max(ys) - box[3])
    if outside > _BOX_TOLERANCE:
        ref.refuse(f'"bbox" {ref.keys["bbox"]} does not contain its outline; it takes x, y, width, height')
