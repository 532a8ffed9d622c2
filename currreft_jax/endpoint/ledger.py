"""The ledger: an append-only file of JSON lines with a checksum each, in which every call has its events."""

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

VERSION = 1
_FIRST_LINE = b'{"event":"opened","time":'
_CHECKSUM = b',"sha256":"'
_CHECKSUM_DIGITS = 16


class LedgerError(ValueError):
    """The file cannot be the ledger; the message names it and the remedy."""


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Opens or creates a ledger for this process alone; closes it with all events on the disk.

    Raises:
        LedgerError: another process has it open, or the file is no ledger, or one of another version.
        OSError: the file cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerError(f"{path}: another process writes it: wait for it, or take another ledger") from None
        ledger = Ledger(path, file)
        yield ledger
        ledger.sync()
    finally:
        os.close(file)


class Ledger:
    """An open ledger; see `open_ledger`.

    Events are `opened` (a run), `sent`, `reply` and `failed` (calls), and others that callers record. Only the places
    of outcomes stay in memory.

    Attributes:
        calls: calls of earlier runs.
        tokens: tokens of these calls; of calls whose usage is unknown their estimate.
        lost: those of these calls that have neither reply nor failure, because their program was killed.
        problems: damaged lines, each with file and line, and a dropped incomplete one.
    """

    def __init__(self, path: Path, file: int):
        """Reads all events.

        Args:
            path: name of the file, for messages.
            file: its descriptor, which appends.

        Raises:
            LedgerError: the file is no ledger, or one of another version.
        """
        self.calls = self.tokens = self.lost = 0
        self.problems: list[str] = []
        self._path = path
        self._file = file
        self._outcomes: dict[str, tuple[int, int]] = {}  # place and length of the line
        self._run = os.urandom(4).hex()
        self._sent = 0
        self._size = self._read()

    def open_run(self, url: str, model: str) -> None:
        """Records the start of a run that sends calls."""
        self.record("opened", version=VERSION, run=self._run, url=url, model=model)

    def send(self, key: str, request: str, attempt: int, tokens: int) -> str:
        """Records that a call is about to be sent.

        Args:
            key: the request's key in the ledger.
            request: the caller's name of the request.
            attempt: the calls of this run for the request, this one included.
            tokens: estimate of the tokens that it takes.

        Returns:
            A name of the call that no other call of any ledger has.
        """
        self._sent += 1
        call = f"{self._run}-{self._sent}"
        self.record("sent", call=call, key=key, request=request, attempt=attempt, tokens=tokens)
        return call

    def record(self, event: str, **fields: Any) -> None:
        """Appends an event with one write; `sync` makes it durable.

        A `reply`, and a `failed` with `final`, is the outcome of `key`; both have `call` and `tokens`.

        Raises:
            OSError: the disk is full, or another error; the line is not in the file.
        """
        line = _seal({"event": event, "time": round(time.time(), 3), **fields})
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes were written: the disk may be full")
        self._index(fields | {"event": event}, self._size, len(line))
        self._size += len(line)

    def outcome(self, key: str) -> dict[str, Any] | None:
        """Returns the event that settled a request, or None.

        Raises:
            LedgerError: the line has been damaged since it was read.
        """
        if key not in self._outcomes:
            return None
        offset, length = self._outcomes[key]
        event = _unseal(os.pread(self._file, length, offset))
        if event is None:
            raise LedgerError(
                f"{self._path}: changed at byte {offset} while it was open: let no other program write it"
            )
        return event

    def sync(self) -> None:
        """Waits until all events are on the disk."""
        os.fsync(self._file)

    def _read(self) -> int:
        """Reads all events, drops an unterminated last line; returns the size of what remains."""
        in_flight: dict[str, int] = {}  # estimates of calls that were sent
        offset = intact = 0
        for number, line in enumerate(self._lines(), 1):
            place = f"{self._path}:{number}"
            event = _unseal(line)
            if event is not None:
                intact += 1
                self._index(event, offset, len(line))
                self._count(event, in_flight)
            elif line.endswith(b"\n"):
                self.problems.append(f"{place}: damaged, ignored; a request whose outcome it was is asked again")
            elif intact or (number == 1 and line.startswith(_FIRST_LINE[: len(line)])):
                self.problems.append(f"{place}: dropped {len(line)} bytes of a line that was not written whole")
                os.ftruncate(self._file, offset)
                break
            offset += len(line)
        if offset and not intact:
            raise LedgerError(f"{self._path}:1: this is no ledger, or none of its lines is intact: take another file")
        self.lost = len(in_flight)
        self.tokens += sum(in_flight.values())
        return offset

    def _lines(self) -> Iterator[bytes]:
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            yield from file

    def _count(self, event: dict[str, Any], in_flight: dict[str, int]) -> None:
        """Counts an event of an earlier run."""
        if event["event"] == "opened" and event["version"] != VERSION:
            problem = f"of version {event['version']}, which this program does not read"
            raise LedgerError(f"{self._path}: a ledger {problem}: take another file")
        if event["event"] == "sent":
            self.calls += 1
            in_flight[event["call"]] = event["tokens"]
        elif event["event"] in ("reply", "failed"):
            if in_flight.pop(event["call"], None) is None:
                self.calls += 1  # the line of its sending is damaged
            self.tokens += event["tokens"]

    def _index(self, event: dict[str, Any], offset: int, length: int) -> None:
        if event["event"] == "reply" or (event["event"] == "failed" and event["final"]):
            self._outcomes[event["key"]] = offset, length


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
