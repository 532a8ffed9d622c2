"""Rejected sampling: rows are answered and judged until the quotas are filled, and the best answers kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax

from currreft_jax.config import JudgeKind, Rejection, as_evaluation, source_suites
from currreft_jax.data.prompts import answer_turns
from currreft_jax.data.world_rows import ensure_world
from currreft_jax.endpoint import JobBudget, recorded_calls
from currreft_jax.evaluation.answerers import Answerer, open_answerer
from currreft_jax.evaluation.suites import SuiteQuestion, load_suites
from currreft_jax.judges import AnswerJudge, can_judge, open_judge, self_judging_warning, verifying_rewards
from currreft_jax.rejection.answering import Answering, sample_along
from currreft_jax.rejection.audits import ensure_calibration, judge_again
from currreft_jax.rejection.candidates import CandidateRows, CandidateSource, SuiteContents, choose_candidates
from currreft_jax.rejection.kept_files import KeptFiles, write_kept_files
from currreft_jax.rejection.manifest import keep_manifest, read_manifest, refuse_other_rows
from currreft_jax.rejection.records import LEDGER, open_records
from currreft_jax.rewards import MathsPool, RowError, check_rows, has_rule
from currreft_jax.runtime.multihost import gather_bytes
from currreft_jax.runtime.workdir import only_run

Log = Callable[[str], None]
OpenAnswerer = Callable[..., Answerer]
OpenJudge = Callable[..., AnswerJudge]

JUDGE_LEDGER, SECOND_LEDGER = "judge.ledger", "second_judge.ledger"
UNREADABLE_GOLD, NO_RULE = "unreadable_gold", "no_rule"
_NO_RULE_REMEDY = (
    "rows of kind chat, and open rows of task other, have no answer that the rules could check, and the judge is the"
    " rules; a model judges them: --judge=NAME --judge_endpoint=URL; a reward of your own judges those of task other:"
    " --config.rewards.weights=package.module:function=1"
)


def reject(
    settings: Rejection,
    out: Path,
    log: Log,
    open_answerer: OpenAnswerer = open_answerer,
    open_judge: OpenJudge = open_judge,
) -> KeptFiles | None:
    """Samples answers, judges them, and writes the kept ones as rows to train on; all hosts call it.

    A job that was stopped goes on where it was; nothing that is in its ledger is sampled or judged again.

    Args:
        settings: all settings, valid ones.
        out: folder of the job.
        log: called with each line of progress, on the first host.
        open_answerer: opens the model.
        open_judge: opens a judge.

    Returns:
        The files, which are there when any host returns; None on all hosts but the first, which alone judges.

    Raises:
        FileNotFoundError: the model or a file of rows does not exist.
        ValueError: rows, images, model or the answers in the folder cannot be used; no answer is kept; or several
            processes would ask a server for answers.
        EndpointError: a server cannot be reached, its budget is spent, or answers have no judgement yet.
    """
    if jax.process_index():
        return _reject_along(settings, out, log, open_answerer)
    with ExitStack() as stack:
        stack.enter_context(only_run(out))
        pool = stack.enter_context(MathsPool(settings.rewards.maths))
        rows = load_candidates(settings, pool, stack, log)
        evaluation = as_evaluation(settings, source_suites(settings))
        budget = _job_budget(settings, out)
        answerer = open_answerer(settings.model, evaluation, out, log, budget)
        stack.callback(answerer.close)
        answerer.check(source.question(row) for source in rows.sources for row in source.places)
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
        Answering(settings, out, rows, records, answerer, judge, pool, log).fill_quotas()
        answerer.close()
        log(judge.summary())
        if settings.second_judge:
            second = open_judge(settings.second_judge, settings.rewards, ledger=out / SECOND_LEDGER, **tools)
            stack.callback(second.close)
            judge_again(settings, rows, records, second)
            log(second.summary())
        if budget:
            log(f"{budget.calls:,} of {budget.max_calls:,} calls of the budget are spent")
        files = write_kept_files(settings, out, rows.sources, records, manifest, log)
        gather_bytes(b"")  # the others go on when the files are there
        return files


def _reject_along(settings: Rejection, out: Path, log: Log, open_answerer: OpenAnswerer) -> None:
    """Samples what the first host asks for, which judges the answers and writes the files."""
    if settings.world:
        ensure_world(Path(settings.world), log)
    evaluation = as_evaluation(settings, source_suites(settings))
    with ExitStack() as stack:
        suites, _ = load_suites(evaluation)
        for suite in suites:
            stack.callback(suite.close)
        answerer = open_answerer(settings.model, evaluation, out, log)
        stack.callback(answerer.close)
        sample_along(suites, answerer, settings.sampling.group_size)
    gather_bytes(b"")


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
            if NO_RULE in source.dropped_counts():
                log(f"{NO_RULE}: {_NO_RULE_REMEDY}")
        if not source.places:
            remedy = f"; {NO_RULE}: {_NO_RULE_REMEDY}" if NO_RULE in source.dropped_counts() else ""
            raise ValueError(f"source {source.settings.name}: no row is left; give it other rows, or remove it{remedy}")
    return CandidateRows(sources, frozenset(checkable), contents.compared)


def _check_golds(source: CandidateSource, settings: Rejection, pool: MathsPool) -> set[tuple[str, str]]:
    """Returns the rows whose gold answers can be checked, and leaves out those that the judge could not judge."""
    rows = {row: source.suite.row(place) for row, place in source.places.items()}
    with_rule = [row for row in rows.values() if has_rule(row)]
    unreadable = {error.row.id for error in check_rows(with_rule, verifying_rewards(settings.rewards), pool=pool)}
    checkable = {row.id for row in with_rule} - unreadable
    judged_by_rules = settings.judge.kind is JudgeKind.RULES
    for row in [row for row in rows if row not in checkable]:
        has_judge = not judged_by_rules or (not has_rule(rows[row]) and can_judge(rows[row], settings.rewards))
        if not has_judge or (row in unreadable and not _has_reference(source.question(row))):
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
