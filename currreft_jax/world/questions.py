"""Questions about a scene: three tasks, each in three kinds.

The kinds of a task share its subject: the judge row proposes an answer, the choice row offers four, the open row none.
Right answers cycle with the index of the scene, so that yes and no, and the four letters, are equally frequent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from random import Random
from string import ascii_uppercase
from typing import TypeVar

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.rewards.boxes import corners_iou, format_box
from currreft_jax.structs import Row
from currreft_jax.world.rng import hashed_rng, pick, randint, shuffled, weighted_pick
from currreft_jax.world.scenes import (
    CELL,
    FRAME,
    SIZE,
    Box,
    Domain,
    Scene,
    SceneObject,
    target_objects,
    unambiguous_targets,
)
from currreft_jax.world.settings import WorldSettings

TASKS = (Task.DETECTION, Task.CLASSIFY, Task.MATH)
KINDS = (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
NUM_OPTIONS = 4
ORIGIN = "Apache-2.0, drawn by currreft_jax.world"

GRID_ROWS = ("top", "middle", "bottom")
GRID_COLUMNS = ("left", "center", "right")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "diamond": "diamonds",
}
# Largest IoU of a wrong box with the right one: half of what detection accepts.
_MAX_IOU = 0.25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _RegionPart:
    """Objects that a question is about, under the condition that they meet.

    Attributes:
        heading: the condition, as thoughts name it; empty where it is the only one.
        objects: in reading order.
    """

    heading: str
    objects: Sequence[SceneObject]


@dataclass(frozen=True, slots=True)
class _Count:
    """A count to ask for.

    Attributes:
        phrase: the counted things, as in `stars plus squares`.
        thought: the steps that lead to the total.
        total: the answer.
    """

    phrase: str
    thought: str
    total: int


@dataclass(frozen=True, slots=True)
class Question:
    """A row and the thought that leads to its answer.

    Attributes:
        row: the question with its gold answer.
        thought: a few words that lead to the answer.
    """

    row: Row
    thought: str


@dataclass(frozen=True, slots=True)
class _QuestionDraft:
    """The fields of a row and its thought that depend on task and kind; see `Row` and `Question`."""

    problem: str
    solution: str
    thought: str
    options: tuple[str, ...] = ()
    multiple: bool = False
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class _Context:
    """The inputs of a question.

    Attributes:
        scene: the content of the image.
        settings: the difficulty of the question.
        subject_rng: draws the subject, which the three kinds share.
        details_rng: draws wrong answers and the order of options, for this kind alone.
        turn: counter with which right answers cycle.
    """

    scene: Scene
    settings: WorldSettings
    subject_rng: Random
    details_rng: Random
    turn: int


def make_question(
    scene: Scene,
    task: Task,
    kind: Kind,
    *,
    image: str,
    split: str,
    settings: WorldSettings,
    question_index: int = 0,
) -> Question:
    """Returns the question of a task and kind about a scene.

    Args:
        scene: the content of the image.
        task: detection, classify or math.
        kind: judge, choice or open.
        image: path of the image.
        split: the row's split.
        settings: the difficulty of the question.
        question_index: counts the questions of one task about the scene.
    """
    key = (scene.seed, scene.index, task.value, question_index)
    turn = scene.index + question_index + TASKS.index(task)
    context = _Context(scene, settings, hashed_rng("subject", *key), hashed_rng("details", *key, kind.value), turn)
    draft = _DRAFTS[task](context, kind)
    suffix = f"-{question_index}" if question_index else ""
    row = Row(
        id=f"world-{split}-{scene.seed}-{scene.index}-{task.value}-{kind.value}{suffix}",
        task=task,
        kind=kind,
        problem=draft.problem,
        solution=draft.solution,
        images=(image,),
        options=draft.options,
        multiple=draft.multiple,
        frame=FRAME,
        boxes=draft.boxes,
        source="world",
        split=split,
        origin=ORIGIN,
    )
    return Question(row, draft.thought)


def cell_name(box: Box) -> str:
    """Names the grid row and column of a box's centre, as in `top left`."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return f"{GRID_ROWS[int(y // CELL)]} {GRID_COLUMNS[int(x // CELL)]}"


def _judge_answer(context: _Context) -> bool:
    return context.turn % 2 == 0


def _insert_right_option(context: _Context, right: T, wrong: Sequence[T]) -> tuple[tuple[T, ...], str]:
    """Returns the options in order, and the letter of the right one."""
    position = context.turn % NUM_OPTIONS
    return (*wrong[:position], right, *wrong[position:]), ascii_uppercase[position]


def _yes_or_no(answer: bool) -> str:
    return "yes" if answer else "no"


def _options_thought(options: Iterable[str], right_letter: str) -> str:
    """Lists the options with yes or no after each, up to the right one."""
    letters = ascii_uppercase[: ascii_uppercase.index(right_letter) + 1]
    return ", ".join(
        f"{letter} {option} {_yes_or_no(letter == right_letter)}"
        for letter, option in zip(letters, options, strict=False)
    )


# ---------------------------------------------------------------------------------------------------------- detection


def _detection_draft(context: _Context, kind: Kind) -> _QuestionDraft:
    target = pick(context.subject_rng, unambiguous_targets(context.scene.objects, context.scene.domain))
    name = " ".join(target.pair)
    problem, location = f"where is the {name}?", f"{name} {cell_name(target.box)}"
    if kind is Kind.OPEN:
        return _QuestionDraft(problem, format_box(target.box), location)
    if kind is Kind.JUDGE:
        answer = _judge_answer(context)
        proposed = target.box if answer else _wrong_boxes(context, target, 1)[0]
        thought = f"{location}, box {cell_name(proposed)}"
        return _QuestionDraft(f"{problem} is it {{box:0}}?", _yes_or_no(answer), thought, boxes=(proposed,))
    boxes, letter = _insert_right_option(context, target.box, _wrong_boxes(context, target, NUM_OPTIONS - 1))
    options = tuple(f"{{box:{index}}}" for index in range(NUM_OPTIONS))
    thought = f"{location}, {_options_thought(map(cell_name, boxes), letter)}"
    return _QuestionDraft(problem, letter, thought, options, boxes=boxes)


def _wrong_boxes(context: _Context, target: SceneObject, count: int) -> list[Box]:
    """Returns boxes of other objects, or boxes near the target or on no object as the settings ask for.

    Boxes on no object also fill up where the scene has too few other objects.
    """
    rng, settings = context.details_rng, context.settings
    others = shuffled(rng, (obj.box for obj in context.scene.objects if obj is not target))
    wrong: list[Box] = []
    while len(wrong) < count:
        if rng.random() < settings.near_boxes:
            wrong.append(_near_box(rng, target.box, [*others, *wrong], settings))
        elif others and not (count == 1 and rng.random() < settings.empty_boxes):
            wrong.append(others.pop())
        else:
            wrong.append(_empty_box(rng, [target.box, *others, *wrong], settings))
    return wrong


def _empty_box(rng: Random, taken: Sequence[Box], settings: WorldSettings) -> Box:
    """Draws a box of an object's size that overlaps none of those taken, or after 200 attempts only a little."""
    attempt = 0
    while True:
        attempt += 1
        x, y = randint(rng, 0, SIZE - settings.sides[1]), randint(rng, 0, SIZE - settings.sides[1])
        box = _float_box(x, y, x + randint(rng, *settings.sides), y + randint(rng, *settings.sides))
        if _max_iou(box, taken) <= (0.0 if attempt < 200 else _MAX_IOU):
            return box


def _near_box(rng: Random, target: Box, taken: Sequence[Box], settings: WorldSettings) -> Box:
    """Draws a box that overlaps the target, but too little to be right."""
    while True:
        x = round(target[0]) + randint(rng, -settings.sides[1], settings.sides[1])
        y = round(target[1]) + randint(rng, -settings.sides[1], settings.sides[1])
        box = _float_box(x, y, x + randint(rng, *settings.sides), y + randint(rng, *settings.sides))
        inside = min(box) >= 0 and max(box) <= SIZE
        if inside and 0 < _max_iou(box, [target]) < _MAX_IOU and _max_iou(box, taken) <= 0.5:
            return box


def _max_iou(box: Box, others: Sequence[Box]) -> float:
    """Returns the largest IoU of a box with any of the others; 0 without others."""
    return float(corners_iou(np.array([box]), np.array(others).reshape(-1, 4)).max(initial=0.0))


def _float_box(x1: int, y1: int, x2: int, y2: int) -> Box:
    return float(x1), float(y1), float(x2), float(y2)


# ----------------------------------------------------------------------------------------------------------- classify


def _names(objects: Sequence[SceneObject], subject: str) -> list[str]:
    """Returns the shape, colour or both of each object, by the subject, in reading order."""
    name = {
        "shapes": lambda obj: obj.shape,
        "colours": lambda obj: obj.colour,
        "objects": lambda obj: " ".join(obj.pair),
    }[subject]
    return [name(obj) for obj in objects]


def _domain_names(domain: Domain, subject: str) -> list[str]:
    """Returns every name that an object of the domain can have."""
    colours, shapes = zip(*domain.pairs, strict=True)
    pairs = [" ".join(pair) for pair in domain.pairs]
    return list(dict.fromkeys({"shapes": shapes, "colours": colours, "objects": pairs}[subject]))


def _classify_draft(context: _Context, kind: Kind) -> _QuestionDraft:
    subject = weighted_pick(context.subject_rng, context.settings.subjects)
    region, parts = _random_region(context, subject)
    labels = _labels(parts, subject)
    if kind is Kind.OPEN:
        thought = _parts_thought((part.heading, _names(part.objects, subject)) for part in parts)
        return _QuestionDraft(f"which {subject} are {region or 'there'}?", ", ".join(labels), thought)
    absent = [name for name in _domain_names(context.scene.domain, subject) if name not in labels]
    # A region may hold every shape or colour of the domain, but never every object.
    if not absent:
        subject = "objects"
        labels = _labels(parts, subject)
        absent = [name for name in _domain_names(context.scene.domain, subject) if name not in labels]
    labels_of_parts = [(part.heading, list(dict.fromkeys(_names(part.objects, subject)))) for part in parts]
    if kind is Kind.JUDGE:
        answer = _judge_answer(context)
        name = pick(context.details_rng, labels) if answer else _absent_names(context, subject, absent, 1)[0]
        thought = f"{name}, {_parts_search_thought(name, labels_of_parts)}"
        return _QuestionDraft(f"is there any {name}{region and ' '}{region}?", _yes_or_no(answer), thought)
    options, letters = _label_options(context, subject, labels, absent)
    problem = f"which {subject} are {region or 'there'}?"
    options_letters = dict(zip(options, ascii_uppercase, strict=False))
    thought = _parts_thought(
        (heading, [letters_thought([label], options_letters) for label in names]) for heading, names in labels_of_parts
    )
    return _QuestionDraft(problem, ", ".join(letters), thought, options, multiple=True)


def _labels(parts: Sequence[_RegionPart], subject: str) -> list[str]:
    """Returns the names of the parts' objects, each once, in the order in which they are first found."""
    return list(dict.fromkeys(name for part in parts for name in _names(part.objects, subject)))


def _parts_thought(findings: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Lists what was found under each heading."""
    return "; ".join(f"{heading}{heading and ' '}{', '.join(found)}" for heading, found in findings)


def _parts_search_thought(name: str, labels_of_parts: Sequence[tuple[str, list[str]]]) -> str:
    """Searches the labels under each heading for a name, up to the first that has it."""
    searched = []
    for heading, labels in labels_of_parts:
        searched.append((heading, [search_thought(name, labels)]))
        if name in labels:
            break
    return _parts_thought(searched)


def search_thought(name: str, labels: list[str]) -> str:
    """Lists the labels with yes or no after each, up to the name that is searched for."""
    end = labels.index(name) + 1 if name in labels else len(labels)
    return ", ".join(f"{label} {_yes_or_no(label == name)}" for label in labels[:end])


def letters_thought(labels: Sequence[str], letters: Mapping[str, str]) -> str:
    """Lists the labels with the option letter of each, or none."""
    return ", ".join(f"{label} {letters.get(label, 'none')}" for label in labels)


def _random_region(context: _Context, subject: str) -> tuple[str, list[_RegionPart]]:
    """Draws the objects that a question is about.

    They are those of the whole image, with an empty text; of a grid row or column that is not empty; or those that are
    in such a line or have the colour or shape of an object outside it, as in `in the top row or red`.
    """
    rng, objects = context.subject_rng, context.scene.objects
    if context.settings.composed and rng.random() < context.settings.composed:
        line, in_line = _random_line(rng, objects)
        outside = [obj for obj in objects if obj not in in_line] or objects
        attribute = pick(rng, list(dict.fromkeys(_names(outside, "shapes" if subject == "colours" else "colours"))))
        with_attribute = [obj for obj in objects if attribute in obj.pair]
        article = "a " if attribute in PLURALS else ""
        return (
            f"{_line_phrase(line)} or {article}{attribute}",
            [_RegionPart(line, in_line), _RegionPart(attribute, with_attribute)],
        )
    if rng.random() >= context.settings.lines:
        return "", [_RegionPart("", objects)]
    line, in_line = _random_line(rng, objects)
    return _line_phrase(line), [_RegionPart("", in_line)]


def _random_line(rng: Random, objects: Sequence[SceneObject]) -> tuple[str, list[SceneObject]]:
    """Draws the name of a grid row or column that is not empty; returns its objects too."""
    words = [word for obj in objects for word in cell_name(obj.box).split()]
    line = pick(rng, list(dict.fromkeys(words)))
    return line, [obj for obj in objects if line in cell_name(obj.box).split()]


def _line_phrase(line: str) -> str:
    return f"in the {line} {'row' if line in GRID_ROWS else 'column'}"


def _label_options(
    context: _Context, subject: str, labels: list[str], absent: list[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Returns options, one to three of them right, and the letters of the right ones."""
    rng = context.details_rng
    num_right = [k for k in range(1, NUM_OPTIONS) if k <= len(labels) and NUM_OPTIONS - k <= len(absent)]
    right = shuffled(rng, labels)[: pick(rng, num_right)]
    wrong = _absent_names(context, subject, absent, NUM_OPTIONS - len(right))
    options, _ = _insert_right_option(context, right[0], shuffled(rng, [*right[1:], *wrong]))
    return options, [letter for letter, option in zip(ascii_uppercase, options, strict=False) if option in right]


def _absent_names(context: _Context, subject: str, absent: list[str], count: int) -> list[str]:
    """Draws names that are not in the image; of objects, prefer those whose colour and shape both are."""
    rng = context.details_rng
    left = shuffled(rng, absent)
    if subject != "objects":
        return left[:count]
    colours = {obj.colour for obj in context.scene.objects}
    shapes = {obj.shape for obj in context.scene.objects}
    names: list[str] = []
    for _ in range(count):
        mixed = [name for name in left if name.split()[0] in colours and name.split()[1] in shapes]
        prefers_mixed = rng.random() < context.settings.mixed_pairs
        names.append((mixed if mixed and prefers_mixed else left)[0])
        left.remove(names[-1])
    return names


# --------------------------------------------------------------------------------------------------------------- math


def _math_draft(context: _Context, kind: Kind) -> _QuestionDraft:
    count = _random_count(context)
    total, thought = count.total, count.thought
    problem = f"how many {count.phrase}?"
    if kind is Kind.OPEN:
        return _QuestionDraft(problem, str(total), thought)
    thought = f"{thought}, {total}"
    if kind is Kind.JUDGE:
        answer = _judge_answer(context)
        proposed = total if answer else _wrong_number(context, total)
        return _QuestionDraft(f"{problem} is it {proposed}?", _yes_or_no(answer), thought)
    lowest = max(0, total - randint(context.details_rng, 0, NUM_OPTIONS - 1))
    wrong = [str(n) for n in shuffled(context.details_rng, range(lowest, lowest + NUM_OPTIONS)) if n != total]
    options, letter = _insert_right_option(context, str(total), wrong)
    return _QuestionDraft(problem, letter, f"{thought}, {_options_thought(options, letter)}", options)


def _random_count(context: _Context) -> _Count:
    """Draws what to count.

    The total is drawn before the names: names drawn first would make nearly all answers 1.
    """
    rng, settings = context.subject_rng, context.settings
    subject = pick(rng, ("shapes", "colours"))
    if settings.composed and rng.random() < settings.composed:
        counts = pick(rng, _COMPOSED_COUNTS)(context, subject)
    elif rng.random() < settings.sums:
        counts = _sums(context, subject, 2)
    else:
        counts = _single_counts(context, subject)
    by_total: dict[int, list[_Count]] = {}
    for count in counts:
        by_total.setdefault(count.total, []).append(count)
    is_zero = 0 in by_total and rng.random() < settings.zeros
    # Scenes offer small totals more often than large ones: weights that grow even them out.
    total = 0 if is_zero else weighted_pick(rng, {total: total**2 for total in sorted(by_total)})
    return pick(rng, by_total[total])


def _single_counts(context: _Context, subject: str) -> Iterator[_Count]:
    """Counts of one shape or colour."""
    for name in _domain_names(context.scene.domain, subject):
        matches = [obj for obj in context.scene.objects if name in obj.pair]
        if not matches or _target_names(context) & {name}:
            others = " ".join(obj.colour if subject == "shapes" else obj.shape for obj in matches)
            yield _Count(PLURALS.get(name, name), others or "none", len(matches))


def _sums(context: _Context, subject: str, num_names: int) -> Iterator[_Count]:
    """Sums of the counts of several shapes or colours."""
    names = _names(context.scene.objects, subject)
    for counted in combinations(shuffled(context.subject_rng, _domain_names(context.scene.domain, subject)), num_names):
        counts = [names.count(name) for name in counted]
        if not sum(counts) or _target_names(context) & set(counted):
            phrase = " plus ".join(PLURALS.get(name, name) for name in counted)
            yield _Count(phrase, " plus ".join(map(str, counts)), sum(counts))


def _sums_of_three(context: _Context, subject: str) -> Iterator[_Count]:
    return _sums(context, subject, 3)


def _differences(context: _Context, subject: str) -> Iterator[_Count]:
    """How many more objects of one shape or colour than of another there are."""
    names = _names(context.scene.objects, subject)
    known = shuffled(context.subject_rng, _domain_names(context.scene.domain, subject))
    for first, second in permutations(known, 2):
        more, fewer = names.count(first), names.count(second)
        if more >= fewer and (not more or _target_names(context) & {first, second}):
            phrase = f"{PLURALS.get(first, first)} - {PLURALS.get(second, second)}"
            yield _Count(phrase, f"{more} - {fewer}", more - fewer)


def _counts_of_either(context: _Context, _: str) -> Iterator[_Count]:
    """Counts of the objects that have a colour or a shape, in which those that have both count once."""
    objects, domain = context.scene.objects, context.scene.domain
    for names in product(_domain_names(domain, "colours"), _domain_names(domain, "shapes")):
        matches = [obj for obj in objects if set(names) & set(obj.pair)]
        if not matches or _target_names(context) & set(names):
            yield _Count(f"objects are {names[0]} or {PLURALS[names[1]]}", _tally(matches), len(matches))


def _counts_in_lines(context: _Context, subject: str) -> Iterator[_Count]:
    """Counts of one shape or colour, or of all objects, in one row or column that is not empty."""
    objects = context.scene.objects
    for line in dict.fromkeys(word for obj in objects for word in cell_name(obj.box).split()):
        in_line = [obj for obj in objects if line in cell_name(obj.box).split()]
        if set(in_line) & set(target_objects(objects, context.scene.domain)):
            yield _Count(f"objects are {_line_phrase(line)}", _tally(in_line), len(in_line))
        for name in _domain_names(context.scene.domain, subject):
            matches = [obj for obj in in_line if name in obj.pair]
            if not matches or _target_names(context) & {name}:
                phrase = f"{PLURALS.get(name, name)} are {_line_phrase(line)}"
                yield _Count(phrase, _tally(matches), len(matches))


def _tally(objects: Sequence[SceneObject]) -> str:
    """Counts the objects, one after the other."""
    return ", ".join(f"{' '.join(obj.pair)} {number}" for number, obj in enumerate(objects, 1)) or "none"


def _target_names(context: _Context) -> set[str]:
    """Returns the shapes and colours of the objects that questions may be about."""
    return {name for obj in target_objects(context.scene.objects, context.scene.domain) for name in obj.pair}


def _wrong_number(context: _Context, total: int) -> int:
    is_near = context.details_rng.random() < context.settings.near_numbers
    numbers = (total - 1, total + 1) if is_near else (total - 2, total + 2, total + 3)
    return pick(context.details_rng, [n for n in numbers if n >= 0])


_COMPOSED_COUNTS = (_sums_of_three, _differences, _counts_of_either, _counts_in_lines)
_DRAFTS = {Task.DETECTION: _detection_draft, Task.CLASSIFY: _classify_draft, Task.MATH: _math_draft}
