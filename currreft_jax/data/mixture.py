"""Which rows a stage learns from: its sources, sampled, filtered and weighted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from currreft_jax.config import Data, OnBadRow, Source, Stage
from currreft_jax.data.rows import LineError, RowFile
from currreft_jax.structs import Row

_SHOWN_ERRORS = 20
_SAMPLE = re.compile(r"(?:(first|end|random):)?(\d+)(%?)")


class MixtureError(ValueError):
    """Sources that make no mixture; the message names the file and what would mend it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one source that a stage takes.

    Attributes:
        file: opened.
        indices: int64, of its rows.
        weight: share of the batches, relative to the other parts.
        ids: of all rows that were taken.
    """

    file: RowFile
    indices: np.ndarray
    weight: float
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a stage learns from.

    Attributes:
        parts: one for each file.
        left_out: how many rows were left out, by reason.
        errors: of the rows that could not be read.
    """

    parts: tuple[Part, ...]
    left_out: Counter[str]
    errors: tuple[LineError, ...]

    @property
    def size(self) -> int:
        """Rows of all parts."""
        return sum(len(part.indices) for part in self.parts)

    def fingerprint(self) -> str:
        """Of the rows' ids, places and weights: what must not change while a run is interrupted.

        A row that is mended under its id is the same row.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update("\0".join(part.ids).encode())
            digest.update(part.indices.astype("<i8").tobytes())
            digest.update(repr(part.weight).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the files."""
        for part in self.parts:
            part.file.close()


def mixture(stages: Sequence[Stage], number: int, data: Data, seed: int) -> Mixture:
    """Opens and reads the sources of a stage, and a share of those before it.

    Args:
        stages: of the run.
        number: of the stage.
        data: what happens to bad rows, and which pass rates are kept.
        seed: of random samples.

    Raises:
        FileNotFoundError: a source is missing.
        MixtureError: a row cannot be read, or nothing is left.
    """
    stage = stages[number]
    rates = read_pass_rates(Path(data.pass_rates)) if data.pass_rates else {}
    left_out: Counter[str] = Counter()
    errors: list[LineError] = []
    now = [part for source in stage.sources for part in _parts(source, stage, data, rates, seed, left_out, errors)]
    before = [
        part
        for earlier in (stages[:number] if stage.replay else ())
        for source in earlier.sources
        for part in _parts(source, earlier, data, rates, seed, left_out, errors)
    ]
    if errors and (data.on_bad_row is OnBadRow.ERROR or len(errors) > data.max_bad_rows):
        raise MixtureError(_listed(errors, data))
    if not now:
        raise MixtureError(f"stage {stage.name}: no rows are left of {_names(stage)} (left out: {dict(left_out)})")
    if stage.replay and not before:
        raise MixtureError(f"stage {stage.name}: replay is {stage.replay}, but the stages before it have no rows left")
    parts = [*_scaled(now, 1 - stage.replay), *(_scaled(before, stage.replay) if before else [])]
    if rates and not rates.keys() & set(chain.from_iterable(part.ids for part in parts)) and not left_out["pass rate"]:
        raise MixtureError(f"{data.pass_rates}: names no row of stage {stage.name}; its ids are those of other files")
    return Mixture(tuple(parts), left_out, tuple(errors))


def sample(size: int, strategy: str, seed: int, name: str) -> np.ndarray:
    """Which of a file's rows are taken, rising.

    Args:
        size: rows of the file.
        strategy: all, first:N, end:N, random:N, or N alone for first:N; N a number or a percentage such as 10%.
        seed: of a random sample.
        name: of the file, so that two files are sampled apart.

    Raises:
        MixtureError: another strategy, or more rows than there are.
    """
    if strategy == "all":
        return np.arange(size)
    match = _SAMPLE.fullmatch(strategy)
    if not match:
        raise MixtureError(f"{name}: sample {strategy!r}; write all, first:N, end:N, random:N or N, or N% for N")
    count = round(size * int(match[2]) / 100) if match[3] else int(match[2])
    if not 0 < count <= size:
        raise MixtureError(f"{name}: sample {strategy!r} takes {count} of {size} rows; take 1 to {size}")
    if match[1] == "end":
        return np.arange(size - count, size)
    if match[1] == "random":
        words = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(words, "big"))
        return np.sort(rng.choice(size, count, replace=False))
    return np.arange(count)


def read_yaml(path: Path) -> list[tuple[str, str]]:
    """The training files of an authors' mixture, and how each is sampled.

    Paths are relative to the YAML's folder.

    Raises:
        MixtureError: the file has another form.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MixtureError(f"{path}: not YAML ({error})") from error
    listed = content.get("train_datasets", content.get("datasets")) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(it, dict) and "json_path" in it for it in listed):
        raise MixtureError(f"{path}: write train_datasets as a list of json_path and sampling_strategy")
    return [(str(path.parent / it["json_path"]), str(it.get("sampling_strategy", "all"))) for it in listed]


def read_pass_rates(path: Path) -> dict[str, float]:
    """How often each row was answered rightly, by its id.

    Raises:
        MixtureError: a line is not `{"id", "pass_rate"}`.
    """
    rates = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            keys: Any = json.loads(line)
            rates[str(keys["id"])] = float(keys["pass_rate"])
        except (ValueError, KeyError, TypeError) as error:
            raise MixtureError(f'{path}:{number}: write {{"id": …, "pass_rate": 0 to 1}} ({error})') from error
    return rates


def _parts(
    source: Source,
    stage: Stage,
    data: Data,
    rates: dict[str, float],
    seed: int,
    left_out: Counter[str],
    errors: list[LineError],
) -> list[Part]:
    path = Path(source.file)
    if path.suffix not in (".yaml", ".yml"):
        part = _part(source, stage, data, rates, seed, left_out, errors)
        return [part] if len(part.indices) else []
    if source.sample != "all":
        raise MixtureError(f"{path}: sample {source.sample!r}; write how each file is sampled into the YAML")
    files = [replace(source, file=file, sample=strategy) for file, strategy in read_yaml(path)]
    parts = [_part(file, stage, data, rates, seed, left_out, errors) for file in files]
    # The authors concatenate the files of a mixture: every row counts alike.
    rows = sum(len(part.indices) for part in parts)
    return [replace(part, weight=part.weight * len(part.indices) / rows) for part in parts if len(part.indices)]


def _part(
    source: Source,
    stage: Stage,
    data: Data,
    rates: dict[str, float],
    seed: int,
    left_out: Counter[str],
    errors: list[LineError],
) -> Part:
    file = RowFile(source.file, image_root=source.image_root or None, kind=source.kind, task=source.task)
    kept, ids = [], []
    for index in sample(len(file), source.sample, seed, source.file):
        try:
            row = file[int(index)]
        except LineError as error:
            errors.append(error)
            continue
        reason = _unwanted(row, stage, data, rates)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(index)
            ids.append(row.id)
    return Part(file, np.array(kept, np.int64), source.weight, tuple(ids))


def _unwanted(row: Row, stage: Stage, data: Data, rates: dict[str, float]) -> str | None:
    low, high = data.keep_pass_rates
    if stage.kinds and row.kind not in stage.kinds:
        return f"kind {row.kind.value}"
    if stage.tasks and row.task not in stage.tasks:
        return f"task {row.task.value}"
    rate = rates.get(row.id)
    if rate is not None and not low < rate < high:
        return "pass rate"
    return None


def _scaled(parts: Sequence[Part], share: float) -> list[Part]:
    total = sum(part.weight for part in parts)
    return [replace(part, weight=part.weight * share / total) for part in parts]


def _names(stage: Stage) -> str:
    return ", ".join(source.file for source in stage.sources)


def _listed(errors: Sequence[LineError], data: Data) -> str:
    shown = [str(error) for error in errors[:_SHOWN_ERRORS]]
    more = [f"and {len(errors) - len(shown)} more"] if len(errors) > len(shown) else []
    remedy = (
        f"more than data.max_bad_rows ({data.max_bad_rows})"
        if data.on_bad_row is OnBadRow.SKIP
        else "mend them, or set data.on_bad_row to skip"
    )
    return "\n  ".join([f"{len(errors)} rows cannot be read ({remedy}):", *shown, *more])
