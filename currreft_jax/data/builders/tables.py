"""Published files as records: JSON, JSON lines, CSV, TSV and parquet. Nothing is ever unpickled."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from currreft_jax.data.builders.items import BuildError
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.row_files import RowFile

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_BATCH = 64


def files(folder: Path, suffixes: Sequence[str] = SUFFIXES, pattern: str = "*") -> list[Path]:
    """The tables under a folder, in the order of their names.

    Raises:
        BuildError: there is none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(path for suffix in suffixes for path in folder.rglob(pattern + suffix))
    if not found:
        raise BuildError(f"{folder} holds no {pattern}({' | '.join(suffixes)}); `build --list` says what is needed")
    return found


def records(path: Path) -> Iterator[Fields | LineError]:
    """The records of a table, each with its file and line; a line that is none yields its error."""
    match path.suffix:
        case ".parquet":
            yield from _parquet(path)
        case ".csv" | ".tsv":
            yield from _columns(path, "\t" if path.suffix == ".tsv" else ",")
        case _:
            yield from _json(path)


def json_object(path: Path) -> Fields:
    """A file that is one JSON object.

    Raises:
        BuildError: it is missing or none.
    """
    if not path.exists():
        raise BuildError(f"{path} is missing; `build --list` says what the folder must hold")
    try:
        return Fields.from_json(path.read_bytes(), str(path))
    except LineError as error:
        raise BuildError(str(error)) from error


def items(fields: Fields, key: str, wanted: str) -> Iterator[Fields | LineError]:
    """The objects of a list in a record, each with its place in it."""
    for index, item in enumerate(fields.take(key, list, wanted)):
        where = f"{fields.location} {key}[{index}]"
        if isinstance(item, dict):
            yield Fields(item, where)
        else:
            yield LineError(where, f"a {type(item).__name__}; it takes {wanted}")


def nested(fields: Fields, key: str) -> Fields:
    """A JSON object that a column holds, as an object or as text."""
    value = fields.keys.get(key)
    if isinstance(value, str):
        return Fields.from_json(value, f"{fields.location} {key}")
    return Fields(fields.take(key, dict, "a JSON object"), f"{fields.location} {key}")


def _json(path: Path) -> Iterator[Fields | LineError]:
    with RowFile(path) as file:
        for index in range(len(file)):
            try:
                record = file.fields(index)
            except LineError as error:
                yield error
            else:  # a list may stand on one line, and ids are made of places
                yield Fields(record.keys, f"{record.location}[{index}]") if path.suffix == ".json" else record


def _columns(path: Path, delimiter: str) -> Iterator[Fields | LineError]:
    csv.field_size_limit(1 << 28)  # images may stand in a cell
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield LineError(where, f"not a row of the table ({error})")
                return
            if cells is None:
                return
            if None in cells or None in cells.values():
                yield LineError(where, f"not as many cells as the header has ({len(reader.fieldnames or ())})")
            else:
                yield Fields(cells, where)


def _parquet(path: Path) -> Iterator[Fields]:
    if not find_spec("pyarrow"):
        raise BuildError(f"{path} is parquet, which pyarrow reads; install it with: pip install 'currreft_jax[data]'")
    module: Any = import_module("pyarrow.parquet")
    number = 0
    with module.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=_BATCH):
            for keys in batch.to_pylist():
                yield Fields(keys, f"{path}:row {number}")
                number += 1


def parsed(text: str, fields: Fields, key: str, wanted: str) -> Any:
    """JSON that stands in a cell."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        fields.refuse_value(key, wanted)
