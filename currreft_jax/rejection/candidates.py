"""The rows that are answered: those of the sources in seeded order, without duplicates and leaks. Loads no JAX."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from currreft_jax.config import ImageCondition, QuotaSource
from currreft_jax.data.image_sketches import Sketch, SketchIndex
from currreft_jax.data.leaks import image_key, question_digest
from currreft_jax.data.row_checks import ImageInfo, LocatedRow
from currreft_jax.evaluation.suites import LoadedSuite, SuiteQuestion
from currreft_jax.structs import Row

DUPLICATE = "duplicate_question"
LEAKED_IMAGE, LEAKED_NEAR, LEAKED_QUESTION = "leaked_image", "leaked_near_duplicate", "leaked_question"
_PUNCTUATION = ".,;:!?\"'"  # at the ends of words; within them it may be a decimal point


@dataclass(frozen=True, slots=True)
class CandidateSource:
    """The rows of a source that may be answered.

    Attributes:
        settings: name, file and quota.
        suite: its rows.
        places: id -> index of the row in the suite, in the order in which rows are answered.
        dropped: location and reason of the rows that are left out.
    """

    settings: QuotaSource
    suite: LoadedSuite
    places: dict[str, int]
    dropped: list[tuple[str, str]] = field(default_factory=list)

    def question(self, row: str, first_sample: int = 0) -> SuiteQuestion:
        """Reads a row to answer."""
        question = self.suite.question(self.places[row], ImageCondition.ORIGINAL)
        return replace(question, first_sample=first_sample)

    def dropped_counts(self) -> dict[str, int]:
        """Returns the number of rows that are left out, by reason."""
        return dict(Counter(reason for _, reason in self.dropped))


@dataclass(frozen=True, slots=True)
class CandidateRows:
    """The rows of a job.

    Attributes:
        sources: the sources.
        checkable: (source, row) of the rows whose gold answer the rules can check.
        leaks: what the manifest says of the comparison with the evaluation suites.
    """

    sources: list[CandidateSource]
    checkable: frozenset[tuple[str, str]]
    leaks: dict[str, dict[str, int]]


class SuiteContents:
    """Images and questions of the evaluation suites, which kept rows must not share.

    Attributes:
        compared: suite -> number of rows, images and questions without images.
    """

    def __init__(self, suites: Sequence[LoadedSuite], images: Mapping[str, ImageInfo]) -> None:
        """Reads all rows of the suites.

        Args:
            suites: the suites.
            images: their images, by path.
        """
        self.compared: dict[str, dict[str, int]] = {}
        self._images: dict[str, str] = {}  # key -> suite
        self._questions: dict[str, str] = {}
        sketches: list[tuple[Sketch, str]] = []
        for suite in suites:
            name, keys, questions = suite.settings.name, set[str](), set[str]()
            for located in suite.located_rows():
                for path in located.row.images:
                    key = image_key(path, images)
                    keys.add(key)
                    if self._images.setdefault(key, name) == name and (sketch := images[path].sketch):
                        sketches.append((sketch, name))
                if not located.row.images:
                    questions.add(question_digest(located.row))
            self._questions |= {question: name for question in questions if question not in self._questions}
            counts = {"rows": len(suite), "images": len(keys), "questions_without_images": len(questions)}
            self.compared[name] = counts
        unique = dict(sketches)
        self._sketches, self._sketch_suites = SketchIndex(list(unique)), list(unique.values())

    def leak(self, row: Row, images: Mapping[str, ImageInfo]) -> tuple[str, str] | None:
        """Returns how a row leaks into a suite, and the suite's name; None if it does not."""
        for path in row.images:
            if suite := self._images.get(image_key(path, images)):
                return LEAKED_IMAGE, suite
        for path in row.images:
            if (sketch := images[path].sketch) and (near := self._sketches.near(sketch)):
                return LEAKED_NEAR, self._sketch_suites[near[0]]
        if not row.images and (suite := self._questions.get(question_digest(row))):
            return LEAKED_QUESTION, suite
        return None


def choose_candidates(
    sources: Sequence[tuple[QuotaSource, LoadedSuite]],
    images: Mapping[str, ImageInfo],
    contents: SuiteContents,
    seed: int,
) -> list[CandidateSource]:
    """Orders the rows of all sources, and leaves out leaked rows, and all but the first of nearly equal questions.

    Args:
        sources: settings and rows of each source.
        images: the images of their rows, by path.
        contents: of the evaluation suites.
        seed: of the order.
    """
    chosen: list[CandidateSource] = []
    remaining: list[tuple[CandidateSource, LocatedRow]] = []
    for settings, suite in sources:
        rows = dict(zip(suite.ids, suite.located_rows(), strict=True))
        places = {row: place for place, row in enumerate(suite.ids)}
        candidate = CandidateSource(settings, suite, {})
        for row in sorted(rows, key=lambda row: _order(seed, settings.name, row)):
            candidate.places[row] = places[row]
            if leak := contents.leak(rows[row].row, images):
                candidate.dropped.append((rows[row].location, f"{leak[0]} of {leak[1]}"))
                del candidate.places[row]
            else:
                remaining.append((candidate, rows[row]))
        chosen.append(candidate)
    for index in _duplicates([located.row for _, located in remaining], images):
        candidate, located = remaining[index]
        candidate.dropped.append((located.location, DUPLICATE))
        del candidate.places[located.row.id]
    return chosen


def question_words(row: Row) -> str:
    """Returns the words of a question and its options, without case and the punctuation around them."""
    turns = [turn.text for turn in row.messages if turn.role == "user"]
    texts = [text.casefold().split() for text in (row.problem, *row.options, *turns)]
    return "\0".join(" ".join(word.strip(_PUNCTUATION) for word in words) for words in texts)


def _order(seed: int, source: str, row: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{source}\0{row}".encode(), digest_size=16).digest()


def _duplicates(rows: Sequence[Row], images: Mapping[str, ImageInfo]) -> Iterator[int]:
    """Yields the indices of rows that ask what an earlier row asks, about nearly equal images."""
    same_words: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        same_words[question_words(row), len(row.images)].append(index)
    for (_, num_images), indices in same_words.items():
        if len(indices) > 1:
            sketches = [[images[rows[index].images[k]].sketch for index in indices] for k in range(num_images)]
            yield from (indices[place] for place in _repeated(len(indices), sketches))


def _repeated(count: int, sketches: Sequence[Sequence[Sketch | None]]) -> Iterator[int]:
    """Yields the places of which an earlier one, itself not repeated, has nearly equal images at all positions."""
    usable = [[sketch for sketch in column if sketch] for column in sketches]
    indexes = [SketchIndex(column) for column in usable]
    first: set[int] = set()
    for place in range(count):
        near: Iterable[int] = first
        for index, column in zip(indexes, usable, strict=True):
            near = set(near) & set(index.near(column[place]))
        if near:
            yield place
        else:
            first.add(place)
