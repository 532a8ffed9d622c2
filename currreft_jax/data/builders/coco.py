"""COCO instances: `instances_*.json`, boxes (x, y, width, height)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from currreft_jax.data.builders import pixels, tables
from currreft_jax.data.builders.items import Item, Source, each
from currreft_jax.data.builders.scenes import Annotated, Thing, questions
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame


@dataclass(frozen=True, slots=True)
class Instances:
    """An instances file.

    Attributes:
        categories: id -> name.
        images: id -> its record.
        annotations: image id -> the records of its objects.
        bad: entries that are no objects.
    """

    categories: dict[int, str]
    images: dict[int, Fields]
    annotations: dict[int, list[Fields]]
    bad: list[LineError]


def read(path: Path) -> Instances:
    """Reads an instances file.

    Raises:
        BuildError: it is missing or not JSON.
        LineError: a list is missing, or an entry lacks its ids.
    """
    file = tables.json_object(path)
    found = Instances({}, {}, {}, [])
    for key in ("categories", "images", "annotations"):
        for entry in tables.items(file, key, "a list of objects"):
            if isinstance(entry, LineError):
                found.bad.append(entry)
            elif key == "categories":
                found.categories[number(entry, "id")] = entry.text("name")
            elif key == "images":
                found.images[number(entry, "id")] = entry
                found.annotations.setdefault(number(entry, "id"), [])
            else:
                found.annotations.setdefault(number(entry, "image_id"), []).append(entry)
    return found


def annotated(id: int, instances: Instances, source: Source, split: str = "") -> Annotated:
    """One image with its objects; crowds tell only that their category is there."""
    record = instances.images[id]
    image, frame = pixels.find_image(record.text("file_name"), source, record)
    declared = source.frame or Frame(number(record, "width"), number(record, "height"))
    if source.frame is None:
        pixels.agree(declared, frame, record)
    things = tuple(_thing(entry, instances, declared) for entry in instances.annotations[id])
    return Annotated(str(id), image, declared, things, split)


def convert(source: Source) -> Iterator[Item]:
    """Questions about the categories of every image, and about the boxes of each."""
    for path in tables.files(source.folder, (".json",), "instances*"):
        split = path.stem.removeprefix("instances").strip("_")
        if source.split and source.split != split:
            continue
        instances = read(path)
        names = [instances.categories[id] for id in sorted(instances.categories)]
        yield from instances.bad
        yield from each(
            instances.images.values(),
            lambda record, instances=instances, names=names, split=split: questions(
                annotated(record.keys["id"], instances, source, split), names, source
            ),
        )


def number(fields: Fields, key: str) -> int:
    """A whole number."""
    value = fields.keys.get(key)
    if type(value) is not int:
        fields.refuse_value(key, "a whole number")
    return value


def _thing(entry: Fields, instances: Instances, frame: Frame) -> Thing:
    category = number(entry, "category_id")
    if category not in instances.categories:
        entry.refuse_value("category_id", "the id of a category of the file")
    label = instances.categories[category]
    if entry.keys.get("iscrowd"):
        return Thing(label, None, sure=False)
    return Thing(label, pixels.read_box(entry.keys.get("bbox"), "xywh", frame, entry))
