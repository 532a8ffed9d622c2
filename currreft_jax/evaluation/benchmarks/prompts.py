"""What the model is asked: VLMEvalKit's default texts, below the image. Loads no JAX.

Qwen2.5-VL is registered there without prompts of its own, so that these are the paper's, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

PROMPT_VERSION = "vlmevalkit-default"
MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."  # Qwen2.5-Math's


def choice_prompt(question: str, options: Sequence[str], hint: str = "") -> str:
    """Returns a question with lettered options; the space and the line break at its end are part of the text."""
    lines = [f"Hint: {hint}"] if hint else []
    lines += [f"Question: {question}", "Options:"]
    lines += [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])
