"""Questions about a category that the image does not show: their right answer is the empty list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import image_negatives
from currreft_jax.data.builders.box_formats import format_boxes
from currreft_jax.data.builders.converter import AnnotatedImage, BuildError
from currreft_jax.data.builders.hashed_rng import hash_shuffle_rows
from currreft_jax.data.builders.question_templates import CATEGORY, CATEGORY_OR_NONE, match_box_templates
from currreft_jax.structs import Row


def with_absent_rows(rows: Sequence[Row], images: Mapping[str, AnnotatedImage], share: float, seed: int) -> list[Row]:
    """Makes a share of the questions for boxes ask for an absent category, and all of them say that there may be none.

    The rows are chosen by rank, so the share is exact to within one row whatever their order. Absent categories are
    drawn as for the other negatives: see `image_negatives.absent_labels`. No two rows of an image ask for the same one.

    Args:
        rows: rows of any kinds; all questions for boxes ask for a category.
        images: image path -> all categories that it shows.
        share: in [0, 1), of the open detection rows.
        seed: seed of the draws.

    Raises:
        BuildError: no row asks for boxes; one asks for something else than an annotated category, so that what is
            absent cannot be known; or too few images lack a category.
    """
    questions = [row for row in rows if (row.kind, row.task) == (Kind.OPEN, Task.DETECTION)]
    if not questions:
        raise BuildError("--absent changes questions for boxes, and there are none; --tasks takes detection")
    categories = {row.id: _category(row, images) for row in questions}
    vocabulary = frozenset[str]().union(*(image.labels for image in images.values()))
    pair_counts = image_negatives.count_pairs(image.labels for image in images.values())
    wanted, absent, asked = round(share * len(questions)), dict[str, str](), defaultdict[str, set[str]](set)
    for row in hash_shuffle_rows(questions, seed, "absent"):
        if len(absent) == wanted:
            break
        path = row.images[0]
        ordered = image_negatives.absent_labels(images[path].labels, vocabulary, pair_counts, seed, row.id, "absent")
        label = next((label for label in ordered if label not in asked[path]), None)
        if label is not None:
            absent[row.id] = label
            asked[path].add(label)
    if len(absent) < wanted:
        raise BuildError(
            f"--absent {share:g} takes {wanted} questions for an absent category, and the images allow {len(absent)};"
            " lower the share"
        )
    asking = {
        row.id: replace(row, problem=f"{CATEGORY_OR_NONE.open}{absent.get(row.id, categories[row.id])}")
        for row in questions
    }
    asking |= {row_id: replace(asking[row_id], id=f"{row_id}-absent", solution=format_boxes([])) for row_id in absent}
    return [asking.get(row.id, row) for row in rows]


def _category(row: Row, images: Mapping[str, AnnotatedImage]) -> str:
    """Returns the category that a row asks for; raises a `BuildError` if its absence could not be known."""
    templates, category = match_box_templates(row.problem)
    image = images.get(row.images[0]) if row.images else None
    if templates not in (CATEGORY, CATEGORY_OR_NONE) or image is None or category not in image.labels:
        raise BuildError(
            f"--absent: row {row.id} asks {row.problem[:80]!r}, and what else its image does not show is unknown;"
            " build from objects that are all annotated, as those of coco and voc"
        )
    return category
