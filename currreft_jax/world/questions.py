"""Questions about a scene: three tasks, each asked in three kinds.

The kinds of one task ask about the same thing of a scene: the judge row proposes an answer, the choice row offers four,
the open row none. Right answers alternate with the index of the scene, so that yes and no, and the four letters, are
equally frequent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from string import ascii_uppercase
from typing import TypeVar

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row
from currreft_jax.world.chance import pick, shuffled, stream, weighted, whole
from currreft_jax.world.prompts import spell
from currreft_jax.world.scenes import CELL, FRAME, SIZE, Box, Domain, Scene, Thing, askable, newsworthy
from currreft_jax.world.settings import Settings

TASKS = (Task.DETECTION, Task.CLASSIFY, Task.MATH)
KINDS = (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
OPTIONS = 4
ORIGIN = "Apache-2.0, drawn by currreft_jax.world"

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "diamond": "diamonds",
}
# A wrong box overlaps the right one by less than this, half of what detection accepts.
_MAX_IOU = 0.25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A row and how its answer is thought out.

    Attributes:
        row: the question with its gold answer.
        thought: a few words that lead to the answer.
    """

    row: Row
    thought: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question before it is a row.

    Attributes:
        problem: as in the row, likewise `solution`, `options`, `multiple` and `boxes`.
        thought: as in the question.
    """

    problem: str
    solution: str
    thought: str
    options: tuple[str, ...] = ()
    multiple: bool = False
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class _Occasion:
    """What a question is made from.

    Attributes:
        scene: what is in the image.
        settings: how difficult the question may be.
        subject: chance that the three kinds share, drawn from first: what is asked about.
        details: chance of this kind alone: wrong answers and the order of options.
        turn: counts up with the index; right answers alternate with it.
    """

    scene: Scene
    settings: Settings
    subject: Random
    details: Random
    turn: int


def ask(
    scene: Scene, task: Task, kind: Kind, *, image: str, split: str, settings: Settings, number: int = 0
) -> Question:
    """The question of a task and kind about a scene.

    Args:
        scene: what is in the image.
        task: detection, classify or math.
        kind: judge, choice or open.
        image: path of the image.
        split: of the row.
        settings: how difficult it is.
        number: further questions of the task have further numbers.
    """
    key = (scene.seed, scene.index, task.value, number)
    turn = scene.index + number + TASKS.index(task)
    subject, details = stream("subject", *key), stream("details", *key, kind.value)
    asked = _ASK[task](_Occasion(scene, settings, subject, details, turn), kind)
    suffix = f"-{number}" if number else ""
    row = Row(
        id=f"world-{split}-{scene.seed}-{scene.index}-{task.value}-{kind.value}{suffix}",
        task=task,
        kind=kind,
        problem=asked.problem,
        solution=asked.solution,
        images=(image,),
        options=asked.options,
        multiple=asked.multiple,
        frame=FRAME,
        boxes=asked.boxes,
        source="world",
        split=split,
        origin=ORIGIN,
    )
    return Question(row, asked.thought)


def place(box: Box) -> str:
    """Where the middle of a box lies in the image, as row and column."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return f"{ROWS[int(y // CELL)]} {COLUMNS[int(x // CELL)]}"


def _judged(occasion: _Occasion) -> bool:
    return occasion.turn % 2 == 0


def _offered(occasion: _Occasion, right: T, wrong: Sequence[T]) -> tuple[tuple[T, ...], str]:
    """The options in their order, and the letter of the right one."""
    position = occasion.turn % OPTIONS
    return (*wrong[:position], right, *wrong[position:]), ascii_uppercase[position]


def _yes_or_no(verdict: bool) -> str:
    return "yes" if verdict else "no"


def _gone_through(shown: Iterable[str], letter: str) -> str:
    """The options one after the other with a verdict on each, until the right one is found."""
    seen = zip(ascii_uppercase[: ascii_uppercase.index(letter) + 1], shown, strict=False)
    return ", ".join(f"{name} {text} {_yes_or_no(name == letter)}" for name, text in seen)


# ---------------------------------------------------------------------------------------------------------- detection


def _detection(occasion: _Occasion, kind: Kind) -> _Asked:
    target = pick(occasion.subject, askable(occasion.scene.things, occasion.scene.domain))
    name = " ".join(target.pair)
    problem, where = f"where is the {name}?", f"{name} {place(target.box)}"
    if kind is Kind.OPEN:
        return _Asked(problem, spell(target.box), where)
    if kind is Kind.JUDGE:
        verdict = _judged(occasion)
        shown = target.box if verdict else _wrong_boxes(occasion, target, 1)[0]
        thought = f"{where}, box {place(shown)}"
        return _Asked(f"{problem} is it {{box:0}}?", _yes_or_no(verdict), thought, boxes=(shown,))
    boxes, letter = _offered(occasion, target.box, _wrong_boxes(occasion, target, OPTIONS - 1))
    options = tuple(f"{{box:{index}}}" for index in range(OPTIONS))
    thought = f"{where}, {_gone_through(map(place, boxes), letter)}"
    return _Asked(problem, letter, thought, options, boxes=boxes)


def _wrong_boxes(occasion: _Occasion, target: Thing, wanted: int) -> list[Box]:
    """Boxes of the other objects; beside the target or on nothing where the settings say so, or no object is left."""
    rng, settings = occasion.details, occasion.settings
    others = shuffled(rng, (thing.box for thing in occasion.scene.things if thing is not target))
    found: list[Box] = []
    while len(found) < wanted:
        if rng.random() < settings.near_boxes:
            found.append(_box_beside(rng, target.box, [*others, *found], settings))
        elif others and not (wanted == 1 and rng.random() < settings.empty_boxes):
            found.append(others.pop())
        else:
            found.append(_empty_box(rng, [target.box, *others, *found], settings))
    return found


def _empty_box(rng: Random, taken: Sequence[Box], settings: Settings) -> Box:
    """A box of an object's size that lies clear of those taken; as a last resort, one that touches them little."""
    attempt = 0
    while True:
        attempt += 1
        x, y = whole(rng, 0, SIZE - settings.sides[1]), whole(rng, 0, SIZE - settings.sides[1])
        box = (x, y, x + whole(rng, *settings.sides), y + whole(rng, *settings.sides))
        allowed = 0.0 if attempt < 200 else _MAX_IOU
        if all(iou(box, other) <= allowed for other in taken):
            return _floats(box)


def _box_beside(rng: Random, target: Box, taken: Sequence[Box], settings: Settings) -> Box:
    """A box that overlaps the target, but too little to be right."""
    while True:
        x = round(target[0]) + whole(rng, -settings.sides[1], settings.sides[1])
        y = round(target[1]) + whole(rng, -settings.sides[1], settings.sides[1])
        box = (x, y, x + whole(rng, *settings.sides), y + whole(rng, *settings.sides))
        inside = min(box) >= 0 and max(box) <= SIZE
        if inside and 0 < iou(box, target) < _MAX_IOU and all(iou(box, other) <= 0.5 for other in taken):
            return _floats(box)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (areas - width * height)


def _floats(box: tuple[int, int, int, int]) -> Box:
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


# ----------------------------------------------------------------------------------------------------------- classify


def _names(things: Sequence[Thing], subject: str) -> list[str]:
    """What the objects are called, one name for each, in reading order."""
    name = {
        "shapes": lambda thing: thing.shape,
        "colours": lambda thing: thing.colour,
        "objects": lambda thing: " ".join(thing.pair),
    }[subject]
    return [name(thing) for thing in things]


def _pool(domain: Domain, subject: str) -> list[str]:
    """What the objects of a domain can be called."""
    colours, shapes = zip(*domain.pairs, strict=True)
    pairs = [" ".join(pair) for pair in domain.pairs]
    return list(dict.fromkeys({"shapes": shapes, "colours": colours, "objects": pairs}[subject]))


def _classify(occasion: _Occasion, kind: Kind) -> _Asked:
    subject = weighted(occasion.subject, occasion.settings.subjects)
    where, things = _looked_at(occasion)
    labels = list(dict.fromkeys(_names(things, subject)))
    if kind is Kind.OPEN:
        return _Asked(f"which {subject} are {where or 'there'}?", ", ".join(labels), ", ".join(_names(things, subject)))
    absent = [name for name in _pool(occasion.scene.domain, subject) if name not in labels]
    # Where a scene has all shapes or colours there are, nothing absent is left to ask for but whole objects.
    if not absent:
        subject = "objects"
        labels = list(dict.fromkeys(_names(things, subject)))
        absent = [name for name in _pool(occasion.scene.domain, subject) if name not in labels]
    if kind is Kind.JUDGE:
        verdict = _judged(occasion)
        name = pick(occasion.details, labels) if verdict else _absent(occasion, subject, absent, 1)[0]
        thought = f"{name}, {looked_for(name, labels)}"
        return _Asked(f"is there any {name}{where and ' '}{where}?", _yes_or_no(verdict), thought)
    options, letters = _choose_labels(occasion, subject, labels, absent)
    problem = f"which {subject} are {where or 'there'}?"
    thought = lettered(labels, dict(zip(options, ascii_uppercase, strict=False)))
    return _Asked(problem, ", ".join(letters), thought, options, multiple=True)


def looked_for(name: str, labels: list[str]) -> str:
    """What is seen, in reading order with a verdict on each, until the name is found."""
    end = labels.index(name) + 1 if name in labels else len(labels)
    return ", ".join(f"{label} {_yes_or_no(label == name)}" for label in labels[:end])


def lettered(labels: Sequence[str], letters: Mapping[str, str]) -> str:
    """What is seen, each with its letter among the options."""
    return ", ".join(f"{label} {letters.get(label, 'none')}" for label in labels)


def _looked_at(occasion: _Occasion) -> tuple[str, Sequence[Thing]]:
    """A row or column that holds something, and what it holds; or nothing said, and the whole scene."""
    things = occasion.scene.things
    if occasion.subject.random() >= occasion.settings.lines:
        return "", things
    side = pick(occasion.subject, list(dict.fromkeys(word for thing in things for word in place(thing.box).split())))
    line = "row" if side in ROWS else "column"
    return f"in the {side} {line}", [thing for thing in things if side in place(thing.box).split()]


def _choose_labels(
    occasion: _Occasion, subject: str, labels: list[str], absent: list[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Options, some of them right, and the letters of those."""
    rng = occasion.details
    possible = [k for k in range(1, OPTIONS) if k <= len(labels) and OPTIONS - k <= len(absent)]
    right = shuffled(rng, labels)[: pick(rng, possible)]
    wrong = _absent(occasion, subject, absent, OPTIONS - len(right))
    options, _ = _offered(occasion, right[0], shuffled(rng, [*right[1:], *wrong]))
    return options, [letter for letter, option in zip(ascii_uppercase, options, strict=False) if option in right]


def _absent(occasion: _Occasion, subject: str, absent: list[str], wanted: int) -> list[str]:
    """Names of what is not in the image; of objects preferably those whose colour and shape both are."""
    rng = occasion.details
    rest = shuffled(rng, absent)
    if subject != "objects":
        return rest[:wanted]
    colours = {thing.colour for thing in occasion.scene.things}
    shapes = {thing.shape for thing in occasion.scene.things}
    found: list[str] = []
    for _ in range(wanted):
        mixed = [name for name in rest if name.split()[0] in colours and name.split()[1] in shapes]
        choose_mixed = rng.random() < occasion.settings.mixed_pairs
        found.append((mixed if mixed and choose_mixed else rest)[0])
        rest.remove(found[-1])
    return found


# -------------------------------------------------------------------------------------------------------------- maths


def _math(occasion: _Occasion, kind: Kind) -> _Asked:
    things = occasion.scene.things
    subject, counted = _counted(occasion)
    found = [[thing for thing in things if name in thing.pair] for name in counted]
    total = sum(map(len, found))
    problem = f"how many {' plus '.join(PLURALS.get(name, name) for name in counted)}?"
    if len(counted) == 2:
        thought = " plus ".join(str(len(matches)) for matches in found)
    else:
        thought = " ".join(thing.colour if subject == "shapes" else thing.shape for thing in found[0]) or "none"
    if kind is Kind.OPEN:
        return _Asked(problem, str(total), thought)
    thought = f"{thought}, {total}"
    if kind is Kind.JUDGE:
        verdict = _judged(occasion)
        shown = total if verdict else _wrong_number(occasion, total)
        return _Asked(f"{problem} is it {shown}?", _yes_or_no(verdict), thought)
    lowest = max(0, total - whole(occasion.details, 0, OPTIONS - 1))
    wrong = [str(n) for n in shuffled(occasion.details, range(lowest, lowest + OPTIONS)) if n != total]
    options, letter = _offered(occasion, str(total), wrong)
    return _Asked(problem, letter, f"{thought}, {_gone_through(options, letter)}", options)


def _counted(occasion: _Occasion) -> tuple[str, tuple[str, ...]]:
    """Shapes or colours, and which of them to count: one, or two to be added.

    The total is drawn before the names are: with one name of one object after another, nearly all answers would be 1.
    """
    rng, settings = occasion.subject, occasion.settings
    things = occasion.scene.things
    subject = pick(rng, ("shapes", "colours"))
    names, pool = _names(things, subject), _pool(occasion.scene.domain, subject)
    wanted = set(_names(newsworthy(things, occasion.scene.domain), subject))
    tuples = combinations(shuffled(rng, pool), 2) if rng.random() < settings.sums else ((name,) for name in pool)
    by_total: dict[int, list[tuple[str, ...]]] = {}
    for counted in tuples:
        total = sum(map(names.count, counted))
        if not total or wanted & set(counted):
            by_total.setdefault(total, []).append(counted)
    nothing = 0 in by_total and rng.random() < settings.zeros
    # Small totals are there more often than large ones; weights that grow even them out.
    total = 0 if nothing else weighted(rng, {total: total**2 for total in sorted(by_total)})
    return subject, pick(rng, by_total[total])


def _wrong_number(occasion: _Occasion, total: int) -> int:
    by_one = occasion.details.random() < occasion.settings.near_numbers
    misses = (total - 1, total + 1) if by_one else (total - 2, total + 2, total + 3)
    return pick(occasion.details, [n for n in misses if n >= 0])


_ASK = {Task.DETECTION: _detection, Task.CLASSIFY: _classify, Task.MATH: _math}
