"""Answers and judges rows until the quotas of their sources are filled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from currreft_jax.config import ImageCondition, Rejection
from currreft_jax.data.prompts import Template, load_template
from currreft_jax.evaluation.answerers import Answerer
from currreft_jax.evaluation.suites import LoadedSuite, SuiteQuestion, SuiteReply
from currreft_jax.judges import AnswerJudge, Judged, verifying_rewards
from currreft_jax.rejection.audits import to_judge
from currreft_jax.rejection.candidates import CandidateRows, CandidateSource
from currreft_jax.rejection.kept_rows import is_readable, training_row
from currreft_jax.rejection.quotas import QuotaProgress
from currreft_jax.rejection.records import AnswerGroup, Records, SampledAnswer, answer_key
from currreft_jax.rejection.selection import KeepRule
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.runtime.multihost import gather_bytes
from currreft_jax.structs import Completion

_SECONDS = 10.0  # between two lines of progress
# Rows of a batch for each slot of the sampler: more wait less for the longest, and a job that was stopped samples the
# batch again that it was in.
_ROUNDS_OF_SLOTS = 4


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A group of answers to sample.

    Attributes:
        source_index: index of its source.
        source: source of the row.
        row: its id.
        round_index: number of the group among those of the row.
    """

    source_index: int
    source: CandidateSource
    row: str
    round_index: int

    @property
    def sent(self) -> tuple[int, int, int]:
        """What the other hosts are told: indices of source and row, and the round."""
        return self.source_index, self.source.places[self.row], self.round_index

    @property
    def key(self) -> tuple[str, str]:
        """Source and row, as in `Records.groups`."""
        return self.source.settings.name, self.row


class Answering:
    """Answers and judges the rows of all sources; one host does so, and the others sample along."""

    def __init__(
        self,
        settings: Rejection,
        out: Path,
        rows: CandidateRows,
        records: Records,
        answerer: Answerer,
        judge: AnswerJudge,
        pool: MathsPool,
        log: Callable[[str], None],
    ) -> None:
        self._settings, self._out, self._rows, self._records = settings, out, rows, records
        self._answerer, self._judge, self._pool, self._log = answerer, judge, pool, log
        self._rewards = verifying_rewards(settings.rewards)
        self._template: Template = load_template(settings.template)
        self._group_size = settings.sampling.group_size
        self._batch_size = _ROUNDS_OF_SLOTS * settings.batch_size
        self._logged = time.monotonic()

    def fill_quotas(self) -> None:
        """Answers rows of all sources, wave after wave, and rows without a kept answer again."""
        rule = KeepRule(self._settings.threshold, self._settings.require_rules)
        num_rounds = self._settings.max_samples // self._group_size
        quotas = [QuotaProgress(source, num_rounds) for source in self._rows.sources]
        while any(wave := [quota.next_rows(self._records) for quota in quotas]):
            self._answer(
                [
                    AskedRow(index, quota.source, row, quota.round_index)
                    for index, (quota, rows) in enumerate(zip(quotas, wave, strict=True))
                    for row in rows
                ]
            )
            for quota, rows in zip(quotas, wave, strict=True):
                if rows:
                    quota.count(rows, self._records, rule)
                    self._report(quota)
        _send(None)

    def _answer(self, wave: Sequence[AskedRow]) -> None:
        """Samples and judges a group of answers to each row, as far as they are not in the ledger."""
        for judgement in self._judge.judge(self._unjudged(wave)):
            self._records.add_judgement(judgement)
        self._records.sync()

    def _unjudged(self, wave: Sequence[AskedRow]) -> Iterator[Judged]:
        """Yields the answers of a wave that have no judgement, as they are sampled.

        Batches begin at the same rows after a restart: an answer comes out of the same batch.
        """
        for start in range(0, len(wave), self._batch_size):
            batch = wave[start : start + self._batch_size]
            is_recorded = all(map(self._is_recorded, batch))
            for asked in batch if is_recorded else self._sample(batch):
                yield from self._to_judge(asked)
            if time.monotonic() - self._logged >= _SECONDS:
                self._logged = time.monotonic()
                self._log(f"{start + len(batch)} of {len(wave)} rows are answered that the quotas are expected to need")

    def _is_recorded(self, asked: AskedRow) -> bool:
        return len(self._records.groups[asked.key]) > asked.round_index

    def _to_judge(self, asked: AskedRow) -> Iterator[Judged]:
        group, question = self._records.groups[asked.key][asked.round_index], asked.source.question(asked.row)
        for g, answer in enumerate(group.answers):
            key = answer_key(*asked.key, asked.round_index * self._group_size + g)
            if not answer.unusable and self._records.judgement(key) is None:
                yield to_judge(key, question, group, answer)

    def _sample(self, batch: Sequence[AskedRow]) -> Iterator[AskedRow]:
        """Samples a group of answers to each row, records those that are not in the ledger, and yields the rows."""
        sent = [asked.sent for asked in batch]
        _send(sent)
        suites = [source.suite for source in self._rows.sources]
        questions = _questions(sent, suites, self._group_size)
        self._answerer.prepare(questions)
        for number, reply in self._answerer.answers(questions):
            asked = batch[number]
            if not self._is_recorded(asked):
                self._records.add_group(*asked.key, self._group(asked, questions[number], reply))
            yield asked
        self._records.sync()

    def _group(self, asked: AskedRow, question: SuiteQuestion, reply: SuiteReply) -> AnswerGroup:
        """Scores the answers to a row by the rules, and says which cannot be kept."""
        answers = [
            SampledAnswer(completion, right, reason, self._unusable(asked, question, completion, reply))
            for completion, (right, reason) in zip(
                reply.completions, self._verdicts(asked, question, reply), strict=True
            )
        ]
        return AnswerGroup(reply.frame, tuple(answers), reply.failure)

    def _verdicts(
        self, asked: AskedRow, question: SuiteQuestion, reply: SuiteReply
    ) -> list[tuple[bool | None, str | None]]:
        """Returns whether each completion is right, and why not; None where the gold answer cannot be checked."""
        if asked.key not in self._rows.checkable or reply.failure:
            return [(None, None)] * len(reply.completions)
        scores = score_completions(
            [question.row], [reply.completions], self._rewards, frames=[reply.frame], pool=self._pool
        )
        (accuracy,), (reasons,) = scores.parts["accuracy"], scores.reasons["accuracy"]
        return [
            (bool(value == 1), None if value == 1 else str(reason))
            for value, reason in zip(accuracy, reasons, strict=True)
        ]

    def _unusable(self, asked: AskedRow, question: SuiteQuestion, completion: Completion, reply: SuiteReply) -> str:
        if not completion.finished:
            return "truncated"
        if not completion.text.strip():
            return "empty"
        name = asked.source.settings.name
        keys = training_row(question, name, completion.text, reply.frame, self._template, self._out)
        return "" if is_readable(keys, self._out) else "unreadable_as_row"

    def _report(self, quota: QuotaProgress) -> None:
        samples, wanted = (quota.round_index + 1) * self._group_size, quota.source.settings.quota
        self._log(
            f"{quota.source.settings.name}: {quota.num_answered}/{quota.num_rows} rows with {samples} answers;"
            f" {len(quota.passed)} have one to keep{f', {wanted} wanted' if wanted else ''}"
        )


def sample_along(suites: Sequence[LoadedSuite], answerer: Answerer, group_size: int) -> None:
    """Samples the batches that the first host sends, as one of the other hosts, until the quotas are filled."""
    while (sent := json.loads(gather_bytes(b"")[0])) is not None:
        questions = _questions(sent, suites, group_size)
        answerer.prepare(questions)
        for _ in answerer.answers(questions):
            pass


def _send(batch: Iterable[tuple[int, int, int]] | None) -> None:
    """Tells the other hosts which rows to sample, see `AskedRow.sent`; None at the end."""
    gather_bytes(json.dumps(batch).encode())


def _questions(
    batch: Iterable[tuple[int, int, int]], suites: Sequence[LoadedSuite], group_size: int
) -> list[SuiteQuestion]:
    return [
        replace(suites[source].question(place, ImageCondition.ORIGINAL), first_sample=round_index * group_size)
        for source, place, round_index in batch
    ]
