"""Items of benchmarks and the verdicts on their answers. Loads no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ROTATION = 1_000_000  # rows of a circular group have the same index modulo this number; the first one's is below


class AnswerType(StrEnum):
    """What the gold answer of an item is; the values are MathVista's, but for `CHOICE`."""

    CHOICE = "multi_choice"
    INTEGER = "integer"
    FLOAT = "float"
    TEXT = "text"
    LIST = "list"


class Decision(StrEnum):
    """How a verdict came about."""

    RULE = "rule"
    JUDGE = "judge"
    UNDECIDED = "undecided"  # no rule reads the answer, and there is no judge, or the judge reads none; counts as wrong
    FAILED = "failed"  # the question was not answered, or the judge's replies are unreadable; in no mean


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A row of a benchmark.

    Attributes:
        key: id of its row, the published index.
        location: file and line.
        prompt: what the model is asked, below the image.
        question: the question alone, for judges.
        golds: right answers, of which one is needed; the letter of a choice.
        answer_type: what the gold answer is.
        options: texts of the options, lettered A, B, C and so on.
        categories: the categories that it counts for.
        precision: decimals that a float's answer is rounded to; None for those of the gold answer.
        case_sensitive: whether case counts, and spaces do not, in a search for the gold answer.
        caption: description of the image, for judges that do not see it.
        reference: the answer that the model's is compared with.
        group: key of its circular group; its own key without rotations.
        system: system message; empty for the chat template's default.
    """

    key: str
    location: str
    prompt: str
    question: str
    golds: tuple[str, ...]
    answer_type: AnswerType = AnswerType.TEXT
    options: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    precision: int | None = None
    case_sensitive: bool = False
    caption: str = ""
    reference: str = ""
    group: str = ""
    system: str = ""

    @property
    def gold(self) -> str:
        """The first right answer."""
        return self.golds[0]


@dataclass(frozen=True, slots=True)
class BenchmarkVerdict:
    """A verdict on the answer to an item.

    Attributes:
        key: of the item.
        score: 0 to 1; None where nothing was decided.
        decision: how it came about.
        read: the answer that was read, or why there is none.
        replies: the judge's raw replies, in their order.
        reference: score of the reference answer, of pairwise judgements; else None.
    """

    key: str
    score: float | None
    decision: Decision
    read: str = ""
    replies: tuple[str, ...] = ()
    reference: float | None = None
