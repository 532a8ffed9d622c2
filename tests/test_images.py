"""Every image file gives a correct image or an `ImageError`."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from currreft_jax.data import images
from currreft_jax.data.images import ImageError, extract_patches, open_image, smart_resize
from currreft_jax.data.processor import MAX_PIXELS, MIN_PIXELS, load
from currreft_jax.structs import Frame
from tests import tiny

VISION = tiny.CONFIG.vision


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# (height, width), max_pixels, expected (height, width), computed by hand
@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((480, 640), MAX_PIXELS, (476, 644)),  # nearest multiples of 28: 17.14 -> 17, 22.86 -> 23
        ((42, 70), MAX_PIXELS, (56, 56)),  # 1.5 and 2.5 both round to the even 2
        ((640, 640), 401_408, (616, 616)),  # beta = 1.0102, 22.63 -> 22
        ((1, 1), MAX_PIXELS, (56, 56)),  # enlarged to 3,136 pixels
        ((28, 28), MAX_PIXELS, (56, 56)),  # 784 pixels are under the minimum: twice the side
        ((1, 150), MAX_PIXELS, (28, 700)),  # beta = 4.57: 0.16 -> 1, 24.5 -> 25
        ((5600, 28), MAX_PIXELS, (5600, 28)),  # 200 : 1 is the last allowed
    ],
)
def test_smart_resize(size, max_pixels, expected):
    assert smart_resize(*size, factor=28, min_pixels=MIN_PIXELS, max_pixels=max_pixels) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([50_000, 401_408, MAX_PIXELS]))
def test_resized_sides_are_multiples_of_28_within_bounds(height, width, max_pixels):
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageError, match="over 200 times"):
            smart_resize(height, width, 28, MIN_PIXELS, max_pixels)
        return
    h, w = smart_resize(height, width, 28, MIN_PIXELS, max_pixels)
    assert h % 28 == w % 28 == 0 and min(h, w) >= 28
    assert h * w >= MIN_PIXELS
    assert h * w <= max_pixels or min(h, w) == 28


def test_a_pixel_is_in_its_patch():
    """Patch order: units row by row; inside a unit 2 x 2 patches; inside a patch channel, y, x."""
    pixels = np.zeros((56, 84, 3), np.uint8)
    pixels[30, 45, 1] = 255  # unit (1, 1), patch (0, 1) of it, y = 2, x = 3
    image = extract_patches(Image.fromarray(pixels), VISION, MIN_PIXELS, MAX_PIXELS)
    assert image.grid == (4, 6) and image.resized == image.original == Frame(84, 56)
    unit, patch = 1 * 3 + 1, 0 * 2 + 1
    assert np.argwhere(image.patches).tolist() == [[unit * 4 + patch, 1 * 196 + 2 * 14 + 3]]


def test_original_and_resized_frames():
    image = extract_patches(Image.new("RGB", (640, 480)), VISION, MIN_PIXELS, MAX_PIXELS)
    assert (image.original, image.resized) == (Frame(640, 480), Frame(644, 476))
    assert image.patches.shape == (46 * 34, 588) and image.patches.dtype == np.uint8


GREY = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.fromarray(GREY)), GREY),
        (encoded(Image.fromarray(GREY).convert("P")), GREY),
        (encoded(Image.fromarray(GREY).convert("LA")), GREY),
        (encoded(Image.fromarray(GREY).convert("RGBA")), GREY),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), GREY),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), GREY),
        (encoded(Image.fromarray(GREY > 100)), 255 * (GREY > 100)),
        (encoded(Image.fromarray(255 - np.stack([GREY] * 3 + [GREY * 0 + 255], -1), "CMYK"), "TIFF"), GREY),
        (
            encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            GREY,
        ),
    ],
    ids=["grey", "palette", "alpha", "rgba", "16-bit png", "16-bit tiff", "1-bit", "cmyk", "animated"],
)
def test_every_mode_is_converted_to_rgb(content, expected):
    image = open_image(content)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.repeat(expected[..., None], 3, axis=-1))


def with_transparency(image: Image.Image, value) -> Image.Image:
    image.info["transparency"] = value
    return image


# Two pixels: alpha 0 is white whatever its colour; alpha 51, a fifth: 255 - (255 - value) / 5, computed by hand.
SHADED = np.array([[[100, 0, 200, 0], [100, 0, 200, 51]]], np.uint8)
PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
PALETTE.putpalette([100, 0, 200, 100, 0, 200])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(SHADED), [[255, 255, 255], [224, 204, 244]]),
        (Image.fromarray(SHADED[..., [0, 3]]), [[255] * 3, [224] * 3]),
        (with_transparency(PALETTE, bytes([0, 51])), [[255, 255, 255], [224, 204, 244]]),
        (with_transparency(PALETTE.copy(), 0), [[255, 255, 255], [100, 0, 200]]),
        (with_transparency(Image.fromarray(SHADED[..., :3].copy()), (100, 0, 200)), [[255] * 3, [255] * 3]),
        (with_transparency(Image.fromarray(np.array([[7, 100]], np.uint8)), 7), [[255] * 3, [100] * 3]),
        (with_transparency(Image.fromarray(np.array([[7, 257]], np.uint16)), 7), [[255] * 3, [1] * 3]),
    ],
    ids=["rgba", "alpha", "palette with alphas", "palette with a colour", "rgb with a colour", "grey", "16 bits"],
)
def test_transparent_pixels_are_put_on_white(image, expected):
    for source in (image, encoded(image, **({"transparency": image.info["transparency"]} if image.info else {}))):
        np.testing.assert_array_equal(np.asarray(open_image(source))[0], expected)


def test_premultiplied_colours_are_put_on_white():
    image = Image.fromarray(SHADED).convert("RGBa")
    np.testing.assert_array_equal(np.asarray(open_image(image))[0], [[255, 255, 255], [224, 204, 244]])


def test_a_gif_and_a_webp_with_transparency_are_put_on_white():
    image = Image.fromarray(np.repeat(SHADED[:, :1], 9, axis=1).repeat(9, axis=0))
    image.putpixel((4, 4), (100, 0, 200, 255))
    for content in (encoded(image, "GIF"), encoded(image, "WEBP", lossless=True, exact=True)):
        opened = np.asarray(open_image(content))
        np.testing.assert_array_equal(opened[4, 4], [100, 0, 200])
        assert (opened[0] == 255).all()


def test_white_is_blended_as_by_pasting_with_a_mask():
    """As qwen-vl-utils does it, for every value and every alpha."""
    values, alphas = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([values, 255 - values, values, alphas], -1))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    np.testing.assert_array_equal(np.asarray(open_image(image)), np.asarray(white))


def test_the_processor_sees_transparency_as_white(checkpoint):
    image = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    patches = load(checkpoint).process_image(image, "a").patches
    assert (patches == 255).all()


def test_a_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (64, 64), (255, 0, 0)).convert("CMYK")
    colour = np.asarray(open_image(encoded(red, "JPEG", quality=95)))[32, 32].astype(int)
    assert colour[0] > 240 and colour[1:].max() < 20


def test_exif_rotation_is_applied():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: rows become columns
    opened = np.asarray(open_image(encoded(image, exif=exif)))[..., 0]
    np.testing.assert_array_equal(opened, np.rot90(np.asarray(image), -1))


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


PHOTO = encoded(tiny.picture(60, 40), "JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
        (bomb(), "decompression bomb|more than"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "no defined range"),
    ],
    ids=["truncated", "empty", "postscript", "svg", "bomb", "float"],
)
def test_a_bad_file_raises_an_error_with_its_path(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_huge_one_raise(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"nothing\.png: there is no such file: put it there, or name the folder"):
        open_image(tmp_path / "nothing.png")
    monkeypatch.setattr(images, "MAX_FILE_PIXELS", 100)
    with pytest.raises(ImageError, match="20 x 20 pixels, more than 100"):
        open_image(encoded(Image.new("RGB", (20, 20))))


def test_an_aspect_of_300_raises_and_one_pixel_does_not():
    with pytest.raises(ImageError, match="over 200 times"):
        extract_patches(Image.new("RGB", (300, 1)), VISION, MIN_PIXELS, MAX_PIXELS)
    assert extract_patches(Image.new("RGB", (1, 1)), VISION, MIN_PIXELS, MAX_PIXELS).grid == (4, 4)


def damaged_files(count: int):
    generator = random.Random(0)
    palette = tiny.picture(40, 30).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 3
    seeds = [
        encoded(tiny.picture(40, 30), "JPEG", exif=exif),
        encoded(tiny.picture(40, 30), "PNG"),
        encoded(palette, "GIF"),
        encoded(tiny.picture(40, 30), "WEBP"),
        encoded(tiny.picture(40, 30), "BMP"),
        encoded(tiny.picture(40, 30), "TIFF", compression="tiff_lzw"),
        encoded(tiny.picture(40, 30), "TIFF", tiffinfo=TiffImagePlugin.ImageFileDirectory_v2()),
        encoded(tiny.picture(40, 30), "PPM"),
    ]
    for _ in range(count):
        content = bytearray(generator.choice(seeds))
        for _ in range(generator.randrange(1, 8)):
            content[generator.randrange(min(len(content), generator.choice([60, 10**9])))] = generator.randrange(256)
        if generator.random() < 0.3:
            del content[generator.randrange(len(content)) :]
        yield bytes(content)


def readable(content: bytes) -> bool:
    try:
        image = open_image(content, name="fuzzed")
    except ImageError as error:
        assert str(error).startswith("fuzzed: ")
        return False
    assert image.mode == "RGB"
    return True


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_an_image_or_an_image_error():
    outcomes = [readable(content) for content in damaged_files(1500)]
    assert 0.1 < np.mean(outcomes) < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_damaged_files():
    for content in damaged_files(60_000):
        readable(content)
