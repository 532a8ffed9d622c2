"""Images of published sets, and boxes from their conventions to ours: float (x1, y1, x2, y2), 0-based, half-open."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from currreft_jax.data.builders.items import Box, Source
from currreft_jax.data.fields import Fields
from currreft_jax.data.images import FORMATS, MAX_FILE_PIXELS
from currreft_jax.structs import Frame

_ORIENTATION = 0x0112  # EXIF; 5 to 8 lie on their side
# What Pillow raises on damaged headers.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, EOFError),
    *(struct.error, Image.DecompressionBombError),
)
_GRACE = 1.0  # annotators' boxes overshoot by fractions of a pixel

FORMS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x, y, width, height: (x, y, x + width, y + height),
    "voc": lambda x1, y1, x2, y2: (x1 - 1, y1 - 1, x2, y2),
}
SCALES: dict[str, float | None] = {"pixels": None, "unit": 1.0, "thousand": 1000.0}


def upright_frame(source: Path | bytes, fields: Fields) -> Frame:
    """The size of an image as it is shown, from its header alone."""
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except _DAMAGE as error:
        fields.refuse(f"{name} is not a readable image ({error}); fetch it again")
    if width * height > MAX_FILE_PIXELS:
        fields.refuse(f"{name} has {width} x {height} pixels, more than {MAX_FILE_PIXELS:,}; shrink it first")
    return Frame(height, width) if sideways else Frame(width, height)


def find_image(name: str, source: Source, fields: Fields) -> tuple[str, Frame]:
    """Path and size of an image, by its path under the images folder or by its file name anywhere under it."""
    path = source.images / name
    if not path.is_file():
        found = _by_name(source.images.absolute()).get(Path(name).name, ())
        if len(found) != 1:
            several = f": there are {found[0]} and {found[1]}" if found else ""
            fields.refuse(f"no image {name} under {source.images}{several}; --images takes the folder of the images")
        path = found[0]
    return str(path.absolute()), upright_frame(path, fields)


def stored_image(value: Any, source: Source, fields: Fields) -> tuple[str, Frame]:
    """Path and size of the image in a table's cell: a path, or bytes, which are written to a file named by content."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return find_image(value, source, fields)
    if not isinstance(value, bytes):
        fields.refuse(f"the image is a {type(value).__name__}; it takes a path, or bytes")
    frame = upright_frame(value, fields)
    with Image.open(io.BytesIO(value), formats=FORMATS) as image:
        suffix = (image.format or "img").lower().replace("jpeg", "jpg")
    path = source.written.absolute() / f"{hashlib.blake2b(value, digest_size=12).hexdigest()}.{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(value)
        partial.replace(path)
    return str(path), frame


def agree(declared: Frame, frame: Frame, fields: Fields) -> None:
    """Refuses an image of another size than its annotations say: their boxes would be somewhere else."""
    if declared != frame:
        fields.refuse(
            f"the annotations are for {declared.width} x {declared.height} pixels, the image has"
            f" {frame.width} x {frame.height}; fetch the original image, or give --frame"
        )


def read_box(value: Any, form: str, frame: Frame | None, fields: Fields, scale: str = "pixels") -> Box:
    """A box of the named form and scale, in pixels of the frame.

    Boxes that leave the frame by up to a pixel are cut; those that leave it by more, or have no area, are refused.
    """
    numbers = [float(x) for x in value if type(x) in (int, float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or len(value) != 4:
        fields.refuse(f"the box is {value!r}; it takes four numbers")
    box = FORMS[form](*numbers)
    unit = SCALES[scale]
    if unit:
        if frame is None:
            fields.refuse(f"a box of scale {scale} needs the size of its image")
        box = tuple(x / unit * side for x, side in zip(box, (frame.width, frame.height) * 2, strict=True))
    if frame:
        limits = (frame.width, frame.height) * 2
        if not all(-_GRACE <= x <= limit + _GRACE for x, limit in zip(box, limits, strict=True)):
            fields.refuse(
                f"the box {value} ({form}, {scale}) leaves its image of {frame.width} x {frame.height} pixels;"
                " say what form, scale and frame it has"
            )
        box = tuple(min(max(x, 0.0), float(limit)) for x, limit in zip(box, limits, strict=True))
    x1, y1, x2, y2 = (round(x, 2) for x in box)
    if not (x1 < x2 and y1 < y2):
        fields.refuse(f"the box {value} ({form}) has no area")
    return (x1, y1, x2, y2)


def written(boxes: Sequence[Box]) -> str:
    """The gold answer of a detection row."""
    texts = [f"[{', '.join(str(int(x)) if x.is_integer() else repr(x) for x in box)}]" for box in boxes]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


@lru_cache(maxsize=8)
def _by_name(folder: Path) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.name] = (*found.get(path.name, ()), path)
    return found
