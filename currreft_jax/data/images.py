"""Image files, which are untrusted, made into the patches that the vision tower reads.

Sizes, filter and patch order are those of Hugging Face's Pillow processor, bit for bit.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from currreft_jax.models.config import VisionConfig
from currreft_jax.structs import Frame, Picture

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_FILE_PIXELS = 100_000_000
MAX_ASPECT = 200

# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageError(ValueError):
    """An image cannot be read, or not be shown to the model; the message names the file and why."""


def open_image(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Reads an image upright and in RGB.

    Transparency is dropped and of an animation the first frame is taken, as Hugging Face does. Sixteen-bit greys are
    scaled to eight bits, where a plain conversion would turn every value above 255 white.

    Args:
        source: a path, a file's content, or an image that is open already.
        name: what an error calls it; the path by default.

    Raises:
        ImageError: not one of `FORMATS`, damaged, larger than `MAX_FILE_PIXELS`, or of more than 16 bits.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _rgb(image, name)
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(f"{name}: not a readable image ({type(error).__name__}: {error})") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_FILE_PIXELS:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels, more than {MAX_FILE_PIXELS:,}: shrink it first"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise ImageError(
            f"{name}: pixels of mode {upright.mode!r} (32 bits) have no defined range: save it with 8 or 16"
        )
    if upright.mode.startswith("I;16"):
        eight_bits = (np.asarray(upright).astype(np.uint32) + 128) // 257
        upright = Image.fromarray(eight_bits.astype(np.uint8))
    return upright.convert("RGB")


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The nearest size with both sides multiples of `factor` and the area within bounds.

    Args:
        height: of the image.
        width: of the image.
        factor: side of a merged unit, in pixels.
        min_pixels: area that a smaller image is enlarged to.
        max_pixels: area that a larger image is shrunk to.

    Returns:
        Height and width.

    Raises:
        ImageError: one side is over `MAX_ASPECT` times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other")
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        down = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
        return next(down), next(down)
    if rounded[0] * rounded[1] < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rounded


def cut(image: Image.Image, config: VisionConfig, min_pixels: int, max_pixels: int) -> Picture:
    """Resizes an RGB image and cuts it into patches, unit by unit.

    Raises:
        ImageError: see `smart_resize`.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    height, width = smart_resize(image.height, image.width, patch * merge, min_pixels, max_pixels)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    grid = height // patch, width // patch
    units = pixels.reshape(grid[0] // merge, merge, patch, grid[1] // merge, merge, patch, config.in_channels)
    patches = units.transpose(0, 3, 1, 4, 6, 2, 5).reshape(grid[0] * grid[1], config.patch_values)
    return Picture(patches, grid, Frame(image.width, image.height), Frame(width, height))
