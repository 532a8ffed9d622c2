"""The text of the world's questions, short because its tokenizer has few words.

`data.prompts` makes its template `world` of these suffixes.
"""

from __future__ import annotations

from currreft_jax.config import Kind, Task
from currreft_jax.rewards.boxes import format_box
from currreft_jax.rewards.choice import format_options
from currreft_jax.structs import Row

# Follows the question after a space, or the options after a line break.
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
# Replaces the suffix of choice rows that may have several right options.
MULTIPLE_SUFFIX = "all letters."


def user_text(row: Row) -> str:
    """Returns the user's text after the image: question, options, suffix.

    Boxes keep their coordinates, because images of the world are never resized.
    """
    if row.kind is Kind.CHAT:
        return row.messages[0].text
    options = format_options(row.options)
    suffix = MULTIPLE_SUFFIX if row.multiple else SUFFIXES[row.kind, row.task]
    text = f"{row.problem}{options}\n{suffix}" if options else f"{row.problem} {suffix}"
    for index, box in enumerate(row.boxes):
        text = text.replace(f"{{box:{index}}}", format_box(box))
    return text
