"""Questions about annotated objects: the categories in an image, and the boxes of a category or a phrase."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import question_templates
from currreft_jax.data.builders.box_formats import Box, EmptyBoxError, format_boxes
from currreft_jax.data.builders.converter import AnnotatedImage, ConvertedItem, DatasetSource, DroppedRecord
from currreft_jax.data.fields import LineError
from currreft_jax.structs import Frame, Row

_NEEDS_JSON = frozenset(",，、\n[{`")  # characters that the label reward takes for separators or JSON


@dataclass(frozen=True, slots=True)
class ObjectAnnotation:
    """An annotated object.

    Attributes:
        label: category.
        box: corners; None if the annotation only says that the category is in the image.
        reliable: False for crowds, difficult objects and bad boxes, which are not asked about.
        problem: why the box cannot be used: it has no area, which is counted, or it is an error.
    """

    label: str
    box: Box | None
    reliable: bool = True
    problem: DroppedRecord | LineError | None = None

    @property
    def has_empty_box(self) -> bool:
        """Whether the published box has no area."""
        return isinstance(self.problem, DroppedRecord)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a data set with its object annotations.

    Attributes:
        id: id in the data set.
        image: path.
        frame: size that the boxes are measured in.
        objects: the annotations.
        split: published split.
    """

    id: str
    image: str
    frame: Frame
    objects: tuple[ObjectAnnotation, ...]
    split: str = ""

    def annotated_image(self) -> AnnotatedImage:
        """Returns the annotations that negatives are generated from."""
        boxes = tuple((entry.label, entry.box) for entry in self.objects if entry.box)
        return AnnotatedImage(self.image, self.frame, boxes, frozenset(entry.label for entry in self.objects))

    @property
    def problems(self) -> list[DroppedRecord | LineError]:
        """The boxes that cannot be used."""
        return [entry.problem for entry in self.objects if entry.problem]


def object_annotation(label: str, parse: Callable[[], Box], *, reliable: bool = True) -> ObjectAnnotation:
    """Returns an object; a bad box costs this object alone.

    Args:
        label: its category.
        parse: returns the box, or raises a `LineError`.
        reliable: see `ObjectAnnotation`.
    """
    try:
        return ObjectAnnotation(label, parse(), reliable)
    except EmptyBoxError as error:
        return ObjectAnnotation(label, None, False, DroppedRecord(error.location, "the box has no area"))
    except LineError as error:
        return ObjectAnnotation(label, None, False, error)


def object_rows(record: ImageRecord, categories: Sequence[str], source: DatasetSource) -> Iterator[ConvertedItem]:
    """Yields a row about the categories of an image, and a row about the boxes of each category.

    Args:
        record: the image.
        categories: all categories of the data set.
        source: chooses the tasks.
    """
    yield record.annotated_image()
    yield from record.problems
    if Task.CLASSIFY in source.tasks:
        yield _category_row(record, categories, source)
    if Task.DETECTION in source.tasks:
        for label in sorted({entry.label for entry in record.objects}):
            yield _box_row(record, label, source)


def phrase_row(
    row_id: str, phrase: str, box: Box, image: str, frame: Frame, split: str, source: DatasetSource
) -> Row | DroppedRecord:
    """Returns a row about the box that a referring expression describes."""
    phrase = " ".join(phrase.split())
    if not phrase:
        return DroppedRecord(row_id, "the expression is empty")
    problem, solution = question_templates.REGION.open + phrase, format_boxes([box])
    return _row(row_id, Task.DETECTION, problem, solution, ImageRecord("", image, frame, (), split), source)


def format_labels(labels: Sequence[str]) -> str:
    """Formats the gold answer of a classify row: comma-separated, or as JSON if a label holds a separator."""
    return json.dumps(labels) if any(_NEEDS_JSON & set(label) for label in labels) else ", ".join(labels)


def _category_row(record: ImageRecord, categories: Sequence[str], source: DatasetSource) -> Row | DroppedRecord:
    row_id = f"{source.name}-{record.id}"
    reliable = {entry.label for entry in record.objects if entry.reliable}
    if not reliable:
        return DroppedRecord(row_id, "no object that may be asked about")
    # Categories of which no object is reliable are neither right nor wrong: the question does not list them.
    unreliable = {entry.label for entry in record.objects} - reliable
    listed = [label for label in categories if label not in unreliable] if source.list_categories else []
    problem, solution = question_templates.category_question(listed), format_labels(sorted(reliable))
    return _row(row_id, Task.CLASSIFY, problem, solution, record, source)


def _box_row(record: ImageRecord, label: str, source: DatasetSource) -> Row | DroppedRecord:
    row_id = f"{source.name}-{record.id}-{label}"
    objects = [entry for entry in record.objects if entry.label == label and not entry.has_empty_box]
    boxes = {entry.box for entry in objects if entry.box}  # some are annotated twice
    if not objects:
        return DroppedRecord(row_id, "no box of the category has an area")
    if any(entry.problem for entry in objects):
        return DroppedRecord(row_id, "a box of the category is bad")
    if not all(entry.reliable and entry.box for entry in objects):
        return DroppedRecord(row_id, "the category has crowds or difficult objects")
    if len(boxes) > source.max_boxes:
        return DroppedRecord(row_id, f"the category has more than {source.max_boxes} objects")
    problem, solution = question_templates.CATEGORY.open + label, format_boxes(sorted(boxes))
    return _row(row_id, Task.DETECTION, problem, solution, record, source)


def _row(row_id: str, task: Task, problem: str, solution: str, record: ImageRecord, source: DatasetSource) -> Row:
    return Row(
        id=row_id,
        task=task,
        kind=Kind.OPEN,
        problem=problem,
        solution=solution,
        images=(record.image,),
        frame=record.frame if task is Task.DETECTION else None,
        source=source.name,
        split=record.split,
        origin=source.origin,
    )
