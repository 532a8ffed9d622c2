import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from currreft_jax.config import Kind
from currreft_jax.data.examples import example
from currreft_jax.data.processor import load
from currreft_jax.data.prompts import template
from currreft_jax.models.config import ModelConfig
from currreft_jax.world import base, tokenizer
from currreft_jax.world.lessons import BROKEN, CAPTIONS, caption, lessons, reasoned
from currreft_jax.world.prompts import user_text
from currreft_jax.world.questions import KINDS, TASKS, ask
from currreft_jax.world.scenes import domains, render, scene
from currreft_jax.world.settings import Settings

SETTINGS = Settings()
TOKENIZER = tokenizer.build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tokenizer.write(folder)
    (folder / "config.json").write_text(json.dumps(base.config()))
    return folder


def spellings() -> dict[str, list[str]]:
    """Texts of the world by the kind that says them."""
    known = domains(SETTINGS)
    texts: dict[str, list[str]] = {"caption": [], "broken": [], **{kind.value: [] for kind in KINDS}, "answer": []}
    for domain in known.values():
        for index in range(40):
            shown = scene(0, index, domain, SETTINGS)
            texts["caption"] += [caption(shown, form) for form in CAPTIONS]
            texts["broken"] += [lesson.answer for lesson in lessons(shown, image="", split="", settings=SETTINGS)]
            for task in TASKS:
                for kind in KINDS:
                    question = ask(shown, task, kind, image="", split="", settings=SETTINGS)
                    texts[kind.value].append(user_text(question.row))
                    texts["answer"].append(reasoned(question.thought, question.row.solution))
    return texts


TEXTS = spellings()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_every_text_of_the_world_comes_back_as_it_was(kind):
    for text in TEXTS[kind]:
        assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


@given(
    st.text(max_size=60) | st.lists(st.sampled_from([*tokenizer.pieces(), *tokenizer.SPECIAL, "\n", "  "])).map("".join)
)
def test_any_text_comes_back_as_it_was(text):
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


def test_no_text_of_the_world_falls_into_bytes():
    """A token holds a word, a number's digit, a sign or a tag; a lone byte of a longer word would show here."""
    for texts in TEXTS.values():
        for text in texts:
            for token in TOKENIZER.encode(text, add_special_tokens=False).tokens:
                assert len(token) > 1 or not token.isalpha() or token in (*tokenizer.LETTERS, "Ċ"), (token, text)


def test_texts_are_short():
    longest = {kind: max(len(ids(text)) for text in texts) for kind, texts in TEXTS.items()}
    assert longest["open"] <= 11 and longest["judge"] <= 23 and longest["choice"] <= 54
    usual = sorted(len(ids(text)) for text in TEXTS["answer"])
    assert usual[len(usual) // 2] <= 13


def test_tokens_are_what_they_look_like():
    text = "<think> red circle, top left </think> <answer> [4, 30, 26, 8] </answer><|im_end|>"
    tokens = [TOKENIZER.decode([token], skip_special_tokens=False) for token in ids(text)]
    assert tokens == [
        *("<think>", " red", " circle", ",", " top", " left", " </think>", " <answer>"),
        *(" [", "4", ", 3", "0", ", 2", "6", ", 8", "]", " </answer>", "<|im_end|>"),
    ]


def test_hugging_face_loads_it_and_reads_the_same(folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == TOKENIZER.get_vocab_size()
    for text in (*TEXTS["answer"][:50], *TEXTS["choice"][:50], "naïve 漢字 🙂 Triangle", *BROKEN):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids(text)
        assert theirs.decode(ids(text), skip_special_tokens=True) == text
    assert theirs.eos_token == "<|im_end|>" and theirs.unk_token is None


def test_the_bases_config_names_the_tokenizers_ids():
    config = ModelConfig.from_hf(base.config())
    named = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    for field, token in named.items():
        assert getattr(config, field) == TOKENIZER.token_to_id(token), field
    assert config.vocab_size >= TOKENIZER.get_vocab_size()


def test_the_processor_reads_a_prompt_in_a_few_tokens(folder):
    """Around the question 17: 12 up to it with 9 of the image, 5 behind it; there is no system turn."""
    shown = scene(0, 0, domains(SETTINGS)["in"], SETTINGS)
    processor = load(folder)
    for kind in KINDS:
        for task in TASKS:
            row = ask(shown, task, kind, image="", split="", settings=SETTINGS).row
            content = [{"type": "image"}, {"type": "text", "text": user_text(row)}]
            prompt = processor.prompt([{"role": "user", "content": content}], [render(shown)])
            assert len(prompt.tokens) == 17 + len(ids(user_text(row)))
            assert prompt.images[0].resized == prompt.images[0].original
    assert Kind.CHAT not in KINDS


def test_the_template_asks_as_the_base_was_taught(folder, tmp_path):
    processor, known = load(folder), domains(SETTINGS)
    for index in range(12):
        shown = scene(0, index, known["any"], SETTINGS)
        render(shown).save(tmp_path / f"{index}.png")
        for kind in KINDS:
            for task in TASKS:
                row = ask(shown, task, kind, image=str(tmp_path / f"{index}.png"), split="", settings=SETTINGS).row
                prompt = example(row, processor, template("world"), where=row.id).prompt
                text = TOKENIZER.decode(prompt.tokens.tolist(), skip_special_tokens=False)
                assert text.partition("<|vision_end|>")[2].partition("<|im_end|>")[0] == user_text(row)
