"""Shows one row as the model sees it: prints its prompt, token counts and frames, and writes its resized images.

On the first image the boxes of the gold answer are green and those of the texts orange, with option letter or number;
those of correct options are green, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from currreft_jax.config import Kind
from currreft_jax.data.budget import PromptBudget, prompt_text, prompt_without_patches
from currreft_jax.data.fields import LineError
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import Template, answer_turns
from currreft_jax.data.row_boxes import FramePairs
from currreft_jax.data.row_checks import count_image_tokens, format_frame
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.rows import IMAGE
from currreft_jax.data.visualize import draw_boxes, draw_row
from currreft_jax.rewards import RowError
from currreft_jax.structs import Frame, Row
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import FRAME, domains, make_scene, render_image
from currreft_jax.world.settings import WorldSettings

_MAX_EXTRA = 500  # characters
WORLD_IMAGE_SIDE = 504  # pixels; scenes are rendered with 84


def find_row(file: RowFile, name: str) -> int:
    """Returns the index of a row, given its number from 1 or its id.

    Raises:
        ValueError: there is no such row.
    """
    if name.isascii() and name.isdigit():
        if 1 <= int(name) <= len(file):
            return int(name) - 1
        raise ValueError(f"{file.path} has {len(file)} rows, not a row {name}; an id of digits is written id={name}")
    row_id = name.removeprefix("id=")
    for index in range(len(file)):
        try:
            if file[index].id == row_id:
                return index
        except LineError:  # reported by `dataset check`
            continue
    raise ValueError(f"{file.path} has no row of id {row_id!r}; write a number from 1 to {len(file)}, or another id")


def show_row(
    file: RowFile, index: int, out: Path, budget: PromptBudget, template: Template, processor: Processor | None
) -> Iterator[str]:
    """Describes a row and writes its images, resized; further images get the suffixes -2, -3 and so on.

    Args:
        file: file of the row.
        index: index of the row in the file.
        out: path of the first image.
        budget: limits of a prompt.
        template: prompt template.
        processor: renders the chat template and counts tokens.

    Yields:
        Lines of text.

    Raises:
        ValueError: the row, its gold answer or an image is malformed.
    """
    row, location = file[index], file.location(index)
    try:
        images = [open_image(path) for path in row.images]
        originals = [Frame(image.width, image.height) for image in images]
        frames = [(original, budget.resized_frame(original)) for original in originals]
    except ImageError as error:
        raise ValueError(f"{location}: {error}; --image-root names the folder that paths start from") from error
    try:
        yield from describe_row(row, location, frames, budget, template, processor)
    except RowError as error:
        raise ValueError(f"{location}: {error.problem}") from error
    yield from _write_images(row, images, frames, out)


def _write_images(row: Row, images: Sequence[Image.Image], frames: FramePairs, out: Path) -> Iterator[str]:
    for index, (image, (_, frame)) in enumerate(zip(images, frames, strict=True)):
        resized = image.resize((frame.width, frame.height), Image.Resampling.BICUBIC)
        path = out.with_name(f"{out.stem}-{index + 1}{out.suffix}") if index else out
        (resized if index else draw_row(row, resized, frames)).save(path)
        yield f"written    {path}"


def describe_row(
    row: Row,
    location: str,
    frames: FramePairs,
    budget: PromptBudget,
    template: Template,
    processor: Processor | None,
) -> list[str]:
    """Returns the fields of a row, its token counts and its prompt as lines of text.

    Raises:
        RowError: the gold answer is malformed.
    """
    lines = [f"row        {location}, id {row.id}", f"asks       {row.kind.value} {row.task.value}"]
    for image, (original, resized) in zip(row.images, frames, strict=True):
        tokens = budget.image_tokens(resized)
        lines.append(
            f"image      {image}: {format_frame(original)}, seen as {format_frame(resized)} in {tokens} tokens"
        )
    if row.frame:
        lines.append(f"frame      boxes are measured in {format_frame(row.frame)}")
    fields = {"source": row.source, "split": row.split, "origin": row.origin}
    fields |= {} if row.kind is Kind.CHAT else {"gold": row.solution}
    fields["extra"] = json.dumps(row.extra, ensure_ascii=False)[:_MAX_EXTRA] if row.extra else ""
    lines += [f"{name:<10} {value}" for name, value in fields.items() if value]
    lines += [f"learnt     {turn.text}" for turn in answer_turns(row, frames) if turn.role == "assistant"]
    image_tokens = count_image_tokens(frames, budget)
    if processor:
        tokens = prompt_without_patches(row, processor, template, frames, budget, location).tokens
        lines.append(
            f"prompt     {len(tokens)} tokens, {image_tokens} of them images; {budget.max_prompt_tokens} may be"
        )
        placeholder = str(processor.tokenizer.convert_ids_to_tokens(processor.config.image_token_id))
        decoded = str(processor.tokenizer.decode(tokens.tolist()))
        text = re.sub(
            f"({re.escape(placeholder)})+", lambda run: f"{placeholder} x {len(run[0]) // len(placeholder)}", decoded
        )
    else:
        text = prompt_text(row, template, frames)
        characters = len(text) - len(IMAGE) * len(frames)
        lines.append(
            f"prompt     {image_tokens} tokens of images, {characters} characters of text; {budget.max_prompt_tokens}"
            " tokens may be; --model counts the text's and shows the chat template"
        )
    return [*lines, "-" * 40, text, "-" * 40]


def show_world(name: str, out: Path | None) -> Iterator[str]:
    """Describes the questions about a scene of the embedded world, and writes its image with all boxes drawn.

    Args:
        name: `N` or `DOMAIN:N`.
        out: path of the image; `world-DOMAIN-N.png` if None.

    Yields:
        Lines of text.

    Raises:
        ValueError: the name has another form, or the domain is unknown.
    """
    domain, _, number = name.rpartition(":")
    domain = domain or "in"
    settings = WorldSettings()
    known = domains(settings)
    if not number.isdecimal() or domain not in known:
        raise ValueError(f"show world takes N or DOMAIN:N, such as in:7; the domains are {', '.join(known)}")
    shown = make_scene(0, int(number), known[domain], settings)
    for kind in KINDS:
        for task in TASKS:
            row = make_question(shown, task, kind, image="", split="", settings=settings).row
            prompt = user_text(row).replace("\n", "\n" + " " * 20)
            yield f"{kind.value:<8}{task.value:<12}{prompt}\n{'':<20}-> {row.solution}"
    path = out or f"world-{domain}-{number}.png"
    labels = [" ".join(obj.pair) for obj in shown.objects]
    image = render_image(shown).resize((WORLD_IMAGE_SIDE, WORLD_IMAGE_SIDE), Image.Resampling.NEAREST)
    scale = WORLD_IMAGE_SIDE / FRAME.width
    boxes = [(x1 * scale, y1 * scale, x2 * scale, y2 * scale) for x1, y1, x2, y2 in (obj.box for obj in shown.objects)]
    draw_boxes(image, boxes, labels).save(path)
    yield f"image: {path}"


def escape_control_characters(text: str) -> str:
    """Escapes control characters other than newline and tab, as files are untrusted and terminals obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
