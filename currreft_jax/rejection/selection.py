"""Which answers are kept: the best one of a row, above the threshold, up to the quota of a source. Loads no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from currreft_jax.judges import Judgement
from currreft_jax.rejection.records import AnswerGroup, Records, SampledAnswer, answer_key

KEPT, NOT_BEST, BEYOND_QUOTA = "kept", "not_best", "beyond_quota"
BELOW_THRESHOLD, WRONG, NOT_JUDGED = "below_threshold", "wrong_by_rules", "not_judged"


@dataclass(frozen=True, slots=True)
class KeepRule:
    """When an answer may be kept.

    Attributes:
        threshold: its overall score must be above it.
        require_rules: whether answers that the rules find wrong are dropped.
    """

    threshold: float
    require_rules: bool

    def refuses(self, answer: SampledAnswer, judgement: Judgement | None) -> str:
        """Returns why an answer may not be kept; empty if it may."""
        if answer.unusable:
            return answer.unusable
        if judgement is None:
            return NOT_JUDGED
        if judgement.overall is None:
            return str(judgement.unjudged)
        if judgement.overall <= self.threshold:
            return BELOW_THRESHOLD
        return WRONG if self.require_rules and answer.right is False else ""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer and its judgement.

    Attributes:
        row: id of its row.
        sample: its number among the answers to the row.
        group: the group that it was sampled in.
        answer: the answer.
        judgement: None if it has none.
    """

    row: str
    sample: int
    group: AnswerGroup
    answer: SampledAnswer
    judgement: Judgement | None

    @property
    def overall(self) -> float | None:
        """The overall score; None if it has none."""
        return self.judgement and self.judgement.overall

    @property
    def length(self) -> int:
        """Number of tokens, or of characters where the generator is a server, which gives none for one answer."""
        completion = self.answer.completion
        return len(completion.text) if completion.num_tokens is None else completion.num_tokens


@dataclass(frozen=True, slots=True)
class SourceSelection:
    """What is kept of a source.

    Attributes:
        name: the source.
        group: heading in the tables.
        quota: rows to keep; 0 for all that pass.
        kept: kept answers, one a row.
        rows: number of candidates.
        sampled: number of rows with answers.
        reasons: number of answers that are kept, or not, by reason.
        failures: number of rows that could not be asked, by reason.
    """

    name: str
    group: str
    quota: int
    kept: tuple[JudgedAnswer, ...]
    rows: int
    sampled: int
    reasons: Counter[str]
    failures: Counter[str]

    @property
    def shortfall(self) -> int:
        """Number of rows that the quota lacks."""
        return max(0, self.quota - len(self.kept))


def judged_answers(records: Records, source: str, row: str) -> list[list[JudgedAnswer]]:
    """Returns the answers to a row, round by round."""
    rounds, sample = [], 0
    for group in records.groups.get((source, row), ()):
        own = []
        for answer in group.answers:
            own.append(JudgedAnswer(row, sample, group, answer, records.judgement(answer_key(source, row, sample))))
            sample += 1
        rounds.append(own)
    return rounds


def best_answer(answers: Iterable[JudgedAnswer], rule: KeepRule) -> JudgedAnswer | None:
    """Returns the answer with the highest overall score that may be kept; the shorter one of equals, then the first."""
    passing = [one for one in answers if not rule.refuses(one.answer, one.judgement)]
    return min(passing, key=lambda one: (-(one.overall or 0.0), one.length, one.sample), default=None)


def select(name: str, group: str, quota: int, rows: Sequence[str], records: Records, rule: KeepRule) -> SourceSelection:
    """Selects the kept answers of a source.

    Rows count in the order of the round that gave them their first passing answer, then in their own order, so that
    answers beyond what a quota needs, which a job may have sampled, change nothing.

    Args:
        name: the source.
        group: its heading.
        quota: rows to keep; 0 for all that pass.
        rows: ids of the candidates, in the order in which they are sampled.
        records: all answers and judgements.
        rule: when an answer may be kept.
    """
    reasons, failures = Counter[str](), Counter[str]()
    passing: list[tuple[int, int, JudgedAnswer]] = []
    sampled = 0
    for place, row in enumerate(rows):
        rounds = judged_answers(records, name, row)
        groups = records.groups.get((name, row), ())
        sampled += bool(groups)
        failures.update(one.failure.partition(":")[0] for one in groups if one.failure)
        best = [best_answer(answers, rule) for answers in rounds]
        first = next((index for index, answer in enumerate(best) if answer), None)
        for answer in (one for answers in rounds for one in answers):
            reasons[rule.refuses(answer.answer, answer.judgement) or NOT_BEST] += 1
        if first is not None and (answer := best[first]):
            passing.append((first, place, answer))
    passing.sort(key=lambda one: one[:2])
    kept = tuple(answer for _, _, answer in passing[: quota or len(passing)])
    reasons[NOT_BEST] -= len(passing)
    reasons += Counter({KEPT: len(kept), BEYOND_QUOTA: len(passing) - len(kept)})
    return SourceSelection(name, group, quota, kept, len(rows), sampled, +reasons, failures)
