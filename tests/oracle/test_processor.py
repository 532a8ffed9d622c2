"""Pixels, grids and tokens against Hugging Face's processors."""

import io
from importlib.metadata import version

import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

from currreft_jax.data.images import extract_patches, open_image
from currreft_jax.data.processor import load
from tests import tiny
from tests.oracle.reference import pixel_values

TRANSFORMERS = Version(version("transformers"))
SIZES = [
    (640, 480),
    (333, 500),
    (28, 28),
    (1, 1),
    (1000, 1000),
    (57, 43),
    (200, 1),
    (1400, 70),
    (84, 112),
    (2000, 1500),
]


def image_processor(**settings):
    """Hugging Face's Pillow processor, which needs no torchvision and whose resize is our reference."""
    if Version("5.0") <= TRANSFORMERS:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Pillow
    else:
        from transformers import Qwen2VLImageProcessor as Pillow
    processor = Pillow()
    for name, value in settings.items():  # constructors of 4.x ignore some of them
        setattr(processor, name, value)
    if Version("5.0") <= TRANSFORMERS:
        processor.size = {"shortest_edge": settings["min_pixels"], "longest_edge": settings["max_pixels"]}
    return processor


def compare(image: Image.Image, max_pixels: int) -> None:
    ours = extract_patches(open_image(image), tiny.CONFIG.vision, 3136, max_pixels)
    theirs = image_processor(min_pixels=3136, max_pixels=max_pixels)(images=[image], return_tensors="np")
    np.testing.assert_array_equal(theirs["image_grid_thw"], [[1, *ours.grid]])
    prompt = type("OneImage", (), {"images": (ours,)})
    np.testing.assert_allclose(pixel_values(prompt), theirs["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_pixels", [401_408, 12_845_056])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_grids(size, max_pixels):
    if Version("5.0") > TRANSFORMERS and min(size) == 1:
        pytest.skip("transformers 4 refuses a side of one pixel")
    compare(tiny.picture(*size), max_pixels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "1"])
def test_modes(mode):
    compare(tiny.picture(130, 90).convert(mode), 401_408)


def test_a_jpeg_with_exif_rotation():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8
    tiny.picture(150, 100).save(buffer, "JPEG", exif=exif)
    from transformers.image_utils import load_image

    buffer.seek(0)
    (path := io.BytesIO(buffer.getvalue())).seek(0)
    np.testing.assert_array_equal(np.asarray(open_image(buffer.getvalue())), np.asarray(load_image(Image.open(path))))


MESSAGES = [
    tiny.user("What is in the picture?", 1),
    tiny.user("Compare them.", 2),
    tiny.user("Only text, with  spaces\n\nand lines"),
    [{"role": "system", "content": "Answer in one word."}, *tiny.user("Which?", 1)],
    [*tiny.user("A", 1), {"role": "assistant", "content": "B"}, *tiny.user("C", 1)],
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_tokens_equal_those_of_the_processor(messages, tmp_path):
    """Template, expansion and tokenisation. 4.49's processor is complete; the later ones need torchvision."""
    tiny.write_checkpoint(tmp_path / "c")
    processor = load(tmp_path / "c", max_pixels=50_176)
    count = sum(item["type"] == "image" for m in messages if isinstance(m["content"], list) for item in m["content"])
    images = [tiny.picture(100 + 30 * i, 90) for i in range(count)]
    ours = processor.prompt(messages, images)
    text = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.template, tokenize=False, add_generation_prompt=True
    )
    if Version("4.50") > TRANSFORMERS:
        from transformers import Qwen2_5_VLProcessor, Qwen2TokenizerFast

        tokenizer = Qwen2TokenizerFast(tokenizer_file=str(tmp_path / "c" / "tokenizer.json"))
        whole = Qwen2_5_VLProcessor(image_processor(min_pixels=3136, max_pixels=50_176), tokenizer)
        theirs = whole(text=[text], images=images or None)["input_ids"][0]
    else:
        pictures = image_processor(min_pixels=3136, max_pixels=50_176)
        for image in images:
            grid = pictures(images=[image], return_tensors="np")["image_grid_thw"][0]
            text = text.replace("<|image_pad|>", "\0" * (int(np.prod(grid)) // 4), 1)
        theirs = processor.tokenizer(text.replace("\0", "<|image_pad|>"), add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(ours.tokens, theirs)
