"""Question templates of rows whose source has no question of its own, for open, judge and choice rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BoxTemplates:
    """One question about boxes as open, judge and choice row; the phrase asked about is appended to each.

    Attributes:
        open: asks for the boxes.
        judge: asks whether the box `{box:0}` is right.
        choice: asks which of the boxes in the options is right.
    """

    open: str
    judge: str
    choice: str


# VLM-R1's question, as in its published rows.
REGION = BoxTemplates(
    "Please provide the bounding box coordinate of the region this sentence describes: ",
    "Is {box:0} the bounding box of the region this sentence describes? Sentence: ",
    "Which is the bounding box of the region this sentence describes? Sentence: ",
)
CATEGORY = BoxTemplates(
    "Please provide the bounding box coordinates of all objects of this category: ",
    "Is {box:0} the bounding box of an object of this category? Category: ",
    "Which is the bounding box of an object of this category? Category: ",
)
CATEGORY_OR_NONE = BoxTemplates(
    "Please provide the bounding box coordinates of all objects of this category, or [] if there are none: ",
    CATEGORY.judge,
    CATEGORY.choice,
)
_OTHER = BoxTemplates(
    "",
    "Is {box:0} a right answer to the following request? Request: ",
    "Which is a right answer to the following request? Request: ",
)
JUDGE_CATEGORY = "Is an object of this category in the image? Category: "
NO_OBJECT = "There is no such object in the image"  # an option
CHOOSE_CATEGORIES = "Objects of which of these categories are in the image?"


def match_box_templates(problem: str) -> tuple[BoxTemplates, str]:
    """Returns the templates that an open question was made with, and the phrase that it asks about."""
    known_templates = (REGION, CATEGORY, CATEGORY_OR_NONE)
    templates = next((known for known in known_templates if problem.startswith(known.open)), _OTHER)
    return templates, problem.removeprefix(templates.open)


def category_question(names: Sequence[str]) -> str:
    """Asks for the categories in an image, to be chosen from `names` unless there are none."""
    listed = f" Choose from: {', '.join(names)}." if names else ""
    return f"Which categories of objects are in this image?{listed} List their names with commas between them."


def judge_answer_question(problem: str, answer: str) -> str:
    """Asks whether a proposed answer is right."""
    return f"{problem}\nProposed answer: {answer}\nIs the proposed answer right?"
