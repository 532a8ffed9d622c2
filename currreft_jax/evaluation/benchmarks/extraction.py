"""Three generations of VLMEvalKit's rules that read an option's letter out of an answer. Loads no JAX.

| generation | option rule | text rule |
|---|---|---|
| G1, until August 2025 | the only letter among the tokens | the only option whose text the answer contains |
| G2 | that letter, if it first stands among the last four tokens | as G1, if the answer is short enough |
| G3, since June 2026 | as G2, else the letter after "answer is" | as G2 |

All read "A cat sits on a mat" as option A, or as the cat, and none reads `<answer>C</answer>`: see docs/benchmarks.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from currreft_jax.config import Extraction

NO_OPTION = "Z"  # the letter that stands for none of the options
_CALL_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    *("Sorry, I can't help with images of people yet.", "I can't process this file."),
    *("I'm sorry, but without the image provided", "Cannot determine the answer"),
)
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 4
_LETTER_STATED = re.compile(r"(?i)answer\s+is\s+\**([ABCD])")


def infer_option(answer: str, options: Sequence[str], generation: Extraction) -> str | None:
    """Returns the letter of the option that an answer gives, `NO_OPTION` for a refusal, or None.

    Args:
        answer: the whole text.
        options: texts of the options.
        generation: `G1`, `G2` or `G3`.
    """
    return _infer_letter(answer, options, generation) or _infer_text(answer, options, generation)


def _infer_letter(answer: str, options: Sequence[str], generation: Extraction) -> str | None:
    if _CALL_FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NO_OPTION
    tokens = answer.translate(_TO_SPACES).split()
    letters = ascii_uppercase[: len(options)]
    found = [letter for letter in letters if letter in tokens]
    if len(found) == 1 and (generation is Extraction.G1 or tokens.index(found[0]) >= len(tokens) - _LAST_TOKENS):
        return found[0]
    if not found and NO_OPTION in tokens:
        return NO_OPTION
    stated = _LETTER_STATED.search(answer) if generation is Extraction.G3 else None
    return stated[1].upper() if stated and stated[1].upper() in letters else None


def _infer_text(answer: str, options: Sequence[str], generation: Extraction) -> str | None:
    answer = answer.lower()
    if generation is not Extraction.G1 and len(answer) > 2 * sum(map(len, options)):
        return None
    found = [letter for letter, option in zip(ascii_uppercase, options, strict=False) if option.lower() in answer]
    return found[0] if len(found) == 1 else None
