"""From open rows to yes/no rows and to rows with options: the earlier stages of the curriculum.

Which rows say yes, and at which letter the right option stands, goes by rank: the rows of a task are ordered by a
digest of seed and id, and take turns. So the shares are equal to within one row, and the order of the input plays no
part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_uppercase

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.builders import negatives, wording
from currreft_jax.data.builders.answers import wrong_answers
from currreft_jax.data.builders.items import Box, Material, Scene
from currreft_jax.data.builders.keyed import digest, ranked, shuffled
from currreft_jax.rewards import MathsPool, classify, detection
from currreft_jax.rewards.answer import gold_text
from currreft_jax.structs import Reason, Row

_OPTIONS = 4
_MOST_OPTIONS = 5
_MOST_RIGHT = 3


@dataclass(frozen=True, slots=True)
class Case:
    """What an open row can be turned into.

    Attributes:
        row: the open row.
        right: its right answers: a box, labels, or an expression.
        wrong: wrong ones, the best first.
    """

    row: Row
    right: tuple[Box | str, ...]
    wrong: tuple[Box | str, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """Rows of one kind, and why open rows have none: reason -> their ids."""

    rows: list[Row]
    dropped: dict[str, list[str]]


def generate(
    rows: Sequence[Row],
    kind: Kind,
    material: Material,
    seed: int,
    pool: MathsPool,
    count: int | None = None,
) -> Generated:
    """Yes/no rows, or rows with options, of open rows of any tasks.

    Args:
        rows: open rows; rows of other kinds are an error.
        kind: `JUDGE` or `CHOICE`.
        material: what is in the images, and the source's own wrong answers; more rows of the same images in it give
            more negatives.
        seed: of all choices.
        pool: compares mathematical answers.
        count: of rows of each task, at most.

    Raises:
        ValueError: a row is not open, or is of a task that no rule scores.
    """
    for row in rows:
        if row.kind is not Kind.OPEN or row.task is Task.OTHER:
            raise ValueError(f"row {row.id} is {row.kind.value}, {row.task.value}; only open rows have other forms")
    made = Generated([], {})
    material = replace(material, rows=[*material.rows, *rows])
    wanted = 1 if kind is Kind.JUDGE else _OPTIONS - 1
    for task in (Task.DETECTION, Task.CLASSIFY, Task.MATH):
        those = ranked((row for row in rows if row.task is task), seed, kind.value)
        cases: list[Case] = []
        while those and (count is None or len(cases) < count):  # no more is compared than is needed
            size = len(those) if count is None else count - len(cases)
            cases += _cases(task, those[:size], wanted, material, seed, pool, made.dropped)
            those = those[size:]
        make = _judge if kind is Kind.JUDGE else _choose_several if task is Task.CLASSIFY else _choose_one
        made.rows.extend(make(cases, seed))
    return made


def with_scenes(material: Material) -> Material:
    """The material with a scene for every image that has none: the right boxes of all its rows are its objects."""
    found: dict[str, Scene] = {}
    for row in material.rows:
        image = row.images[0] if row.images else ""
        if row.task is Task.DETECTION and row.kind is Kind.OPEN and row.frame and image not in material.scenes:
            known = found.get(image, Scene(image, row.frame))
            objects = tuple(("", box) for box in _gold_boxes(row))
            found[image] = replace(known, objects=tuple(dict.fromkeys((*known.objects, *objects))))
    return replace(material, scenes={**found, **material.scenes})


def _cases(
    task: Task,
    rows: Sequence[Row],
    wanted: int,
    material: Material,
    seed: int,
    pool: MathsPool,
    dropped: dict[str, list[str]],
) -> list[Case]:
    if task is Task.DETECTION:
        found = [_box_case(row, wanted, material, seed) for row in rows]
    elif task is Task.CLASSIFY:
        found = _label_cases(rows, wanted, material, seed)
    else:
        wrong = wrong_answers(rows, material.wrong, wanted, seed, pool)
        found = [
            Case(row, (gold_text(row),), tuple(wrong[row.id]))
            if len(wrong[row.id]) == wanted
            else "too few wrong answers"
            for row in rows
        ]
    cases = []
    for row, case in zip(rows, found, strict=True):
        if isinstance(case, Case):
            cases.append(case)
        else:
            dropped.setdefault(case, []).append(row.id)
    return cases


def _box_case(row: Row, wanted: int, material: Material, seed: int) -> Case | str:
    scene = material.scenes.get(row.images[0])
    if scene is None or row.frame is None:
        return "the size of the image is unknown"
    golds = _gold_boxes(row)
    gold = negatives.pick(golds, seed, row.id, "gold")
    if not negatives.large_enough(gold, row.frame):
        return "the box is too small to be told from others"
    ordered = [gold, *(box for box in golds if box != gold)]
    wrong = negatives.wrong_boxes(ordered, scene, wanted, seed, row.id)
    return Case(row, (gold,), tuple(wrong)) if len(wrong) == wanted else "no room for wrong boxes"


def _label_cases(rows: Sequence[Row], wanted: int, material: Material, seed: int) -> list[Case | str]:
    # Per source: what one set calls absent, another may show under a name that the first does not know.
    golds: dict[str, dict[str, frozenset[str]]] = {}
    for row in material.rows:
        if row.task is Task.CLASSIFY and row.kind is Kind.OPEN:
            golds.setdefault(row.source, {})[row.id] = classify.gold_labels(row, Rewards())
    vocabularies = {source: frozenset[str]().union(*its.values()) for source, its in golds.items()}
    counts = {source: negatives.together(its.values()) for source, its in golds.items()}
    found: list[Case | str] = []
    for row in rows:
        gold = golds[row.source][row.id]
        present = gold | _scene_labels(row, material)
        absent = negatives.absent(present, vocabularies[row.source], counts[row.source], seed, row.id, "absent")
        right = tuple(shuffled(gold, seed, row.id, "right"))
        enough = len(absent) >= wanted
        found.append(Case(row, right, tuple(absent[:_MOST_OPTIONS])) if enough else "too few absent categories")
    return found


def _scene_labels(row: Row, material: Material) -> frozenset[str]:
    """The labels of a row's image, as labels are compared."""
    scene = material.scenes.get(row.images[0]) if row.images else None
    labels = classify.parse_labels(json.dumps(sorted(scene.labels)), Rewards()) if scene else frozenset()
    return frozenset() if isinstance(labels, Reason) else labels


def _judge(cases: Sequence[Case], seed: int) -> list[Row]:
    return [_judged(case, yes=rank % 2 == 0) for rank, case in enumerate(cases)]


def _judged(case: Case, *, yes: bool) -> Row:
    row, shown = case.row, case.right[0] if yes else case.wrong[0]
    if row.task is Task.DETECTION:
        words, phrase = wording.boxes_wording(row.problem)
        problem = words.judge + phrase
    elif row.task is Task.CLASSIFY:
        problem = f"{wording.JUDGE_CATEGORY}{shown}"
    else:
        problem = wording.judge_answer(row.problem, str(shown))
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


def _choose_one(cases: Sequence[Case], seed: int) -> list[Row]:
    return [_with_options(case, {rank % _OPTIONS}, _OPTIONS, seed) for rank, case in enumerate(cases)]


def _choose_several(cases: Sequence[Case], seed: int) -> list[Row]:
    """One to three right labels among four or five; every letter is right equally often."""
    rows, used = [], {count: Counter[int]() for count in (_OPTIONS, _MOST_OPTIONS)}
    for rank, case in enumerate(cases):
        right = 1 + digest(seed, case.row.id, "count") % min(_MOST_RIGHT, len(case.right))
        size = _OPTIONS + rank % 2
        if right + len(case.wrong) < size:
            size = _OPTIONS
        letters = min(
            combinations(range(size), right),
            key=lambda places: (sum(used[size][it] for it in places), digest(seed, case.row.id, places)),
        )
        used[size].update(letters)
        rows.append(_with_options(case, set(letters), size, seed))
    return rows


def _with_options(case: Case, letters: set[int], size: int, seed: int) -> Row:
    row = case.row
    right = iter(case.right[: len(letters)])
    wrong = iter(shuffled(case.wrong[: size - len(letters)], seed, row.id, "places"))
    texts = [next(right) if place in letters else next(wrong) for place in range(size)]
    problem, options, boxes = row.problem, tuple(map(str, texts)), ()
    if row.task is Task.DETECTION:
        words, phrase = wording.boxes_wording(row.problem)
        problem, options = words.choose + phrase, tuple(f"{{box:{index}}}" for index in range(size))
        boxes = tuple(box for box in texts if not isinstance(box, str))
    elif row.task is Task.CLASSIFY:
        problem = wording.CHOOSE_CATEGORIES
    return replace(
        row,
        id=f"{row.id}-choice",
        kind=Kind.CHOICE,
        problem=problem,
        solution=", ".join(ascii_uppercase[place] for place in sorted(letters)),
        options=options,
        multiple=row.task is Task.CLASSIFY,
        boxes=boxes,
    )


def _gold_boxes(row: Row) -> list[Box]:
    corners = detection.gold_boxes(row, None).corners
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in corners]
