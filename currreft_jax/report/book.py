"""The rollout book: what was asked, seen, said and earned, as much of it as a page can hold."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from shlex import quote
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.data.row_boxes import gold_corners
from currreft_jax.data.rows import parse_row
from currreft_jax.report.embed import embedded
from currreft_jax.report.runs import Run, StageRun
from currreft_jax.rewards import RowError, boxes, choice
from currreft_jax.rewards.answer import extract
from currreft_jax.structs import Completion, Frame, Reason, Row
from currreft_jax.workdir import ROLLOUTS

LOSSLESS_SIDE, SIDE, QUALITY = 256, 512, 85  # pixels; of JPEG


@dataclass(frozen=True, slots=True)
class Group:
    """A line of a rollout file.

    Attributes:
        stage: its number among those that have begun.
        step: of it.
        row: of the step, from 1, over the files of all hosts.
        path: of the file.
        line: its number there, from 1.
        text: of it.
    """

    stage: int
    step: int
    row: int
    path: Path
    line: int
    text: bytes

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line}"

    @property
    def command(self) -> str:
        """What draws a completion of the group again; its number, from 1, is to be appended."""
        return f"python -m currreft_jax.generate --replay={quote(f'{self.path}:{self.line}:')}"


@dataclass(slots=True)
class Pictures:
    """Images as data URIs, each once, however many rows show it and under however many names.

    Attributes:
        shown: `{"uri", "width", "height"}` each.
        missing: paths that could not be read, and why.
    """

    shown: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, path: str) -> int | None:
        """The place of an image in `shown`; None if it cannot be read."""
        if path not in self._places and path not in self.missing:
            try:
                if not Path(path).is_file():  # a pipe would be waited for
                    raise ImageError("there is no such file")
                uri, size = data_uri(open_image(path))
            except (ImageError, OSError) as error:
                self.missing[path] = str(error)
                return None
            digest = hashlib.blake2b(uri.encode()).hexdigest()
            if digest not in self._places:
                self._places[digest] = len(self.shown)
                self.shown.append({"uri": uri, "width": size[0], "height": size[1]})
            self._places[path] = self._places[digest]
        return self._places.get(path)


def data_uri(image: Image.Image) -> tuple[str, tuple[int, int]]:
    """An RGB image as a page can hold it, and its own size: small ones as they are, others as JPEG of `SIDE` pixels."""
    size, file = image.size, io.BytesIO()
    lossless = max(size) <= LOSSLESS_SIDE
    if lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((SIDE, SIDE))
        image.save(file, "JPEG", quality=QUALITY)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}", size


def book(run: Run, limit: int) -> tuple[str, dict[str, int]]:
    """As many groups as fit into a page, as JSON for the page, and the counts `shown`, `found` and `missing`.

    Of each stage come the first and the last group, then those halfway between groups that are taken already, the
    stages in turn. Which groups are shown is thus a function of the files and the limit alone.

    Args:
        run: whose completions are shown.
        limit: bytes.

    Raises:
        LineError: a line that is shown is damaged.
    """
    stages = [groups(number, stage) for number, stage in enumerate(run.stages)]
    turns = zip_longest(*([it[place] for place in halved(len(it))] for it in stages))
    pictures, taken, missing, used = Pictures(), [], set[str](), 0
    for group in filter(None, chain.from_iterable(turns)):
        before = len(pictures.shown)
        shown = told(group, pictures)
        text = embedded(shown)
        used += len(text.encode()) + len(embedded(pictures.shown[before:])) + 1
        if used > limit:
            del pictures.shown[before:]
            break
        missing.update(shown["missing"])
        taken.append((group.stage, group.step, group.row, text))
    counts = {"shown": len(taken), "found": sum(map(len, stages)), "missing": len(missing)}
    rows = ",".join(text for *_, text in sorted(taken))
    return f'{{"groups":[{rows}],"images":{embedded(pictures.shown)},"counts":{embedded(counts)}}}', counts


def groups(number: int, stage: StageRun) -> list[Group]:
    """All groups of a stage that were written, by step and host; a line that is being written is left out."""
    files = [path for path in (stage.folder / ROLLOUTS).glob("*.jsonl") if _numbers(path)]
    found: list[Group] = []
    for path in sorted(files, key=_numbers):
        step = _numbers(path)[0]
        row = found[-1].row if found and found[-1].step == step else 0
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [(place, line) for place, line in enumerate(lines, 1) if line.endswith(b"\n") and line.strip()]
        found += [Group(number, step, row + k, path, place, line) for k, (place, line) in enumerate(whole, 1)]
    return found


def _numbers(path: Path) -> tuple[int, ...]:
    """Step and, with several hosts, host of a rollout file; nothing of another file."""
    parts = path.stem.split("-")
    return tuple(map(int, parts)) if all(map(str.isdecimal, parts)) else ()


def halved(count: int) -> Iterator[int]:
    """All places below `count`: the first, the last, then ever finer halves."""
    yield from range(min(count, 1))
    yield from range(count - 1, max(0, count - 2), -1)
    spans = [(0, count - 1)]
    while spans:
        halves = [(first, (first + last) // 2, last) for first, last in spans if last - first > 1]
        yield from (middle for _, middle, _ in halves)
        spans = [span for first, middle, last in halves for span in ((first, middle), (middle, last))]


def told(group: Group, pictures: Pictures) -> dict[str, Any]:
    """A group as the page takes it; boxes are shares of the image's sides.

    Raises:
        LineError: the line is no group of completions.
    """
    fields = Fields.from_json(group.text, group.where)
    row = parse_row(fields, image_root=group.path.parent)
    frame = fields.frame("resized") or row.frame
    said = fields.take("completions", list, "what was said")
    try:
        gold, asked = _shares(gold_corners(row), row.frame), _asked(row)
    except RowError as error:
        raise LineError(group.where, error.problem) from error
    places = [pictures.place(path) for path in row.images]
    return {
        "stage": group.stage,
        "step": group.step,
        "row": group.row,
        "id": row.id,
        "task": row.task.value,
        "kind": row.kind.value,
        "prompt": fields.text("prompt", "\n".join([row.problem, *row.options])),
        "solution": row.solution,
        "images": places,
        "missing": [path for path, place in zip(row.images, places, strict=True) if place is None],
        "gold": gold,
        "asked": asked,
        "said": [
            _said(Fields(it if isinstance(it, dict) else {}, f"{group.where}: completion {number}"), row, frame)
            for number, it in enumerate(said, 1)
        ],
        "command": group.command,
    }


def _asked(row: Row) -> list[dict[str, Any]]:
    """Boxes that the question names: their option's letter, or their number, and whether they are a right option."""
    right = choice.gold(row) if row.boxes and row.kind is Kind.CHOICE else frozenset[str]()
    placed = []
    for number, box in enumerate(_shares(np.array(row.boxes).reshape(-1, 4), row.frame)):
        named = zip(ascii_uppercase, row.options, strict=False)
        letters = [letter for letter, option in named if f"{{box:{number}}}" in option]
        label = "/".join(letters) or ("asked" if len(row.boxes) == 1 else str(number + 1))
        placed.append({"label": label, "right": bool(right & set(letters)), "box": box})
    return placed


def _said(fields: Fields, row: Row, frame: Frame | None) -> dict[str, Any]:
    tokens = fields.texts("tokens", "a list of strings")
    text, finished = fields.text("text"), fields.take("finished", bool, "true or false")
    parts, reasons = (fields.take(key, dict, "an object", {}) for key in ("parts", "reasons"))
    for key, values, kind in (("parts", parts, (int, float)), ("reasons", reasons, (str,))):
        if not all(isinstance(value, kind) for value in values.values()):
            fields.refuse_value(key, "numbers by name" if key == "parts" else "words by name")
    said = {
        "finished": finished,
        "reward": _numbered(fields, "reward"),
        "parts": {name: round(value, 4) for name, value in parts.items()},
        "reasons": reasons,
        "advantage": round(_numbered(fields, "advantage"), 4),
        "tokens": tokens,
        "logprobs": _of_tokens(fields, "logprobs", len(tokens)),
        "boxes": _predicted(Completion(text, len(tokens), finished), row, frame),
    }
    said |= {} if "".join(tokens) == text else {"text": text}
    return said | {
        key: _of_tokens(fields, key, len(tokens)) for key in ("reference", "entropies") if key in fields.keys
    }


def _predicted(completion: Completion, row: Row, frame: Frame | None) -> list[list[float]]:
    """The boxes with an area that an open answer names."""
    if (row.kind, row.task) != (Kind.OPEN, Task.DETECTION):
        return []
    answer = extract(completion)
    corners = answer if isinstance(answer, Reason) else boxes.read(answer)
    return [] if isinstance(corners, Reason) else _shares(corners[~boxes.degenerate(corners)], frame)


def _shares(corners: np.ndarray, frame: Frame | None) -> list[list[float]]:
    """Boxes `[n, 4]` as shares of their frame's sides; none of an unknown frame."""
    if frame is None:
        return []
    return np.round(corners / np.array([frame.width, frame.height] * 2), 5).tolist()


def _numbered(fields: Fields, key: str) -> float:
    if type(fields.keys.get(key)) not in (int, float):
        fields.refuse_value(key, "a number")
    return fields.keys[key]


def _of_tokens(fields: Fields, key: str, count: int) -> list[float]:
    values: Sequence[Any] = fields.take(key, list, "one number for each token")
    if len(values) != count or not all(type(value) in (int, float) for value in values):
        fields.refuse_value(key, "one number for each token")
    return [round(value, 3) for value in values]
