"""Generates rows of the earlier curriculum stages from open rows: yes/no rows and rows with options.

Which rows have the answer yes, and which letter the right option gets, is assigned by rank: the rows of a task are
sorted by a hash of seed and id, and the answers take turns. So the shares are equal to within one row, whatever the
order of the input.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from string import ascii_uppercase

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.builders import image_negatives, question_templates
from currreft_jax.data.builders.box_formats import Box
from currreft_jax.data.builders.converter import AnnotatedImage, ConvertedData
from currreft_jax.data.builders.hashed_rng import hash64, hash_shuffle, hash_shuffle_rows
from currreft_jax.data.builders.math_negatives import select_wrong_answers
from currreft_jax.rewards import MathsPool, classify, detection
from currreft_jax.rewards.answer import gold_text
from currreft_jax.structs import Reason, Row

_NUM_OPTIONS = 4
_MAX_OPTIONS = 5  # of questions with several right options
_MAX_RIGHT = 3


@dataclass(frozen=True, slots=True)
class AnswerCandidates:
    """Answers from which an open row can be turned into another kind.

    Attributes:
        row: the open row.
        right: right answers: one box, labels, one expression, or `NO_OBJECT`.
        wrong: wrong answers, the best first.
    """

    row: Row
    right: tuple[Box | str, ...]
    wrong: tuple[Box | str, ...]


@dataclass(frozen=True, slots=True)
class GeneratedRows:
    """Rows of one kind.

    Attributes:
        rows: the rows.
        dropped: reason -> ids of open rows that make none.
    """

    rows: list[Row] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)


def generate_rows(
    rows: Sequence[Row],
    kind: Kind,
    data: ConvertedData,
    seed: int,
    pool: MathsPool,
    count: int | None = None,
) -> GeneratedRows:
    """Generates yes/no rows, or rows with options, from open rows of any tasks.

    Args:
        rows: open rows.
        kind: `JUDGE` or `CHOICE`.
        data: annotations of the images and wrong answers of the source; its other rows of the same images give more
            negatives.
        seed: seed of all draws.
        pool: compares math answers.
        count: maximum number of rows for each task; None for all.

    Raises:
        ValueError: a row is not open, or its task has no reward.
    """
    for row in rows:
        if row.kind is not Kind.OPEN or row.task is Task.OTHER:
            raise ValueError(
                f"row {row.id} is a {row.kind.value} row of task {row.task.value}; only open rows of detection,"
                " classify and math can be made into other kinds"
            )
    generated = GeneratedRows()
    data = replace(data, rows=[*data.rows, *rows])
    present = _present_categories(rows, data, seed)
    for task in (Task.DETECTION, Task.CLASSIFY, Task.MATH):
        remaining = hash_shuffle_rows((row for row in rows if row.task is task), seed, kind.value)
        candidates: list[AnswerCandidates] = []
        while remaining and (count is None or len(candidates) < count):  # compares no more answers than needed
            size = len(remaining) if count is None else count - len(candidates)
            candidates += _find_candidates(task, remaining[:size], kind, present, data, seed, pool, generated.dropped)
            remaining = remaining[size:]
        if kind is Kind.JUDGE:
            generated.rows.extend(_judge_rows(candidates))
        elif task is Task.CLASSIFY:
            generated.rows.extend(_multiple_choice_rows(candidates, seed))
        else:
            generated.rows.extend(_single_choice_rows(candidates, seed))
    return generated


def generate_and_note_drops(
    rows: Sequence[Row], kind: Kind, data: ConvertedData, seed: int, pool: MathsPool, count: int | None = None
) -> list[Row]:
    """Generates rows as `generate_rows` does, and adds the open rows that make none to `data.dropped`."""
    generated = generate_rows(rows, kind, data, seed, pool, count)
    for reason, ids in generated.dropped.items():
        data.dropped.setdefault(f"{kind.value}: {reason}", []).extend(ids)
    return generated.rows


def annotate_from_golds(data: ConvertedData) -> ConvertedData:
    """Adds annotations for images that have none: the right boxes of all their rows, with unknown categories."""
    images: dict[str, AnnotatedImage] = {}
    for row in data.rows:
        path = row.images[0] if row.images else ""
        if row.task is Task.DETECTION and row.kind is Kind.OPEN and row.frame and path not in data.images:
            known = images.get(path, AnnotatedImage(path, row.frame))
            objects = tuple(("", box) for box in list_gold_boxes(row))
            images[path] = replace(known, objects=tuple(dict.fromkeys((*known.objects, *objects))))
    return replace(data, images={**images, **data.images})


def list_gold_boxes(row: Row) -> list[Box]:
    """Returns the right boxes of an open detection row.

    Raises:
        RowError: the gold answer cannot be read.
    """
    corners = detection.gold_boxes(row, None).corners
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in corners]


def _find_candidates(
    task: Task,
    rows: Sequence[Row],
    kind: Kind,
    present: Mapping[str, str],
    data: ConvertedData,
    seed: int,
    pool: MathsPool,
    dropped: dict[str, list[str]],
) -> list[AnswerCandidates]:
    """Returns the candidates of every row that has enough wrong answers, and adds the other rows to `dropped`."""
    num_wrong = 1 if kind is Kind.JUDGE else _NUM_OPTIONS - 1
    if task is Task.DETECTION:
        results = [_box_candidates(row, kind, num_wrong, present, data, seed) for row in rows]
    elif task is Task.CLASSIFY:
        results = _label_candidates(rows, num_wrong, data, seed)
    else:
        results = _math_candidates(rows, num_wrong, data, seed, pool)
    candidates = []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, AnswerCandidates):
            candidates.append(result)
        else:
            dropped.setdefault(result, []).append(row.id)
    return candidates


def _present_categories(rows: Sequence[Row], data: ConvertedData, seed: int) -> dict[str, str]:
    """Draws a category in the image for each detection row with nothing to find, another for each row of an image.

    It is empty if no category, or no further one, is known to be there.
    """
    present: dict[str, str] = {}
    drawn = defaultdict[str, set[str]](set)
    for row in hash_shuffle_rows((row for row in rows if row.task is Task.DETECTION), seed, "present"):
        if not list_gold_boxes(row):
            path = row.images[0]
            labels = data.images[path].labels - drawn[path] if path in data.images else ()
            present[row.id] = next(iter(hash_shuffle(labels, seed, row.id, "present")), "")
            drawn[path].add(present[row.id])
    return present


def _box_candidates(
    row: Row, kind: Kind, num_wrong: int, present: Mapping[str, str], data: ConvertedData, seed: int
) -> AnswerCandidates | str:
    """Returns a right box and wrong ones, or why there are none.

    Where some rows have nothing to find, every question with options offers that answer: it must not give itself away.
    """
    image = data.images.get(row.images[0])
    if image is None or row.frame is None:
        return "the size of the image is unknown"
    if row.id in present:
        return _absent_candidates(row, kind, num_wrong, present[row.id], image, seed)
    golds = list_gold_boxes(row)
    gold = image_negatives.choose_box(golds, seed, row.id, "gold")
    if not image_negatives.is_large_enough(gold, row.frame):
        return "the box is too small to be told from others"
    ordered = [gold, *(box for box in golds if box != gold)]
    others = (question_templates.NO_OBJECT,) if present and kind is Kind.CHOICE else ()
    wrong = (*image_negatives.wrong_boxes(ordered, image, num_wrong - len(others), seed, row.id), *others)
    return AnswerCandidates(row, (gold,), wrong) if len(wrong) == num_wrong else "no room for wrong boxes"


def _absent_candidates(
    row: Row, kind: Kind, num_wrong: int, present: str, image: AnnotatedImage, seed: int
) -> AnswerCandidates | str:
    """Returns the candidates of a row with nothing to find, or why there are none.

    A judge row asks whether the category, or a present one, is in the image.
    """
    if kind is Kind.JUDGE:
        templates, category = question_templates.match_box_templates(row.problem)
        if not present or templates.judge != question_templates.CATEGORY.judge:
            return "nothing to find, and no other category is known to be in the image"
        return AnswerCandidates(row, (present,), (category,))
    wrong = image_negatives.wrong_boxes([], image, num_wrong, seed, row.id)
    if len(wrong) < num_wrong:
        return "no room for wrong boxes"
    return AnswerCandidates(row, (question_templates.NO_OBJECT,), tuple(wrong))


def _label_candidates(
    rows: Sequence[Row], num_wrong: int, data: ConvertedData, seed: int
) -> list[AnswerCandidates | str]:
    """Returns for each row its labels and absent ones, or why there are none."""
    # Per source: a category of one data set may be another's under a different name.
    golds: dict[str, dict[str, frozenset[str]]] = {}
    for row in data.rows:
        if row.task is Task.CLASSIFY and row.kind is Kind.OPEN:
            golds.setdefault(row.source, {})[row.id] = classify.gold_labels(row, Rewards())
    vocabularies = {source: frozenset[str]().union(*labels.values()) for source, labels in golds.items()}
    pair_counts = {source: image_negatives.count_pairs(labels.values()) for source, labels in golds.items()}
    results: list[AnswerCandidates | str] = []
    for row in rows:
        gold = golds[row.source][row.id]
        present = gold | _image_labels(row, data)
        absent = image_negatives.absent_labels(
            present, vocabularies[row.source], pair_counts[row.source], seed, row.id, "absent"
        )
        right = tuple(hash_shuffle(gold, seed, row.id, "right"))
        if len(absent) >= num_wrong:
            results.append(AnswerCandidates(row, right, tuple(absent[:_MAX_OPTIONS])))
        else:
            results.append("too few absent categories")
    return results


def _math_candidates(
    rows: Sequence[Row], num_wrong: int, data: ConvertedData, seed: int, pool: MathsPool
) -> list[AnswerCandidates | str]:
    """Returns for each row its gold answer and wrong ones, or why there are none."""
    wrong = select_wrong_answers(rows, data.wrong_answers, num_wrong, seed, pool)
    return [
        AnswerCandidates(row, (gold_text(row),), tuple(wrong[row.id]))
        if len(wrong[row.id]) == num_wrong
        else "too few wrong answers"
        for row in rows
    ]


def _image_labels(row: Row, data: ConvertedData) -> frozenset[str]:
    """Returns the annotated labels of a row's image, normalized as the reward compares them."""
    image = data.images.get(row.images[0]) if row.images else None
    labels = classify.parse_labels(json.dumps(sorted(image.labels)), Rewards()) if image else frozenset()
    return frozenset() if isinstance(labels, Reason) else labels


def _judge_rows(candidates: Sequence[AnswerCandidates]) -> list[Row]:
    return [_judge_row(entry, yes=rank % 2 == 0) for rank, entry in enumerate(candidates)]


def _judge_row(candidates: AnswerCandidates, *, yes: bool) -> Row:
    row, shown = candidates.row, candidates.right[0] if yes else candidates.wrong[0]
    if not isinstance(shown, str):
        templates, phrase = question_templates.match_box_templates(row.problem)
        problem = templates.judge + phrase
    elif row.task is Task.MATH:
        problem = question_templates.judge_answer_question(row.problem, shown)
    else:
        problem = f"{question_templates.JUDGE_CATEGORY}{shown}"
    boxes = () if isinstance(shown, str) else (shown,)
    return replace(
        row,
        id=f"{row.id}-judge",
        kind=Kind.JUDGE,
        problem=problem,
        solution="yes" if yes else "no",
        options=(),
        boxes=boxes,
    )


def _single_choice_rows(candidates: Sequence[AnswerCandidates], seed: int) -> list[Row]:
    return [_choice_row(entry, {rank % _NUM_OPTIONS}, _NUM_OPTIONS, seed) for rank, entry in enumerate(candidates)]


def _multiple_choice_rows(candidates: Sequence[AnswerCandidates], seed: int) -> list[Row]:
    """Makes rows of one to three right labels among four or five; every letter is right equally often."""
    rows, times_right = [], {size: Counter[int]() for size in (_NUM_OPTIONS, _MAX_OPTIONS)}
    for rank, entry in enumerate(candidates):
        num_right = 1 + hash64(seed, entry.row.id, "count") % min(_MAX_RIGHT, len(entry.right))
        size = _NUM_OPTIONS + rank % 2
        if num_right + len(entry.wrong) < size:
            size = _NUM_OPTIONS
        right_indices = min(
            combinations(range(size), num_right),
            key=lambda indices: (
                sum(times_right[size][index] for index in indices),
                hash64(seed, entry.row.id, indices),
            ),
        )
        times_right[size].update(right_indices)
        rows.append(_choice_row(entry, set(right_indices), size, seed))
    return rows


def _choice_row(candidates: AnswerCandidates, right_indices: set[int], size: int, seed: int) -> Row:
    """Makes a row of `size` options with right answers at the given indices."""
    row = candidates.row
    right = iter(candidates.right[: len(right_indices)])
    wrong = iter(hash_shuffle(candidates.wrong[: size - len(right_indices)], seed, row.id, "places"))
    answers = [next(right) if index in right_indices else next(wrong) for index in range(size)]
    problem, options, boxes = row.problem, tuple(map(str, answers)), ()
    if row.task is Task.DETECTION:
        templates, phrase = question_templates.match_box_templates(row.problem)
        problem, boxes = templates.choice + phrase, tuple(box for box in answers if not isinstance(box, str))
        options = tuple(answer if isinstance(answer, str) else f"{{box:{boxes.index(answer)}}}" for answer in answers)
    elif row.task is Task.CLASSIFY:
        problem = question_templates.CHOOSE_CATEGORIES
    return replace(
        row,
        id=f"{row.id}-choice",
        kind=Kind.CHOICE,
        problem=problem,
        solution=", ".join(ascii_uppercase[index] for index in sorted(right_indices)),
        options=options,
        multiple=row.task is Task.CLASSIFY,
        boxes=boxes,
    )
