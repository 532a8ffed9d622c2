"""Questions about annotated objects: the categories in an image, and the boxes of a category or a phrase."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import question_templates
from currreft_jax.data.builders.box_formats import Box, format_boxes
from currreft_jax.data.builders.converter import AnnotatedImage, ConvertedItem, DatasetSource, DroppedRecord
from currreft_jax.structs import Frame, Row

_NEEDS_JSON = frozenset(",，、\n[{`")  # characters that the label reward takes for separators or JSON


@dataclass(frozen=True, slots=True)
class ObjectAnnotation:
    """An annotated object.

    Attributes:
        label: category.
        box: corners; None if the annotation only says that the category is in the image.
        reliable: False for crowds and difficult objects, which are not asked about.
    """

    label: str
    box: Box | None
    reliable: bool = True


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


def object_rows(record: ImageRecord, categories: Sequence[str], source: DatasetSource) -> Iterator[ConvertedItem]:
    """Yields a row about the categories of an image, and a row about the boxes of each category.

    Args:
        record: the image.
        categories: all categories of the data set.
        source: chooses the tasks.
    """
    yield record.annotated_image()
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
    # Categories with only crowds or difficult objects are neither right nor wrong: the question does not list them.
    unreliable = {entry.label for entry in record.objects} - reliable
    listed = [label for label in categories if label not in unreliable] if source.list_categories else []
    problem, solution = question_templates.category_question(listed), format_labels(sorted(reliable))
    return _row(row_id, Task.CLASSIFY, problem, solution, record, source)


def _box_row(record: ImageRecord, label: str, source: DatasetSource) -> Row | DroppedRecord:
    row_id = f"{source.name}-{record.id}-{label}"
    objects = [entry for entry in record.objects if entry.label == label]
    boxes = [entry.box for entry in objects if entry.box]
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
