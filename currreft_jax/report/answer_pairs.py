"""Draws rows that two models answer otherwise, in both directions, with their images, boxes and answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from currreft_jax.config import ImageCondition, Kind, Rewards, Source, Task
from currreft_jax.data.row_boxes import gold_corners
from currreft_jax.data.row_files import RowFile
from currreft_jax.evaluation.answers import Answer
from currreft_jax.evaluation.compare import ModelAnswers, SuiteAnswers
from currreft_jax.evaluation.manifest import HASH_BYTES
from currreft_jax.evaluation.readable import read_answer
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rollouts import EmbeddedImages, dump_fitting, question_boxes, relative_boxes
from currreft_jax.rewards import boxes
from currreft_jax.runtime.digests import hash_files
from currreft_jax.structs import Completion, Frame, Reason, Row

ROWS_PER_CELL = 3  # of a pair of models, a direction, a kind and a task
SEED = 0


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A row that two models answered.

    Attributes:
        suite: the suite of the first model.
        first: its answer.
        second: the answer of the other one.
    """

    suite: SuiteAnswers
    first: Answer
    second: Answer

    @property
    def gained(self) -> bool:
        """True if the second model alone is right, in its first completion."""
        return self.second.readable[0] > self.first.readable[0]


@dataclass(slots=True)
class _RowFinder:
    """Finds rows of suites by their ids.

    Attributes:
        problems: why the rows of a suite cannot be shown.
    """

    problems: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, dict[str, Row]] = field(default_factory=dict)

    def row(self, suite: SuiteAnswers, row_id: str) -> Row | None:
        """Returns a row; None if the files of its suite are gone or have changed."""
        if suite.suite not in self._rows:
            self._rows[suite.suite] = self._read(suite)
        return self._rows[suite.suite].get(row_id)

    def _read(self, suite: SuiteAnswers) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for source, (_, digest) in zip(suite.sources, suite.files, strict=True):
            now = hash_files(Path(source.file), size=HASH_BYTES)
            if now != digest:
                change = "is not there; run from the folder of the evaluation" if now == "missing" else "has changed"
                self.problems[suite.suite] = f"{source.file} {change}"
                return {}
            found |= {row.id: row for row in _rows_of(source)}
        return found


def _rows_of(source: Source) -> Iterator[Row]:
    with RowFile(source.file, image_root=source.image_root, kind=source.kind, task=source.task) as file:
        for index in range(len(file)):
            yield file[index]


def pairs_json(models: Sequence[ModelAnswers], max_bytes: int, seed: int = SEED) -> tuple[str, dict[str, int]]:
    """Dumps rows that two models answer otherwise, as the page's JSON, and counts those `shown` and `missing` images.

    Each model is paired with the one before it, and the last with the first. Of each pair, direction, kind
    and task, `ROWS_PER_CELL` rows are drawn at random; the draw depends on the seed and the rows' names alone.

    Args:
        models: the models.
        max_bytes: size limit of the JSON; rows that would exceed it are left out.
        seed: seed of the draw.

    Raises:
        LineError: a row is damaged.
    """
    finder, embedded, missing = _RowFinder(), EmbeddedImages(), set[str]()
    room = max_bytes - 2000
    shown = left_out = 0
    pairs = []
    for first, second in _model_pairs(models):
        differing = [
            pair for pair in _paired_answers(first, second) if pair.first.readable[0] != pair.second.readable[0]
        ]
        found = [(pair, finder.row(pair.suite, pair.first.row)) for pair in draw_pairs(differing, seed)]
        drawn = [(pair, row) for pair, row in found if row is not None]
        rows, texts, room = dump_fitting(drawn, lambda drawn: _pair_record(*drawn, embedded), embedded, room)
        shown += len(rows)
        left_out += len(drawn) - len(rows)
        missing.update(path for row in rows for path in row["missing"])
        counts = Counter(pair.gained for pair in differing)
        facts = {"models": [first.name, second.name], "gained": counts[True], "lost": counts[False]}
        pairs.append(f'{html_safe_json(facts)[:-1]},"rows":[{",".join(texts)}]}}')
    facts = {"per_cell": ROWS_PER_CELL, "seed": seed, "problems": finder.problems, "left_out": left_out}
    text = f'{html_safe_json(facts)[:-1]},"images":{html_safe_json(embedded.images)},"pairs":[{",".join(pairs)}]}}'
    return text, {"shown": shown, "missing": len(missing), "left_out": left_out, "suites": len(finder.problems)}


def _model_pairs(models: Sequence[ModelAnswers]) -> list[tuple[ModelAnswers, ModelAnswers]]:
    ends = [(models[0], models[-1])] if len(models) > 2 else []
    return [*ends, *pairwise(models)]


def _paired_answers(first: ModelAnswers, second: ModelAnswers) -> Iterator[AnswerPair]:
    """Yields the rows that both models answered with the rows' own images; items of benchmarks have other scores."""
    own, others = (
        {one.suite: one for one in model.suites if one.images is ImageCondition.ORIGINAL and not one.benchmark}
        for model in (first, second)
    )
    for suite in (own[name] for name in own if name in others):
        answers = {answer.row: answer for answer in others[suite.suite].answers}
        for answer in suite.answers:
            other = answers[answer.row]
            if not (answer.failure or other.failure):
                yield AnswerPair(suite, answer, other)


def draw_pairs(differing: Sequence[AnswerPair], seed: int = SEED) -> list[AnswerPair]:
    """Draws `ROWS_PER_CELL` rows of each direction, kind and task, in the order of a seeded hash of their names."""
    taken: Counter[tuple[bool, Kind, Task]] = Counter()
    drawn = []
    for pair in sorted(differing, key=lambda pair: seeded_key(seed, pair.suite.suite, pair.first.row)):
        cell = pair.gained, pair.first.kind, pair.first.task
        if taken[cell] < ROWS_PER_CELL:
            taken[cell] += 1
            drawn.append(pair)
    return drawn


def seeded_key(seed: int, *names: str) -> bytes:
    """Returns a hash of names, by which a random order is the same for the same seed."""
    return hashlib.blake2b("\0".join([str(seed), *names]).encode(), digest_size=8).digest()


def in_image_frame(row: Row, images: Sequence[int | None], embedded: EmbeddedImages) -> Row:
    """Gives a row without a frame that of its first image; `images` are the indices of its images."""
    if row.frame or not images or images[0] is None:
        return row
    size = embedded.images[images[0]]
    return replace(row, frame=Frame(size["width"], size["height"]))


def _pair_record(pair: AnswerPair, row: Row, embedded: EmbeddedImages) -> dict[str, Any]:
    """Converts a row and two answers to the page's JSON; boxes are relative to the image's sides."""
    images = [embedded.index_of(path) for path in row.images]
    row = in_image_frame(row, images, embedded)
    return {
        "suite": pair.suite.suite,
        "domain": pair.suite.domain.value,
        "row": row.id,
        "task": row.task.value,
        "kind": row.kind.value,
        "gained": pair.gained,
        "prompt": question_text(row),
        "solution": row.solution,
        "images": images,
        "missing": [path for path, index in zip(row.images, images, strict=True) if index is None],
        "gold_boxes": relative_boxes(gold_corners(row), row.frame),
        "question_boxes": question_boxes(row),
        "completions": [_answer_record(answer, row) for answer in (pair.first, pair.second)],
    }


def question_text(row: Row) -> str:
    """Returns the question and its options; a box of theirs in pixels of the row's frame."""
    lines = [
        row.problem,
        *(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, row.options, strict=False)),
    ]
    text = "\n".join(lines)
    for index, box in enumerate(row.boxes):
        text = text.replace(f"{{box:{index}}}", boxes.format_box(box))
    return text


def _answer_record(answer: Answer, row: Row) -> dict[str, Any]:
    """Converts the first completion of an answer."""
    completion = Completion(answer.completions[0], finished=answer.finished[0])
    return {
        "text": completion.text,
        "finished": completion.finished,
        "strict": answer.strict[0],
        "readable": answer.readable[0],
        "score": round(answer.readable_score[0], 4),
        "reason": answer.reasons[0],
        "samples": len(answer.completions),
        "boxes": _answer_boxes(completion, row, Frame(*answer.resized) if answer.resized else row.frame),
    }


def _answer_boxes(completion: Completion, row: Row, frame: Frame | None) -> list[list[float]]:
    """Returns the boxes of an open detection answer as the readable reading finds them, without degenerate ones."""
    if (row.kind, row.task) != (Kind.OPEN, Task.DETECTION):
        return []
    corners = boxes.named_corners(read_answer(row, completion, Rewards()).answer)
    return [] if isinstance(corners, Reason) else relative_boxes(corners[~boxes.degenerate(corners)], frame)
