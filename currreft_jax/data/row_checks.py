"""Checks of single rows: images, prompt length, boxes and gold answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.budget import PromptBudget, prompt_text, prompt_without_patches
from currreft_jax.data.findings import Finding, Problem
from currreft_jax.data.image_sketches import Sketch, sketch_image
from currreft_jax.data.images import NAME_FOLDER, ImageError, MissingImageError, open_image
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import Template
from currreft_jax.data.row_boxes import FramePairs, gold_corners, text_corners
from currreft_jax.data.rows import IMAGE, UNIT_FRAME
from currreft_jax.rewards import MathsPool, boxes, check_rows, has_rule, maths
from currreft_jax.rewards.answer import RowError
from currreft_jax.structs import Boxes, Frame, Row

_GOLD_CHUNK = 256
_MAX_SHAPE_DIFFERENCE = 0.25

T = TypeVar("T")
Progress = Callable[[Iterable[T], str, int], Iterable[T]]


@dataclass(frozen=True, slots=True)
class LocatedRow:
    """A row and where it was read.

    Attributes:
        row: the row.
        file: path as given by the user.
        location: file and line.
        split: `train`, `test`, or None if unknown.
    """

    row: Row
    file: str
    location: str
    split: str | None

    def finding(self, problem: Problem, message: str) -> Finding:
        """Returns a finding about this row."""
        return Finding(problem, self.file, self.location, message)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The result of decoding an image.

    Attributes:
        frames: its original and its resized frame; None if the image is unusable.
        digest: hash of its size and pixels; empty if the image is unusable.
        problem: what is wrong with it, if anything.
        message: the problem in words, and the remedy.
        sketch: what nearly equal images share; None if the image is unusable.
    """

    frames: tuple[Frame, Frame] | None
    digest: str
    problem: Problem | None = None
    message: str = ""
    sketch: Sketch | None = None


def inspect_image(path: str, budget: PromptBudget) -> ImageInfo:
    """Decodes an image and hashes its pixels."""
    try:
        image = open_image(path)
        original = Frame(image.width, image.height)
        resized = budget.resized_frame(original)
    except ImageError as error:
        if isinstance(error, MissingImageError):
            message = f"{path} is missing: {NAME_FOLDER}"
            return ImageInfo(None, "", Problem.MISSING_IMAGE, message)
        message = f"{path}: {str(error).removeprefix(f'{path}: ')}: replace it, or leave the row out"
        return ImageInfo(None, "", Problem.UNREADABLE_IMAGE, message)
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    info = ImageInfo((original, resized), digest.hexdigest(), sketch=sketch_image(image))
    colors = image.getcolors(maxcolors=1)
    if colors:
        ((_, color),) = colors
        message = f"{path}: every pixel is {color}; is it the right file? Transparent pixels are white"
        return replace(info, problem=Problem.PLAIN_IMAGE, message=message)
    return info


def check_turns(located: LocatedRow) -> Iterator[Finding]:
    """Finds answers without a text in a conversation."""
    for number, turn in enumerate(located.row.messages, 1):
        if turn.role == "assistant" and not turn.text.strip():
            yield located.finding(
                Problem.EMPTY_TURN, f"message {number}, of the assistant, is empty; write it, or leave the row out"
            )


def check_boxes(located: LocatedRow, frames: FramePairs) -> Iterator[Finding]:
    """Compares the frame of a row with its image, and its boxes with the frame."""
    row = located.row
    if not frames or not row.frame:
        return
    original, resized = frames[0]
    if row.frame != UNIT_FRAME:
        yield from _compare_frames(located, row.frame, original)
    for name, corners in (("boxes", text_corners(row)), ("solution", _gold_corners_or_none(row))):
        # Boxes may overshoot their frame by a pixel; a frame for fractions has none.
        frame = original if row.frame == UNIT_FRAME else row.frame
        measured = boxes.rescale(Boxes(corners, row.frame), frame)
        for box in corners[~boxes.inside(measured.corners, frame)]:
            yield located.finding(
                Problem.BOX,
                f"{_format_box(box)} in {name} leaves the frame {format_frame(row.frame)}; give the frame that it is"
                " measured in",
            )
        rounded = np.round(boxes.rescale(measured, resized).corners)
        for box in corners[boxes.degenerate(rounded) & ~boxes.degenerate(corners)]:
            yield located.finding(
                Problem.BOX,
                f"{_format_box(box)} in {name} is less than a pixel in the {format_frame(resized)} that the model"
                " sees; raise the pixels, or leave the row out",
            )


def _compare_frames(located: LocatedRow, frame: Frame, original: Frame) -> Iterator[Finding]:
    sx, sy = frame.width / original.width, frame.height / original.height
    message = (
        f"frame {format_frame(frame)}, but the image has {format_frame(original)} pixels: boxes are moved by"
        f" {1 / sx:.3f} along x and {1 / sy:.3f} along y"
    )
    if max(sx / sy, sy / sx) > 1 + _MAX_SHAPE_DIFFERENCE:
        yield located.finding(Problem.SHAPE, f"{message}; were they measured on this image, and upright?")
    elif frame != original:
        yield located.finding(Problem.FRAME, message)


def measure_prompt(
    located: LocatedRow, frames: FramePairs, budget: PromptBudget, processor: Processor | None, template: Template
) -> tuple[int, int]:
    """Counts the tokens of a prompt, or those of its images without a processor, and the characters of its text."""
    row = located.row
    characters = len(prompt_text(row, template, frames)) - len(IMAGE) * len(frames)
    if processor:
        prompt = prompt_without_patches(row, processor, template, frames, budget, located.location)
        return len(prompt.tokens), characters
    return count_image_tokens(frames, budget), characters


def check_prompt_length(
    located: LocatedRow, tokens: int, frames: FramePairs, budget: PromptBudget
) -> Iterator[Finding]:
    """Compares the length of a prompt with the budget."""
    if tokens > budget.max_prompt_tokens:
        yield located.finding(
            Problem.LONG_PROMPT,
            f"{tokens} tokens, {count_image_tokens(frames, budget)} of them images, where {budget.max_prompt_tokens}"
            " are allowed; lower the pixels of an image, raise the limit, or leave the row out",
        )


def check_golds(rows: Sequence[LocatedRow], progress: Progress) -> list[tuple[LocatedRow, RowError]]:
    """Parses the gold answers with the rows' own rewards.

    Skips rows without a rule, and rows whose boxes leave their frame.

    Returns:
        The rows with a malformed gold answer, and their errors.

    Raises:
        MathsPoolError: math-verify cannot run here.
    """
    scored = [located for located in rows if has_rule(located.row) and not _leaves_frame(located.row)]
    chunks = [scored[start : start + _GOLD_CHUNK] for start in range(0, len(scored), _GOLD_CHUNK)]
    errors = []
    with ExitStack() as stack:
        needs_pool = any(_needs_maths_pool(located.row) for located in scored)  # its workers take seconds to start
        pool = stack.enter_context(MathsPool(Rewards().maths)) if needs_pool else None
        for chunk in progress(chunks, f"gold answers, {_GOLD_CHUNK} at a time", len(chunks)):
            by_row = {id(located.row): located for located in chunk}
            found = check_rows([located.row for located in chunk], pool=pool)
            errors += [(by_row[id(error.row)], error) for error in found]
    return errors


def count_image_tokens(frames: FramePairs, budget: PromptBudget) -> int:
    """Counts the prompt tokens of all images of a row."""
    return sum(budget.image_tokens(resized) for _, resized in frames)


def format_frame(frame: Frame) -> str:
    """Returns `width x height`."""
    return f"{frame.width} x {frame.height}"


def _format_box(box: np.ndarray) -> str:
    return f"[{', '.join(f'{x:g}' for x in box)}]"


def _gold_corners_or_none(row: Row) -> np.ndarray:
    try:
        return gold_corners(row)
    except RowError:  # reported by `check_golds`
        return np.empty((0, 4))


def _leaves_frame(row: Row) -> bool:
    return row.frame is not None and not boxes.inside(_gold_corners_or_none(row), row.frame).all()


def _needs_maths_pool(row: Row) -> bool:
    """Returns whether the gold answer is an expression that only math-verify can parse."""
    if (row.kind, row.task) != (Kind.OPEN, Task.MATH):
        return False
    try:
        gold = maths.gold_expression(row, Rewards().maths)
    except RowError:
        return False
    return isinstance(gold, maths.Expression) and maths.needs_math_verify(gold)
