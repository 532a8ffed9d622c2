"""What the model is asked: one table of wordings, the same in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.data.rows import IMAGE
from currreft_jax.rewards import boxes, choice, detection
from currreft_jax.rewards.answer import gold_text
from currreft_jax.structs import Boxes, Frame, Row, Turn
from currreft_jax.world import question_text


@dataclass(frozen=True, slots=True)
class Template:
    """The instructions that follow a question.

    Attributes:
        instruction: for every row: thoughts, then the answer.
        suffixes: (kind, task) -> what further is asked of such rows.
        multiple: for choice rows that may have several right options, instead of their suffix.
        options: what stands between the question and the options.
        system: the system turn; None leaves it to the chat template.
    """

    instruction: str
    suffixes: dict[tuple[Kind, Task], str] = field(default_factory=dict)
    multiple: str = ""
    options: str = "\nOptions:"
    system: str | None = None


_RULED = (Task.DETECTION, Task.CLASSIFY, Task.MATH)

# The authors' wording. Their classify template lacks the instruction's full stop; here one wording serves all.
PAPER = Template(
    instruction=(
        "First output the thinking process in <think> </think> tags and then output the final answer in <answer>"
        " </answer> tags."
    ),
    suffixes={
        **{(Kind.JUDGE, task): "Ensure your final answer is exactly 'yes' or 'no'." for task in _RULED},
        **{
            (Kind.CHOICE, task): (
                "Ensure your final answer is exactly one of the provided option letters without any additional text."
            )
            for task in _RULED
        },
        (Kind.OPEN, Task.DETECTION): "Output the final answer in JSON format in <answer> </answer> tags.",
    },
    multiple=(
        "Based on the given options, select all options that accurately describe what is shown in the image. Ensure"
        " your final answer is exactly one or more of the provided option letters without any additional text."
    ),
)

WORLD = Template(instruction="", suffixes=question_text.SUFFIXES, multiple=question_text.MULTIPLE_SUFFIX, options="")

TEMPLATES: dict[str, Template] = {"paper": PAPER, "world": WORLD}


def template(name: str) -> Template:
    """A template of `TEMPLATES`, or a user's by import path, `package.module:NAME`.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"no prompt template {name!r}; write package.module:NAME, or one of {', '.join(TEMPLATES)}")
    try:
        found = vars(import_module(module)).get(attribute)
    except ImportError as error:
        raise ValueError(f"prompt template {name!r}: {module} cannot be imported: {error}") from error
    if not isinstance(found, Template):
        raise ValueError(f"prompt template {name!r}: {module} defines no Template of the name {attribute!r}")
    return found


def question(row: Row, wording: Template, frames: Sequence[tuple[Frame, Frame]]) -> list[dict[str, Any]]:
    """The messages up to the model's answer.

    Args:
        row: what to ask.
        wording: how to ask it; a chat row is asked in its own words.
        frames: of each image the original frame and the resized one that the model sees. Boxes in the texts are
            written in the latter.
    """
    if row.kind is Kind.CHAT:
        first = next(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
        return _messages(row.messages[:first], len(row.images))
    options = choice.format_options(row.options)
    asked = f"{row.problem}{wording.options}{options}\n" if options else f"{row.problem} "
    suffix = wording.multiple if row.multiple else wording.suffixes.get((row.kind, row.task), "")
    text = (asked + f"{wording.instruction} {suffix}".strip()).rstrip()
    for index, written in enumerate(written_boxes(row, frames)):
        text = text.replace(f"{{box:{index}}}", written)
    system = [{"role": "system", "content": wording.system}] if wording.system else []
    content = [*({"type": "image"} for _ in row.images), {"type": "text", "text": text}]
    return [*system, {"role": "user", "content": content}]


def answer(row: Row, frames: Sequence[tuple[Frame, Frame]]) -> list[Turn]:
    """The turns that supervised training learns from: a chat row's own, else the gold answer in its tags.

    Raises:
        RowError: the gold answer cannot be read.
    """
    if row.kind is Kind.CHAT:
        first = next(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
        return list(row.messages[first:])
    gold = gold_text(row)
    if (row.kind, row.task) == (Kind.OPEN, Task.DETECTION):
        original, resized = frames[0]
        placed = detection.gold_boxes(row if row.frame else replace(row, frame=original), resized)
        written = [boxes.format_box(box) for box in placed.corners]
        gold = written[0] if len(written) == 1 else f"[{', '.join(written)}]"
    return [Turn("assistant", f"<answer>{gold}</answer>")]


def written_boxes(row: Row, frames: Sequence[tuple[Frame, Frame]]) -> list[str]:
    """The row's boxes as its texts show them: in the first image's resized frame, rounded to pixels."""
    if not row.boxes:
        return []
    original, resized = frames[0]
    placed = boxes.rescale(Boxes(np.array(row.boxes), row.frame or original), resized)
    return [boxes.format_box(box) for box in placed.corners]


def _messages(turns: Sequence[Turn], images: int) -> list[dict[str, Any]]:
    """Turns as the processor takes them; images that no text marks stand before the first user's words."""
    marked = any(IMAGE in turn.text for turn in turns)
    messages: list[dict[str, Any]] = []
    unplaced = 0 if marked else images
    for turn in turns:
        items: list[dict[str, Any]] = []
        if turn.role == "user" and unplaced:
            items, unplaced = [{"type": "image"}] * unplaced, 0
        for index, text in enumerate(turn.text.split(IMAGE)):
            items += [{"type": "image"}] * (index > 0)
            items += [{"type": "text", "text": text}] * bool(text)
        messages.append({"role": turn.role, "content": items})
    return messages
