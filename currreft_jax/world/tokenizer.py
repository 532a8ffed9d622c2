"""The world's tokenizer, in Hugging Face format: one token a word, and bytes for text outside the vocabulary.

Text is split into words, digits and signs, each with the space before it. A piece outside the vocabulary becomes its
UTF-8 bytes, so that there is no unknown token and decoding inverts encoding.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from currreft_jax.world.pretraining import CAPTION_PROMPTS
from currreft_jax.world.question_text import MULTIPLE_SUFFIX, SUFFIXES
from currreft_jax.world.questions import GRID_COLUMNS, GRID_ROWS, PLURALS
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
# Text that chat templates write around every turn.
PHRASES = ("You are a helpful assistant.", "system\n", "user\n", "assistant\n")
OTHER_WORDS = (
    *("where", "is", "the", "it", "box", "which", "shapes", "colours", "objects", "are", "there", "any", "how", "many"),
    *("plus", "none", "yes", "no", "what", "or", "one", "all", "letter", "letters", "give", "a", "an", "and", "name"),
    *("names", "number", "of", "in", "not", "You", "helpful", "assistant", "system", "user"),
    *("row", "column"),
)
SIGNS = (*",.?:;()[]{}\"'+-=/<>",)
DIGITS = (*"0123456789",)

# Phrases; options' lines; tags; a comma with the first digit after it; words; digits; signs; white space.
_PIECES = (
    r"You are a helpful assistant\.|(?:system|user|assistant)\n|\n[A-D]\.| ?</?(?:think|answer)>|, \d"
    r"| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s"
)

# Qwen's chat template without its default system turn.
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
    """Returns every word of the world's texts."""
    texts = " ".join((*SUFFIXES.values(), MULTIPLE_SUFFIX, *CAPTION_PROMPTS.values()))
    text_words = "".join(character if character.isalpha() else " " for character in texts).split()
    names = (*SHAPES, *PLURALS.values(), *COLOURS, *GRID_ROWS, *GRID_COLUMNS)
    return tuple(dict.fromkeys((*names, *OTHER_WORDS, *text_words)))


def pieces() -> tuple[str, ...]:
    """Returns every token that is neither a byte nor special."""
    spaced = (*TAGS, *words(), *LETTERS, *SIGNS, *DIGITS)
    bare = (*TAGS, *words())
    lines = (*(f"\n{letter}." for letter in LETTERS), *(f", {digit}" for digit in DIGITS))
    return tuple(dict.fromkeys((*PHRASES, *lines, *bare, *(f" {text}" for text in spaced))))


def build_tokenizer() -> Tokenizer:
    """Builds the tokenizer; its ids are those of bytes, then pieces, then special tokens."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    piece_tokens = [byte_level.pre_tokenize_str(text)[0][0] for text in pieces()]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*alphabet, *piece_tokens)))}
    # Without merges, a piece is either in the vocabulary or split into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` to an existing folder."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
