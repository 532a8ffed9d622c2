"""Files of rows, as JSON lines or as one JSON list."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import parse_row, row_to_json
from currreft_jax.structs import Row


class RowFile:
    """Random access to the rows of a file. Thread-safe.

    Attributes:
        path: path of the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_root: str | Path | None = None,
        kind: Kind | None = None,
        task: Task | None = None,
    ):
        """Opens a file and indexes its rows.

        Args:
            path: JSON lines, or a JSON list.
            image_root: folder that image paths are relative to; the file's own by default.
            kind: default for rows without one.
            task: default for rows without one.

        Raises:
            FileNotFoundError: the file does not exist.
            LineError: the file is a list with malformed JSON.
            ValueError: the file has no rows.
        """
        self.path = Path(path)
        self._image_root = (Path(image_root) if image_root else self.path.parent).absolute()
        self._kind, self._task = kind, task
        self._items: list[tuple[int, str]] | None = None
        self._file = self.path.open("rb")
        try:
            first_line = next((line for line in self._file if line.removeprefix(BOM_UTF8).strip()), b"")
            self._file.seek(0)
            if first_line.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
                self._items = list(_list_items(self._file.read(), str(self.path)))
            else:
                self._byte_ranges, self._line_numbers = _index_lines(self._file)
            self._size = len(self._line_numbers if self._items is None else self._items)
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

    def location(self, index: int) -> str:
        """Returns file and line of a row; for a list also the item, as a whole list may be on one line."""
        if self._items is not None:
            return f"{self.path}:{self._items[index][0]}: item {range(len(self))[index] + 1}"
        return f"{self.path}:{int(self._line_numbers[index])}"

    def text(self, index: int) -> str | bytes:
        """Returns the JSON of a row as it stands in the file."""
        if self._items is not None:
            return self._items[index][1]
        start, end = self._byte_ranges[index]
        return os.pread(self._file.fileno(), int(end - start), int(start))

    def fields(self, index: int) -> Fields:
        """Reads the JSON object of a row.

        Raises:
            LineError: the line is not a JSON object.
        """
        return Fields.from_json(self.text(index), self.location(index))

    def __getitem__(self, index: int) -> Row:
        """Reads and validates a row.

        Raises:
            LineError: the row is malformed.
        """
        return parse_row(self.fields(index), image_root=self._image_root, kind=self._kind, task=self._task)


@dataclass(slots=True)
class ParsedRows:
    """The rows of a whole file.

    Attributes:
        rows: the valid rows.
        indices: indices of the valid rows in the file.
        errors: errors of the other rows.
    """

    rows: list[Row] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)


def parse_rows(file: RowFile) -> ParsedRows:
    """Parses every row of a file; malformed rows are returned as errors."""
    parsed = ParsedRows()
    for index in range(len(file)):
        try:
            parsed.rows.append(file[index])
            parsed.indices.append(index)
        except LineError as error:
            parsed.errors.append(error)
    return parsed


def write_rows(path: Path, rows: Iterator[Row] | Sequence[Row]) -> int:
    """Writes rows as JSON lines, atomically, with image paths relative to the file; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    root, count = path.parent.absolute(), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row_to_json(row, root), ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def _index_lines(file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """Returns byte ranges, int64 `[n, 2]`, and line numbers, int64 `[n]`, of the lines that are not blank."""
    ranges, line_numbers, offset = [], [], 0
    for line_number, line in enumerate(file, 1):
        if line.removeprefix(BOM_UTF8).strip():
            ranges.append((offset, offset + len(line)))
            line_numbers.append(line_number)
        offset += len(line)
    return np.array(ranges, np.int64).reshape(-1, 2), np.array(line_numbers, np.int64)


def _list_items(content: bytes, path: str) -> Iterator[tuple[int, str]]:
    """Yields each item of a JSON list as the number of its first line and its text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineError(path, f"not UTF-8 ({error}); convert it") from error
    decoder, line_number, counted, offset = json.JSONDecoder(), 1, 0, text.index("[") + 1
    expects_item = True  # rather than a comma
    while True:
        while text[offset : offset + 1].isspace():
            offset += 1
        line_number += text.count("\n", counted, offset)
        counted, character = offset, text[offset : offset + 1]
        try:
            if character == "]":
                if text[offset + 1 :].strip():
                    raise ValueError("text after the list")
                return
            if expects_item:
                _, end = decoder.raw_decode(text, offset)
                yield line_number, text[offset:end]
                offset, expects_item = end, False
            elif character == ",":
                offset, expects_item = offset + 1, True
            else:
                raise ValueError("no comma after an item")
        except (ValueError, RecursionError) as error:
            raise LineError(
                f"{path}:{line_number}", f"not JSON ({error}); the list ends early or an item is damaged; mend it there"
            ) from error
