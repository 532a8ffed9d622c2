"""Decodes untrusted image files and splits them into patches for the vision tower.

Sizes, resize filter and patch order equal Hugging Face's Pillow image processor, bit for bit.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from currreft_jax.models.config import VisionConfig
from currreft_jax.structs import Frame, ImagePatches

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_FILE_PIXELS = 100_000_000
MAX_ASPECT = 200
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# Exceptions that Pillow raises for damaged files.
DECODE_ERRORS = (
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


NAME_FOLDER = (
    "put it there, or name the folder that paths of images start from: --image-root of `dataset`, image_root of the"
    " source in a config"
)


class ImageError(ValueError):
    """An image cannot be decoded or used; the message gives file and reason."""


class MissingImageError(ImageError):
    """The file of an image does not exist."""


def open_image(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Decodes an image, applies its EXIF orientation and converts it to RGB.

    Transparent pixels are put on white, as in qwen-vl-utils and the newest transformers; older ones drop transparency.
    Of an animation the first frame is used. 16-bit greyscale is scaled to 8 bits; Pillow's conversion would make every
    value above 255 white.

    Args:
        source: a path, the content of a file, or an open image.
        name: name of the image in error messages; the path by default.

    Raises:
        ImageError: none of `FORMATS`, damaged, more than `MAX_FILE_PIXELS`, or more than 16 bits.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _to_rgb(image, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError(f"{name}: there is no such file: {NAME_FOLDER}") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"{name}: not a readable image ({type(error).__name__}: {error})") from error


def image_size(source: str | Path | bytes | Image.Image) -> Frame:
    """Reads the size of an image from the head of its file, after its EXIF orientation; decodes no pixels.

    Raises:
        ImageError: none of `FORMATS`, or no image.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright_size(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _upright_size(image)
    except FileNotFoundError as error:
        raise MissingImageError(f"{source}: there is no such file: {NAME_FOLDER}") from error
    except DECODE_ERRORS as error:
        name = source if isinstance(source, str | Path) else "image"
        raise ImageError(f"{name}: not a readable image ({type(error).__name__}: {error})") from error


def resized_png(image: Image.Image, frame: Frame) -> bytes:
    """Returns a PNG file of an image, resized as for a model of this program."""
    buffer = io.BytesIO()
    image.resize((frame.width, frame.height), Image.Resampling.BICUBIC).save(buffer, "png")
    return buffer.getvalue()


def _upright_size(image: Image.Image) -> Frame:
    # The method of the base class: that of PNG files decodes the pixels, in case an orientation follows them.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    width, height = image.size
    return Frame(height, width) if orientation in _SIDEWAYS else Frame(width, height)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
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
        upright = _to_eight_bits(upright)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    visible = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit greyscale to 8 bits; pixels of the value that the file calls transparent become so."""
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Computes the nearest size whose sides are multiples of `factor` and whose area is within bounds.

    Args:
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        factor: side of a merged unit, in pixels.
        min_pixels: smaller images are enlarged to this area.
        max_pixels: larger images are shrunk to this area.

    Returns:
        Height and width.

    Raises:
        ImageError: one side is more than `MAX_ASPECT` times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other; crop the image")
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        height, width = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
        return height, width
    if rounded[0] * rounded[1] < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rounded


def extract_patches(image: Image.Image, config: VisionConfig, min_pixels: int, max_pixels: int) -> ImagePatches:
    """Resizes an RGB image and splits it into patches, in merge-unit order.

    Raises:
        ImageError: see `smart_resize`.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    without_pixels = without_patches(Frame(image.width, image.height), config, min_pixels, max_pixels)
    (rows, columns), resized = without_pixels.grid, without_pixels.resized
    pixels = np.asarray(image.resize((resized.width, resized.height), Image.Resampling.BICUBIC))
    units = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, config.in_channels)
    patches = units.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, config.values_per_patch)
    return replace(without_pixels, patches=patches)


def without_patches(original: Frame, config: VisionConfig, min_pixels: int, max_pixels: int) -> ImagePatches:
    """Returns the frames and the grid of an image of this size, with no patches.

    Raises:
        ImageError: see `smart_resize`.
    """
    patch, factor = config.patch_size, config.patch_size * config.spatial_merge_size
    height, width = smart_resize(original.height, original.width, factor, min_pixels, max_pixels)
    empty = np.empty((0, config.values_per_patch), np.uint8)
    return ImagePatches(empty, (height // patch, width // patch), original, Frame(width, height))
