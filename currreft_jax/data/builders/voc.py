"""Pascal VOC: one XML file per image, boxes 1-based and inclusive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from currreft_jax.config import Task
from currreft_jax.data.builders.box_formats import Box, parse_box
from currreft_jax.data.builders.converter import BuildError, ConvertedItem, DatasetSource, convert_records
from currreft_jax.data.builders.image_files import annotation_frame, find_image
from currreft_jax.data.builders.object_questions import (
    ImageRecord,
    ObjectAnnotation,
    object_annotation,
    object_rows,
)
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
    categories = read_categories(paths) if source.list_categories and Task.CLASSIFY in source.tasks else ()
    yield from convert_records(records, lambda record: object_rows(_image_record(record, source), categories, source))


def read_categories(paths: Sequence[Path]) -> tuple[str, ...]:
    """Returns VOC's categories; those of the files, sorted, if one of them is not VOC's.

    All files of the folder count, whatever the split: training and tests list the same categories.
    """
    names = set[str]()
    for path in paths:
        try:
            root = parse_xml(path.read_bytes(), str(path))
        except LineError:
            continue  # reported where its image is converted
        names.update(element.findtext("name", "").strip() for element in root.findall("object"))
    names.discard("")
    return CATEGORIES if names <= set(CATEGORIES) else tuple(sorted(names))


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
    image, actual = find_image(_text(root, "filename", record), source, record)
    annotated = Frame(round(_number(root, "size/width", record)), round(_number(root, "size/height", record)))
    frame = annotation_frame(annotated, actual, source, record)
    # Direct children only: below the object of a person stand its parts, with boxes of their own.
    objects = tuple(
        _object_annotation(element, frame, Fields(record.keys, f"{record.location} object[{index}]"), source)
        for index, element in enumerate(root.findall("object"))
    )
    return ImageRecord(path.stem, image, frame, objects, source.split)


def _object_annotation(
    element: ElementTree.Element, frame: Frame, record: Fields, source: DatasetSource
) -> ObjectAnnotation:
    def parse() -> Box:
        corners = [_number(element, f"bndbox/{side}", record) for side in ("xmin", "ymin", "xmax", "ymax")]
        return parse_box(corners, "voc", frame, record)

    difficult = element.findtext("difficult", "0").strip() == "1"
    return object_annotation(_text(element, "name", record), parse, reliable=source.include_difficult or not difficult)


def _text(element: ElementTree.Element, path: str, record: Fields) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        record.refuse(f"<{element.tag}> lacks <{path}>; add it, or fetch the file again")
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
