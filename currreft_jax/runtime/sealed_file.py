"""Append-only files of JSON lines with a checksum each, which survive kills and show damage. Loads no JAX."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FIRST_LINE = b'{"event":"opened","time":'
_CHECKSUM = b',"sha256":"'
_CHECKSUM_DIGITS = 16


class SealedFileError(ValueError):
    """The file cannot be used; the message names it and the remedy."""


@contextmanager
def open_sealed_file(path: Path, *, name: str, on_damage: str) -> Iterator[SealedFile]:
    """Opens or creates a file for this process alone; closes it with all lines on the disk.

    Args:
        path: the file; its folder is created.
        name: what it is, such as `ledger`, for messages.
        on_damage: what becomes of a damaged line, for messages.

    Raises:
        SealedFileError: another process has it open.
        OSError: the file cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SealedFileError(f"{path}: another process writes it: wait for it, or take another {name}") from None
        file = SealedFile(path, descriptor, name, on_damage)
        yield file
        file.sync()
    finally:
        os.close(descriptor)


class SealedFile:
    """An open file of events; see `open_sealed_file`. `events` must be read to the end before the first `append`.

    Attributes:
        problems: damaged lines, each with file and line, and a dropped incomplete one.
    """

    def __init__(self, path: Path, descriptor: int, name: str, on_damage: str):
        self.problems: list[str] = []
        self._path, self._file, self._name, self._on_damage = path, descriptor, name, on_damage
        self._size = 0

    def events(self) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """Yields each intact event, and place and length of its line; drops an unterminated last line.

        Raises:
            SealedFileError: no line is intact.
        """
        offset = intact = 0
        for number, line in enumerate(self._lines(), 1):
            place = f"{self._path}:{number}"
            event = _unseal(line)
            if event is not None:
                intact += 1
                yield event, (offset, len(line))
            elif line.endswith(b"\n"):
                self.problems.append(f"{place}: damaged, ignored; {self._on_damage}")
            elif intact or (number == 1 and line.startswith(_FIRST_LINE[: len(line)])):
                self.problems.append(f"{place}: dropped {len(line)} bytes of a line that was not written whole")
                os.ftruncate(self._file, offset)
                break
            offset += len(line)
        if offset and not intact:
            raise SealedFileError(
                f"{self._path}:1: this is no {self._name}, or none of its lines is intact: take another file"
            )
        self._size = offset

    def append(self, event: str, **fields: Any) -> tuple[int, int]:
        """Appends an event with one write, and returns place and length of its line; `sync` makes it durable.

        The first event of a file is `opened`: a line that a kill has cut off is known by it.

        Raises:
            OSError: the disk is full, or another error; the line is not in the file.
        """
        line = _seal({"event": event, "time": round(time.time(), 3), **fields})
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes were written: the disk may be full")
        place = self._size, len(line)
        self._size += len(line)
        return place

    def event_at(self, offset: int, length: int) -> dict[str, Any]:
        """Reads the event of a line again.

        Raises:
            SealedFileError: the line has been damaged since it was read.
        """
        event = _unseal(os.pread(self._file, length, offset))
        if event is None:
            raise SealedFileError(
                f"{self._path}: changed at byte {offset} while it was open: let no other program write it"
            )
        return event

    def sync(self) -> None:
        """Waits until all events are on the disk."""
        os.fsync(self._file)

    def _lines(self) -> Iterator[bytes]:
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            yield from file


def _seal(event: dict[str, Any]) -> bytes:
    """Returns an event as one line that ends in a checksum of the JSON without it."""
    body = json.dumps(event, separators=(",", ":")).encode("ascii")
    return body[:-1] + _CHECKSUM + _digest(body) + b'"}\n'


def _unseal(line: bytes) -> dict[str, Any] | None:
    """Returns the event of a line, or None if it is damaged."""
    head, _, tail = line.rpartition(_CHECKSUM)
    if tail != _digest(head + b"}") + b'"}\n':
        return None
    return json.loads(head + b"}")


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECKSUM_DIGITS].encode("ascii")
