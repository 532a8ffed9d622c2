"""The rows of a training stage: its sources, sampled, filtered and weighted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from currreft_jax.config import Data, OnBadRow, Source, Stage
from currreft_jax.config.wording import plural
from currreft_jax.data.fields import LineError, list_equal
from currreft_jax.data.row_files import RowFile
from currreft_jax.structs import Row

_MAX_ERRORS_SHOWN = 20
_SAMPLE = re.compile(r"(?:(first|end|random):)?(\d+)(%?)")


class MixtureError(ValueError):
    """The sources of a stage make no mixture; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of one file that a stage trains on.

    Attributes:
        file: open file.
        indices: int64 `[n]`, of the rows in the file.
        weight: sampling weight, relative to the other sources.
        ids: ids of the rows.
    """

    file: RowFile
    indices: np.ndarray
    weight: float
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The rows of a stage.

    Attributes:
        sources: one for each file.
        excluded: number of rows that were filtered out, by reason.
        errors: errors of the malformed rows.
    """

    sources: tuple[SourceRows, ...]
    excluded: Counter[str]
    errors: tuple[LineError, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows of all sources."""
        return sum(len(source.indices) for source in self.sources)

    def without(
        self, errors: Mapping[tuple[int, int], LineError], reason: str, data: Data, summary: str = ""
    ) -> Mixture:
        """Leaves rows out, and counts them.

        Args:
            errors: by the indices of source and row.
            reason: key of the count in `excluded`.
            data: settings for malformed rows.
            summary: what is wrong with all of them, and the remedy; where empty, each error is listed.

        Raises:
            MixtureError: `data` refuses malformed rows or so many of them, or no rows are left.
        """
        if not errors:
            return self
        all_errors = (*self.errors, *errors.values())
        refuse_errors(all_errors, data, summary)
        kept = [[(k, int(index)) not in errors for index in source.indices] for k, source in enumerate(self.sources)]
        sources = tuple(
            replace(source, indices=source.indices[mask], ids=tuple(compress(source.ids, mask)))
            for source, mask in zip(self.sources, kept, strict=True)
            if any(mask)
        )
        if not sources:
            raise MixtureError(f"no row is left: {summary or all_errors[0]}")
        return replace(
            self, sources=sources, errors=all_errors, excluded=self.excluded + Counter({reason: len(errors)})
        )

    def fingerprint(self) -> str:
        """Hashes the rows' ids, indices and weights, which must not change when a run is resumed.

        Content is not hashed, so that a row may be corrected under its id.
        """
        digest = hashlib.blake2b(digest_size=16)
        for source in self.sources:
            digest.update("\0".join(source.ids).encode())
            digest.update(source.indices.astype("<i8").tobytes())
            digest.update(repr(source.weight).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the files."""
        for source in self.sources:
            source.file.close()


def load_mixture(stages: Sequence[Stage], stage_index: int, data: Data, seed: int) -> Mixture:
    """Reads the sources of a stage and, with replay, those of the stages before it.

    Args:
        stages: all stages of the run.
        stage_index: index of the stage.
        data: settings for malformed rows and pass rates.
        seed: seed of random samples.

    Raises:
        FileNotFoundError: a source does not exist.
        MixtureError: a row is malformed, or no rows are left.
    """
    stage = stages[stage_index]
    pass_rates = read_pass_rates(Path(data.pass_rates)) if data.pass_rates else {}
    loader = _SourceLoader(data, pass_rates, seed)
    current = [rows for source in stage.sources for rows in loader.load(source, stage)]
    replayed = [
        rows
        for earlier in (stages[:stage_index] if stage.replay else ())
        for source in earlier.sources
        for rows in loader.load(source, earlier)
    ]
    excluded, errors = loader.excluded, loader.errors
    refuse_errors(errors, data)
    if not current:
        files = ", ".join(source.file for source in stage.sources)
        left_out = ", ".join(f"{plural(count, 'row')} by {reason}" for reason, count in excluded.items())
        kinds = " and ".join(kind.value for kind in stage.kinds)
        raise MixtureError(
            f"stage {stage.name} takes {kinds} rows, and no rows are left of {files} (left out: {left_out or 'none'});"
            " `dataset build --generate judge,choice` makes such rows of open ones, and configs/stage1.py to stage3.py"
            " are one stage alone"
        )
    if stage.replay and not replayed:
        raise MixtureError(f"stage {stage.name}: replay is {stage.replay}, but the stages before it have no rows left")
    sources = [
        *_scale_weights(current, 1 - stage.replay),
        *(_scale_weights(replayed, stage.replay) if replayed else []),
    ]
    ids = chain.from_iterable(source.ids for source in sources)
    if pass_rates and not pass_rates.keys() & set(ids) and not excluded["pass rate"]:
        raise MixtureError(f"{data.pass_rates}: names no row of stage {stage.name}; its ids are those of other files")
    return Mixture(tuple(sources), excluded, tuple(errors))


def sample_indices(num_rows: int, strategy: str, seed: int, name: str) -> np.ndarray:
    """Samples rows of a file.

    Args:
        num_rows: number of rows in the file.
        strategy: all, first:N, end:N, random:N, or N for first:N; N is a number of rows or a percentage such as 10%.
        seed: seed of random samples.
        name: name of the file; files of different names get independent samples.

    Returns:
        int64 `[n]`, ascending.

    Raises:
        MixtureError: the strategy is unknown, or asks for more rows than there are.
    """
    if strategy == "all":
        return np.arange(num_rows)
    match = _SAMPLE.fullmatch(strategy)
    if not match:
        raise MixtureError(f"{name}: sample {strategy!r}; write all, first:N, end:N, random:N or N, or N% for N")
    count = round(num_rows * int(match[2]) / 100) if match[3] else int(match[2])
    if not 0 < count <= num_rows:
        raise MixtureError(
            f"{name}: sample {strategy!r} takes {count:,} of {plural(num_rows, 'row')}; take 1 to {num_rows}"
        )
    if match[1] == "end":
        return np.arange(num_rows - count, num_rows)
    if match[1] == "random":
        digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        return np.sort(rng.choice(num_rows, count, replace=False))
    return np.arange(count)


def read_mixture_yaml(path: Path) -> list[tuple[str, str]]:
    """Reads a mixture in the authors' YAML format.

    Returns:
        (file, sampling strategy) of each data set; paths are relative to the YAML's folder.

    Raises:
        MixtureError: the file is not in this format.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MixtureError(f"{path}: not YAML ({error})") from error
    entries = content.get("train_datasets", content.get("datasets")) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "json_path" in entry for entry in entries):
        raise MixtureError(f"{path}: write train_datasets as a list of json_path and sampling_strategy")
    return [(str(path.parent / entry["json_path"]), str(entry.get("sampling_strategy", "all"))) for entry in entries]


def read_pass_rates(path: Path) -> dict[str, float]:
    """Reads the share of correct answers of each row, by its id.

    A line is `{"id", "pass_rate"}`, or one of the answers of `evaluate`, of which those right by the strict reading
    count. A row that a server did not answer has no pass rate.

    Raises:
        MixtureError: a line is neither.
    """
    pass_rates = {}
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            try:
                keys: Any = json.loads(line)
                if "strict" in keys:
                    verdicts = keys["strict"]
                    pass_rates |= {str(keys["row"]): sum(verdicts) / len(verdicts)} if verdicts else {}
                else:
                    pass_rates[str(keys["id"])] = float(keys["pass_rate"])
            except (ValueError, KeyError, TypeError) as error:
                raise MixtureError(
                    f'{path}:{line_number}: write {{"id": …, "pass_rate": 0 to 1}}, or an answer of evaluate ({error})'
                ) from error
    return pass_rates


@dataclass(frozen=True, slots=True)
class _SourceLoader:
    """Reads sources, and collects what is left out of them.

    Attributes:
        data: settings for pass rates.
        pass_rates: by the rows' ids.
        seed: seed of random samples.
        excluded: number of rows that were filtered out so far, by reason.
        errors: errors of the malformed rows so far.
    """

    data: Data
    pass_rates: Mapping[str, float]
    seed: int
    excluded: Counter[str] = field(default_factory=Counter)
    errors: list[LineError] = field(default_factory=list)

    def load(self, source: Source, stage: Stage) -> list[SourceRows]:
        """Reads the rows of a source that a stage takes, file by file; files without such rows are left out."""
        path = Path(source.file)
        if path.suffix not in (".yaml", ".yml"):
            rows = self._load_file(source, stage)
            return [rows] if len(rows.indices) else []
        if source.sample != "all":
            raise MixtureError(f"{path}: sample {source.sample!r}; write how each file is sampled into the YAML")
        files = [replace(source, file=file, sample=strategy) for file, strategy in read_mixture_yaml(path)]
        loaded = [self._load_file(file, stage) for file in files]
        # The authors concatenate the files of a mixture, so every row has the same weight.
        num_rows = sum(len(rows.indices) for rows in loaded)
        return [
            replace(rows, weight=rows.weight * len(rows.indices) / num_rows) for rows in loaded if len(rows.indices)
        ]

    def _load_file(self, source: Source, stage: Stage) -> SourceRows:
        file = RowFile(source.file, image_root=source.image_root or None, kind=source.kind, task=source.task)
        indices, ids = [], []
        for index in sample_indices(len(file), source.sample, self.seed, source.file):
            try:
                row = file[int(index)]
            except LineError as error:
                self.errors.append(error)
                continue
            reason = self._exclusion_reason(row, stage)
            if reason:
                self.excluded[reason] += 1
            else:
                indices.append(index)
                ids.append(row.id)
        return SourceRows(file, np.array(indices, np.int64), source.weight, tuple(ids))

    def _exclusion_reason(self, row: Row, stage: Stage) -> str | None:
        if stage.kinds and row.kind not in stage.kinds:
            return f"kind {row.kind.value}"
        if stage.tasks and row.task not in stage.tasks:
            return f"task {row.task.value}"
        low, high = self.data.keep_pass_rates
        pass_rate = self.pass_rates.get(row.id)
        if pass_rate is not None and not low < pass_rate < high:
            return "pass rate"
        return None


def _scale_weights(sources: Sequence[SourceRows], total: float) -> list[SourceRows]:
    """Scales the weights so that they add up to `total`."""
    weight = sum(source.weight for source in sources)
    return [replace(source, weight=source.weight * total / weight) for source in sources]


def refuse_errors(errors: Sequence[LineError], data: Data, summary: str = "") -> None:
    """Raises a `MixtureError` that lists or sums up the errors, if malformed rows, or so many of them, stop the run."""
    if not errors or (data.on_bad_row is OnBadRow.SKIP and len(errors) <= data.max_bad_rows):
        return
    remedy = (
        f"more than data.max_bad_rows ({data.max_bad_rows})"
        if data.on_bad_row is OnBadRow.SKIP
        else "mend them, or set data.on_bad_row to skip"
    )
    if summary:
        raise MixtureError(f"{summary} ({remedy})")
    shown = list_equal(errors, _MAX_ERRORS_SHOWN)
    raise MixtureError("\n  ".join([f"{plural(len(errors), 'row')} cannot be used ({remedy}):", *shown]))
