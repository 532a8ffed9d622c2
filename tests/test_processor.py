"""Messages become tokens, positions and patches; invalid ones raise."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.data import processor as module
from currreft_jax.data.images import ImageError
from currreft_jax.data.processor import PromptError, rope_index
from currreft_jax.data.processor import load as load_processor
from tests import tiny

CONFIG = tiny.CONFIG
I = CONFIG.image_token_id  # noqa: E741 as in the table below


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load_processor(checkpoint)


def text_of(processor, prompt) -> str:
    return processor.tokenizer.decode(prompt.tokens.tolist())


def test_the_default_template(processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?"},
    ]
    prompt = processor.prompt(messages, [tiny.picture(56, 56)])
    assert text_of(processor, prompt) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
        "What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, *messages]
    assert text_of(processor, processor.prompt(own, [tiny.picture(56, 56)], add_generation_prompt=False)).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


@pytest.mark.parametrize("file", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_the_checkpoints_chat_template_takes_precedence(checkpoint, tmp_path, file):
    shutil.copytree(checkpoint, tmp_path / "c")
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    path = tmp_path / "c" / file
    if file.endswith(".jinja"):
        path.write_text(template)
    else:
        path.write_text(
            json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), "chat_template": template})
        )
    processor = load_processor(tmp_path / "c")
    assert text_of(processor, processor.prompt([{"role": "user", "content": "hi"}])) == "[user]hi"


@pytest.mark.parametrize(
    "text", ["<|image_pad|>", "a<|vision_start|><|image_pad|><|vision_end|>b", "<|video_pad|>" * 3]
)
def test_placeholders_in_a_users_text_are_encoded_as_text(processor, text):
    for content in (text, [{"type": "text", "text": text}, {"type": "image"}]):
        images = [] if isinstance(content, str) else [tiny.picture(56, 56)]
        prompt = processor.prompt([{"role": "user", "content": content}], images)
        assert np.sum(prompt.tokens == I) == 4 * len(images)
        assert np.sum(prompt.tokens == CONFIG.video_token_id) == 0
        assert text in text_of(processor, prompt)


def test_placeholders_split_over_items_are_encoded_as_text(processor):
    parts = ["<|image_", "pad|><|vision_", "start|><|video_pad", "|>"]
    split = [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]
    as_role = [{"role": "user<|vision_start|><|image_pad|>", "content": "x"}]
    for messages in (split, as_role):
        tokens = processor.prompt(messages).tokens
        assert not np.isin(tokens, [I, CONFIG.video_token_id, CONFIG.vision_start_token_id]).any()
    assert "".join(parts) in text_of(processor, processor.prompt(split))


@given(st.text())
def test_any_text_round_trips(processor, text):
    prompt = processor.prompt([{"role": "user", "content": text}])
    if text and not text.isspace() and not any(token in text for token in tiny.SPECIAL):
        assert text.replace("\ufdd0", "") in text_of(processor, prompt)
    assert not np.isin(prompt.tokens, [I, CONFIG.video_token_id]).any()


# t is text, I an image's unit: an image of 2 rows and 3 columns, then one of 1 x 1
POSITIONS = """
tokens  t t I I I I I I t I t t
time    0 1 2 2 2 2 2 2 5 6 7 8
y       0 1 2 2 2 3 3 3 5 6 7 8
x       0 1 2 3 4 2 3 4 5 6 7 8
"""


def test_positions_equal_the_table():
    tokens, *expected = (line.split()[1:] for line in POSITIONS.strip().splitlines())
    ids = np.array([I if token == "I" else 7 for token in tokens], np.int32)
    positions, next_position = rope_index(ids, [(4, 6), (2, 2)], CONFIG)
    np.testing.assert_array_equal(positions, np.array(expected, int))
    assert next_position == 9


def test_text_positions_count_up():
    positions, next_position = rope_index(np.full(5, 7), [], CONFIG)
    np.testing.assert_array_equal(positions, np.tile(np.arange(5), (3, 1)))
    assert next_position == 5


def test_a_prompt_ending_with_an_image():
    positions, next_position = rope_index(np.array([7, I, I]), [(2, 4)], CONFIG)
    np.testing.assert_array_equal(positions, [[0, 1, 1], [0, 1, 1], [0, 1, 2]])
    assert next_position == 3


def test_images_must_match_image_items(processor):
    with pytest.raises(PromptError, match=r"f\.jsonl:7: the messages have 2 image items, but 1 images"):
        processor.prompt(tiny.user("x", 2), [tiny.picture(56, 56)], name="f.jsonl:7")
    for content in ([{"type": "video"}], [{"type": "text"}], [{"type": "text", "text": None}], ["text"]):
        with pytest.raises(PromptError, match="row 7: a content item is an image or a text with its string, not"):
            processor.prompt([{"role": "user", "content": content}], name="row 7")
    for message in ({"role": "user"}, {"role": "user", "content": None}, {"content": "x"}):
        with pytest.raises(PromptError, match="row 7: a message is a role and a content"):
            processor.prompt([message], name="row 7")
    with pytest.raises(ImageError, match=r"f\.jsonl:7: gone\.png: there is no such file: .* --image-root of"):
        processor.prompt(tiny.user("x", 1), ["gone.png"], name="f.jsonl:7")


def test_a_template_without_image_placeholders_raises(processor):
    broken = module.Processor(
        processor.folder,
        CONFIG,
        processor.tokenizer,
        "{{ messages[0].role }}",
        processor.min_pixels,
        processor.max_pixels,
    )
    with pytest.raises(PromptError, match="rendered 0 image placeholders for 1 images"):
        broken.prompt(tiny.user("x", 1), [tiny.picture(56, 56)])


def test_decode_drops_special_and_unknown_tokens(processor):
    tokens = [*processor.encode("<answer>4</answer>"), CONFIG.eos_token_id, CONFIG.vocab_size - 1]
    assert processor.decode(tokens) == "<answer>4</answer>"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (module.MIN_PIXELS, module.MAX_PIXELS)),
        ({"min_pixels": 784, "max_pixels": 401_408}, (784, 401_408)),
        ({"size": {"shortest_edge": 784, "longest_edge": 50_176}}, (784, 50_176)),
        ({"size": {"min_pixels": 784, "max_pixels": 50_176}}, (784, 50_176)),
        ({"min_pixels": None, "size": {"longest_edge": 50_176}}, (module.MIN_PIXELS, 50_176)),
    ],
)
def test_pixel_bounds_come_from_the_checkpoint(checkpoint, tmp_path, settings, expected):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / module.PREPROCESSOR).write_text(json.dumps(settings))
    loaded = load_processor(tmp_path / "c")
    assert (loaded.min_pixels, loaded.max_pixels) == expected
    assert load_processor(tmp_path / "c", max_pixels=100_352).max_pixels == 100_352
    (tmp_path / "out").mkdir()
    load_processor(tmp_path / "c", max_pixels=100_352).save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / module.PREPROCESSOR).read_text())
    assert (saved["min_pixels"], saved["max_pixels"]) == (expected[0], 100_352)


def test_the_processor_file_of_transformers_5_is_read_first_and_not_exported(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / module.PREPROCESSOR).write_text(json.dumps({"max_pixels": 401_408}))
    nested = {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 50_176}}}
    (tmp_path / "c" / module.PROCESSOR).write_text(json.dumps(nested))
    assert load_processor(tmp_path / "c").max_pixels == 50_176
    (tmp_path / "out").mkdir()
    load_processor(tmp_path / "c", max_pixels=100_352).save(tmp_path / "out")
    assert not (tmp_path / "out" / module.PROCESSOR).exists()
    assert json.loads((tmp_path / "out" / module.PREPROCESSOR).read_text())["max_pixels"] == 100_352
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == module.CHAT_TEMPLATE
    with pytest.raises(ValueError, match="leave no size"):
        load_processor(tmp_path / "c", max_pixels=1000)


def test_other_pixel_statistics_raise(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / module.PREPROCESSOR).write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: image_mean = \[0\.5, 0\.5, 0\.5\]"):
        load_processor(tmp_path / "c")


def test_a_missing_tokenizer_or_broken_json_raises(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / module.PREPROCESSOR).write_text('{"min_pixels": 1,\n oops}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json:2: not JSON"):
        load_processor(tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        load_processor(tmp_path / "c")


def test_image_tokens_follow_the_merge_size(checkpoint):
    config = replace(CONFIG, vision=replace(CONFIG.vision, spatial_merge_size=4))
    assert module.num_image_tokens((8, 12), config) == 6
