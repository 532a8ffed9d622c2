"""Typed access to the fields of a JSON object, with errors that name file, line and key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Frame

MAX_SIDE = 1_000_000  # pixels
BYTE_ORDER_MARK = "\ufeff"  # JSON in bytes may begin with one; in a string, Python refuses it


class LineError(ValueError):
    """A line of a data file is malformed; the message names the line and the remedy.

    Attributes:
        location: file and line.
        problem: what is wrong and what is expected.
        cause: the same for all lines with one mistake, whatever values `problem` shows: they are counted by it.
    """

    def __init__(self, location: str, problem: str, cause: str = ""):
        super().__init__(f"{location}: {problem}")
        self.location = location
        self.problem = problem
        self.cause = cause or problem


def count_causes(errors: Iterable[LineError]) -> list[tuple[int, LineError]]:
    """Returns for each cause, in order of appearance, the number of its errors and the first of them."""
    first: dict[str, LineError] = {}
    counts: Counter[str] = Counter()
    for error in errors:
        first.setdefault(error.cause, error)
        counts[error.cause] += 1
    return [(counts[cause], error) for cause, error in first.items()]


def list_equal(errors: Iterable[LineError], most: int) -> list[str]:
    """Lists errors, those with the same problem in one line: the first of them and their number."""
    equal = count_causes(LineError(error.location, error.problem) for error in errors)
    lines = [f"{error} ({count:,} rows)" if count > 1 else str(error) for count, error in equal[:most]]
    more = sum(count for count, _ in equal[most:])
    return [*lines, f"and {more:,} more"] if more else lines


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one JSON object; each method reads and validates one of them.

    Attributes:
        keys: the object.
        location: file and line, for error messages.
    """

    keys: Mapping[str, Any]
    location: str

    @classmethod
    def from_json(cls, text: str | bytes, location: str) -> Fields:
        """Parses one line; a byte-order mark before it is skipped.

        Raises:
            LineError: the line is not a JSON object.
        """
        try:
            keys = json.loads(_without_mark(text), parse_constant=_refuse_constant)
            json.dumps(keys, ensure_ascii=False).encode()  # fails on lone surrogates, which no tokenizer accepts
        except (ValueError, RecursionError) as error:
            table = location.partition(":")[0].endswith((".csv", ".tsv", ".parquet"))
            remedy = "make rows of the table with `dataset build table`" if table else "write one object a line"
            raise LineError(location, f"not JSON ({error}); {remedy}", cause="not JSON") from error
        if not isinstance(keys, dict):
            raise LineError(location, f"a {type(keys).__name__}; write one object a line")
        return cls(keys, location)

    def refuse(self, problem: str, cause: str = "") -> NoReturn:
        """Raises a `LineError` at this location."""
        raise LineError(self.location, problem, cause)

    def refuse_value(self, key: str, expected: str) -> NoReturn:
        """Raises a `LineError` that shows the value of a key and what was expected."""
        shown = json.dumps(self.keys[key], default=repr)[:80] if key in self.keys else "missing"  # a cell may be bytes
        self.refuse(f'"{key}" is {shown}; it takes {expected}', cause=f'"{key}" takes {expected}')

    def take(self, key: str, value_type: type, expected: str, default: Any = None) -> Any:
        """Returns the value of a key, or the default if the key is absent.

        Raises:
            LineError: the value is not of the type.
        """
        value = self.keys.get(key, default)
        if not isinstance(value, value_type):
            self.refuse_value(key, expected)
        return value

    def text(self, key: str, default: str | None = None, meaning: str = "") -> str:
        """Returns a string."""
        return self.take(key, str, f"a string: {meaning}" if meaning else "a string", default)

    def enum(
        self, key: str, enum: type[Kind] | type[Task], default: Kind | Task | None = None, remedy: str = ""
    ) -> Any:
        """Returns the enum member with this value; `remedy` is added to the error if the key is absent."""
        values = [member.value for member in enum]
        if key not in self.keys and default:
            return default
        if self.keys.get(key) not in values:
            own = "; other is a task with a reward of your own" if enum is Task else ""
            self.refuse_value(key, ", ".join(values) + (own if key in self.keys else remedy))
        return enum(self.keys[key])

    def texts(self, key: str, expected: str, max_length: int | None = None) -> tuple[str, ...]:
        """Returns a list of strings; empty if the key is absent."""
        values = self.take(key, list, expected, [])
        if len(values) > (max_length or len(values)) or not all(isinstance(value, str) for value in values):
            self.refuse_value(key, expected)
        return tuple(values)

    def frame(self, key: str) -> Frame | None:
        """Returns a `[width, height]` in pixels; None if the key is absent."""
        expected = "[width, height], in pixels"
        if key not in self.keys:
            return None
        sides = self.take(key, list, expected)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
            self.refuse_value(key, expected)
        return Frame(*sides)

    def row_id(self, default: str) -> str:
        """Returns the `id`, a string or an integer, as a string."""
        value = self.keys.get("id", default)
        if type(value) not in (str, int):
            self.refuse_value("id", "a string or a whole number")
        return str(value)


def repeated_keys(text: str | bytes) -> list[str]:
    """Returns the keys that an object in a JSON text has more than once; only their last values are read.

    Raises:
        ValueError: the text is not JSON.
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    json.loads(_without_mark(text), object_pairs_hook=collect)
    return repeated


def _without_mark(text: str | bytes) -> str | bytes:
    return text.removeprefix(BYTE_ORDER_MARK) if isinstance(text, str) else text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
