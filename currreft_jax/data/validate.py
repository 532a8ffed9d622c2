"""Validates files of rows before a run: reads all rows and decodes all images once; changes nothing.

Errors: malformed rows; missing or unreadable images (damaged, with too many pixels, too thin); prompts over the budget;
boxes that leave their frame or vanish when the image is resized; frames of another shape than the image; gold answers
that their own reward cannot parse; repeated ids; keys that stand twice in an object; answers without a text in a
conversation; repeated questions about the same images; images, and questions without images, that occur in both
training and testing. Images are compared by their decoded pixels: a resized or recompressed copy is not found. Notes:
frames of another size than the image, questions of training and testing with the same wording, unknown keys, images of
one colour, unbalanced answers.

The program exits with 1 if there are errors.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from currreft_jax.config import Kind, Task
from currreft_jax.config.names import nearest
from currreft_jax.config.wording import plural
from currreft_jax.data.balance import answer_balances
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.fields import LineError, repeated_keys
from currreft_jax.data.findings import FileStats, Finding, Problem, ValidationReport
from currreft_jax.data.leaks import find_duplicates, find_leaks, has_two_splits
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import PAPER, Template
from currreft_jax.data.row_boxes import FramePairs
from currreft_jax.data.row_checks import (
    ImageInfo,
    LocatedRow,
    Progress,
    T,
    check_boxes,
    check_golds,
    check_prompt_length,
    check_turns,
    inspect_image,
    measure_prompt,
)
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.rows import KEYS
from currreft_jax.rewards import has_rule
from currreft_jax.structs import Row

NO_SPLITS = (
    "what stands in training and testing: no two such parts; name files with --train and --test, or give rows their"
    ' "split"'
)
NO_TOKENIZER = "the tokens of texts: name a model, whose tokenizer counts them"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to validate.

    Attributes:
        path: path of the file.
        split: `train` or `test`; None to use each row's own split.
        image_root: folder that image paths are relative to; None for the file's own.
        kind: default for rows without one.
        task: default for rows without one.
    """

    path: str
    split: str | None = None
    image_root: str | None = None
    kind: Kind | None = None
    task: Task | None = None


def no_progress(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    """Returns the items."""
    return items


def progress_bar(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    """Shows a progress bar on terminals."""
    return tqdm(items, desc=name, total=total, disable=None, leave=False)


def validate_files(
    files: Sequence[InputFile],
    budget: PromptBudget,
    *,
    processor: Processor | None = None,
    template: Template = PAPER,
    threads: int = 4,
    progress: Progress = no_progress,
) -> ValidationReport:
    """Reads all rows, decodes each image once, and reports what is wrong.

    Two images are the same if all their decoded pixels are equal; a resized or recompressed copy is not recognised.
    Two questions are the same if they differ in case and whitespace only.

    Args:
        files: to validate.
        budget: limits of a prompt.
        processor: tokenizes the texts; if None, only image tokens count against the budget.
        template: prompt template.
        threads: for decoding images; each holds one image at a time.
        progress: (items, name, total) -> items, wraps long loops.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file has no rows, is given twice, or is a list with malformed JSON.
        MathsPoolError: math-verify cannot run here.
    """
    _refuse_repeated_files(files)
    report = ValidationReport(texts_counted=processor is not None)
    rows = [located for file in files for located in _read_rows(file, report, progress)]
    report.findings += _note_extra_keys(rows)
    images = _inspect_images(rows, budget, threads, progress)
    rows, lengths = _check_prompts(rows, images, report, budget, processor, template, progress)
    report.sizes = [_file_stats(file.path, rows, lengths[file.path]) for file in files]
    gold_errors = check_golds(rows, progress)
    malformed = {id(error.row) for _, error in gold_errors}
    report.findings += [located.finding(Problem.GOLD, error.problem) for located, error in gold_errors]
    report.findings += find_duplicates(rows, images)
    if has_two_splits(rows):
        train, test = ([located for located in rows if located.split == split] for split in ("train", "test"))
        report.findings += find_leaks(train, test, images)
    else:
        report.unchecked.append(NO_SPLITS)
    for file in files:
        in_file = [located.row for located in rows if located.file == file.path]
        balances = answer_balances([row for row in in_file if id(row) not in malformed])
        report.balances += [(file.path, balance) for balance in balances]
    report.findings += _check_balances(report)
    if not processor:
        report.unchecked.append(NO_TOKENIZER)
    report.findings.sort(key=lambda finding: list(Problem).index(finding.problem))
    return report


def _refuse_repeated_files(files: Sequence[InputFile]) -> None:
    paths = [os.path.realpath(file.path) for file in files]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ValueError(f"{files[index].path} is given twice; name each file once, in training or in testing")


def _read_rows(input_file: InputFile, report: ValidationReport, progress: Progress) -> Iterator[LocatedRow]:
    """Reads the valid rows of a file; reports malformed rows, repeated ids and keys, and rows without a rule."""
    path = input_file.path
    first_locations: dict[str, str] = {}
    without_rule = 0
    with RowFile(path, image_root=input_file.image_root, kind=input_file.kind, task=input_file.task) as file:
        for index in progress(range(len(file)), f"rows of {Path(path).name}", len(file)):
            location = file.location(index)
            try:
                row = file[index]
                without_rule += row.kind is not Kind.CHAT and not has_rule(row)
            except LineError as error:
                report.findings.append(Finding(Problem.BAD_ROW, path, location, error.problem))
                continue
            for key in repeated_keys(file.text(index)):
                message = f'"{key}" is written more than once, and only the last value is read; leave one of them'
                report.findings.append(Finding(Problem.REPEATED_KEY, path, location, message))
            first = first_locations.setdefault(row.id, location)
            if first != location:
                message = f"id {row.id!r} is that of {first}, and it seeds what is sampled; give each row its own"
                report.findings.append(Finding(Problem.ID, path, location, message))
            yield LocatedRow(row, path, location, _split_of(row, input_file))
    if without_rule:
        message = f"no rule scores {plural(without_rule, 'row')}, whose answers need a reward of your own"
        report.findings.append(Finding(Problem.NO_RULE, path, path, message))


def _note_extra_keys(rows: Sequence[LocatedRow]) -> Iterator[Finding]:
    """Notes all keys that the schema does not know at once, each with its rows, the first of them, and a near key."""
    with_key: dict[str, list[LocatedRow]] = defaultdict(list)
    for located in rows:
        for key in located.row.extra:
            with_key[key].append(located)
    if not with_key:
        return
    listed = ", ".join(
        f'"{key}" of {plural(len(found), "row")} (first {found[0].location}{_ask_misspelt(key)})'
        for key, found in with_key.items()
    )
    message = f"{listed}: none of {', '.join(sorted(KEYS))}; in `extra`, for a reward of your own"
    first = next(iter(with_key.values()))[0]
    yield Finding(Problem.EXTRA_KEY, first.file, first.file, message)


def _ask_misspelt(key: str) -> str:
    near = nearest(key, sorted(KEYS))
    return f'; is it "{near[0]}", misspelt?' if near else ""


def _split_of(row: Row, file: InputFile) -> str | None:
    """Returns `train`, `test` or None: the split of the file, or else that of the row."""
    if file.split or not row.split:
        return file.split
    return "train" if row.split.casefold().startswith("train") else "test"


def _inspect_images(
    rows: Sequence[LocatedRow], budget: PromptBudget, threads: int, progress: Progress
) -> dict[str, ImageInfo]:
    paths = sorted({path for located in rows for path in located.row.images})
    with ThreadPoolExecutor(threads) as pool:
        infos = pool.map(lambda path: inspect_image(path, budget), paths)
        return dict(zip(paths, progress(infos, "images", len(paths)), strict=True))


def _check_prompts(
    rows: Sequence[LocatedRow],
    images: Mapping[str, ImageInfo],
    report: ValidationReport,
    budget: PromptBudget,
    processor: Processor | None,
    template: Template,
    progress: Progress,
) -> tuple[list[LocatedRow], dict[str, list[tuple[int, int]]]]:
    """Reports images, empty answers, boxes out of range and prompts over the budget.

    Returns:
        The rows with the frames of their boxes; for each file (tokens, characters) of its prompts, without those with
        an unusable image.
    """
    framed_rows = []
    lengths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for located in progress(rows, "prompts", len(rows)):
        located, frames = _add_frames(located, images, report)
        framed_rows.append(located)
        report.findings += check_turns(located)
        if frames is None:
            continue
        report.findings += check_boxes(located, frames)
        tokens, characters = measure_prompt(located, frames, budget, processor, template)
        lengths[located.file].append((tokens, characters))
        report.findings += check_prompt_length(located, tokens, frames, budget)
    return framed_rows, lengths


def _add_frames(
    located: LocatedRow, images: Mapping[str, ImageInfo], report: ValidationReport
) -> tuple[LocatedRow, FramePairs | None]:
    """Returns the row with the frame of its boxes, and the frames of its images, or None if one is unusable."""
    infos = [images[path] for path in located.row.images]
    report.findings += [located.finding(info.problem, info.message) for info in infos if info.problem]
    frames = [info.frames for info in infos if info.frames]
    if frames and infos[0].frames and not located.row.frame:
        located = replace(located, row=replace(located.row, frame=infos[0].frames[0]))
    return located, frames if len(frames) == len(infos) else None


def _file_stats(path: str, rows: Sequence[LocatedRow], lengths: Sequence[tuple[int, int]]) -> FileStats:
    in_file = [located.row for located in rows if located.file == path]
    tokens, characters = zip(*lengths, strict=True) if lengths else ((0,), (0,))
    images = {path for row in in_file for path in row.images}
    return FileStats(path, len(in_file), len(images), int(np.median(tokens)), max(tokens), max(characters))


def _check_balances(report: ValidationReport) -> Iterator[Finding]:
    for file, balance in report.balances:
        if not balance.is_balanced:
            expected = ", ".join(f"{name} {n:.0f}" for name, n in balance.expected.items())
            message = (
                f"right answers of {balance.kind.value} {balance.task.value}: {balance}; even would be {expected}, and"
                " guessing the commonest pays"
            )
            yield Finding(Problem.BALANCE, file, file, message)
