"""Images with annotated objects: questions about categories, and the scenes that negatives are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import pixels, wording
from currreft_jax.data.builders.items import Box, Dropped, Item, Scene, Source
from currreft_jax.structs import Frame, Row


@dataclass(frozen=True, slots=True)
class Thing:
    """An annotated object.

    Attributes:
        label: its category.
        box: its corners; None for what only tells that the category is there.
        sure: whether it may be asked about; crowds and difficult objects may not.
    """

    label: str
    box: Box | None
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image and everything annotated in it.

    Attributes:
        id: of the image in its set.
        image: path.
        frame: that the boxes are measured in.
        things: the objects.
        split: of the set.
    """

    id: str
    image: str
    frame: Frame
    things: tuple[Thing, ...]
    split: str = ""


def scene(image: Annotated) -> Scene:
    """What is known to be in an image."""
    objects = tuple((thing.label, thing.box) for thing in image.things if thing.box)
    return Scene(image.image, image.frame, objects, frozenset(thing.label for thing in image.things))


def questions(image: Annotated, categories: Sequence[str], source: Source) -> Iterator[Item]:
    """One question about the categories of an image, and one about the boxes of each category."""
    yield scene(image)
    if Task.CLASSIFY in source.tasks:
        yield from _which_categories(image, categories, source)
    if Task.DETECTION in source.tasks:
        for label in sorted({thing.label for thing in image.things}):
            yield _where(image, label, source)


def region(id: str, phrase: str, box: Box, image: str, frame: Frame, split: str, source: Source) -> Row | Dropped:
    """One question about the box that an expression refers to."""
    phrase = " ".join(phrase.split())
    if not phrase:
        return Dropped(id, "the expression is empty")
    problem, solution = wording.REGION.ask + phrase, pixels.written([box])
    return _row(id, Task.DETECTION, problem, solution, Annotated("", image, frame, (), split), source)


def written_labels(labels: Sequence[str]) -> str:
    """The gold answer of a classify row: with commas, or as JSON where a label has one itself."""
    return ", ".join(labels) if not any(set(label) & set(",，、\n[{`") for label in labels) else json.dumps(labels)


def _which_categories(image: Annotated, categories: Sequence[str], source: Source) -> Iterator[Item]:
    id = f"{source.name}-{image.id}"
    sure = {thing.label for thing in image.things if thing.sure}
    if not sure:
        yield Dropped(id, "no object that may be asked about")
        return
    # A category that is only there as a crowd or a difficult object is neither right nor wrong: it is not offered.
    unsure = {thing.label for thing in image.things} - sure
    offered = [label for label in categories if label not in unsure] if source.listed else []
    yield _row(id, Task.CLASSIFY, wording.categories(offered), written_labels(sorted(sure)), image, source)


def _where(image: Annotated, label: str, source: Source) -> Item:
    id = f"{source.name}-{image.id}-{label}"
    things = [thing for thing in image.things if thing.label == label]
    boxes = [thing.box for thing in things if thing.box]
    if not all(thing.sure and thing.box for thing in things):
        return Dropped(id, "the category has crowds or difficult objects")
    if len(boxes) > source.most_boxes:
        return Dropped(id, f"the category has more than {source.most_boxes} objects")
    return _row(id, Task.DETECTION, wording.CATEGORY.ask + label, pixels.written(sorted(boxes)), image, source)


def _row(id: str, task: Task, problem: str, solution: str, image: Annotated, source: Source) -> Row:
    return Row(
        id=id,
        task=task,
        kind=Kind.OPEN,
        problem=problem,
        solution=solution,
        images=(image.image,),
        frame=image.frame if task is Task.DETECTION else None,
        source=source.name,
        split=image.split,
        origin=source.origin,
    )
