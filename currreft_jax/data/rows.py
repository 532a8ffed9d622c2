"""Rows on disk: one schema, JSON lines, and the published forms that load as they are.

A row is a JSON object of the fields of `structs.Row`:

| key | meaning |
|---|---|
| id | string or whole number; made of content and line where absent |
| task, kind | see `config.Task` and `config.Kind`; the file's entry may give them for rows that lack them |
| problem, solution | question and gold answer |
| image, images | a path or several, relative to the image root |
| options, multiple | of choice rows |
| frame | `[width, height]` that boxes are measured in; the image's own size where absent |
| boxes | what `{box:0}`, `{box:1}`, … in problem and options stand for |
| messages | of a chat row: `{"role", "content"}`, with `<image>` where an image stands |
| conversations | the same as ShareGPT and LLaVA write it: `{"from", "value"}` |
| source, split, origin | where the row comes from |

A file is JSON lines, or one JSON list of such objects. A null counts as an absent key, and other keys play no part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Frame, Row, Turn

KEYS = frozenset(
    {
        *("id", "task", "kind", "problem", "solution", "image", "images", "options", "multiple", "frame", "boxes"),
        *("messages", "conversations", "source", "split", "origin"),
    }
)
MAX_OPTIONS = 26
MAX_SIDE = 1_000_000
IMAGE = "<image>"
_FOR_ALL = "; or name one for all rows of the file"
_BOX = re.compile(r"\{box:(\d+)\}")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LineError(ValueError):
    """A line that is no row; the message says where it stands and what would mend it.

    Attributes:
        where: file and line.
        problem: what is wrong and what is wanted.
    """

    def __init__(self, where: str, problem: str):
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object whose fields are read and checked by name.

    Attributes:
        keys: the object.
        where: file and line, for errors.
    """

    keys: Mapping[str, Any]
    where: str

    @classmethod
    def of_line(cls, text: str | bytes, where: str) -> Fields:
        """The object on a line.

        Raises:
            LineError: it is none.
        """
        try:
            keys = json.loads(text, parse_constant=_refuse_constant)
            json.dumps(
                keys, ensure_ascii=False
            ).encode()  # refuses halves of characters: no file or tokenizer takes them
        except (ValueError, RecursionError) as error:
            raise LineError(where, f"not JSON ({error}); write one object a line") from error
        if not isinstance(keys, dict):
            raise LineError(where, f"a {type(keys).__name__}; write one object a line")
        return cls(keys, where)

    def refuse(self, problem: str) -> NoReturn:
        """Raises the line's `LineError`."""
        raise LineError(self.where, problem)

    def refuse_value(self, key: str, wanted: str) -> NoReturn:
        """Raises the `LineError` of a value that is not what its key takes."""
        shown = json.dumps(self.keys[key])[:80] if key in self.keys else "missing"
        self.refuse(f'"{key}" is {shown}; it takes {wanted}')

    def take(self, key: str, kind: type, wanted: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is absent; refused if it is of another type."""
        value = self.keys.get(key, default)
        if not isinstance(value, kind):
            self.refuse_value(key, wanted)
        return value

    def text(self, key: str, default: str | None = None, meaning: str = "") -> str:
        """A string."""
        return self.take(key, str, f"a string: {meaning}" if meaning else "a string", default)

    def choose(
        self, key: str, kind: type[Kind] | type[Task], default: Kind | Task | None = None, absent: str = ""
    ) -> Any:
        """A member of an enum, by its value; `absent` adds to the error of a row without one."""
        names = [member.value for member in kind]
        if key not in self.keys and default:
            return default
        if self.keys.get(key) not in names:
            self.refuse_value(key, ", ".join(names) + (absent if key not in self.keys else ""))
        return kind(self.keys[key])

    def texts(self, key: str, wanted: str, most: int | None = None) -> tuple[str, ...]:
        """A list of strings."""
        values = self.take(key, list, wanted, [])
        if len(values) > (most or len(values)) or not all(isinstance(value, str) for value in values):
            self.refuse_value(key, wanted)
        return tuple(values)

    def frame(self, key: str) -> Frame | None:
        """A size in pixels, if given."""
        wanted = "[width, height], in pixels"
        if key not in self.keys:
            return None
        sides = self.take(key, list, wanted)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
            self.refuse_value(key, wanted)
        return Frame(*sides)

    def identity(self, default: str) -> str:
        """The row's id."""
        value = self.keys.get("id", default)
        if type(value) not in (str, int):
            self.refuse_value("id", "a string or a whole number")
        return str(value)


def parse(fields: Fields, *, image_root: Path, kind: Kind | None = None, task: Task | None = None) -> Row:
    """One row, checked for everything that can be seen without its images.

    Args:
        fields: the object.
        image_root: what relative image paths start from.
        kind: of rows that name none, as the authors' files do.
        task: of rows that name none.

    Raises:
        LineError: naming the key and the values it takes.
    """
    keys = {key: value for key, value in fields.keys.items() if value is not None}
    fields = Fields(keys, fields.where)
    chat = "messages" in keys or "conversations" in keys
    its_kind: Kind = fields.choose("kind", Kind, kind or (Kind.CHAT if chat else None), _FOR_ALL)
    if chat != (its_kind is Kind.CHAT):
        fields.refuse(
            f'kind {its_kind.value} {"has" if chat else "lacks"} "messages"; only chat rows have them, and all do'
        )
    its_task: Task = fields.choose("task", Task, task or (Task.OTHER if chat else None), _FOR_ALL)
    images = _images(fields)
    row = Row(
        id=fields.identity(_content_id(fields)),
        task=its_task,
        kind=its_kind,
        problem="" if chat else fields.text("problem", meaning="the question"),
        solution="" if chat else _solution(fields),
        images=tuple(str(image_root / image) for image in images),
        options=fields.texts("options", f"a list of at most {MAX_OPTIONS} strings", MAX_OPTIONS),
        # The authors' files have no kind, and their choice rows of labels have several right options.
        multiple=fields.take(
            "multiple",
            bool,
            "true or false",
            "kind" not in keys and its_kind is Kind.CHOICE and its_task is Task.CLASSIFY,
        ),
        frame=fields.frame("frame"),
        boxes=_boxes(fields),
        messages=_turns(fields) if chat else (),
        source=fields.text("source", ""),
        split=fields.text("split", ""),
        origin=fields.text("origin", ""),
    )
    _check_texts(fields, row)
    return row


def to_keys(row: Row, image_root: Path | None = None) -> dict[str, Any]:
    """The JSON object of a row; fields that have their default are left out.

    Args:
        row: what to write.
        image_root: folder that the image paths are written relative to.
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
    return keys | {key: value for key, value in optional.items() if value}


def write_rows(path: Path, rows: Iterator[Row] | Sequence[Row]) -> int:
    """Writes rows as JSON lines, whole or not at all, with image paths relative to the file; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    root, count = path.parent.absolute(), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(to_keys(row, root), ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


class RowFile:
    """Random access to the rows of a file; threads may share it.

    Attributes:
        path: of the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_root: str | Path | None = None,
        kind: Kind | None = None,
        task: Task | None = None,
    ):
        """Opens a file and finds its lines.

        Args:
            path: JSON lines, or a JSON list.
            image_root: what image paths start from; the file's own folder by default.
            kind: of rows that name none.
            task: of rows that name none.

        Raises:
            FileNotFoundError: there is no such file.
            LineError: the file is a list that is not JSON.
            ValueError: the file holds no rows.
        """
        self.path = Path(path)
        self._defaults: dict[str, Any] = {
            "image_root": (Path(image_root) if image_root else self.path.parent).absolute(),
            "kind": kind,
            "task": task,
        }
        self._items: list[tuple[int, str]] | None = None
        self._file = self.path.open("rb")
        try:
            first = next((line for line in self._file if line.strip()), b"")
            self._file.seek(0)
            if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                self._items = list(_list_items(self._file.read(), str(self.path)))
            else:
                self._starts, self._lines = _line_starts(self._file)
            self._size = len(self._lines if self._items is None else self._items)
            if not self._size:
                raise ValueError(f"{self.path} holds no rows; write one JSON object a line")
        except ValueError:
            self.close()
            raise

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def where(self, index: int) -> str:
        """File and line of a row, and of a list the item, since a whole list may stand on one line."""
        if self._items is not None:
            return f"{self.path}:{self._items[index][0]}: item {range(len(self))[index] + 1}"
        return f"{self.path}:{int(self._lines[index])}"

    def fields(self, index: int) -> Fields:
        """The JSON object of a row.

        Raises:
            LineError: the line is none.
        """
        if self._items is not None:
            text: str | bytes = self._items[index][1]
        else:
            start, end = self._starts[index]
            text = os.pread(self._file.fileno(), int(end - start), int(start))
        return Fields.of_line(text, self.where(index))

    def __getitem__(self, index: int) -> Row:
        """The row, checked.

        Raises:
            LineError: the line is no row.
        """
        return parse(self.fields(index), **self._defaults)


@dataclass(slots=True)
class Checked:
    """What reading a whole file found.

    Attributes:
        rows: the rows that can be used.
        indices: int64, their places in the file.
        errors: the others.
    """

    rows: list[Row] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)


def check(file: RowFile) -> Checked:
    """Reads every row of a file."""
    checked = Checked()
    for index in range(len(file)):
        try:
            checked.rows.append(file[index])
            checked.indices.append(index)
        except LineError as error:
            checked.errors.append(error)
    return checked


def _line_starts(file: Any) -> tuple[np.ndarray, np.ndarray]:
    """Byte ranges int64 `[n, 2]` and line numbers `[n]` of the lines that are not blank."""
    ranges, numbers, position = [], [], 0
    for number, line in enumerate(file, 1):
        if line.strip():
            ranges.append((position, position + len(line)))
            numbers.append(number)
        position += len(line)
    return np.array(ranges, np.int64).reshape(-1, 2), np.array(numbers, np.int64)


def _list_items(content: bytes, path: str) -> Iterator[tuple[int, str]]:
    """The line on which each item of a JSON list begins, and its text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineError(path, f"not UTF-8 ({error}); convert it") from error
    decoder, line, counted, position = json.JSONDecoder(), 1, 0, text.index("[") + 1
    awaited = True  # an item, rather than a comma
    while True:
        while text[position : position + 1].isspace():
            position += 1
        line += text.count("\n", counted, position)
        counted, next_one = position, text[position : position + 1]
        try:
            if next_one == "]":
                if text[position + 1 :].strip():
                    raise ValueError("something stands behind the list")
                return
            if awaited:
                _, end = decoder.raw_decode(text, position)
                yield line, text[position:end]
                position, awaited = end, False
            elif next_one == ",":
                position, awaited = position + 1, True
            else:
                raise ValueError("no comma behind an item")
        except (ValueError, RecursionError) as error:
            raise LineError(
                f"{path}:{line}", f"not JSON ({error}); the list ends early or an item is damaged"
            ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _content_id(fields: Fields) -> str:
    content = json.dumps(fields.keys, sort_keys=True).encode()
    number = fields.where.rpartition(":")[2].removeprefix(" item ")
    return f"{hashlib.blake2b(content, digest_size=6).hexdigest()}-{number}"


def _images(fields: Fields) -> tuple[str, ...]:
    if "image" in fields.keys and "images" in fields.keys:
        fields.refuse('both "image" and "images"; write one of them')
    key = "image" if "image" in fields.keys else "images"
    value = fields.keys.get(key, [])
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        fields.refuse_value(key, "a path, or a list of paths")
    return tuple(paths)


def _solution(fields: Fields) -> str:
    value = fields.keys.get("solution")
    if type(value) in (int, float):  # as the authors' counting test has it
        return str(value)
    return fields.text("solution", meaning="the gold answer")


def _boxes(fields: Fields) -> tuple[tuple[float, float, float, float], ...]:
    wanted = "a list of [x1, y1, x2, y2] with x1 < x2 and y1 < y2, in pixels of the frame"
    boxes = fields.take("boxes", list, wanted, [])
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not (numbers and all(abs(x) <= MAX_SIDE for x in box) and box[0] < box[2] and box[1] < box[3]):
            fields.refuse(f'"boxes" has {json.dumps(box)[:80]}; it takes {wanted}')
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)


def _turns(fields: Fields) -> tuple[Turn, ...]:
    key, role, content = ("messages", "role", "content")
    if key not in fields.keys:
        key, role, content = ("conversations", "from", "value")
    wanted = f'a list of {{"{role}", "{content}"}}, in which a user speaks first and an assistant last'
    turns = []
    for turn in fields.take(key, list, wanted):
        texts = isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(content), str)
        if not texts or turn[role] not in _ROLES:
            fields.refuse(f'"{key}" has {json.dumps(turn)[:80]}; it takes {wanted}')
        turns.append(Turn(_ROLES[turn[role]], turn[content]))
    speakers = [turn.role for turn in turns if turn.role != "system"]
    if not speakers or speakers[0] != "user" or turns[-1].role != "assistant":
        fields.refuse_value(key, wanted)
    return tuple(turns)


def _check_texts(fields: Fields, row: Row) -> None:
    """Whether the texts name as many images and boxes as there are."""
    if row.messages:
        _check_marks(fields, row)
    elif not row.problem.strip():
        fields.refuse_value("problem", "a question")
    texts = "\0".join((row.problem, *row.options))
    if IMAGE in texts:
        fields.refuse(f"problem or options have {IMAGE}; remove it: the images stand before the question")
    named, there = {int(number) for number in _BOX.findall(texts)}, set(range(len(row.boxes)))
    if named - there:
        fields.refuse(f'the texts name {{box:{min(named - there)}}}, but "boxes" has {len(there)}')
    if there - named:
        fields.refuse(f'"boxes" has {len(there)}, but neither problem nor options name {{box:{min(there - named)}}}')
    if not row.images and (row.boxes or row.task is Task.DETECTION):
        fields.refuse(f'task {row.task.value} without an image; "image" takes a path')


def _check_marks(fields: Fields, row: Row) -> None:
    """Whether a conversation marks each image once, or none, and before the first answer."""
    marked = sum(turn.text.count(IMAGE) for turn in row.messages)
    if marked not in (0, len(row.images)):
        fields.refuse(f"the messages have {marked} {IMAGE}, but there are {len(row.images)} images; write one for each")
    first = next(index for index, turn in enumerate(row.messages) if turn.role == "assistant")
    if any(IMAGE in turn.text for turn in row.messages[first:]):
        fields.refuse(f"{IMAGE} in or behind the first answer; write the turns before it as a row of their own")
