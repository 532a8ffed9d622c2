"""Rejected sampling: rows are answered and judged until the quotas are filled, and the best answers kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax

from currreft_jax.config import JudgeKind, Rejection, as_evaluation, source_suites
from currreft_jax.data.prompts import Template, answer_turns, load_template
from currreft_jax.data.world_rows import ensure_world
from currreft_jax.endpoint import JobBudget, recorded_calls
from currreft_jax.evaluation.answerers import Answerer, open_answerer
from currreft_jax.evaluation.suites import SuiteQuestion, SuiteReply, load_suites
from currreft_jax.judges import (
    AnswerJudge,
    Judged,
    has_rule,
    open_judge,
    self_judging_warning,
    verifying_rewards,
)
from currreft_jax.rejection.audits import ensure_calibration, judge_again, to_judge
from currreft_jax.rejection.candidates import CandidateRows, CandidateSource, SuiteContents, choose_candidates
from currreft_jax.rejection.kept_files import KeptFiles, write_kept_files
from currreft_jax.rejection.kept_rows import is_readable, training_row
from currreft_jax.rejection.manifest import keep_manifest, read_manifest, refuse_other_rows
from currreft_jax.rejection.records import LEDGER, AnswerGroup, Records, SampledAnswer, answer_key, open_records
from currreft_jax.rejection.selection import KeepRule, best_answer, judged_answers
from currreft_jax.rewards import MathsPool, RowError, check_rows, score_completions
from currreft_jax.runtime.workdir import only_run
from currreft_jax.structs import Completion, Row

Log = Callable[[str], None]
OpenAnswerer = Callable[..., Answerer]
OpenJudge = Callable[..., AnswerJudge]

JUDGE_LEDGER, SECOND_LEDGER = "judge.ledger", "second_judge.ledger"
_SECONDS = 10.0  # between two lines of progress
_ROUNDS_OF_SLOTS = (
    4  # rows of a batch for each slot of the sampler: more wait less for the longest, and may exceed quotas
)
UNREADABLE_GOLD, NO_RULE = "unreadable_gold", "no_rule"


def reject(
    settings: Rejection,
    out: Path,
    log: Log,
    open_answerer: OpenAnswerer = open_answerer,
    open_judge: OpenJudge = open_judge,
) -> KeptFiles:
    """Samples answers, judges them, and writes the kept ones as rows to train on.

    A job that was stopped goes on where it was; nothing that is in its ledger is sampled or judged again.

    Args:
        settings: all settings, valid ones.
        out: folder of the job.
        log: called with each line of progress.
        open_answerer: opens the model.
        open_judge: opens a judge.

    Raises:
        FileNotFoundError: the model or a file of rows does not exist.
        ValueError: rows, images, model or the answers in the folder cannot be used; no answer is kept; or several
            processes run.
        EndpointError: a server cannot be reached, its budget is spent, or answers have no judgement yet.
    """
    if jax.process_count() > 1:
        raise ValueError("one process samples and judges: start rejected sampling without a launcher")
    with ExitStack() as stack:
        stack.enter_context(only_run(out))
        pool = stack.enter_context(MathsPool(settings.rewards.maths))
        rows = load_candidates(settings, pool, stack, log)
        evaluation = as_evaluation(settings, source_suites(settings))
        budget = _job_budget(settings, out)
        answerer = open_answerer(settings.model, evaluation, out, log, budget)
        stack.callback(answerer.close)
        tools = {"pool": pool, "log": log, "template": settings.template, "budget": budget}
        judge = open_judge(settings.judge, settings.rewards, ledger=out / JUDGE_LEDGER, **tools)
        stack.callback(judge.close)
        if warning := self_judging_warning(settings.judge, settings.model.path):
            log(warning)
        manifest = keep_manifest(settings, rows.sources, rows.leaks, answerer.facts, judge.facts, out)
        records = stack.enter_context(open_records(out / LEDGER))
        for problem in records.problems:
            log(problem)
        ensure_calibration(settings, rows, records, judge, pool, log)
        job = _Job(settings, out, rows, records, answerer, judge, pool, log)
        for source in rows.sources:
            job.answer_source(source)
        answerer.close()
        log(judge.summary())
        if settings.second_judge:
            second = open_judge(settings.second_judge, settings.rewards, ledger=out / SECOND_LEDGER, **tools)
            stack.callback(second.close)
            judge_again(settings, rows, records, second)
            log(second.summary())
        if budget:
            log(f"{budget.calls:,} of {budget.max_calls:,} calls of the budget are spent")
        return write_kept_files(settings, out, rows.sources, records, manifest, log)


def _job_budget(settings: Rejection, out: Path) -> JobBudget | None:
    """Returns the budget of all servers, with the calls of earlier runs of the job; None without a limit."""
    if settings.budget is None:
        return None
    return JobBudget(settings.budget, recorded_calls(sorted(out.rglob("*.ledger"))))


def replay(settings: Rejection, out: Path, log: Log) -> KeptFiles:
    """Selects again from the answers and judgements of a job, and writes its files; samples and judges nothing.

    Args:
        settings: those of the job, with another threshold, other quotas or without `require_rules`.
        out: folder of the job.
        log: called with a line for people.

    Raises:
        FileNotFoundError: there is no job in the folder.
        ValueError: the rows are not those of the job, or no answer is kept.
    """
    with ExitStack() as stack:
        manifest = read_manifest(out)
        stack.enter_context(only_run(out))
        pool = stack.enter_context(MathsPool(settings.rewards.maths))
        rows = load_candidates(settings, pool, stack, log)
        refuse_other_rows(rows.sources, manifest, out)
        records = stack.enter_context(open_records(out / LEDGER))
        return write_kept_files(settings, out, rows.sources, records, manifest, log)


def load_candidates(settings: Rejection, pool: MathsPool, stack: ExitStack, log: Log) -> CandidateRows:
    """Reads the rows of all sources, and leaves out those that cannot be used.

    Args:
        settings: all settings.
        pool: math-verify workers.
        stack: closes the files.
        log: called with a line for each source of which rows are left out.

    Raises:
        ValueError: rows or images cannot be read, or no row of a source is left.
    """
    if settings.world:
        ensure_world(Path(settings.world), log)
    suites, images = load_suites(as_evaluation(settings, source_suites(settings)))
    tested, tested_images = load_suites(as_evaluation(settings, settings.suites))
    for suite in (*suites, *tested):
        stack.callback(suite.close)
    contents = SuiteContents(tested, tested_images)
    sources = choose_candidates(
        list(zip(settings.sources, suites, strict=True)), images, contents, settings.chosen_seed
    )
    checkable = set[tuple[str, str]]()
    for source in sources:
        checkable |= _check_golds(source, settings, pool)
        if source.dropped:
            counts = ", ".join(f"{reason} {count}" for reason, count in source.dropped_counts().items())
            log(f"{source.settings.name}: {len(source.dropped)} of {len(source.suite)} rows are left out: {counts}")
        if not source.places:
            raise ValueError(f"source {source.settings.name}: no row is left; give it other rows, or remove it")
    return CandidateRows(sources, frozenset(checkable), contents.compared)


def _check_golds(source: CandidateSource, settings: Rejection, pool: MathsPool) -> set[tuple[str, str]]:
    """Returns the rows whose gold answers can be checked, and leaves out those that the judge could not judge."""
    rows = {row: source.suite.row(place) for row, place in source.places.items()}
    with_rule = [row for row in rows.values() if has_rule(row)]
    unreadable = {error.row.id for error in check_rows(with_rule, verifying_rewards(settings.rewards), pool=pool)}
    checkable = {row.id for row in with_rule} - unreadable
    judged_by_rules = settings.judge.kind is JudgeKind.RULES
    for row in [row for row in rows if row not in checkable]:
        if judged_by_rules or (row in unreadable and not _has_reference(source.question(row))):
            location = source.suite.location(source.places.pop(row))
            source.dropped.append((location, UNREADABLE_GOLD if row in unreadable else NO_RULE))
    return {(source.settings.name, row) for row in checkable}


def _has_reference(question: SuiteQuestion) -> bool:
    """Returns whether the gold answer can be shown to a judge: math-verify need not read it."""
    try:
        answer_turns(question.row, [(image.frame, image.frame) for image in question.images])
    except RowError:
        return False
    return True


class _Job:
    """Answers and judges the rows of sources, one source after the other."""

    def __init__(
        self,
        settings: Rejection,
        out: Path,
        rows: CandidateRows,
        records: Records,
        answerer: Answerer,
        judge: AnswerJudge,
        pool: MathsPool,
        log: Log,
    ) -> None:
        self._settings, self._out, self._rows, self._records = settings, out, rows, records
        self._answerer, self._judge, self._pool, self._log = answerer, judge, pool, log
        self._rule = KeepRule(settings.threshold, settings.require_rules)
        self._rewards = verifying_rewards(settings.rewards)
        self._template: Template = load_template(settings.template)
        self._group_size = settings.sampling.group_size
        self._batch_size = _ROUNDS_OF_SLOTS * settings.batch_size
        self._passed: set[str] = set()
        self._logged = 0.0

    def answer_source(self, source: CandidateSource) -> None:
        """Answers the rows of a source, and again those without a kept answer, until its quota is filled."""
        for round_index in range(self._settings.max_samples // self._group_size):
            rounds = {row: judged_answers(self._records, source.settings.name, row) for row in source.places}
            earlier = {
                row for row, own in rounds.items() if any(best_answer(one, self._rule) for one in own[:round_index])
            }
            failed = {row for row in rounds if self._has_failed(source, row, round_index)}
            todo = [row for row in source.places if row not in earlier and row not in failed]
            self._passed = earlier | {
                row for row in todo if any(best_answer(one, self._rule) for one in rounds[row][: round_index + 1])
            }
            if round_index and self._is_filled(source, earlier):
                break
            self._answer_round(source, todo, round_index)

    def _has_failed(self, source: CandidateSource, row: str, round_index: int) -> bool:
        groups = self._records.groups.get((source.settings.name, row), [])
        return any(group.failure for group in groups[:round_index])

    def _is_filled(self, source: CandidateSource, passed: set[str]) -> bool:
        return bool(source.settings.quota) and len(passed) >= source.settings.quota

    def _answer_round(self, source: CandidateSource, todo: Sequence[str], round_index: int) -> None:
        """Samples and judges a group of answers to each row, until the quota is filled."""
        asked: dict[str, tuple[str, SampledAnswer]] = {}
        for judgement in self._judge.judge(self._answers(source, todo, round_index, asked)):
            row, answer = asked.pop(judgement.key)
            self._records.add_judgement(judgement)
            if not self._rule.refuses(answer, judgement):
                self._passed.add(row)
        self._records.sync()

    def _answers(
        self,
        source: CandidateSource,
        todo: Sequence[str],
        round_index: int,
        asked: dict[str, tuple[str, SampledAnswer]],
    ) -> Iterator[Judged]:
        """Yields the answers of a round that have no judgement, sampling those that are not in the ledger.

        Batches begin at the same rows after a restart: an answer comes out of the same batch.
        """
        name = source.settings.name
        if any(len(self._records.groups[name, row]) <= round_index for row in todo):
            self._answerer.prepare(source.question(row, round_index * self._group_size) for row in todo)
        for start in range(0, len(todo), self._batch_size):
            batch = todo[start : start + self._batch_size]
            missing = [row for row in batch if len(self._records.groups[name, row]) <= round_index]
            if missing and not self._is_filled(source, self._passed):
                self._sample(source, batch, round_index)
                missing = []
            for row in batch:
                if row not in missing:
                    yield from self._unjudged(source, row, round_index, asked)
            if missing:
                return
            self._report(source, round_index, start + len(batch), len(todo))

    def _unjudged(
        self, source: CandidateSource, row: str, round_index: int, asked: dict[str, tuple[str, SampledAnswer]]
    ) -> Iterator[Judged]:
        name = source.settings.name
        group, question = self._records.groups[name, row][round_index], source.question(row)
        for g, answer in enumerate(group.answers):
            key = answer_key(name, row, round_index * self._group_size + g)
            if not answer.unusable and self._records.judgement(key) is None:
                asked[key] = row, answer
                yield to_judge(key, question, group, answer)

    def _sample(self, source: CandidateSource, batch: Sequence[str], round_index: int) -> None:
        """Samples a group of answers to each row of a batch, and records those that are not in the ledger."""
        first_sample = round_index * self._group_size
        questions = [source.question(row, first_sample) for row in batch]
        replies = dict(self._answerer.answers(questions))
        groups = self._groups(source, questions, [replies[number] for number in range(len(questions))])
        for row, group in zip(batch, groups, strict=True):
            if len(self._records.groups[source.settings.name, row]) <= round_index:
                self._records.add_group(source.settings.name, row, group)
        self._records.sync()

    def _groups(
        self, source: CandidateSource, questions: Sequence[SuiteQuestion], replies: Sequence[SuiteReply]
    ) -> Iterator[AnswerGroup]:
        """Scores the answers by the rules, and says which cannot be kept."""
        name = source.settings.name
        scored = [
            (question.row, reply)
            for question, reply in zip(questions, replies, strict=True)
            if (name, question.row.id) in self._rows.checkable and not reply.failure
        ]
        verdicts = self._verdicts(scored)
        for question, reply in zip(questions, replies, strict=True):
            unknown = [(None, None)] * len(reply.completions)
            answers = [
                SampledAnswer(completion, right, reason, self._unusable(source, question, completion, reply))
                for completion, (right, reason) in zip(
                    reply.completions, verdicts.get(question.row.id, unknown), strict=True
                )
            ]
            yield AnswerGroup(reply.frame, tuple(answers), reply.failure)

    def _verdicts(self, scored: Sequence[tuple[Row, SuiteReply]]) -> dict[str, list[tuple[bool | None, str | None]]]:
        """Returns whether each completion of a row is right, and why not."""
        if not scored:
            return {}
        rows, replies = [row for row, _ in scored], [reply for _, reply in scored]
        scores = score_completions(
            rows,
            [reply.completions for reply in replies],
            self._rewards,
            frames=[reply.frame for reply in replies],
            pool=self._pool,
        )
        accuracy, reasons = scores.parts["accuracy"], scores.reasons["accuracy"]
        return {
            row.id: [
                (bool(value == 1), None if value == 1 else str(reason))
                for value, reason in zip(accuracy[p], reasons[p], strict=True)
            ]
            for p, row in enumerate(rows)
        }

    def _unusable(
        self, source: CandidateSource, question: SuiteQuestion, completion: Completion, reply: SuiteReply
    ) -> str:
        if not completion.finished:
            return "truncated"
        if not completion.text.strip():
            return "empty"
        keys = training_row(question, source.settings.name, completion.text, reply.frame, self._template, self._out)
        return "" if is_readable(keys, self._out) else "unreadable_as_row"

    def _report(self, source: CandidateSource, round_index: int, done: int, total: int) -> None:
        is_last = done == total or self._is_filled(source, self._passed)
        if not is_last and time.monotonic() - self._logged < _SECONDS:
            return
        self._logged = time.monotonic()
        samples, quota = (round_index + 1) * self._group_size, source.settings.quota
        wanted = f", {quota} wanted" if quota else ""
        self._log(
            f"{source.settings.name}: {done}/{total} rows with {samples} answers;"
            f" {len(self._passed)} have one to keep{wanted}"
        )
