"""Built rows on disk, one file for each kind and task, and the report on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from currreft_jax.config import Kind
from currreft_jax.data.builders.converter import BuildError, ConvertedData, list_causes
from currreft_jax.data.row_files import RowFile, parse_rows, write_rows
from currreft_jax.structs import Row

_MAX_ERRORS_REPORTED = 5


def row_file_name(row: Row) -> str:
    """Returns the name of the file for rows of this kind and task."""
    return "chat.jsonl" if row.kind is Kind.CHAT else f"{row.kind.value}-{row.task.value}.jsonl"


def write_row_files(folder: Path, rows: Iterable[Row]) -> dict[str, int]:
    """Writes rows to the files of their kinds and tasks, and checks each file by reading it.

    Returns:
        File -> number of rows.

    Raises:
        BuildError: a written row cannot be read.
    """
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(row_file_name(row), []).append(row)
    return {str(folder / name): write_checked(folder / name, group) for name, group in sorted(files.items())}


def write_checked(path: Path, rows: Sequence[Row]) -> int:
    """Writes a file of rows and checks it by reading it; returns the number of rows.

    Raises:
        BuildError: a written row cannot be read.
    """
    count = write_rows(path, rows)
    with RowFile(path) as file:
        errors = parse_rows(file).errors
    if errors:
        raise BuildError(f"{len(errors)} written rows cannot be read; correct their source. The first: {errors[0]}")
    return count


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def format_report(files: Mapping[str, int], data: ConvertedData, summary: Path | None = None) -> str:
    """Lists the written files, the converter's remarks, the dropped records by reason, and the skipped bad records.

    Args:
        files: file -> number of rows.
        data: what was converted.
        summary: the file that lists every bad record, if one does.
    """
    lines = [f"{count:>8}  {name}" for name, count in files.items()]
    lines += [f"note: {remark}" for remark in data.remarks]
    if data.dropped:
        lines += ["dropped:"]
        lines += [
            f"{len(locations):>8}  {reason} (first: {locations[0]})"
            for reason, locations in sorted(data.dropped.items())
        ]
    if data.bad_records:
        listed = f"; {summary} lists all" if summary else ""
        lines += [f"bad records skipped: {len(data.bad_records)}{listed}"]
        lines += list_causes(data.bad_records, _MAX_ERRORS_REPORTED)
    return "\n".join(lines)
