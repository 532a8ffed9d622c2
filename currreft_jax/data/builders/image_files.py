"""Image files of published data sets: looked up by name, extracted from tables, and measured."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from currreft_jax.config.names import nearest
from currreft_jax.config.wording import plural
from currreft_jax.data.builders.converter import DatasetSource
from currreft_jax.data.fields import Fields
from currreft_jax.data.images import DECODE_ERRORS, FORMATS, MAX_FILE_PIXELS
from currreft_jax.structs import Frame

_EXIF_ORIENTATION = 0x0112
_ROTATED = (5, 6, 7, 8)  # orientations that swap width and height
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_MAX_NAMES = 100  # of a folder that is searched for near names, once for each record without its image


def read_upright_size(image: Path | bytes, record: Fields) -> Frame:
    """Reads the size of an image in its upright orientation, from the header alone.

    Raises:
        LineError: the header cannot be read, or declares more than `MAX_FILE_PIXELS`.
    """
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS) as opened:
            width, height = opened.size
            rotated = opened.getexif().get(_EXIF_ORIENTATION, 1) in _ROTATED
    except DECODE_ERRORS as error:
        record.refuse(f"{name} is not a readable image ({error}); fetch it again", cause="an image is not readable")
    if width * height > MAX_FILE_PIXELS:
        record.refuse(
            f"{name} has {width} x {height} pixels, more than {MAX_FILE_PIXELS:,}; shrink it first",
            cause="an image is too large",
        )
    return Frame(height, width) if rotated else Frame(width, height)


def find_image(name: str, source: DatasetSource, record: Fields) -> tuple[str, Frame]:
    """Finds an image by its path under the image folder, or by its file name anywhere under that folder.

    Returns:
        Absolute path and size.

    Raises:
        LineError: no file or several files match, or the image cannot be read.
    """
    path = source.image_folder / name
    if not path.is_file():
        matches = _index_by_name(source.image_folder.absolute()).get(Path(name).name, ())
        if len(matches) > 1:
            record.refuse(
                f"several images {name} under {source.image_folder}: there are {matches[0]} and {matches[1]}; --images"
                " takes the folder of the images",
                cause="several images of one name",
            )
        if not matches:
            hint = _describe_names(Path(name), _image_names(source.image_folder.absolute()))
            record.refuse(
                f"no image {name} under {source.image_folder}; {hint}; --images takes the folder of the images",
                cause="no such image",
            )
        path = matches[0]
    return str(path.absolute()), read_upright_size(path, record)


def load_image_cell(cell: Any, source: DatasetSource, record: Fields) -> tuple[str, Frame]:
    """Finds the image that a table's cell names, or writes the bytes that it holds to a file named by their hash.

    Returns:
        Absolute path and size.

    Raises:
        LineError: the cell holds neither a path nor bytes, or the image cannot be found or read.
    """
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        return find_image(cell, source, record)
    if not isinstance(cell, bytes):
        record.refuse(f"the image is a {type(cell).__name__}; it takes a path, or bytes")
    frame = read_upright_size(cell, record)
    with Image.open(io.BytesIO(cell), formats=FORMATS) as image:
        suffix = (image.format or "img").lower().replace("jpeg", "jpg")
    path = source.extracted_images.absolute() / f"{hashlib.blake2b(cell, digest_size=12).hexdigest()}.{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(cell)
        partial.replace(path)
    return str(path), frame


def annotation_frame(annotated: Frame, actual: Frame, source: DatasetSource, record: Fields) -> Frame:
    """Returns the size that the boxes of an image are measured in.

    Args:
        annotated: the size that the annotations state; 0 x 0, which some tools write, if they state none.
        actual: the size of the image.
        source: tells whether the images were resized since.
        record: names file and line in errors.

    Raises:
        LineError: the annotations are for an image of another size: their boxes would be misplaced.
    """
    stated = annotated if annotated != Frame(0, 0) else actual
    if source.annotated_frame:
        return stated
    if stated not in (actual, source.frame):
        option = f", --frame says {source.frame.width} x {source.frame.height}" if source.frame else ""
        record.refuse(
            f"the annotations are for {stated.width} x {stated.height} pixels, the image has {actual.width} x"
            f" {actual.height}{option}; fetch the original image, or give --frame=annotated if it was resized since"
        )
    return source.frame or actual


def _describe_names(path: Path, names: dict[str, None]) -> str:
    """Names the images that are nearest to a missing one; where none is near, an example of those that are there."""
    spellings = (f"{path.stem}{suffix}" for lower in IMAGE_SUFFIXES for suffix in (lower, lower.upper()))
    near = [name for name in spellings if name in names]
    near = near or (nearest(path.name, names) if len(names) <= _MAX_NAMES else [])
    if near:
        return f"nearest: {', '.join(near)}"
    return f"it holds {plural(len(names), 'image')}, such as {next(iter(names))}" if names else "it holds no images"


@lru_cache(maxsize=8)
def _index_by_name(folder: Path) -> dict[str, tuple[Path, ...]]:
    index: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            index[path.name] = (*index.get(path.name, ()), path)
    return index


@lru_cache(maxsize=8)
def _image_names(folder: Path) -> dict[str, None]:
    return dict.fromkeys(name for name in _index_by_name(folder) if Path(name).suffix.casefold() in IMAGE_SUFFIXES)
