"""The row schema.

A row is a JSON object with the fields of `structs.Row`:

| key | meaning |
|---|---|
| id | string or whole number; derived from content and line if absent |
| task, kind | see `config.Task` and `config.Kind`; the file's settings may give defaults |
| problem, solution | question and gold answer |
| image, images | one path or several, relative to the image root |
| options, multiple | of choice rows |
| frame | `[width, height]` that boxes are measured in; `[1, 1]` for fractions; the size of the first image if absent |
| boxes | values of `{box:0}`, `{box:1}`, … in problem, options and messages |
| messages | of a chat row: `{"role", "content"}`, with `<image>` in place of an image |
| conversations | the same in the ShareGPT and LLaVA format: `{"from", "value"}` |
| objects | of a chat row in the ms-swift format: names and boxes, see `data.grounding` |
| source, split, origin | data set, its split, its licence |
| provenance, judge | of rows kept by rejected sampling: the model, the sample and the scores of the answer; not read |

A null counts as an absent key. Other keys are the row's `extra`, which rewards of one's own read, except for videos and
sounds, which no row can have.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import MAX_SIDE, Fields
from currreft_jax.data.grounding import OBJECTS, fill_tags, refuse_objects
from currreft_jax.structs import Frame, Row, Turn

KEYS = frozenset(
    {
        *("id", "task", "kind", "problem", "solution", "image", "images", "options", "multiple", "frame", "boxes"),
        *("messages", "conversations", OBJECTS, "source", "split", "origin", "provenance", "judge"),
    }
)
MAX_OPTIONS = 26
IMAGE = "<image>"
UNIT_FRAME = Frame(1, 1)  # of boxes that are fractions of the image
# Speaker names of the published conversation formats -> roles of the chat template.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNREAD_MEDIA = ("video", "videos", "audio", "audios")
_DEFAULT_REMEDY = "; or give one for all rows of the file: --{0} of `dataset`, {0} of the source in a config"
_BOX_FIELD = re.compile(r"\{box:(\d+)\}")


def parse_row(fields: Fields, *, image_root: Path, kind: Kind | None = None, task: Task | None = None) -> Row:
    """Builds a row from a JSON object and validates everything that does not need its images.

    Args:
        fields: the object.
        image_root: folder that relative image paths start from.
        kind: default for rows without one, such as those of the authors' files.
        task: default for rows without one.

    Raises:
        LineError: naming the key and the values it takes.
    """
    keys = {key: value for key, value in fields.keys.items() if value is not None}
    fields = Fields(keys, fields.location)
    if media := [key for key in UNREAD_MEDIA if keys.get(key)]:
        fields.refuse(f'"{media[0]}" is not read; leave the row out')
    is_chat = "messages" in keys or "conversations" in keys
    row_kind: Kind = fields.enum("kind", Kind, kind or (Kind.CHAT if is_chat else None), _DEFAULT_REMEDY.format("kind"))
    if is_chat != (row_kind is Kind.CHAT):
        fields.refuse(
            f'kind {row_kind.value} {"has" if is_chat else "lacks"} "messages"; only chat rows have them, and all do:'
            " change one of them"
        )
    row_task: Task = fields.enum(
        "task", Task, task or (Task.OTHER if is_chat else None), _DEFAULT_REMEDY.format("task")
    )
    content_id = _content_id(fields)
    if is_chat:
        fields = fill_tags(fields, *_turn_keys(fields)[:2])
    else:
        refuse_objects(fields, ("problem", "solution", "options"))
    images = _parse_images(fields)
    row = Row(
        id=fields.row_id(content_id),
        task=row_task,
        kind=row_kind,
        problem="" if is_chat else fields.text("problem", meaning="the question"),
        solution="" if is_chat else parse_solution(fields),
        images=tuple(str(image_root / image) for image in images),
        options=fields.texts("options", f"a list of at most {MAX_OPTIONS} strings", MAX_OPTIONS),
        # The authors' files have no kind, and their choice rows of labels have several right options.
        multiple=fields.take(
            "multiple",
            bool,
            "true or false",
            "kind" not in keys and row_kind is Kind.CHOICE and row_task is Task.CLASSIFY,
        ),
        frame=fields.frame("frame"),
        boxes=_parse_boxes(fields),
        messages=_parse_turns(fields) if is_chat else (),
        source=fields.text("source", ""),
        split=fields.text("split", ""),
        origin=fields.text("origin", ""),
        extra=extra_keys(keys, KEYS.union(UNREAD_MEDIA)),
    )
    _validate_texts(fields, row)
    return row


def extra_keys(keys: Mapping[str, Any], known: Set[str]) -> dict[str, Any]:
    """Returns the keys that are none of the known ones, without nulls."""
    return {key: value for key, value in keys.items() if key not in known and value is not None}


def row_to_json(row: Row, image_root: Path | None = None) -> dict[str, Any]:
    """Returns the JSON object of a row, without the fields that have their default.

    Args:
        row: to convert.
        image_root: folder that image paths become relative to; they stay as they are if None.
    """
    images = [os.path.relpath(image, image_root) if image_root else image for image in row.images]
    keys: dict[str, Any] = {"id": row.id, "task": row.task.value, "kind": row.kind.value}
    if row.kind is not Kind.CHAT:
        keys |= {"problem": row.problem, "solution": row.solution}
    optional = {
        "image": images[0] if len(images) == 1 else None,
        "images": images if len(images) > 1 else None,
        "options": list(row.options),
        "multiple": row.multiple,
        "frame": row.frame and [row.frame.width, row.frame.height],
        "boxes": [list(box) for box in row.boxes],
        "messages": [{"role": turn.role, "content": turn.text} for turn in row.messages],
        "source": row.source,
        "split": row.split,
        "origin": row.origin,
    }
    return keys | {key: value for key, value in optional.items() if value} | dict(row.extra)


def split_conversation(row: Row) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """Splits a chat row at its first answer into the turns of the prompt and those of the completion."""
    first = next(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
    return row.messages[:first], row.messages[first:]


def _content_id(fields: Fields) -> str:
    content = json.dumps(fields.keys, sort_keys=True).encode()
    number = fields.location.rpartition(":")[2].removeprefix(" item ")
    return f"{hashlib.blake2b(content, digest_size=6).hexdigest()}-{number}"


def _parse_images(fields: Fields) -> tuple[str, ...]:
    if "image" in fields.keys and "images" in fields.keys:
        fields.refuse('both "image" and "images"; write one of them')
    key = "image" if "image" in fields.keys else "images"
    value = fields.keys.get(key, [])
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        fields.refuse_value(key, "a path, or a list of paths")
    return tuple(paths)


def parse_solution(fields: Fields) -> str:
    """Returns the gold answer, a string or a number, as a string."""
    value = fields.keys.get("solution")
    if type(value) in (int, float):  # as in the authors' counting test
        if isinstance(value, float) and not math.isfinite(value):
            fields.refuse(f'"solution" is {value}; it takes a finite number')
        return str(value)
    as_text = f"; write {json.dumps(json.dumps(value))[:80]}" if isinstance(value, list | dict) else ""
    return fields.text("solution", meaning=f"the gold answer{as_text}")


def _parse_boxes(fields: Fields) -> tuple[tuple[float, float, float, float], ...]:
    expected = "a list of [x1, y1, x2, y2] with x1 < x2 and y1 < y2, in pixels of the frame"
    boxes = fields.take("boxes", list, expected, [])
    for box in boxes:
        is_box = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not (is_box and all(abs(x) <= MAX_SIDE for x in box) and box[0] < box[2] and box[1] < box[3]):
            fields.refuse(f'"boxes" has {json.dumps(box)[:80]}; it takes {expected}')
    return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)


def _turn_keys(fields: Fields) -> tuple[str, str, str]:
    """Returns the keys of a conversation, of a turn's text and of its speaker."""
    return ("messages", "content", "role") if "messages" in fields.keys else ("conversations", "value", "from")


def _parse_turns(fields: Fields) -> tuple[Turn, ...]:
    key, content, role = _turn_keys(fields)
    expected = f'a list of {{"{role}", "{content}"}}, in which a user speaks first and an assistant last'
    turns = []
    for turn in fields.take(key, list, expected):
        is_turn = isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(content), str)
        if not is_turn or turn[role] not in ROLES:
            fields.refuse(f'"{key}" has {json.dumps(turn)[:80]}; it takes {expected}')
        turns.append(Turn(ROLES[turn[role]], turn[content]))
    speakers = [turn.role for turn in turns if turn.role != "system"]
    if not speakers or speakers[0] != "user" or turns[-1].role != "assistant":
        fields.refuse_value(key, expected)
    return tuple(turns)


def _validate_texts(fields: Fields, row: Row) -> None:
    """Checks that the texts refer to exactly the images and boxes of the row."""
    if row.messages:
        _validate_image_marks(fields, row)
    elif not row.problem.strip():
        fields.refuse_value("problem", "a question")
    if IMAGE in "\0".join((row.problem, *row.options)):
        fields.refuse(f"problem or options have {IMAGE}; remove it: the images stand before the question")
    texts = "\0".join((row.problem, *row.options, *(turn.text for turn in row.messages)))
    used, available = {int(index) for index in _BOX_FIELD.findall(texts)}, set(range(len(row.boxes)))
    if used - available:
        fields.refuse(f'the texts name {{box:{min(used - available)}}}, but "boxes" has {len(available)}; add it there')
    if available - used:
        fields.refuse(f'"boxes" has {len(available)}, but no text names {{box:{min(available - used)}}}; leave it out')
    if not row.images and (row.boxes or row.task is Task.DETECTION):
        fields.refuse(f'task {row.task.value} without an image; "image" takes a path')


def _validate_image_marks(fields: Fields, row: Row) -> None:
    """Checks that a conversation marks each image once, or none, and before the first answer."""
    num_marks = sum(turn.text.count(IMAGE) for turn in row.messages)
    if num_marks not in (0, len(row.images)):
        fields.refuse(
            f"the messages have {num_marks} {IMAGE}, but there are {len(row.images)} images; write one for each"
        )
    _, completion = split_conversation(row)
    if any(IMAGE in turn.text for turn in completion):
        fields.refuse(f"{IMAGE} in or after the first answer; write the turns before it as a row of their own")
