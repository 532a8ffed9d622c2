"""Published files read as records: JSON, JSON lines, CSV, TSV and parquet. Nothing is ever unpickled."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from currreft_jax.data.builders.converter import BuildError
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.row_files import RowFile

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_PARQUET_BATCH = 64
_FILE_SPLIT = re.compile(r"(?:^|[_.-])(train|trainval|val|valid|validation|test[AB]?)(?=[_.-])")
_MAX_CSV_CELL = 1 << 28  # characters: a cell may hold an image


def find_files(folder: Path, suffixes: Sequence[str] = SUFFIXES, pattern: str = "*") -> list[Path]:
    """Lists the files under a folder that match the pattern and a suffix, sorted; lists a file itself.

    Raises:
        BuildError: no file matches.
    """
    if folder.is_file():
        return [folder]
    paths = sorted(path for suffix in suffixes for path in folder.rglob(pattern + suffix))
    if not paths:
        raise BuildError(
            f"{folder} holds no {pattern}({' | '.join(suffixes)}); `build --list` names the files of each format"
        )
    return paths


def read_records(path: Path) -> Iterator[Fields | LineError]:
    """Yields the records of a file, each with its file and line; for a line that is no record, the error."""
    match path.suffix:
        case ".parquet":
            yield from _read_parquet(path)
        case ".csv" | ".tsv":
            yield from _read_csv(path, "\t" if path.suffix == ".tsv" else ",")
        case _:
            yield from _read_json(path)


def read_json_object(path: Path) -> Fields:
    """Reads a file that holds one JSON object.

    Raises:
        BuildError: the file is missing or holds something else.
    """
    if not path.exists():
        raise BuildError(f"{path} is missing; `build --list` names the files of each format")
    try:
        return Fields.from_json(path.read_bytes(), str(path))
    except LineError as error:
        raise BuildError(str(error)) from error


def record_name(record: Fields) -> str:
    """Returns the file name and line of a record, for the ids of rows whose records have none."""
    return record.location.rpartition("/")[2]


def file_split(record: Fields) -> str:
    """Returns the published split that the name of a record's file states, such as `testA-00000-of-00001.parquet`."""
    match = _FILE_SPLIT.search(record_name(record))
    return match[1] if match else ""


def list_entries(record: Fields, key: str, wanted: str) -> Iterator[Fields | LineError]:
    """Yields the objects of a list in a record, each with its index; for an entry that is no object, the error."""
    for index, entry in enumerate(record.take(key, list, wanted)):
        location = f"{record.location} {key}[{index}]"
        if isinstance(entry, dict):
            yield Fields(entry, location)
        else:
            yield LineError(location, f"a {type(entry).__name__}; it takes {wanted}")


def list_objects(record: Fields, key: str, wanted: str) -> Iterator[Fields]:
    """Yields the objects of a list in a record.

    Raises:
        LineError: an entry is no object.
    """
    for entry in list_entries(record, key, wanted):
        if isinstance(entry, LineError):
            raise entry
        yield entry


def nested_object(record: Fields, key: str) -> Fields:
    """Returns the JSON object in a column, which holds it as an object or as text.

    Raises:
        LineError: the column holds something else.
    """
    value = record.keys.get(key)
    if isinstance(value, str):
        return Fields.from_json(value, f"{record.location} {key}")
    return Fields(record.take(key, dict, "a JSON object"), f"{record.location} {key}")


def whole_number(record: Fields, key: str) -> int:
    """Returns the whole number of a key.

    Raises:
        LineError: the value is something else.
    """
    value = record.keys.get(key)
    if type(value) is not int:
        record.refuse_value(key, "a whole number")
    return value


def parse_json_cell(text: str, record: Fields, key: str, wanted: str) -> Any:
    """Parses the JSON in a cell.

    Raises:
        LineError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        record.refuse_value(key, wanted)


def _read_json(path: Path) -> Iterator[Fields | LineError]:
    with RowFile(path) as file:
        for index in range(len(file)):
            try:
                record = file.fields(index)
            except LineError as error:
                yield error
            else:  # a list may stand on one line, and ids are made of locations
                yield Fields(record.keys, f"{record.location}[{index}]") if path.suffix == ".json" else record


def _read_csv(path: Path, delimiter: str) -> Iterator[Fields | LineError]:
    csv.field_size_limit(_MAX_CSV_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            location = f"{path}:{reader.line_num + 1}"  # a record may have several lines, if a cell has
            try:
                cells = next(reader, None)
            except UnicodeDecodeError as error:
                raise BuildError(f"{path}: not UTF-8 ({error}); convert it") from error
            except csv.Error as error:
                yield LineError(
                    location, f"not a row of the table ({error}); close its quotes, or fetch the file again"
                )
                return
            if cells is None:
                return
            if not header:
                header = cells
            elif cells and len(cells) != len(header):
                yield LineError(
                    location,
                    f"not as many cells as the header has ({len(header)}); add missing ones, and quote cells that hold"
                    " the delimiter",
                )
            elif cells:
                yield Fields(dict(zip(header, cells, strict=True)), location)


def _read_parquet(path: Path) -> Iterator[Fields]:
    if not find_spec("pyarrow"):
        raise BuildError(f"{path} needs pyarrow; install it with: pip install -e '.[data]'")
    parquet: Any = import_module("pyarrow.parquet")
    index = 0
    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
            for keys in batch.to_pylist():
                yield Fields(keys, f"{path}:row {index}")
                index += 1
