"""The questions of rows that we word ourselves, and the same questions for yes/no and for options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """One question about boxes in three kinds; the phrase asked about follows each of them.

    Attributes:
        ask: asks for the boxes.
        judge: asks whether the box `{box:0}` is right.
        choose: asks which of the boxes in the options is right.
    """

    ask: str
    judge: str
    choose: str


# VLM-R1's wording, which its published rows carry.
REGION = Wording(
    "Please provide the bounding box coordinate of the region this sentence describes: ",
    "Is {box:0} the bounding box of the region this sentence describes? Sentence: ",
    "Which is the bounding box of the region this sentence describes? Sentence: ",
)
CATEGORY = Wording(
    "Please provide the bounding box coordinates of all objects of this category: ",
    "Is {box:0} the bounding box of an object of this category? Category: ",
    "Which is the bounding box of an object of this category? Category: ",
)
_ANY = Wording(
    "",
    "Is {box:0} a right answer to the following request? Request: ",
    "Which is a right answer to the following request? Request: ",
)


def boxes_wording(problem: str) -> tuple[Wording, str]:
    """How to judge and choose boxes for an open question, and the phrase that it asks about."""
    wording = next((wording for wording in (REGION, CATEGORY) if problem.startswith(wording.ask)), _ANY)
    return wording, problem.removeprefix(wording.ask)


def categories(names: Sequence[str]) -> str:
    """Asks for the categories in an image; for those of a list, unless it is empty."""
    listed = f" Choose from: {', '.join(names)}." if names else ""
    return f"Which categories of objects are in this image?{listed} List their names with commas between them."


JUDGE_CATEGORY = "Is an object of this category in the image? Category: "
CHOOSE_CATEGORIES = "Objects of which of these categories are in the image?"


def judge_answer(problem: str, answer: str) -> str:
    """Asks whether a proposed answer is right."""
    return f"{problem}\nProposed answer: {answer}\nIs the proposed answer right?"
