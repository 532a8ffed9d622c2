"""Evaluates models on suites: one answers file for each pair and each kind of images, resumed to the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from currreft_jax.config import EvaluatedModel, Evaluation, ImageCondition, Rewards
from currreft_jax.config.wording import plural
from currreft_jax.data.world_rows import ensure_world
from currreft_jax.evaluation.answerers import Answerer, open_answerer
from currreft_jax.evaluation.answers import AnswersWriter
from currreft_jax.evaluation.manifest import answers_path, make_manifest, open_manifest
from currreft_jax.evaluation.progress import Progress
from currreft_jax.evaluation.suites import LoadedSuite, load_suites, refuse_unscorable_rows
from currreft_jax.evaluation.summary import AnswersFile
from currreft_jax.evaluation.training_leaks import LeakReport, find_training_leaks, refuse_leaks
from currreft_jax.evaluation.verdicts import AnsweredRow, score_answers, scoring_rewards
from currreft_jax.rewards import MathsPool
from currreft_jax.runtime.multihost import max_over_hosts
from currreft_jax.runtime.timing import CompilationCounter
from currreft_jax.runtime.workdir import only_run

Log = Callable[[str], None]
OpenAnswerer = Callable[[EvaluatedModel, Evaluation, Path, Log], Answerer]


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
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(only_run(out))
        suites, images = load_suites(evaluation)
        for suite in suites:
            stack.callback(suite.close)
        pool = stack.enter_context(MathsPool(evaluation.maths)) if is_main else None
        if pool:
            for suite in suites:
                refuse_unscorable_rows(suite, rewards, pool)
        answerers = [open_answerer(model, evaluation, out, log) for model in evaluation.models]
        for answerer in answerers:
            stack.callback(answerer.close)  # after an error, too: calls in flight are recorded as interrupted
        reports = []
        for model in evaluation.models:
            report = find_training_leaks(model, suites, images, evaluation.threads)
            if not evaluation.allow_leaks:
                refuse_leaks(model.path, report)
            if report.unchecked:
                log(f"{model.name}: leaks of training rows into the suites are not checked: {report.unchecked}")
            reports.append(report)
        parts = [_parts(model, suites, evaluation.images, out) for model in evaluation.models]
        if is_main:
            for answerer, report, own in zip(answerers, reports, parts, strict=True):
                _open_manifests(evaluation, answerer, report, own)
        progress = Progress(sum(len(part.suite) for own in parts for part in own), log)
        for answerer, own in zip(answerers, parts, strict=True):
            for part in own:
                _answer_suite(evaluation, part, answerer, rewards, pool, progress, log)
            answerer.close()
    return [part.file for own in parts for part in own]


def _parts(
    model: EvaluatedModel, suites: Sequence[LoadedSuite], images: Sequence[ImageCondition], out: Path
) -> list[AnswersPart]:
    return [
        AnswersPart(AnswersFile(path, model.name, suite.settings.name, suite.settings.domain, shown), suite)
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


def _answer_suite(
    evaluation: Evaluation,
    part: AnswersPart,
    answerer: Answerer,
    rewards: Rewards,
    pool: MathsPool | None,
    progress: Progress,
    log: Log,
) -> None:
    """Answers the rows of a suite that have no answer yet, a batch at a time.

    Batches begin at multiples of the batch size, also after a restart: an answer comes out of the same batch.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(AnswersWriter(part.file.path, part.suite.ids)) if pool else None
        done = int(max_over_hosts(np.array([writer.count if writer else 0]))[0])
        total, size = len(part.suite), answerer.batch_size
        first = done // size * size
        if done < total:
            answerer.prepare(partial(part.suite.questions, images=part.file.images), first, total)
        progress.begin(part.name, total, done)
        with _report_compilations(part.name, log):
            for start in range(first, total, size) if done < total else ():
                questions = part.suite.questions(start, start + size, part.file.images)
                replies = answerer.answer(questions)
                if writer and pool:
                    answered = [
                        AnsweredRow(question.row, question.image, *reply)
                        for question, reply in zip(questions, replies, strict=True)
                    ]
                    domain = part.suite.settings.domain
                    answers = score_answers(answered, rewards, pool, scorer=evaluation.scorer, domain=domain)
                    writer.write(answers[writer.count - start :])
                progress.add(min(start + size, total) - max(start, done))


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
