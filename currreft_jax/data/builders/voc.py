"""Pascal VOC: one XML file an image, boxes 1-based and inclusive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from currreft_jax.data.builders import pixels, tables
from currreft_jax.data.builders.items import BuildError, Item, Source, each
from currreft_jax.data.builders.scenes import Annotated, Thing, questions
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def convert(source: Source) -> Iterator[Item]:
    """Questions about the categories of every image, and about the boxes of each."""
    paths = tables.files(source.folder, (".xml",))
    chosen = _of_split(source) if source.split else None
    records = (Fields({"path": path}, str(path)) for path in paths if chosen is None or path.stem in chosen)
    yield from each(records, lambda record: questions(_annotated(record, source), CATEGORIES, source))


def parse(content: bytes, where: str) -> ElementTree.Element:
    """An XML document without a document type: entities can be made to fill any memory, and annotations need none.

    Raises:
        LineError: it has one, or is not XML.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise LineError(where, "the XML has a document type declaration; annotations have none: remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise LineError(where, f"not XML ({error}); fetch the file again") from error
    return builder.close()


def _annotated(record: Fields, source: Source) -> Annotated:
    path: Path = record.keys["path"]
    root = parse(path.read_bytes(), str(path))
    image, frame = pixels.find_image(_text(root, "filename", record), source, record)
    pixels.agree(
        Frame(round(_number(root, "size/width", record)), round(_number(root, "size/height", record))), frame, record
    )
    # Only children: the parts of a person have boxes of their own below the object.
    things = tuple(_thing(entry, frame, record, source) for entry in root.findall("object"))
    return Annotated(path.stem, image, frame, things, source.split)


def _thing(entry: ElementTree.Element, frame: Frame, record: Fields, source: Source) -> Thing:
    corners = [_number(entry, f"bndbox/{side}", record) for side in ("xmin", "ymin", "xmax", "ymax")]
    difficult = entry.findtext("difficult", "0").strip() == "1"
    box = pixels.read_box(corners, "voc", frame, record)
    return Thing(_text(entry, "name", record), box, sure=source.difficult or not difficult)


def _text(entry: ElementTree.Element, path: str, record: Fields) -> str:
    text = (entry.findtext(path) or "").strip()
    if not text:
        record.refuse(f"<{entry.tag}> lacks <{path}>")
    return text


def _number(entry: ElementTree.Element, path: str, record: Fields) -> float:
    text = _text(entry, path, record)
    try:
        return float(text)
    except ValueError:
        record.refuse(f"<{path}> is {text!r}; it takes a number")


def _of_split(source: Source) -> set[str]:
    lists = sorted(source.folder.rglob(f"ImageSets/Main/{source.split}.txt"))
    if not lists:
        raise BuildError(f"{source.folder} has no ImageSets/Main/{source.split}.txt; --split takes the name of a list")
    return {line.split()[0] for path in lists for line in path.read_text("utf-8").splitlines() if line.strip()}
