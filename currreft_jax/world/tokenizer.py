"""The world's tokenizer, as a Hugging Face folder: a word a token, and bytes for every other text.

A word, a digit or a sign is a token with the space before it and another one without. Text is cut into such pieces; a
piece that the vocabulary lacks becomes its UTF-8 bytes. So nothing is unknown, and what is decoded is what was encoded.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from currreft_jax.world.lessons import CAPTIONS
from currreft_jax.world.prompts import MULTIPLE, SUFFIXES
from currreft_jax.world.questions import COLUMNS, PLURALS, ROWS
from currreft_jax.world.scenes import COLOURS, SHAPES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LETTERS = ("A", "B", "C", "D")
# What chat templates write around every turn.
PHRASES = ("You are a helpful assistant.", "system\n", "user\n", "assistant\n")
OTHER_WORDS = (
    *("where", "is", "the", "it", "box", "which", "shapes", "colours", "objects", "are", "there", "any", "how", "many"),
    *("plus", "none", "yes", "no", "what", "or", "one", "all", "letter", "letters", "give", "a", "an", "and", "name"),
    *("names", "number", "of", "in", "not", "You", "helpful", "assistant", "system", "user"),
    *("row", "column"),
)
SIGNS = (*",.?:;()[]{}\"'+-=/<>",)
DIGITS = (*"0123456789",)

# A phrase; an option's line; a tag; a comma with the first digit behind it; a word, a digit or a sign; white space.
_PIECES = (
    r"You are a helpful assistant\.|(?:system|user|assistant)\n|\n[A-D]\.| ?</?(?:think|answer)>|, \d"
    r"| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s"
)


# Qwen's, without the system turn: nobody has told this model what it is.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def words() -> tuple[str, ...]:
    """Every word of the world's texts."""
    texts = " ".join((*SUFFIXES.values(), MULTIPLE, *CAPTIONS.values()))
    worded = "".join(letter if letter.isalpha() else " " for letter in texts).split()
    named = (*SHAPES, *PLURALS.values(), *COLOURS, *ROWS, *COLUMNS)
    return tuple(dict.fromkeys((*named, *OTHER_WORDS, *worded)))


def pieces() -> tuple[str, ...]:
    """Every token that is neither a byte nor special."""
    spaced = (*TAGS, *words(), *LETTERS, *SIGNS, *DIGITS)
    bare = (*TAGS, *words())
    lines = (*(f"\n{letter}." for letter in LETTERS), *(f", {digit}" for digit in DIGITS))
    return tuple(dict.fromkeys((*PHRASES, *lines, *bare, *(f" {text}" for text in spaced))))


def build() -> Tokenizer:
    """The tokenizer. Its ids: bytes, then pieces, then special tokens."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelt = [cut.pre_tokenize_str(text)[0][0] for text in pieces()]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*alphabet, *spelt)))}
    # Without merges a piece is a token of its own or falls into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"), cut])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def write(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into a folder that exists."""
    build().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
