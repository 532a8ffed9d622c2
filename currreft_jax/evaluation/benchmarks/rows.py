"""Benchmarks as rows: conversations with the published prompts, and image files. Loads no JAX."""

from __future__ import annotations

import hashlib
from pathlib import Path

from currreft_jax.config import Kind, Task
from currreft_jax.data.row_files import write_rows
from currreft_jax.evaluation.benchmarks.files import LoadedBenchmark
from currreft_jax.evaluation.benchmarks.items import BenchmarkItem
from currreft_jax.structs import Row, Turn


def write_benchmark_rows(benchmark: LoadedBenchmark, folder: Path) -> Path:
    """Writes a file of rows, one for each item in order, and the images; returns the file's path."""
    written: dict[bytes, str] = {}
    rows = []
    for item in benchmark.items:
        images = ()
        if content := benchmark.images.get(item.key):
            if content not in written:
                path = folder / hashlib.blake2b(content, digest_size=16).hexdigest()
                path.write_bytes(content)
                written[content] = str(path)
            images = (written[content],)
        rows.append(Row(item.key, Task.OTHER, Kind.CHAT, "", "", images, messages=_turns(item)))
    path = folder / "rows.jsonl"
    write_rows(path, rows)
    return path


def _turns(item: BenchmarkItem) -> tuple[Turn, ...]:
    system = (Turn("system", item.system),) if item.system else ()
    return (*system, Turn("user", item.prompt), Turn("assistant", item.gold or "-"))


def maths_row(item: BenchmarkItem) -> Row:
    """Returns the row by which the rewards' rules score an answer to a mathematical problem."""
    return Row(item.key, Task.MATH, Kind.OPEN, item.question, item.gold)
