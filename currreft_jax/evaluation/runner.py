"""Evaluates models on suites: one answers file for each pair and each kind of images, resumed to the row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from currreft_jax.config import EvaluatedModel, Evaluation, ImageCondition, JudgeKind, Rewards
from currreft_jax.config.wording import plural
from currreft_jax.data.row_checks import ImageInfo
from currreft_jax.data.world_rows import ensure_world
from currreft_jax.evaluation.answerers import Answerer, open_answerer
from currreft_jax.evaluation.answers import Answer, AnswersWriter, read_answers
from currreft_jax.evaluation.benchmarks.judge import BenchmarkJudge
from currreft_jax.evaluation.benchmarks.scoring import score_benchmark, verdicts_path, write_verdicts
from currreft_jax.evaluation.manifest import answers_path, make_manifest, open_manifest
from currreft_jax.evaluation.progress import Progress
from currreft_jax.evaluation.suites import LoadedSuite, SuiteQuestion, load_suites, refuse_unscorable_rows
from currreft_jax.evaluation.summary import AnswersFile
from currreft_jax.evaluation.training_leaks import LeakReport, find_training_leaks, refuse_leaks
from currreft_jax.evaluation.verdicts import AnsweredRow, score_answers, scoring_rewards
from currreft_jax.judges import self_judging_warning, validate_judge
from currreft_jax.rewards import MathsPool
from currreft_jax.runtime.multihost import max_over_hosts
from currreft_jax.runtime.timing import CompilationCounter
from currreft_jax.runtime.workdir import only_run

Log = Callable[[str], None]
OpenAnswerer = Callable[[EvaluatedModel, Evaluation, Path, Log], Answerer]
_ROWS_PER_WRITE = 8
_WRITES_AHEAD = 8  # so many wait to be scored before the sampler waits for them
JUDGE_LEDGER = "judge.ledger"  # in the folder of the model's answers


@dataclass(frozen=True, slots=True)
class AnswersPart:
    """One answers file to write.

    Attributes:
        file: the answers file.
        suite: the suite.
    """

    file: AnswersFile
    suite: LoadedSuite

    @property
    def name(self) -> str:
        """Model and file name."""
        return f"{self.file.model}/{self.file.path.stem}"


def evaluate(
    evaluation: Evaluation, out: Path, log: Log, open_answerer: OpenAnswerer = open_answerer
) -> list[AnswersFile]:
    """Evaluates all models on all suites, and returns the answers files; all hosts call it.

    Everything that can be refused is refused before the first answer.

    Args:
        evaluation: all settings.
        out: folder of the answers.
        log: called with each line of progress, on the first host.
        open_answerer: opens a model.

    Raises:
        FileNotFoundError: a model or a file of rows does not exist.
        ValueError: rows, images, models or earlier answers cannot be used, or a model was trained on rows of a suite.
    """
    is_main = jax.process_index() == 0
    if evaluation.world:
        ensure_world(Path(evaluation.world), log)
    rewards = scoring_rewards(evaluation.aliases, evaluation.maths)
    validate_judge(evaluation.judge)
    for model in evaluation.models:
        if warning := self_judging_warning(evaluation.judge, model.path):
            log(warning)
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(only_run(out))
        suites, images = load_suites(evaluation)
        for suite in suites:
            stack.callback(suite.close)
            if suite.benchmark and (count := len(suite.benchmark.without_image)):
                log(f"{suite.settings.name}: {plural(count, 'row')} without an image left out; the manifest names them")
        pool = stack.enter_context(MathsPool(evaluation.maths)) if is_main else None
        if pool:
            for suite in suites:
                refuse_unscorable_rows(suite, rewards, pool)
        answerers = [open_answerer(model, evaluation, out, log) for model in evaluation.models]
        for answerer in answerers:
            stack.callback(answerer.close)  # after an error, too: calls in flight are recorded as interrupted
        reports = [_find_leaks(evaluation, model, suites, images, log) for model in evaluation.models]
        for answerer in answerers:
            answerer.check(
                suite.question(row, ImageCondition.ORIGINAL) for suite in suites for row in range(len(suite))
            )
        parts = [_parts(model, suites, evaluation.images, out) for model in evaluation.models]
        if is_main:
            for answerer, report, own in zip(answerers, reports, parts, strict=True):
                _open_manifests(evaluation, answerer, report, own)
        progress = Progress(sum(len(part.suite) for own in parts for part in own), log)
        for answerer, own in zip(answerers, parts, strict=True):
            _answer_parts(evaluation, own, answerer, rewards, pool, progress, log)
            answerer.close()
            if pool:
                _score_benchmarks(evaluation, own, rewards, pool, log)
    return [part.file for own in parts for part in own]


def _find_leaks(
    evaluation: Evaluation,
    model: EvaluatedModel,
    suites: Sequence[LoadedSuite],
    images: dict[str, ImageInfo],
    log: Log,
) -> LeakReport:
    """Looks for images of the suites among those that a model was trained on, and refuses them unless allowed."""
    report = find_training_leaks(model, suites, images, evaluation.threads)
    if not evaluation.allow_leaks:
        refuse_leaks(model.path, report)
    if report.unchecked:
        log(f"{model.name}: leaks of training rows into the suites are not checked: {report.unchecked}")
    if report.template and report.template != evaluation.template:
        log(
            f"{model.name}: trained with the prompt template {report.template}, asked with {evaluation.template}; for"
            f" the one of its training give --config.template={report.template}"
        )
    return report


def _parts(
    model: EvaluatedModel, suites: Sequence[LoadedSuite], images: Sequence[ImageCondition], out: Path
) -> list[AnswersPart]:
    return [
        AnswersPart(
            AnswersFile(
                *(path, model.name, suite.settings.name, suite.settings.domain, shown),
                is_benchmark=suite.benchmark is not None,
            ),
            suite,
        )
        for suite in suites
        for shown in suite.conditions(images)
        for path in [answers_path(out, model.name, suite.settings.name, shown)]
    ]


def _open_manifests(
    evaluation: Evaluation, answerer: Answerer, report: LeakReport, parts: Sequence[AnswersPart]
) -> None:
    for part in parts:
        leaks = report.summary(part.suite.settings.name)
        open_manifest(part.file.path, make_manifest(evaluation, part.suite, part.file.images, answerer.facts, leaks))


def _score_benchmarks(
    evaluation: Evaluation, parts: Sequence[AnswersPart], rewards: Rewards, pool: MathsPool, log: Log
) -> None:
    """Scores a model's answers to benchmarks, and writes a verdicts file beside each answers file."""
    with ExitStack() as stack:
        judge: BenchmarkJudge | None = None
        for part in parts:
            if not (benchmark := part.suite.benchmark):
                continue
            if judge is None and evaluation.judge.kind is JudgeKind.ENDPOINT:
                judge = BenchmarkJudge(evaluation.judge, part.file.path.parent / JUDGE_LEDGER)
                stack.callback(judge.close)
            answers = list(read_answers(part.file.path))
            verdicts = score_benchmark(benchmark, answers, evaluation.extraction, judge, rewards, pool)
            path = verdicts_path(part.file.path)
            write_verdicts(path, benchmark, answers, verdicts, evaluation.extraction, evaluation.judge)
        if judge:
            log(judge.summary())


class _ScoringThread:
    """Scores and writes answers in a thread, in the order in which they are given: sampling does not wait for them.

    After an error nothing more is written: the answers behind it would stand at the places of others.
    """

    def __init__(self) -> None:
        self._thread, self._pending, self._failed = ThreadPoolExecutor(1, "scoring"), deque[Future[None]](), False

    def submit(self, write: Callable[[], None]) -> None:
        """Queues a write, and waits while too many are queued; raises what an earlier one has raised."""
        self._pending.append(self._thread.submit(self._run, write))
        while len(self._pending) > _WRITES_AHEAD:
            self._pending.popleft().result()

    def close(self) -> None:
        """Waits for all writes; raises what one has raised."""
        self._thread.shutdown()
        while self._pending:
            self._pending.popleft().result()

    def _run(self, write: Callable[[], None]) -> None:
        if not self._failed:
            self._failed = True  # stays so if the write raises: nothing is written after it
            write()
            self._failed = False


class _OrderedAnswers:
    """Scores the answers of a part and writes them in the order of its rows, whatever the order in which they come."""

    def __init__(
        self,
        num_rows: int,
        writer: AnswersWriter,
        score: Callable[[Sequence[AnsweredRow]], list[Answer]],
        thread: _ScoringThread,
    ) -> None:
        self._num_rows, self._writer, self._score, self._thread = num_rows, writer, score, thread
        self._next, self._ready = writer.count, list[AnsweredRow]()
        self._early: dict[int, AnsweredRow] = {}  # answers that wait for one of an earlier row

    def add(self, row: int, answered: AnsweredRow) -> None:
        """Takes the answer of a row, and writes those that are ready, a few at a time."""
        self._early[row] = answered
        while self._next in self._early:
            self._ready.append(self._early.pop(self._next))
            self._next += 1
        if len(self._ready) >= _ROWS_PER_WRITE or self._next == self._num_rows:
            self.flush()

    def flush(self) -> None:
        """Queues the answers that are ready to be written."""
        ready, self._ready = self._ready, []
        if ready:
            self._thread.submit(lambda: self._writer.write(self._score(ready)))


def _answer_parts(
    evaluation: Evaluation,
    parts: Sequence[AnswersPart],
    answerer: Answerer,
    rewards: Rewards,
    pool: MathsPool | None,
    progress: Progress,
    log: Log,
) -> None:
    """Answers the rows of a model's suites that have no answer yet, all in one stream."""
    with ExitStack() as stack:
        writers = [stack.enter_context(AnswersWriter(part.file.path, part.suite.ids)) for part in parts if pool]
        answers, thread = [], _ScoringThread()
        stack.callback(thread.close)
        for part, writer in zip(parts, writers, strict=False):
            settings = {"scorer": evaluation.scorer, "domain": part.suite.settings.domain}
            score = partial(score_answers, settings=rewards, pool=pool, **settings)
            answers.append(_OrderedAnswers(len(part.suite), writer, score, thread))
            stack.callback(answers[-1].flush)
        counts = [writer.count for writer in writers] or [0] * len(parts)
        done: list[int] = max_over_hosts(np.array(counts)).tolist()
        asked: dict[int, tuple[int, int, SuiteQuestion]] = {}

        def questions() -> Iterator[SuiteQuestion]:
            for number, (part, row, question) in enumerate(_unanswered(parts, done)):
                asked[number] = part, row, question
                yield question

        left = sum(len(part.suite) for part in parts) - sum(done)
        if left:
            answerer.prepare(question for _, _, question in _unanswered(parts, done))
        for part, count in zip(parts, done, strict=True):
            progress.begin(part.name, len(part.suite), count)
        with _report_compilations(answerer.facts["model"]["name"], log):
            for number, reply in answerer.answers(questions()) if left else ():
                part, row, question = asked.pop(number)
                if answers:
                    answers[part].add(row, AnsweredRow(question.row, question.image, *reply))
                progress.add(parts[part].name)


def _unanswered(parts: Sequence[AnswersPart], done: Sequence[int]) -> Iterator[tuple[int, int, SuiteQuestion]]:
    """Reads the questions of all parts after the first ones of each, with the numbers of their parts and rows."""
    for index, part in enumerate(parts):
        for row in range(done[index], len(part.suite)):
            yield index, row, part.suite.question(row, part.file.images)


@contextmanager
def _report_compilations(name: str, log: Log) -> Iterator[None]:
    """Logs how many programs were compiled in the block, where there were to be none."""
    counter = CompilationCounter()
    try:
        yield
    finally:
        counter.close()
    if count := counter.take():
        log(f"{name}: {plural(count, 'program was', 'programs were')} compiled after the warm-up")
