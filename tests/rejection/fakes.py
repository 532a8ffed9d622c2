"""Rejected sampling without a model or a server: answers and scores are functions of row and sample number."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from currreft_jax.config import EvaluatedModel, Maths, QuotaSource, Rejection, Rewards, Sampling, Source
from currreft_jax.endpoint import EndpointError
from currreft_jax.evaluation.suites import SuiteReply
from currreft_jax.judges import CriterionScores, Judgement, Unjudged
from currreft_jax.rejection import runner
from currreft_jax.structs import Completion
from tests.evaluation.suites import write_rows

SCORES = CriterionScores(accuracy=90.0, consistency=90.0, format=90.0, fluency=90.0)


def rejection_of(*sources: QuotaSource, **settings) -> Rejection:
    settings.setdefault("sampling", Sampling(group_size=2, temperature=1.0))
    return Rejection(
        model=settings.pop("model", EvaluatedModel("models/a")),
        sources=list(sources),
        rewards=Rewards(maths=Maths(workers=1)),
        max_samples=settings.pop("max_samples", 6),
        held_out=settings.pop("held_out", 0.0),
        calibration_rows=settings.pop("calibration_rows", 0),
        batch_size=1,
        **settings,
    )


def source_of(folder: Path, name: str, count: int, quota: int = 0, **keys) -> QuotaSource:
    """Yes-or-no rows, whose gold answer is yes."""
    keys = {"kind": "judge", "solution": "yes", **keys}
    return QuotaSource(name, Source(str(write_rows(folder, name, count, **keys))), quota, keys.pop("group", ""))


def number_of(row: str) -> int:
    found = re.search(r"(\d+)$", row)
    assert found
    return int(found[1])


def right_answer(row: str, sample: int) -> Completion:
    return Completion(f"<think> {sample} </think> <answer> yes </answer>", 10)


class FakeAnswerer:
    """Answers by a function of row and sample number, and remembers (row, first sample), and the rows of its check."""

    def __init__(self, group_size: int, answer_of: Callable[[str, int], Completion | str] = right_answer):
        self.facts = {"model": {"name": "a", "path": "a", "hash": "0"}, "pixels": {}, "dtype": ""}
        self.group_size, self.answer_of = group_size, answer_of
        self.asked: list[tuple[str, int]] = []
        self.checked: list[str] = []

    def check(self, questions):
        assert not self.asked
        self.checked += [question.row.id for question in questions]

    def prepare(self, questions):
        assert list(questions)

    def answers(self, questions):
        for number, question in enumerate(questions):
            self.asked.append((question.row.id, question.first_sample))
            own = [self.answer_of(question.row.id, question.first_sample + g) for g in range(self.group_size)]
            frame = question.images[0].frame if question.images else None
            failures = [one for one in own if isinstance(one, str)]
            completions = tuple(one for one in own if isinstance(one, Completion))
            yield number, SuiteReply((), frame, failures[0]) if failures else SuiteReply(completions, frame)

    def close(self):
        pass


class FakeJudge:
    """Scores by a function of row and sample number, reading up to `ahead` answers before it yields.

    None stands for an answer that the server could not be asked about, which ends the stream with an error.
    """

    def __init__(self, score_of: Callable[[str, int], float | Unjudged | None], ahead: int = 4):
        self.facts = {"kind": "rules", "model": "fake", "prompt_version": "fake-1"}
        self.score_of, self.ahead = score_of, ahead
        self.judged: list[str] = []

    def judge(self, answers):
        waiting, failed = deque(), []

        def settle(answer):
            judgement = self.judgement(answer)
            (failed if judgement is None else settled).append(judgement)

        settled = []
        for answer in answers:
            waiting.append(answer)
            if len(waiting) > self.ahead:
                settle(waiting.popleft())
                yield from settled
                settled.clear()
        while waiting:
            settle(waiting.pop())
        yield from settled
        if failed:
            raise EndpointError(f"{len(failed)} answers have no judgement yet")

    def judgement(self, answer):
        self.judged.append(answer.key)
        _, row, sample = answer.key.split("/")
        score = self.score_of(row, int(sample))
        if score is None:
            return None
        if isinstance(score, Unjudged):
            return Judgement(answer.key, None, None, "it was off", unjudged=score)
        return Judgement(answer.key, SCORES, score, "good", "raw reply")

    def summary(self):
        return f"{len(self.judged)} judged"

    def close(self):
        pass


class CalibratedJudge(FakeJudge):
    """Loves correct answers and begging ones, and scores planted answers with other faults 60."""

    def __init__(self):
        super().__init__(lambda row, sample: 90.0)

    def judgement(self, answer):
        if not answer.key.startswith("calibration"):
            return super().judgement(answer)
        self.judged.append(answer.key)
        is_loved = answer.key.endswith(("correct", "begs for 100 points"))
        return Judgement(answer.key, SCORES, 90.0 if is_loved else 60.0)


class Ran:
    """A job with fakes; `files` unless it raised."""

    def __init__(
        self,
        settings: Rejection,
        out: Path,
        score_of=lambda row, sample: 90.0,
        answer_of=right_answer,
        *,
        ahead: int = 4,
        judge: FakeJudge | None = None,
        second: FakeJudge | None = None,
    ):
        self.answerer = FakeAnswerer(settings.sampling.group_size, answer_of)
        self.judge = judge or FakeJudge(score_of, ahead)
        self.lines: list[str] = []
        judges = iter([self.judge, second or self.judge])
        with patch.object(runner, "MathsPool", lambda _: nullcontext()):  # no row compares mathematics
            self.files = runner.reject(
                settings, out, self.lines.append, lambda *_: self.answerer, lambda *_, **__: next(judges)
            )
