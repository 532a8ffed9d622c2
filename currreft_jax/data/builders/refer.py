"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and RefGTA in their several published forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from currreft_jax.data.builders import coco, pixels, scenes, tables, wording
from currreft_jax.data.builders.items import Box, BuildError, Dropped, Item, Scene, Source, each
from currreft_jax.data.fields import Fields
from currreft_jax.data.rows import IMAGE
from currreft_jax.structs import Frame

_FOUR_NUMBERS = re.compile(r"\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")
_BOX_OVERSHOOT = 2.0


def published(source: Source) -> Iterator[Item]:
    """`refs*.json` beside `instances.json`, as the refer toolbox has them; boxes are the instances'."""
    paths = _refs(source.folder)
    instances = coco.read(source.folder / "instances.json")
    boxes = {coco.number(entry, "id"): entry for entries in instances.annotations.values() for entry in entries}
    yield from instances.bad
    told: set[int] = set()

    def convert(ref: Fields) -> Iterator[Item]:
        image_id, split = coco.number(ref, "image_id"), ref.text("split")
        if source.split and split != source.split:
            return
        if image_id not in instances.images:
            ref.refuse_value("image_id", "the id of an image in instances.json")
        annotation = boxes.get(coco.number(ref, "ann_id"))
        if annotation is None:
            ref.refuse_value("ann_id", "the id of an annotation in instances.json")
        image = coco.annotated(image_id, instances, source, split)
        if image_id not in told:
            told.add(image_id)
            yield scenes.scene(image)
        box = pixels.read_box(annotation.keys.get("bbox"), "xywh", image.frame, annotation)
        for sentence in tables.items(ref, "sentences", "a list of sentences"):
            if not isinstance(sentence, Fields):
                raise sentence
            id = f"{source.name}-{ref.row_id(str(ref.keys.get('ref_id')))}-{coco.number(sentence, 'sent_id')}"
            yield scenes.region(id, sentence.text("sent"), box, image.image, image.frame, split, source)

    for path in paths:
        yield from each(tables.records(path), convert)


def jxu124(source: Source) -> Iterator[Item]:
    """Parquet files with one referred object a row; the box is checked against the raw annotation beside it."""

    def convert(ref: Fields) -> Iterator[Item]:
        split = ref.text("split")
        if source.split and split != source.split:
            return
        image, frame = pixels.find_image(ref.text("image_path"), source, ref)
        declared = tables.nested(ref, "raw_image_info")
        size = Frame(coco.number(declared, "width"), coco.number(declared, "height"))
        pixels.agree(size, frame, ref)
        annotation = tables.nested(ref, "raw_anns")
        box = pixels.read_box(annotation.keys.get("bbox"), "xywh", frame, annotation)
        told = pixels.read_box(ref.keys.get("bbox"), "xyxy", None, ref)
        if max(abs(a - b) for a, b in zip(box, told, strict=True)) > _BOX_OVERSHOOT:
            ref.refuse(f'"bbox" {list(told)} is not the raw annotation\'s box {list(box)}; which is right?')
        label = f"category {coco.number(ref, 'category_id')}"
        yield Scene(image, frame, ((label, box),), frozenset({label}))
        for number, sentence in enumerate(tables.items(ref, "sentences", "a list of sentences")):
            if not isinstance(sentence, Fields):
                raise sentence
            id = f"{source.name}-{coco.number(ref, 'ref_id')}-{number}"
            yield scenes.region(id, sentence.text("sent"), box, image, frame, split, source)

    for path in tables.files(source.folder, (".parquet", ".jsonl")):
        yield from each(tables.records(path), convert)


def lmms(source: Source) -> Iterator[Item]:
    """Parquet files with the image in the row, the expressions as answers, and the box as (x, y, width, height)."""

    def convert(ref: Fields) -> Iterator[Item]:
        split = Path(ref.location.rpartition(":")[0]).name.partition("-")[0]
        if source.split and split != source.split:
            return
        image, frame = pixels.stored_image(ref.keys.get("image"), source, ref)
        box = pixels.read_box(ref.keys.get("bbox"), "xywh", frame, ref)
        _check_outline(ref, box)
        yield Scene(image, frame, (("", box),))
        expressions = ref.keys.get("answer")
        if not isinstance(expressions, list) or not all(isinstance(it, str) for it in expressions):
            ref.refuse('"answer" takes a list of expressions')
        for number, expression in enumerate(expressions):
            id = f"{source.name}-{split}-{ref.row_id(str(ref.keys.get('question_id')))}-{number}"
            yield scenes.region(id, expression, box, image, frame, split, source)

    for path in tables.files(source.folder, (".parquet", ".jsonl")):
        yield from each(tables.records(path), convert)


def vlm_r1(source: Source) -> Iterator[Item]:
    """VLM-R1's files: problem and solution, or a conversation that ends with the box; corners, in pixels."""

    def convert(record: Fields) -> Iterator[Item]:
        image, frame = pixels.find_image(record.text("image"), source, record)
        frame = source.frame or frame
        problem, told = _asked(record)
        box = pixels.read_box(told, "xyxy", frame, record)
        yield Scene(image, frame, (("", box),))
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        if not problem.startswith(wording.REGION.ask):
            yield Dropped(id, f"the question does not begin with {wording.REGION.ask!r}")
            return
        phrase = problem.removeprefix(wording.REGION.ask).strip().removesuffix(".")
        yield scenes.region(id, phrase, box, image, frame, source.split, source)

    for path in tables.files(source.folder, (".json", ".jsonl")):
        yield from each(tables.records(path), convert)


def _refs(folder: Path) -> list[Path]:
    if folder.is_dir() and not list(folder.glob("refs*.json")):
        pickles = sorted(folder.glob("refs*.p"))
        if pickles:
            raise BuildError(
                f"{pickles[0]} is a pickle, which can run any program when it is opened: it is never read. Use the"
                " parquet form (`build refcoco-jxu124`), or write its list as JSON where you trust it"
                f" ({pickles[0].stem}.json)"
            )
    return tables.files(folder, (".json",), "refs*")


def _asked(record: Fields) -> tuple[str, Any]:
    if "conversations" not in record.keys:
        return record.text("problem").replace(IMAGE, "").strip(), record.keys.get("solution")
    turns = [turn for turn in tables.items(record, "conversations", "a list of turns") if isinstance(turn, Fields)]
    if len(turns) != 2:
        record.refuse('"conversations" takes one question and one answer')
    numbers = _FOUR_NUMBERS.findall(turns[1].text("value"))
    if len(numbers) != 1:
        record.refuse(f"the answer {turns[1].text('value')[:80]!r} has {len(numbers)} boxes; it takes one")
    return turns[0].text("value").replace(IMAGE, "").strip(), [float(x) for x in numbers[0]]


def _check_outline(ref: Fields, box: Box) -> None:
    """Refuses a box that its object's outline leaves: it is of another convention."""
    outline = ref.keys.get("segmentation")
    if not isinstance(outline, list) or not outline or not all(type(x) in (int, float) for x in outline):
        return
    xs, ys = outline[::2], outline[1::2]
    outside = max(box[0] - min(xs), box[1] - min(ys), max(xs) - box[2], max(ys) - box[3])
    if outside > _BOX_OVERSHOOT:
        ref.refuse(f'"bbox" {ref.keys["bbox"]} does not hold its outline; it takes x, y, width, height')
