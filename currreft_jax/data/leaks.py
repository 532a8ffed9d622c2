"""Comparisons between rows: duplicates within a file, and leaks from training into testing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from currreft_jax.data.findings import Finding, Problem
from currreft_jax.data.row_checks import ImageInfo, LocatedRow
from currreft_jax.structs import Row


def find_duplicates(rows: Sequence[LocatedRow], images: Mapping[str, ImageInfo]) -> Iterator[Finding]:
    """Finds rows of one file that ask the same question about the same images."""
    first: dict[tuple[object, ...], LocatedRow] = {}
    for located in rows:
        row = located.row
        pixels = tuple(image_key(image, images) for image in row.images)
        turns = tuple(turn.text for turn in row.messages)
        key = (located.file, pixels, row.kind, row.task, question_digest(row), row.frame, row.boxes, turns)
        earlier = first.setdefault(key, located)
        if earlier is not located:
            differs = "" if earlier.row.solution == row.solution else ", and its solution differs"
            yield located.finding(
                Problem.DUPLICATE, f"asks what {earlier.location} asks{differs}; leave one of them out"
            )


def has_two_splits(rows: Sequence[LocatedRow]) -> bool:
    """Returns whether there are both training and testing rows."""
    return {"train", "test"} <= {located.split for located in rows}


def find_leaks(
    train: Iterable[LocatedRow], test: Iterable[LocatedRow], images: Mapping[str, ImageInfo]
) -> Iterator[Finding]:
    """Finds images and questions of testing rows that occur in training rows, too."""
    train_images: dict[str, tuple[str, str]] = {}
    train_questions: dict[tuple[str, bool], str] = {}
    for located in train:
        for path in located.row.images:
            train_images.setdefault(image_key(path, images), (located.location, path))
        train_questions.setdefault(_question_key(located.row), located.location)
    for located in test:
        for path in located.row.images:
            if found := train_images.get(image_key(path, images)):
                location, train_path = found
                message = f"{path} has the pixels of {train_path} in the training row {location}; leave one of them out"
                yield located.finding(Problem.LEAKED_IMAGE, message)
        if location := train_questions.get(_question_key(located.row)):
            if located.row.images:
                yield located.finding(
                    Problem.SAME_WORDING,
                    f"the training row {location} is worded alike; meant where one question is asked of many images",
                )
            else:
                message = f"the training row {location} asks the same, and neither has an image; leave one of them out"
                yield located.finding(Problem.LEAKED_QUESTION, message)


def image_key(path: str, images: Mapping[str, ImageInfo]) -> str:
    """Identifies an image by its pixels, or by its path if it is unusable."""
    return images[path].digest or path


def _question_key(row: Row) -> tuple[str, bool]:
    return question_digest(row), bool(row.images)


def question_digest(row: Row) -> str:
    """Hashes the question of a row, with its options, up to case and whitespace."""
    turns = [turn.text for turn in row.messages if turn.role == "user"]
    text = "\0".join(" ".join(part.casefold().split()) for part in (row.problem, *row.options, *turns))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
