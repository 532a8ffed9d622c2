"""Answers files: one JSON line for each row of a suite, in the suite's order. Loads no JAX.

`OUT/MODEL/SUITE.jsonl` holds the answers of a model to a suite, `OUT/MODEL/SUITE.manifest.json` what they depend on
(see `evaluation.manifest`). With blank or shuffled images the files are `SUITE.blank.jsonl` and `SUITE.shuffled.jsonl`.
A line has these keys; lists have one item for each completion:

| key | meaning |
|---|---|
| row | id of the row |
| image | key of the row's own images, the same for the same pixels; empty without images |
| task, kind | values of `config.Task` and `config.Kind` |
| completions | texts |
| strict | 1 if right in the layout and the tags that training demands, else 0 |
| readable | 1 if right as a careful person reads the text, else 0 |
| strict_score, readable_score | graded, in [0, 1]: IoU, overlap of labels, equation 4; or the same |
| reasons | why the strict reading is not right, a value of `structs.Reason`; null where it is right |
| decided | where the readable reading found the answer, a value of `evaluation.readable.Found` |
| finished | false where the token limit cut the completion off |
| resized | [width, height] in which the model saw the first image, and in which boxes are; absent without images |
| official | 1 or 0 by the authors' lenient scorer; absent unless asked for, and for kinds that they do not evaluate |
| failure | why a server could not take the question; absent where it was answered, else the lists are empty |

Conversations, of which benchmarks consist, have no verdicts here: the lists from strict to decided are empty.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError

SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """The completions of one row and their verdicts; see the module for the fields."""

    row: str
    image: str
    task: Task
    kind: Kind
    completions: tuple[str, ...]
    strict: tuple[int, ...]
    readable: tuple[int, ...]
    strict_score: tuple[float, ...]
    readable_score: tuple[float, ...]
    reasons: tuple[str | None, ...]
    decided: tuple[str, ...]
    finished: tuple[bool, ...]
    official: tuple[int, ...] = ()
    failure: str = ""
    resized: tuple[int, int] | None = None


def answer_line(answer: Answer) -> str:
    """Returns the line of an answer, with its line break."""
    keys = asdict(answer) | {"task": answer.task.value, "kind": answer.kind.value}
    for name in ("resized", "official", "failure"):
        if not keys[name]:
            del keys[name]
    return json.dumps(keys, ensure_ascii=False) + "\n"


def parse_answer(text: str | bytes, location: str) -> Answer:
    """Parses one line.

    Raises:
        LineError: the line is damaged; the message names file, line and key.
    """
    fields = Fields.from_json(text, location)
    completions = fields.texts("completions", "a list of strings")
    resized = fields.frame("resized")
    failure = fields.text("failure") if "failure" in fields.keys else ""
    if bool(failure) == bool(completions):
        fields.refuse_value("completions", "a list of at least one string; an empty one with a failure")

    kind = fields.enum("kind", Kind)
    verdicts_count = 0 if kind is Kind.CHAT else len(completions)

    def items(key: str, types: tuple[type, ...], expected: str) -> tuple[Any, ...]:
        values = fields.take(key, list, f"a list of {expected}")
        count = len(completions) if key == "finished" else verdicts_count
        if len(values) != count or not all(type(value) in types for value in values):
            fields.refuse_value(key, f"a list of {count} {expected}")
        return tuple(values)

    def shares(key: str) -> tuple[float, ...]:
        values = items(key, (int, float), "numbers in [0, 1]")
        if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
            fields.refuse_value(key, "numbers in [0, 1]")
        return tuple(map(float, values))

    def verdicts(key: str) -> tuple[int, ...]:
        values = items(key, (int,), "0 or 1")
        if not set(values) <= {0, 1}:
            fields.refuse_value(key, "0 or 1 for each completion")
        return values

    return Answer(
        row=fields.text("row"),
        image=fields.text("image"),
        task=fields.enum("task", Task),
        kind=kind,
        completions=completions,
        strict=verdicts("strict"),
        readable=verdicts("readable"),
        strict_score=shares("strict_score"),
        readable_score=shares("readable_score"),
        reasons=items("reasons", (str, type(None)), "reasons or null"),
        decided=items("decided", (str,), "strings"),
        finished=items("finished", (bool,), "true or false"),
        official=verdicts("official") if "official" in fields.keys else (),
        failure=failure,
        resized=resized and (resized.width, resized.height),
    )


def read_answers(path: str | Path) -> Iterator[Answer]:
    """Yields the answers of a file.

    Raises:
        LineError: a line is damaged, or the last one is cut off.
        FileNotFoundError: the file does not exist.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                raise LineError(f"{path}:{number}", "the line is cut off; evaluate again, which completes the file")
            yield parse_answer(line, f"{path}:{number}")


class AnswersWriter:
    """Appends answers to a file that an earlier run may have begun, as a context manager.

    A last line without a line break, which a killed run leaves, is removed; whatever else is damaged is refused.

    Attributes:
        count: answers in the file.
    """

    def __init__(self, path: Path, rows: Sequence[str]) -> None:
        """Opens or creates the file.

        Args:
            path: the file; its folder is created.
            rows: ids of the suite's rows, in order.

        Raises:
            LineError: a line is damaged, or of another row than the suite has there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self.count = end = 0
        try:
            self._file.seek(0)
            for line in self._file:
                if not line.endswith(b"\n"):
                    break
                location = f"{path}:{self.count + 1}"
                row = parse_answer(line, location).row
                if self.count >= len(rows) or rows[self.count] != row:
                    raise LineError(location, f"row {row!r} is not the suite's; remove the file, or write elsewhere")
                self.count, end = self.count + 1, end + len(line)
            self._file.truncate(end)
        except ValueError:
            self._file.close()
            raise

    def __enter__(self) -> AnswersWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, answers: Sequence[Answer]) -> None:
        """Appends answers, and has them on the disk when it returns."""
        self._file.write("".join(map(answer_line, answers)).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.count += len(answers)
