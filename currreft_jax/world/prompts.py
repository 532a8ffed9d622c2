"""The world's wording, which the prompt template `world` is made of: short, as its tokenizer knows few words."""

from __future__ import annotations

from string import ascii_uppercase

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row
from currreft_jax.world.scenes import Box

# What follows the question, one space or, behind options, one line further.
SUFFIXES: dict[tuple[Kind, Task], str] = {
    (Kind.JUDGE, Task.DETECTION): "yes or no?",
    (Kind.JUDGE, Task.CLASSIFY): "yes or no?",
    (Kind.JUDGE, Task.MATH): "yes or no?",
    (Kind.CHOICE, Task.DETECTION): "one letter.",
    (Kind.CHOICE, Task.CLASSIFY): "one letter.",
    (Kind.CHOICE, Task.MATH): "one letter.",
    (Kind.OPEN, Task.DETECTION): "give a box.",
    (Kind.OPEN, Task.CLASSIFY): "give names.",
    (Kind.OPEN, Task.MATH): "give a number.",
}
# Instead of the suffix, for choice rows that may have several right options.
MULTIPLE = "all letters."


def spell(box: Box) -> str:
    """A box as prompts and answers show it."""
    return f"[{', '.join(str(round(x)) for x in box)}]"


def user_text(row: Row) -> str:
    """What the user says behind the image: the question, its options, what is asked for.

    Boxes are written as they are: an image of the world is never resized.
    """
    if row.kind is Kind.CHAT:
        return row.messages[0].text
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(ascii_uppercase, row.options, strict=False))
    suffix = MULTIPLE if row.multiple else SUFFIXES[row.kind, row.task]
    text = f"{row.problem}{options}\n{suffix}" if options else f"{row.problem} {suffix}"
    for index, box in enumerate(row.boxes):
        text = text.replace(f"{{box:{index}}}", spell(box))
    return text
