"""What is wrong with files of rows, found before a run instead of in the midst of it.

`examine` reads the rows, decodes each image once, and compares the files. It only looks: nothing is mended.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.balance import Balance, balances
from currreft_jax.data.budget import Budget, Frames, prompt_of, prompt_text
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import PAPER, Template
from currreft_jax.data.rows import IMAGE, KEYS, LineError, RowFile
from currreft_jax.rewards import MathsPool, boxes, check_rows, maths
from currreft_jax.rewards.answer import RowError, gold_text
from currreft_jax.structs import Boxes, Frame, Reason, Row

_GOLDS_AT_ONCE = 256
_SHAPE_TOLERANCE = 0.25

T = TypeVar("T")


class Problem(StrEnum):
    """What can be wrong with a row, from what stops a run to what is only worth knowing (`NOTES`)."""

    BAD_ROW = "bad row"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    LONG_PROMPT = "prompt too long"
    BOX = "box out of range"
    SHAPE = "frame of another shape"
    GOLD = "gold answer unreadable"
    ID = "id used twice"
    DUPLICATE = "duplicate row"
    LEAKED_IMAGE = "image in training and testing"
    LEAKED_QUESTION = "question in training and testing"
    FRAME = "frame is not the image's size"
    WORDING = "wording in training and testing"
    UNUSED_KEY = "key that plays no part"
    BALANCE = "answers out of balance"


NOTES = frozenset({Problem.FRAME, Problem.WORDING, Problem.UNUSED_KEY, Problem.BALANCE})


@dataclass(frozen=True, slots=True)
class Source:
    """A file to examine.

    Attributes:
        path: of the file.
        part: `train` or `test`; None leaves it to each row's split.
        image_root: what its image paths start from; its own folder where None.
        kind: of rows that name none.
        task: of rows that name none.
    """

    path: str
    part: str | None = None
    image_root: str | None = None
    kind: Kind | None = None
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one row.

    Attributes:
        problem: of which sort.
        file: as it was given.
        where: file and line.
        said: what is wrong, and what would mend it.
    """

    problem: Problem
    file: str
    where: str
    said: str


@dataclass(frozen=True, slots=True)
class Size:
    """How large a file's prompts are.

    Attributes:
        file: as it was given.
        rows: that can be used.
        images: different paths among theirs.
        median_tokens: of a prompt; of its images alone where no tokenizer was given.
        most_tokens: likewise.
        most_characters: of a prompt's text.
    """

    file: str
    rows: int
    images: int
    median_tokens: int
    most_tokens: int
    most_characters: int


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        texts_counted: whether the tokens of texts count against the budget, and not only those of images.
        findings: in the order of `Problem`, then of the files and their rows.
        sizes: one a file.
        balances: (file, its answers) for each kind and task with answers to count.
        unchecked: what could not be checked, and why.
    """

    texts_counted: bool
    findings: list[Finding] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    balances: list[tuple[str, Balance]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that are no mere notes."""
        return [finding for finding in self.findings if finding.problem not in NOTES]

    def as_keys(self) -> dict[str, Any]:
        """The report as a JSON object."""
        counts = Counter((finding.file, finding.problem.value) for finding in self.findings)
        return {
            "errors": len(self.errors),
            "notes": len(self.findings) - len(self.errors),
            "counts": [{"file": file, "problem": name, "rows": n} for (file, name), n in counts.items()],
            "texts_counted": self.texts_counted,
            "findings": [asdict(finding) for finding in self.findings],
            "sizes": [asdict(size) for size in self.sizes],
            "balances": [
                {"file": file, **asdict(it), "kind": it.kind.value, "task": it.task.value} for file, it in self.balances
            ],
            "unchecked": self.unchecked,
        }


@dataclass(frozen=True, slots=True)
class _Look:
    """What one image showed: its frames and the hash of its pixels, or why there are none."""

    frames: tuple[Frame, Frame] | None
    digest: str
    problem: Problem | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row and its place."""

    row: Row
    source: Source
    where: str

    def found(self, problem: Problem, said: str) -> Finding:
        return Finding(problem, self.source.path, self.where, said)


Watch = Callable[[Iterable[T], str, int], Iterable[T]]


def unwatched(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    """Passes items on; a program puts a progress bar in its place."""
    return items


def examine(
    sources: Sequence[Source],
    budget: Budget,
    *,
    processor: Processor | None = None,
    wording: Template = PAPER,
    threads: int = 4,
    watch: Watch = unwatched,
) -> Report:
    """Reads files of rows and their images, and reports what is wrong.

    Two images are the same where their decoded pixels are equal, all of them: a copy that was shrunk or compressed
    again is not recognised. Two questions are the same up to case and spaces.

    Args:
        sources: the files.
        budget: what a prompt may take.
        processor: counts the tokens of a text; without it an image's tokens alone are held against the budget.
        wording: of the prompts.
        threads: that decode images; each holds one decoded image at a time.
        watch: (items, name, total) -> items, around long work.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds no rows, or is a list that is not JSON.
        MathsPoolError: math-verify cannot run here.
    """
    report = Report(texts_counted=processor is not None)
    _refuse_twice(sources)
    entries = [entry for source in sources for entry in _read(source, report, watch)]
    looks = _look_at(sorted({path for entry in entries for path in entry.row.images}), budget, threads, watch)
    seen, sizes = [], defaultdict(list)
    for entry in watch(entries, "prompts", len(entries)):
        framed, frames = _framed(entry, looks, report)
        seen.append(framed)
        if frames is None:
            continue
        report.findings += _frame_findings(framed, frames)
        tokens, characters = _measure(framed, frames, budget, processor, wording)
        sizes[entry.source.path].append((tokens, characters))
        if tokens > budget.max_prompt_tokens:
            report.findings.append(_too_long(framed, tokens, frames, budget))
    errors = _gold_errors(seen, watch)
    unreadable = {id(error.row) for _, error in errors}
    report.findings += [entry.found(Problem.GOLD, error.problem) for entry, error in errors]
    report.sizes = [_size(source.path, entries, sizes[source.path]) for source in sources]
    report.findings += _repeated(seen, looks)
    report.findings += _leaks(seen, looks, report)
    for source in sources:
        rows = [it.row for it in seen if it.source is source and id(it.row) not in unreadable]
        report.balances += [(source.path, counted) for counted in balances(rows)]
    report.findings += _balance_findings(report)
    if not processor:
        report.unchecked.append("the tokens of texts: name a model, whose tokenizer counts them")
    report.findings.sort(key=lambda finding: list(Problem).index(finding.problem))
    return report


def gold_corners(row: Row) -> np.ndarray:
    """The boxes of an open detection row's solution, float64 `[n, 4]` in pixels of its frame; none of other rows.

    Raises:
        RowError: the solution cannot be read.
    """
    if (row.kind, row.task) != (Kind.OPEN, Task.DETECTION):
        return np.empty((0, 4))
    corners = boxes.parse_corners(gold_text(row))
    if isinstance(corners, Reason):
        raise RowError(row, f"solution {row.solution!r} holds no boxes ({corners})")
    return corners


def _refuse_twice(sources: Sequence[Source]) -> None:
    places = [os.path.realpath(source.path) for source in sources]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"{sources[index].path} is given twice; name each file once, in training or in testing")


def _read(source: Source, report: Report, watch: Watch) -> Iterator[_Entry]:
    options = {"image_root": source.image_root, "kind": source.kind, "task": source.task}
    ids: dict[str, str] = {}
    unused: Counter[str] = Counter()
    with RowFile(source.path, **options) as file:
        for index in watch(range(len(file)), f"rows of {Path(source.path).name}", len(file)):
            where = file.where(index)
            try:
                row = file[index]
                unused.update(set(file.fields(index).keys) - KEYS)
            except LineError as error:
                report.findings.append(Finding(Problem.BAD_ROW, source.path, where, error.problem))
                continue
            first = ids.setdefault(row.id, where)
            if first != where:
                said = f"id {row.id!r} is that of {first}, and it seeds what is sampled; give each row its own"
                report.findings.append(Finding(Problem.ID, source.path, where, said))
            yield _Entry(row, source, where)
    for key, count in unused.items():
        said = f'"{key}" of {count} rows is none of {", ".join(sorted(KEYS))}; is it misspelt?'
        report.findings.append(Finding(Problem.UNUSED_KEY, source.path, source.path, said))


def _look_at(paths: Sequence[str], budget: Budget, threads: int, watch: Watch) -> dict[str, _Look]:
    with ThreadPoolExecutor(threads) as pool:
        looks = pool.map(lambda path: _look(path, budget), paths)
        return dict(zip(paths, watch(looks, "images", len(paths)), strict=True))


def _look(path: str, budget: Budget) -> _Look:
    try:
        image = open_image(path)
        original = Frame(image.width, image.height)
        resized = budget.resized(original)
    except ImageError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        said = f"{path}: {str(error).removeprefix(f'{path}: ')}"
        if missing:
            return _Look(None, "", Problem.MISSING_IMAGE, f"{path} is missing: put it there, or name the image root")
        return _Look(None, "", Problem.UNREADABLE_IMAGE, f"{said}: replace it, or leave the row out")
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return _Look((original, resized), digest.hexdigest())


def _framed(entry: _Entry, looks: dict[str, _Look], report: Report) -> tuple[_Entry, list[tuple[Frame, Frame]] | None]:
    """The entry with the frame that its boxes are measured in, and the frames of its images if all can be seen."""
    found = [looks[image] for image in entry.row.images]
    report.findings += [entry.found(look.problem, look.said) for look in found if look.problem]
    frames = [look.frames for look in found if look.frames]
    if frames and found[0].frames and not entry.row.frame:
        entry = replace(entry, row=replace(entry.row, frame=found[0].frames[0]))
    return entry, frames if len(frames) == len(found) else None


def _frame_findings(entry: _Entry, frames: Frames) -> Iterator[Finding]:
    row = entry.row
    if not frames or not row.frame:
        return
    original, resized = frames[0]
    sx, sy = row.frame.width / original.width, row.frame.height / original.height
    said = (
        f"frame {_shown(row.frame)}, but the image has {_shown(original)} pixels: boxes are moved by {1 / sx:.3f} along"
        f" x and {1 / sy:.3f} along y"
    )
    if max(sx / sy, sy / sx) > 1 + _SHAPE_TOLERANCE:
        yield entry.found(Problem.SHAPE, f"{said}; were they measured on this image, and upright?")
    elif row.frame != original:
        yield entry.found(Problem.FRAME, said)
    for name, corners in (("boxes", np.array(row.boxes).reshape(-1, 4)), ("solution", _readable_corners(row))):
        for box in corners[~boxes.inside(corners, row.frame)]:
            yield entry.found(
                Problem.BOX,
                f"{_box(box)} in {name} leaves the frame {_shown(row.frame)}; give the frame that it is measured in",
            )
        small = np.round(boxes.rescale(Boxes(corners, row.frame), resized).corners)
        for box in corners[boxes.degenerate(small) & ~boxes.degenerate(corners)]:
            yield entry.found(
                Problem.BOX,
                f"{_box(box)} in {name} is less than a pixel in the {_shown(resized)} that the model sees; raise the"
                " pixels, or leave the row out",
            )


def _readable_corners(row: Row) -> np.ndarray:
    try:
        return gold_corners(row)
    except RowError:  # reported with the gold answers
        return np.empty((0, 4))


def _measure(
    entry: _Entry, frames: Frames, budget: Budget, processor: Processor | None, wording: Template
) -> tuple[int, int]:
    """A prompt's tokens, those of its images where nothing counts the text's; and the characters of its text."""
    characters = len(prompt_text(entry.row, wording, frames)) - len(IMAGE) * len(frames)
    if processor:
        return len(prompt_of(entry.row, processor, wording, frames, budget, entry.where).tokens), characters
    return sum(budget.image_tokens(resized) for _, resized in frames), characters


def _too_long(entry: _Entry, tokens: int, frames: Frames, budget: Budget) -> Finding:
    images = sum(budget.image_tokens(resized) for _, resized in frames)
    return entry.found(
        Problem.LONG_PROMPT,
        f"{tokens} tokens, {images} of them images, where {budget.max_prompt_tokens} are allowed; lower the pixels of"
        " an image, raise the limit, or leave the row out",
    )


def _gold_errors(entries: Sequence[_Entry], watch: Watch) -> list[tuple[_Entry, RowError]]:
    """What the rows' own rewards cannot read; boxes that leave their frame are found elsewhere."""
    ruled = [entry for entry in entries if entry.row.kind is not Kind.CHAT and not _leaves_frame(entry.row)]
    chunks = [ruled[start : start + _GOLDS_AT_ONCE] for start in range(0, len(ruled), _GOLDS_AT_ONCE)]
    errors = []
    with ExitStack() as stack:
        workers = any(_needs_workers(entry.row) for entry in ruled)  # they take seconds to start
        pool = stack.enter_context(MathsPool(Rewards().maths)) if workers else None
        for chunk in watch(chunks, f"gold answers, {_GOLDS_AT_ONCE} at a time", len(chunks)):
            by_row = {id(entry.row): entry for entry in chunk}
            errors += [
                (by_row[id(error.row)], error) for error in check_rows([entry.row for entry in chunk], pool=pool)
            ]
    return errors


def _needs_workers(row: Row) -> bool:
    """Whether only math-verify can tell that a gold answer is readable."""
    if (row.kind, row.task) != (Kind.OPEN, Task.MATH):
        return False
    try:
        gold = maths.gold_expression(row, Rewards().maths)
    except RowError:
        return False
    return isinstance(gold, maths.Expression) and maths.needs_math_verify(gold)


def _leaves_frame(row: Row) -> bool:
    return row.frame is not None and not boxes.inside(_readable_corners(row), row.frame).all()


def _repeated(entries: Sequence[_Entry], looks: dict[str, _Look]) -> Iterator[Finding]:
    """Rows of one file that ask the same of the same images."""
    first: dict[Any, _Entry] = {}
    for entry in entries:
        row = entry.row
        images = tuple(looks[image].digest or image for image in row.images)
        said = tuple(turn.text for turn in row.messages)
        key = (entry.source.path, images, row.kind, row.task, _question(row), row.frame, row.boxes, said)
        earlier = first.setdefault(key, entry)
        if earlier is not entry:
            gold = "" if earlier.row.solution == row.solution else ", and its solution differs"
            yield entry.found(Problem.DUPLICATE, f"asks what {earlier.where} asks{gold}; leave one of them out")


def _leaks(entries: Sequence[_Entry], looks: dict[str, _Look], report: Report) -> Iterator[Finding]:
    """Images and questions of testing rows that stand in training rows, too."""
    parts = [(entry, _part(entry)) for entry in entries]
    if not {"train", "test"} <= {part for _, part in parts}:
        report.unchecked.append(
            "what stands in training and testing: no two such parts; name files with --train and --test, or give rows"
            ' their "split"'
        )
        return
    images: dict[str, tuple[str, str]] = {}
    questions: dict[tuple[str, bool], str] = {}
    for entry, part in parts:
        if part == "train":
            for path in entry.row.images:
                images.setdefault(looks[path].digest or path, (entry.where, path))
            questions.setdefault((_question(entry.row), bool(entry.row.images)), entry.where)
    for entry, part in parts:
        if part != "test":
            continue
        for path in entry.row.images:
            if found := images.get(looks[path].digest or path):
                said = f"{path} has the pixels of {found[1]} in the training row {found[0]}; leave one of them out"
                yield entry.found(Problem.LEAKED_IMAGE, said)
        if where := questions.get((_question(entry.row), bool(entry.row.images))):
            if entry.row.images:
                yield entry.found(Problem.WORDING, f"the training row {where} is worded alike")
            else:
                said = f"the training row {where} asks the same, and neither has an image; leave one of them out"
                yield entry.found(Problem.LEAKED_QUESTION, said)


def _part(entry: _Entry) -> str | None:
    """`train`, `test`, or None: what the file was given as, else what the row's split begins with."""
    if entry.source.part or not entry.row.split:
        return entry.source.part
    return "train" if entry.row.split.casefold().startswith("train") else "test"


def _question(row: Row) -> str:
    """What a row asks, without case and spaces that differ, hashed."""
    said = [turn.text for turn in row.messages if turn.role == "user"]
    text = "\0".join(" ".join(part.casefold().split()) for part in (row.problem, *row.options, *said))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _balance_findings(report: Report) -> Iterator[Finding]:
    for file, counted in report.balances:
        if not counted.even:
            expected = ", ".join(f"{name} {n:.0f}" for name, n in counted.expected.items())
            said = (
                f"right answers of {counted.kind.value} {counted.task.value}: {counted}; even would be {expected}, and"
                " guessing the commonest pays"
            )
            yield Finding(Problem.BALANCE, file, file, said)


def _size(file: str, entries: Sequence[_Entry], measured: Sequence[tuple[int, int]]) -> Size:
    rows = [entry.row for entry in entries if entry.source.path == file]
    tokens, characters = zip(*measured, strict=True) if measured else ((0,), (0,))
    images = {image for row in rows for image in row.images}
    return Size(file, len(rows), len(images), int(np.median(tokens)), max(tokens), max(characters))


def _shown(frame: Frame) -> str:
    return f"{frame.width} x {frame.height}"


def _box(box: np.ndarray) -> str:
    return f"[{', '.join(f'{x:g}' for x in box)}]"
