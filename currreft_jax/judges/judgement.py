"""What judges score, and how they answer. Loads no JAX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from enum import StrEnum
from math import fsum
from pathlib import Path
from typing import Any, Protocol

from currreft_jax.structs import Completion, Frame, Row


class Unjudged(StrEnum):
    """Why an answer has no score: it is rejected, and counted under this reason."""

    UNREADABLE = "unreadable"  # the judge's reply holds no scores, after a repair, too
    INCONSISTENT = "inconsistent"  # the overall score and that of the four criteria differ by more than 10
    REFUSED = "refused"  # the judge declined, or answered nothing
    FAILED = "failed"  # the judge could not be asked
    NO_RULE = "no_rule"  # no rule scores such a row, and the judge is the rules


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer to judge.

    Attributes:
        key: identifies the answer among those of a job.
        row: its row, with the reference answer.
        images: files of the row's images, or their contents.
        completion: the answer.
        frame: the frame of its boxes; None for the row's own.
    """

    key: str
    row: Row
    images: tuple[bytes | Path, ...]
    completion: Completion
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class CriterionScores:
    """Scores of the paper's four criteria, each 0 to 100.

    Attributes:
        accuracy: agreement with the reference.
        consistency: logical consistency.
        format: format compliance.
        fluency: linguistic fluency.
    """

    accuracy: float
    consistency: float
    format: float
    fluency: float


def overall_score(scores: CriterionScores) -> float:
    """Computes the overall score: the mean of the four criteria, each with the same weight."""
    return fsum(astuple(scores)) / 4


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's answer.

    Attributes:
        key: of the `Judged`.
        scores: of the four criteria; None if the answer is unjudged.
        overall: 0 to 100, recomputed from the four; None if the answer is unjudged.
        rationale: the judge's reasons in words.
        reply: the raw reply, for provenance.
        unjudged: why there is no score; None otherwise.
    """

    key: str
    scores: CriterionScores | None
    overall: float | None
    rationale: str = ""
    reply: str = ""
    unjudged: Unjudged | None = None


def judge_name(facts: Mapping[str, Any]) -> str:
    """Returns kind, model and prompt version of a judge, for people and ledgers; see `AnswerJudge.facts`."""
    return " ".join(filter(None, (facts[key] for key in ("kind", "model", "prompt_version"))))


class AnswerJudge(Protocol):
    """Scores answers.

    Attributes:
        facts: what the manifest and each row's provenance say of the judge: kind, model, prompt version, and what else
            its judgements depend on.
    """

    facts: dict[str, Any]

    def judge(self, answers: Iterable[Judged]) -> Iterator[Judgement]:
        """Judges answers, and yields a judgement for each as they come.

        Answers are read only as far ahead as calls may be in flight; they must not wait for judgements.
        """
        ...

    def summary(self) -> str:
        """Describes the calls so far in one line."""
        ...

    def close(self) -> None:
        """Closes connections and ledger; a second call does nothing."""
        ...
