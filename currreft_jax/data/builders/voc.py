"""Pascal VOC: one XML file per image, boxes 1-based and inclusive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from currreft_jax.data.builders.box_formats import parse_box
from currreft_jax.data.builders.converter import BuildError, ConvertedItem, DatasetSource, convert_records
from currreft_jax.data.builders.image_files import check_image_size, find_image
from currreft_jax.data.builders.object_questions import ImageRecord, ObjectAnnotation, object_rows
from currreft_jax.data.builders.records import find_files
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def convert_voc(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts annotation files to rows about the categories and boxes of every image."""
    paths = find_files(source.folder, (".xml",))
    names = _read_split(source) if source.split else None
    records = (Fields({"path": path}, str(path)) for path in paths if names is None or path.stem in names)
    yield from convert_records(records, lambda record: object_rows(_image_record(record, source), CATEGORIES, source))


def parse_xml(content: bytes, path: str) -> ElementTree.Element:
    """Parses an XML document, refusing document type declarations: their entities can expand to fill any memory.

    Raises:
        LineError: the document has such a declaration, or is not XML.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise LineError(path, "the XML has a document type declaration; annotations have none: remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise LineError(path, f"not XML ({error}); fetch the file again") from error
    return builder.close()


def _image_record(record: Fields, source: DatasetSource) -> ImageRecord:
    path: Path = record.keys["path"]
    root = parse_xml(path.read_bytes(), str(path))
    image, frame = find_image(_text(root, "filename", record), source, record)
    annotated = Frame(round(_number(root, "size/width", record)), round(_number(root, "size/height", record)))
    check_image_size(annotated, frame, record)
    # Direct children only: below the object of a person stand its parts, with boxes of their own.
    objects = tuple(_object_annotation(element, frame, record, source) for element in root.findall("object"))
    return ImageRecord(path.stem, image, frame, objects, source.split)


def _object_annotation(
    element: ElementTree.Element, frame: Frame, record: Fields, source: DatasetSource
) -> ObjectAnnotation:
    corners = [_number(element, f"bndbox/{side}", record) for side in ("xmin", "ymin", "xmax", "ymax")]
    difficult = element.findtext("difficult", "0").strip() == "1"
    box = parse_box(corners, "voc", frame, record)
    return ObjectAnnotation(_text(element, "name", record), box, reliable=source.include_difficult or not difficult)


def _text(element: ElementTree.Element, path: str, record: Fields) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        record.refuse(f"<{element.tag}> lacks <{path}>; fetch the file again")
    return text


def _number(element: ElementTree.Element, path: str, record: Fields) -> float:
    text = _text(element, path, record)
    try:
        return float(text)
    except ValueError:
        record.refuse(f"<{path}> is {text!r}; it takes a number")


def _read_split(source: DatasetSource) -> set[str]:
    paths = sorted(source.folder.rglob(f"ImageSets/Main/{source.split}.txt"))
    if not paths:
        raise BuildError(f"{source.folder} has no ImageSets/Main/{source.split}.txt; --split takes the name of a list")
    return {line.split()[0] for path in paths for line in path.read_text("utf-8").splitlines() if line.strip()}
