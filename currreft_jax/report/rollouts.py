"""Selects the rollouts that fit in the page, with their prompts, images, boxes, completions and rewards."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from shlex import quote
from string import ascii_uppercase
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.data.row_boxes import gold_corners
from currreft_jax.data.rows import parse_row
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.runs import Run, StageRun
from currreft_jax.rewards import RowError, boxes, choice
from currreft_jax.rewards.answer import extract_answer
from currreft_jax.runtime.workdir import ROLLOUTS
from currreft_jax.structs import Completion, Frame, Reason, Row

T = TypeVar("T")
MAX_PNG_SIDE, MAX_JPEG_SIDE, JPEG_QUALITY = 256, 512, 85  # sides in pixels


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """One line of a rollout file: a prompt and its completions.

    Attributes:
        stage_index: among the stages that have begun.
        step: step number within the stage.
        row: in the step, from 1, over the files of all hosts.
        path: path of the file.
        line_number: in the file, from 1.
        content: bytes of the line.
    """

    stage_index: int
    step: int
    row: int
    path: Path
    line_number: int
    content: bytes

    @property
    def location(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line_number}"

    @property
    def replay_command(self) -> str:
        """The command that samples a completion of the group again, without its number, which counts from 1."""
        return f"python -m currreft_jax.generate --replay={quote(f'{self.location}:')}"


@dataclass(slots=True)
class EmbeddedImages:
    """Images as data URIs, deduplicated by path and content.

    Attributes:
        images: `{"uri", "width", "height"}` each.
        missing: path -> error of images that cannot be read.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    _indices: dict[str, int] = field(default_factory=dict)

    def index_of(self, path: str) -> int | None:
        """Adds an image if it is new, and returns its index in `images`; None if it cannot be read."""
        if path not in self._indices and path not in self.missing:
            try:
                if not Path(path).is_file():  # opening a pipe would block
                    raise ImageError("there is no such file")
                uri, (width, height) = data_uri(open_image(path))
            except (ImageError, OSError) as error:
                self.missing[path] = str(error)
                return None
            digest = hashlib.blake2b(uri.encode()).hexdigest()
            if digest not in self._indices:
                self._indices[digest] = len(self.images)
                self.images.append({"uri": uri, "width": width, "height": height})
            self._indices[path] = self._indices[digest]
        return self._indices.get(path)


def dump_fitting(
    items: Iterable[T], to_record: Callable[[T], dict[str, Any]], embedded: EmbeddedImages, room: int
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Dumps items as the page's JSON, as many as fit with the images that they add.

    Args:
        items: the items.
        to_record: converts an item to JSON, and embeds its images.
        embedded: images of the page.
        room: bytes that are left.

    Returns:
        The records that fit, their JSON, and the bytes left: negative if one did not fit, and then none fits after it,
        as images may be shared.
    """
    records, texts = [], []
    for item in items:
        images_before = len(embedded.images)
        record = to_record(item)
        text = html_safe_json(record)
        room -= len((text + html_safe_json(embedded.images[images_before:])).encode()) + 1
        if room < 0:
            del embedded.images[images_before:]
            continue
        records.append(record)
        texts.append(text)
    return records, texts, room


def data_uri(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """Encodes an RGB image, as PNG if it is small, else as a downscaled JPEG; returns its original size too."""
    size, file = image.size, io.BytesIO()
    lossless = max(size) <= MAX_PNG_SIDE
    if lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((MAX_JPEG_SIDE, MAX_JPEG_SIDE))
        image.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}", size


def rollouts_json(run: Run, max_bytes: int) -> tuple[str, dict[str, int]]:
    """Dumps as many groups as fit, as the page's JSON, and counts those `shown`, those `found` and `missing` images.

    The stages take turns; each gives its first group, its last, then those halfway between groups already taken. The
    selection depends on the files and the limit alone.

    Args:
        run: the run.
        max_bytes: size limit of the JSON.

    Raises:
        LineError: a selected line is damaged.
    """
    stages = [find_groups(index, stage) for index, stage in enumerate(run.stages)]
    turns = zip_longest(*([groups[index] for index in bisection_order(len(groups))] for groups in stages))
    embedded, selected, missing, used = EmbeddedImages(), [], set[str](), 0
    for group in filter(None, chain.from_iterable(turns)):
        images_before = len(embedded.images)
        record = group_record(group, embedded)
        text = html_safe_json(record)
        used += len(text.encode()) + len(html_safe_json(embedded.images[images_before:])) + 1
        if used > max_bytes:
            del embedded.images[images_before:]
            break
        missing.update(record["missing"])
        selected.append((group.stage_index, group.step, group.row, text))
    counts = {"shown": len(selected), "found": sum(map(len, stages)), "missing": len(missing)}
    records = ",".join(text for *_, text in sorted(selected))
    images = html_safe_json(embedded.images)
    return f'{{"groups":[{records}],"images":{images},"counts":{html_safe_json(counts)}}}', counts


def find_groups(stage_index: int, stage: StageRun) -> list[RolloutGroup]:
    """Lists all groups of a stage's rollout files by step and host; an incomplete last line is skipped."""
    groups: list[RolloutGroup] = []
    for step, paths in record_files(stage.folder / ROLLOUTS).items():
        row = 0
        for path in paths:
            for line_number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                if line.endswith(b"\n") and line.strip():
                    row += 1
                    groups.append(RolloutGroup(stage_index, step, row, path, line_number, line))
    return groups


def record_files(folder: Path) -> dict[int, list[Path]]:
    """Lists a folder's files of JSON lines by step, in rising order; those of a step by host."""
    files: dict[int, list[Path]] = {}
    for path in sorted(filter(_step_and_host, folder.glob("*.jsonl")), key=_step_and_host):
        files.setdefault(_step_and_host(path)[0], []).append(path)
    return files


def _step_and_host(path: Path) -> tuple[int, ...]:
    """Parses the step and, with several hosts, the host from a rollout file's name; empty for any other file."""
    numbers = path.stem.split("-")
    return tuple(map(int, numbers)) if all(map(str.isdecimal, numbers)) else ()


def bisection_order(count: int) -> Iterator[int]:
    """Yields all indices below `count`: the first, the last, then midpoints of ever shorter spans."""
    yield from range(min(count, 1))
    yield from range(count - 1, max(0, count - 2), -1)
    spans = [(0, count - 1)]
    while spans:
        halves = [(first, (first + last) // 2, last) for first, last in spans if last - first > 1]
        yield from (middle for _, middle, _ in halves)
        spans = [span for first, middle, last in halves for span in ((first, middle), (middle, last))]


def group_record(group: RolloutGroup, embedded: EmbeddedImages) -> dict[str, Any]:
    """Converts a group to the page's JSON; boxes are relative to the image's sides.

    Raises:
        LineError: the line is not a group of completions.
    """
    fields = Fields.from_json(group.content, group.location)
    row = parse_row(fields, image_root=group.path.parent)
    frame = fields.frame("resized") or row.frame
    completions = fields.take("completions", list, "a list of completions")
    try:
        gold, asked = relative_boxes(gold_corners(row), row.frame), question_boxes(row)
    except RowError as error:
        raise LineError(group.location, error.problem) from error
    images = [embedded.index_of(path) for path in row.images]
    return {
        "stage": group.stage_index,
        "step": group.step,
        "row": group.row,
        "id": row.id,
        "task": row.task.value,
        "kind": row.kind.value,
        "prompt": fields.text("prompt", "\n".join([row.problem, *row.options])),
        "solution": row.solution,
        "images": images,
        "missing": [path for path, index in zip(row.images, images, strict=True) if index is None],
        "gold_boxes": gold,
        "question_boxes": asked,
        "completions": [
            _completion_record(
                Fields(value if isinstance(value, dict) else {}, f"{group.location}: completion {number}"), row, frame
            )
            for number, value in enumerate(completions, 1)
        ],
        "replay_command": group.replay_command,
    }


def question_boxes(row: Row) -> list[dict[str, Any]]:
    """Boxes that the question names, labelled by option letters or number, and whether the option is correct."""
    gold_letters = choice.gold_letters(row) if row.boxes and row.kind is Kind.CHOICE else frozenset[str]()
    records = []
    for index, box in enumerate(relative_boxes(np.array(row.boxes).reshape(-1, 4), row.frame)):
        options = zip(ascii_uppercase, row.options, strict=False)
        letters = [letter for letter, option in options if f"{{box:{index}}}" in option]
        label = "/".join(letters) or ("asked" if len(row.boxes) == 1 else str(index + 1))
        records.append({"label": label, "correct": bool(gold_letters & set(letters)), "box": box})
    return records


def _completion_record(fields: Fields, row: Row, frame: Frame | None) -> dict[str, Any]:
    tokens = fields.texts("tokens", "a list of strings")
    text, scores = fields.text("text"), score_fields(fields)
    record = {
        **scores,
        "advantage": round(_number_field(fields, "advantage"), 4),
        "tokens": tokens,
        "logprobs": _per_token_field(fields, "logprobs", len(tokens)),
        "boxes": predicted_boxes(Completion(text, len(tokens), scores["finished"]), row, frame),
    }
    if "".join(tokens) != text:
        record["text"] = text
    for key in ("reference", "entropies"):
        if key in fields.keys:
            record[key] = _per_token_field(fields, key, len(tokens))
    return record


def score_fields(fields: Fields) -> dict[str, Any]:
    """Returns whether a completion is finished, its reward, its parts and the reasons for zeros."""
    parts, reasons = (fields.take(key, dict, "an object", {}) for key in ("parts", "reasons"))
    if not all(isinstance(value, int | float) for value in parts.values()):
        fields.refuse_value("parts", "an object of numbers")
    if not all(isinstance(value, str) for value in reasons.values()):
        fields.refuse_value("reasons", "an object of strings")
    return {
        "finished": fields.take("finished", bool, "true or false"),
        "reward": _number_field(fields, "reward"),
        "parts": {name: round(value, 4) for name, value in parts.items()},
        "reasons": reasons,
    }


def predicted_boxes(completion: Completion, row: Row, frame: Frame | None) -> list[list[float]]:
    """Boxes of an open detection answer, without degenerate ones."""
    if (row.kind, row.task) != (Kind.OPEN, Task.DETECTION):
        return []
    answer = extract_answer(completion)
    corners = answer if isinstance(answer, Reason) else boxes.named_corners(answer)
    return [] if isinstance(corners, Reason) else relative_boxes(corners[~boxes.degenerate(corners)], frame)


def relative_boxes(corners: np.ndarray, frame: Frame | None) -> list[list[float]]:
    """Divides boxes `[n, 4]` by their frame's sides; returns none if the frame is unknown."""
    if frame is None:
        return []
    return np.round(corners / np.array([frame.width, frame.height] * 2), 5).tolist()


def _number_field(fields: Fields, key: str) -> float:
    if type(fields.keys.get(key)) not in (int, float):
        fields.refuse_value(key, "a number")
    return fields.keys[key]


def _per_token_field(fields: Fields, key: str, num_tokens: int) -> list[float]:
    values: Sequence[Any] = fields.take(key, list, "one number per token")
    if len(values) != num_tokens or not all(type(value) in (int, float) for value in values):
        fields.refuse_value(key, "one number per token")
    return [round(value, 3) for value in values]
