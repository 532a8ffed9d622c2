import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from currreft_jax.config import Kind
from currreft_jax.data.examples import make_example
from currreft_jax.data.processor import load
from currreft_jax.data.prompts import load_template
from currreft_jax.models.config import ModelConfig
from currreft_jax.world import base, tokenizer
from currreft_jax.world.pretraining import (
    BAD_LAYOUTS,
    CAPTION_PROMPTS,
    caption_text,
    completion_text,
    pretraining_examples,
)
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import domains, make_scene, render_image
from currreft_jax.world.settings import WorldSettings

SETTINGS = WorldSettings()
TOKENIZER = tokenizer.build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tokenizer.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(base.config()))
    return folder


def world_texts() -> dict[str, list[str]]:
    """Texts of the world: captions, questions by kind, answers, and pretraining completions with bad layouts."""
    texts: dict[str, list[str]] = {"caption": [], "broken": [], **{kind.value: [] for kind in KINDS}, "answer": []}
    for domain in domains(SETTINGS).values():
        for index in range(40):
            scene = make_scene(0, index, domain, SETTINGS)
            texts["caption"] += [caption_text(scene, form) for form in CAPTION_PROMPTS]
            texts["broken"] += [
                example.completion for example in pretraining_examples(scene, image="", split="", settings=SETTINGS)
            ]
            for task in TASKS:
                for kind in KINDS:
                    question = make_question(scene, task, kind, image="", split="", settings=SETTINGS)
                    texts[kind.value].append(user_text(question.row))
                    texts["answer"].append(completion_text(question.thought, question.row.solution))
    return texts


TEXTS = world_texts()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_decoding_inverts_encoding_of_the_worlds_texts(kind):
    for text in TEXTS[kind]:
        assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


@given(
    st.text(max_size=60) | st.lists(st.sampled_from([*tokenizer.pieces(), *tokenizer.SPECIAL, "\n", "  "])).map("".join)
)
def test_decoding_inverts_encoding_of_any_text(text):
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


def test_no_text_of_the_world_needs_byte_tokens():
    """A lone letter that is no option letter would be a byte of a longer word."""
    for texts in TEXTS.values():
        for text in texts:
            for token in TOKENIZER.encode(text, add_special_tokens=False).tokens:
                assert len(token) > 1 or not token.isalpha() or token in (*tokenizer.LETTERS, "Ċ"), (token, text)


def test_texts_are_short():
    max_tokens = {kind: max(len(ids(text)) for text in texts) for kind, texts in TEXTS.items()}
    assert max_tokens["open"] <= 14 and max_tokens["judge"] <= 23 and max_tokens["choice"] <= 54
    lengths = sorted(len(ids(text)) for text in TEXTS["answer"])
    assert lengths[len(lengths) // 2] <= 13


def test_tokens_of_an_answer():
    text = "<think> red circle, top left </think> <answer> [4, 30, 26, 8] </answer><|im_end|>"
    tokens = [TOKENIZER.decode([token], skip_special_tokens=False) for token in ids(text)]
    assert tokens == [
        *("<think>", " red", " circle", ",", " top", " left", " </think>", " <answer>"),
        *(" [", "4", ", 3", "0", ", 2", "6", ", 8", "]", " </answer>", "<|im_end|>"),
    ]


def test_hugging_face_loads_the_same_tokenizer(folder):
    hf_tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(hf_tokenizer) == TOKENIZER.get_vocab_size()
    for text in (*TEXTS["answer"][:50], *TEXTS["choice"][:50], "naïve 漢字 🙂 Triangle", *BAD_LAYOUTS):
        assert hf_tokenizer(text, add_special_tokens=False)["input_ids"] == ids(text)
        assert hf_tokenizer.decode(ids(text), skip_special_tokens=True) == text
    assert hf_tokenizer.eos_token == "<|im_end|>" and hf_tokenizer.unk_token is None


def test_the_bases_config_has_the_tokenizers_ids():
    config = ModelConfig.from_hf(base.config())
    tokens = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    for field, token in tokens.items():
        assert getattr(config, field) == TOKENIZER.token_to_id(token), field
    assert config.vocab_size >= TOKENIZER.get_vocab_size()


def test_the_processor_adds_seventeen_tokens_to_a_question(folder):
    """12 before the question, 9 of them the image, and 5 after; there is no system turn."""
    scene = make_scene(0, 0, domains(SETTINGS)["in"], SETTINGS)
    processor = load(folder)
    for kind in KINDS:
        for task in TASKS:
            row = make_question(scene, task, kind, image="", split="", settings=SETTINGS).row
            content = [{"type": "image"}, {"type": "text", "text": user_text(row)}]
            prompt = processor.prompt([{"role": "user", "content": content}], [render_image(scene)])
            assert len(prompt.tokens) == 17 + len(ids(user_text(row)))
            assert prompt.images[0].resized == prompt.images[0].original
    assert Kind.CHAT not in KINDS


def test_the_prompt_template_matches_the_text_of_pretraining(folder, tmp_path):
    processor, domain = load(folder), domains(SETTINGS)["any"]
    for index in range(12):
        scene = make_scene(0, index, domain, SETTINGS)
        render_image(scene).save(tmp_path / f"{index}.png")
        for kind in KINDS:
            for task in TASKS:
                row = make_question(
                    scene, task, kind, image=str(tmp_path / f"{index}.png"), split="", settings=SETTINGS
                ).row
                prompt = make_example(row, processor, load_template("world"), location=row.id).prompt
                text = TOKENIZER.decode(prompt.tokens.tolist(), skip_special_tokens=False)
                assert text.partition("<|vision_end|>")[2].partition("<|im_end|>")[0] == user_text(row)
