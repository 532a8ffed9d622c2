"""The ledger: a sealed file in which every call has its events."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from currreft_jax.runtime.sealed_file import SealedFile, SealedFileError, open_sealed_file

VERSION = 1


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Opens or creates a ledger for this process alone; closes it with all events on the disk.

    Raises:
        SealedFileError: another process has it open, or the file is no ledger, or one of another version.
        OSError: the file cannot be opened or written.
    """
    on_damage = "a request whose outcome it was is asked again"
    with open_sealed_file(path, name="ledger", on_damage=on_damage) as file:
        yield Ledger(path, file)


def recorded_calls(paths: Iterable[Path]) -> int:
    """Counts the calls in ledgers that no process has open.

    Raises:
        SealedFileError: a file is no ledger, or another process has it open.
    """
    calls = 0
    for path in paths:
        with open_ledger(path) as ledger:
            calls += ledger.calls
    return calls


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

    def __init__(self, path: Path, file: SealedFile):
        """Reads all events.

        Args:
            path: name of the file, for messages.
            file: the file, of which nothing has been read.

        Raises:
            SealedFileError: the file is no ledger, or one of another version.
        """
        self.calls = self.tokens = self.lost = 0
        self._path, self._file = path, file
        self._outcomes: dict[str, tuple[int, int]] = {}  # place and length of the line
        self._run = os.urandom(4).hex()
        self._sent = 0
        in_flight: dict[str, int] = {}  # estimates of calls that were sent
        for event, place in file.events():
            self._index(event, place)
            self._count(event, in_flight)
        self.problems = file.problems
        self.lost = len(in_flight)
        self.tokens += sum(in_flight.values())

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
        self._index(fields | {"event": event}, self._file.append(event, **fields))

    def outcome(self, key: str) -> dict[str, Any] | None:
        """Returns the event that settled a request, or None.

        Raises:
            SealedFileError: the line has been damaged since it was read.
        """
        return self._file.event_at(*self._outcomes[key]) if key in self._outcomes else None

    def sync(self) -> None:
        """Waits until all events are on the disk."""
        self._file.sync()

    def _count(self, event: dict[str, Any], in_flight: dict[str, int]) -> None:
        """Counts an event of an earlier run."""
        if event["event"] == "opened" and event["version"] != VERSION:
            problem = f"of version {event['version']}, which this program does not read"
            raise SealedFileError(f"{self._path}: a ledger {problem}: take another file")
        if event["event"] == "sent":
            self.calls += 1
            in_flight[event["call"]] = event["tokens"]
        elif event["event"] in ("reply", "failed"):
            if in_flight.pop(event["call"], None) is None:
                self.calls += 1  # the line of its sending is damaged
            self.tokens += event["tokens"]

    def _index(self, event: dict[str, Any], place: tuple[int, int]) -> None:
        if event["event"] == "reply" or (event["event"] == "failed" and event["final"]):
            self._outcomes[event["key"]] = place
