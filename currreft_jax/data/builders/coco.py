"""COCO instances: `instances_*.json`, boxes (x, y, width, height)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from currreft_jax.data.builders.box_formats import parse_box
from currreft_jax.data.builders.converter import ConvertedItem, DatasetSource, DroppedRecord, convert_records
from currreft_jax.data.builders.image_files import annotation_frame, find_image
from currreft_jax.data.builders.object_questions import (
    ImageRecord,
    ObjectAnnotation,
    object_annotation,
    object_rows,
)
from currreft_jax.data.builders.records import find_files, list_entries, read_json_object, whole_number
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame


@dataclass(frozen=True, slots=True)
class CocoInstances:
    """An instances file.

    Attributes:
        categories: category id -> name.
        images: image id -> record.
        annotations: image id -> records of its objects.
        bad_entries: entries that are no objects, lack their ids, or have those of others.
    """

    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, Fields] = field(default_factory=dict)
    annotations: dict[int, list[Fields]] = field(default_factory=dict)
    bad_entries: list[LineError] = field(default_factory=list)


def read_instances(path: Path) -> CocoInstances:
    """Reads an instances file.

    Raises:
        BuildError: the file is missing or not JSON.
        LineError: a list is missing.
    """
    file = read_json_object(path)
    instances = CocoInstances()
    for key in ("categories", "images", "annotations"):
        for entry in list_entries(file, key, "a list of objects"):
            try:
                _add_entry(instances, key, entry)
            except LineError as error:
                instances.bad_entries.append(error)
    return instances


def stray_annotations(instances: CocoInstances) -> Iterator[DroppedRecord]:
    """Yields the annotations of images that the file does not list."""
    for image_id, entries in instances.annotations.items():
        if image_id not in instances.images:
            yield from (DroppedRecord(entry.location, "its image is not in the file") for entry in entries)


def image_record(image_id: int, instances: CocoInstances, source: DatasetSource, split: str = "") -> ImageRecord:
    """Returns an image with its objects; crowds only say that their category is in the image.

    Raises:
        LineError: the image cannot be found, or an annotation's category is not in the file.
    """
    record = instances.images[image_id]
    image, actual = find_image(record.text("file_name"), source, record)
    frame = annotation_frame(_stated_frame(record), actual, source, record)
    entries = instances.annotations.get(image_id, [])
    objects = tuple(_object_annotation(entry, instances, frame) for entry in entries)
    return ImageRecord(str(image_id), image, frame, objects, split)


def convert_coco(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts instances files to rows about the categories and boxes of every image."""
    for path in find_files(source.folder, (".json",), "instances*"):
        # A file of one's own may have any name, which states no split.
        split = path.stem.removeprefix("instances").strip("_") if path.stem.startswith("instances") else ""
        if source.split and source.split != split:
            continue
        instances = read_instances(path)
        categories = list(dict.fromkeys(instances.categories[key] for key in sorted(instances.categories)))
        yield from instances.bad_entries
        yield from stray_annotations(instances)
        yield from convert_records(
            instances.images.values(),
            lambda record, instances=instances, categories=categories, split=split: object_rows(
                image_record(record.keys["id"], instances, source, split), categories, source
            ),
        )


def _add_entry(instances: CocoInstances, key: str, entry: Fields | LineError) -> None:
    if isinstance(entry, LineError):
        raise entry
    if key == "annotations":
        instances.annotations.setdefault(whole_number(entry, "image_id"), []).append(entry)
        return
    known = instances.categories if key == "categories" else instances.images
    if whole_number(entry, "id") in known:
        entry.refuse_value("id", f"an id that no other of the {key} has")
    if key == "categories":
        instances.categories[whole_number(entry, "id")] = entry.text("name")
    else:
        instances.images[whole_number(entry, "id")] = entry


def _stated_frame(record: Fields) -> Frame:
    """Returns the size that an image's entry states, 0 x 0 if it states none."""
    if "width" not in record.keys and "height" not in record.keys:
        return Frame(0, 0)
    return Frame(whole_number(record, "width"), whole_number(record, "height"))


def _object_annotation(entry: Fields, instances: CocoInstances, frame: Frame) -> ObjectAnnotation:
    category_id = whole_number(entry, "category_id")
    if category_id not in instances.categories:
        entry.refuse_value("category_id", "the id of a category of the file")
    label = instances.categories[category_id]
    if entry.keys.get("iscrowd"):
        return ObjectAnnotation(label, None, reliable=False)
    return object_annotation(label, lambda: parse_box(entry.keys.get("bbox"), "xywh", frame, entry))
