"""Prompt templates, and the messages they make of a row; the same in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.config.names import nearest
from currreft_jax.config.own_code import import_module_of
from currreft_jax.data.row_boxes import FramePairs, resize_boxes, text_corners
from currreft_jax.data.rows import IMAGE, split_conversation
from currreft_jax.rewards import detection
from currreft_jax.rewards.answer import gold_text
from currreft_jax.rewards.boxes import format_box
from currreft_jax.rewards.choice import format_options
from currreft_jax.structs import Row, Turn
from currreft_jax.world import question_text


@dataclass(frozen=True, slots=True)
class Template:
    """The text around a question.

    Attributes:
        instruction: appended to every question; asks for reasoning, then the answer.
        suffixes: appended to the instruction, by kind and task.
        multiple: replaces the suffix for choice rows that may have several correct options.
        options: header between the question and the options.
        system: system message; None for the chat template's default.
    """

    instruction: str
    suffixes: dict[tuple[Kind, Task], str] = field(default_factory=dict)
    multiple: str = ""
    options: str = "\nOptions:"
    system: str | None = None


# The authors' prompts, except that their classify instruction lacks the full stop.
PAPER = Template(
    instruction=(
        "First output the thinking process in <think> </think> tags and then output the final answer in <answer>"
        " </answer> tags."
    ),
    suffixes={
        **{(Kind.JUDGE, task): "Ensure your final answer is exactly 'yes' or 'no'." for task in Task},
        **{
            (Kind.CHOICE, task): (
                "Ensure your final answer is exactly one of the provided option letters without any additional text."
            )
            for task in Task
        },
        (Kind.OPEN, Task.DETECTION): "Output the final answer in JSON format in <answer> </answer> tags.",
    },
    multiple=(
        "Based on the given options, select all options that accurately describe what is shown in the image. Ensure"
        " your final answer is exactly one or more of the provided option letters without any additional text."
    ),
)

WORLD = Template(
    instruction="",
    suffixes={
        **question_text.SUFFIXES,
        **{(kind, Task.OTHER): question_text.SUFFIXES[kind, Task.MATH] for kind in (Kind.JUDGE, Kind.CHOICE)},
    },
    multiple=question_text.MULTIPLE_SUFFIX,
    options="",
)

TEMPLATES: dict[str, Template] = {"paper": PAPER, "world": WORLD}


def load_template(name: str) -> Template:
    """Returns a template of `TEMPLATES`, or imports a user's from `package.module:NAME`.

    Raises:
        ValueError: the template does not exist; the message lists the known names.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = f"; nearest: {', '.join(names)}" if (names := nearest(name, TEMPLATES)) else ""
        raise ValueError(
            f"no prompt template {name!r}; write package.module:NAME, or one of {', '.join(TEMPLATES)}{near}"
        )
    try:
        defined = import_module_of(name)
    except ValueError as error:
        raise ValueError(f"prompt template {name!r}: {error}") from error
    templates = {key: value for key, value in defined.items() if isinstance(value, Template)}
    if attribute not in templates:
        near = f"; nearest: {', '.join(names)}" if (names := nearest(attribute, templates)) else ""
        raise ValueError(f"prompt template {name!r}: {module} defines no Template of the name {attribute!r}{near}")
    return templates[attribute]


def question_messages(row: Row, template: Template, frames: FramePairs) -> list[dict[str, Any]]:
    """Builds the messages of a prompt.

    Args:
        row: to ask; a chat row is used as is, without the template.
        template: text around the question.
        frames: original and resized frame of each image. Boxes in the texts are written in the resized frame.
    """
    if row.kind is Kind.CHAT:
        turns, _ = split_conversation(row)
        return _chat_messages(_write_turns(turns, row, frames), len(row.images))
    options = format_options(row.options)
    question = f"{row.problem}{template.options}{options}\n" if options else f"{row.problem} "
    suffix = template.multiple if row.multiple else template.suffixes.get((row.kind, row.task), "")
    text = _write_boxes((question + f"{template.instruction} {suffix}".strip()).rstrip(), row, frames)
    system = [{"role": "system", "content": template.system}] if template.system else []
    content = [*({"type": "image"} for _ in row.images), {"type": "text", "text": text}]
    return [*system, {"role": "user", "content": content}]


def answer_turns(row: Row, frames: FramePairs) -> list[Turn]:
    """Returns the target of supervised training: the rest of a chat, or the gold answer in `<answer>` tags.

    Boxes are written in the resized frame of the first image.

    Raises:
        RowError: the gold answer is malformed.
    """
    if row.kind is Kind.CHAT:
        _, turns = split_conversation(row)
        return _write_turns(turns, row, frames)
    answer = gold_text(row)
    if (row.kind, row.task) == (Kind.OPEN, Task.DETECTION):
        original, resized = frames[0]
        gold = detection.gold_boxes(row if row.frame else replace(row, frame=original), resized)
        boxes = [format_box((x1, y1, x2, y2)) for x1, y1, x2, y2 in gold.corners.tolist()]
        answer = boxes[0] if len(boxes) == 1 else f"[{', '.join(boxes)}]"
    return [Turn("assistant", f"<answer>{answer}</answer>")]


def format_row_boxes(row: Row, frames: FramePairs) -> list[str]:
    """Returns the boxes of a row as `[x1, y1, x2, y2]`, in whole pixels of the first image's resized frame."""
    return [format_box(box) for box in resize_boxes(text_corners(row), row, frames)]


def _write_boxes(text: str, row: Row, frames: FramePairs) -> str:
    """Replaces the box fields of a text by the boxes of its row."""
    for index, box in enumerate(format_row_boxes(row, frames)):
        text = text.replace(f"{{box:{index}}}", box)
    return text


def _write_turns(turns: Sequence[Turn], row: Row, frames: FramePairs) -> list[Turn]:
    return [Turn(turn.role, _write_boxes(turn.text, row, frames)) for turn in turns]


def _chat_messages(turns: Sequence[Turn], num_images: int) -> list[dict[str, Any]]:
    """Converts turns to messages; images that no text marks come before the text of the first user turn."""
    has_marks = any(IMAGE in turn.text for turn in turns)
    messages: list[dict[str, Any]] = []
    unmarked = 0 if has_marks else num_images
    for turn in turns:
        items: list[dict[str, Any]] = []
        if turn.role == "user" and unmarked:
            items, unmarked = [{"type": "image"}] * unmarked, 0
        for index, text in enumerate(turn.text.split(IMAGE)):
            items += [{"type": "image"}] * (index > 0)
            items += [{"type": "text", "text": text}] * bool(text)
        messages.append({"role": turn.role, "content": items})
    return messages
