"""Examples: boxes in prompts match the resized pixels, loss masks are exact."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.examples import make_example
from currreft_jax.data.images import ImageError
from currreft_jax.data.packing import row_key
from currreft_jax.data.processor import Processor, PromptError, load
from currreft_jax.data.prompts import PAPER
from currreft_jax.rewards import RowError, score_completions
from currreft_jax.structs import Completion, Frame, Row, Turn
from tests import tiny

END = tiny.CONFIG.eos_token_id


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load(checkpoint, min_pixels=28 * 28, max_pixels=40_000)


@pytest.fixture
def dog(tmp_path):
    tiny.picture(100, 80).save(tmp_path / "dog.png")
    return str(tmp_path / "dog.png")


def text_of(processor, tokens) -> str:
    return processor.tokenizer.decode(list(tokens))


def pixels_of(picture) -> np.ndarray:
    """Reassembles a picture from its patches, uint8 `[height, width, 3]`."""
    merge, patch = tiny.CONFIG.vision.spatial_merge_size, tiny.CONFIG.vision.patch_size
    rows, columns = (side // merge for side in picture.grid)
    units = picture.patches.reshape(rows, columns, merge, merge, 3, patch, patch)
    return units.transpose(0, 2, 5, 1, 3, 6, 4).reshape(picture.resized.height, picture.resized.width, 3)


@given(st.data())
def test_boxes_in_the_prompt_match_the_resized_pixels(processor, tmp_path_factory, data):
    width, height = (data.draw(st.integers(40, 700), label=side) for side in ("width", "height"))
    x1, y1 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    x2, y2 = data.draw(st.integers(x1 + 20, width)), data.draw(st.integers(y1 + 20, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    path = tmp_path_factory.mktemp("boxes") / "red.png"
    Image.fromarray(pixels).save(path)
    scale = data.draw(st.sampled_from([1, 2]), label="scale of the frame")
    box = tuple(float(scale * x) for x in (x1, y1, x2, y2))
    row = Row(
        "r",
        Task.DETECTION,
        Kind.JUDGE,
        "Is {box:0} red?",
        "yes",
        (str(path),),
        frame=Frame(scale * width, scale * height) if scale > 1 else None,
        boxes=(box,),
    )
    example = make_example(row, processor, PAPER, location="f:1")
    red = pixels_of(example.prompt.images[0])[..., 0] > 127
    assume(red.any())
    ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    measured = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    written = text_of(processor, example.prompt.tokens).partition("Is [")[2].partition("]")[0]
    np.testing.assert_allclose([int(x) for x in written.split(", ")], measured, atol=1)


def test_the_gold_completion_of_a_row_with_nothing_to_find_earns_the_full_accuracy(processor, dog):
    row = Row("r", Task.DETECTION, Kind.OPEN, "Where is the cat?", "[]", (dog,), frame=Frame(100, 80))
    example = make_example(row, processor, PAPER, location="f:1", with_answer=True)
    text = processor.decode(example.completion_tokens)
    assert text == "<answer>[]</answer>"
    scores = score_completions([row], [[Completion(text)]], frames=[example.prompt.images[0].resized])
    assert scores.parts["accuracy"][0, 0] == 1


@pytest.mark.parametrize("frame", [None, Frame(200, 160)])
def test_gold_completions_of_detection_rows_earn_the_full_reward(processor, dog, frame):
    row = Row("r", Task.DETECTION, Kind.OPEN, "Where?", "[10, 20, 51, 60]", (dog,), frame=frame)
    example = make_example(row, processor, PAPER, location="f:1", with_answer=True)
    text = processor.decode(example.completion_tokens)
    assert text == {None: "<answer>[11, 21, 57, 63]</answer>"}.get(frame, "<answer>[6, 10, 29, 32]</answer>")
    assert example.frame == Frame(112, 84)
    assert example.row.frame == frame or example.row.frame == Frame(100, 80)
    scores = score_completions([example.row], [[Completion(text)]], frames=[example.frame])
    assert scores.parts["accuracy"][0, 0] == 1


def test_prompt_and_completion_of_a_maths_row(processor, dog):
    row = Row("r7", Task.MATH, Kind.OPEN, "How many?", "<answer>4</answer>", (dog,))
    question = make_example(row, processor, PAPER, location="f:1", occurrence=2)
    assert len(question.completion_tokens) == len(question.loss_mask) == 0
    assert question.prompt.key == row_key("r7", 2) != row_key("r7", 0)
    assert text_of(processor, question.prompt.tokens) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 12
        + f"<|vision_end|>How many? {PAPER.instruction}<|im_end|>\n<|im_start|>assistant\n"
    )
    example = make_example(row, processor, PAPER, location="f:1", with_answer=True)
    np.testing.assert_array_equal(example.prompt.tokens, question.prompt.tokens)
    assert text_of(processor, example.completion_tokens) == "<answer>4</answer><|im_end|>"
    assert example.loss_mask.all()


# Completions with their trained tokens in brackets.
MASKS = {
    "one answer": ("ua", "[A1<|im_end|>]"),
    "several turns": (
        "uaua",
        "[A1<|im_end|>]\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n[A3<|im_end|>]",
    ),
    "a system turn before": ("sua", "[A2<|im_end|>]"),
    "a system turn between": (
        "uasua",
        "[A1<|im_end|>]\n<|im_start|>system\nS2<|im_end|>\n<|im_start|>user\nU3<|im_end|>\n<|im_start|>assistant\n"
        "[A4<|im_end|>]",
    ),
    "two questions in a row": (
        "uauua",
        "[A1<|im_end|>]\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>user\nU3<|im_end|>\n<|im_start|>assistant\n"
        "[A4<|im_end|>]",
    ),
    "two answers in a row": ("uaa", "[A1<|im_end|>]\n<|im_start|>assistant\n[A2<|im_end|>]"),
}
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def marked(processor, tokens, mask) -> str:
    """Returns the completion with brackets around its trained tokens."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(int))
    text = ""
    for index in range(len(tokens) + 1):
        text += {1: "[", -1: "]", 0: ""}[int(edges[index])]
        text += text_of(processor, tokens[index : index + 1])
    return text


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", MASKS)
def test_loss_masks(processor, dog, name, images):
    speakers, drawn = MASKS[name]
    turns = tuple(Turn(ROLES[who], f"{who.upper()}{index}") for index, who in enumerate(speakers))
    row = Row("r", Task.OTHER, Kind.CHAT, "", "", (dog,) * images, messages=turns)
    example = make_example(row, processor, PAPER, location="f:1", with_answer=True)
    assert marked(processor, example.completion_tokens, example.loss_mask) == drawn
    assert example.completion_tokens.dtype == np.int32
    assert example.loss_mask.dtype == bool
    assert len(example.prompt.images) == images
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    rendered = processor.prompt(messages, add_generation_prompt=False).tokens
    if not images:
        np.testing.assert_array_equal(np.concatenate([example.prompt.tokens, example.completion_tokens]), rendered[:-1])


ANSWERS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0"), max_size=12).filter(
    lambda text: not any(token in text for token in tiny.SPECIAL)
)


@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=3))
def test_only_assistant_text_and_end_tokens_are_trained(processor, pairs):
    turns = tuple(turn for user, said in pairs for turn in (Turn("user", user), Turn("assistant", said)))
    row = Row("r", Task.OTHER, Kind.CHAT, "", "", (), messages=turns)
    example = make_example(row, processor, PAPER, location="f:1", with_answer=True)
    words = "".join(said + "<|im_end|>" for _, said in pairs)
    expected = processor.encode(words)
    np.testing.assert_array_equal(example.completion_tokens[example.loss_mask], expected)


@pytest.mark.parametrize("text", ["<|image_pad|>", "a<|vision_start|>b"])
def test_placeholders_in_answers_stay_text(processor, text):
    turns = (Turn("user", "q"), Turn("assistant", text))
    row = Row("r", Task.OTHER, Kind.CHAT, "", "", (), messages=turns)
    tokens = make_example(row, processor, PAPER, location="f:1", with_answer=True).completion_tokens
    assert not np.isin(tokens, [tiny.CONFIG.image_token_id, tiny.CONFIG.vision_start_token_id]).any()
    assert text_of(processor, tokens) == f"{text}<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    ],
    ids=["no end", "earlier answers are dropped"],
)
def test_chat_templates_that_rewrite_earlier_turns_raise(processor, template):
    broken = Processor(processor.folder, tiny.CONFIG, processor.tokenizer, template, 784, 40_000)
    turns = tuple(Turn(role, role) for role in ("user", "assistant") * 2)
    row = Row("r", Task.OTHER, Kind.CHAT, "", "", (), messages=turns)
    with pytest.raises(PromptError, match=r"f:1: the chat template of .* does not end a turn with <\|im_end\|>"):
        make_example(row, broken, PAPER, location="f:1", with_answer=True)


def test_errors_name_file_and_line(processor, dog, tmp_path):
    gone = Row("r", Task.MATH, Kind.OPEN, "q", "4", (str(tmp_path / "gone.png"),))
    with pytest.raises(ImageError, match=r"f\.jsonl:3: .*gone\.png: there is no such .* image_root of"):
        make_example(gone, processor, PAPER, location="f.jsonl:3")
    tiny.picture(3, 900).save(tmp_path / "thin.png")
    thin = Row("r", Task.MATH, Kind.OPEN, "q", "4", (str(tmp_path / "thin.png"),))
    with pytest.raises(ImageError, match=r"f\.jsonl:3: 3 x 900 pixels: one side is over 200 times the other"):
        make_example(thin, processor, PAPER, location="f.jsonl:3")
    unreadable = Row("r", Task.DETECTION, Kind.OPEN, "q", "here", (dog,))
    with pytest.raises(RowError, match="row r: solution 'here' is no gold answer"):
        make_example(unreadable, processor, PAPER, location="f.jsonl:3", with_answer=True)
