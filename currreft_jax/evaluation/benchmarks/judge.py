"""Asks a judging model about answers that no rule decides. Loads no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from currreft_jax.config import BenchmarkName, Extraction, Judge
from currreft_jax.endpoint import (
    Decoding,
    EndpointError,
    EndpointSettings,
    Failure,
    FailureReason,
    Message,
    Request,
    open_endpoint,
)
from currreft_jax.evaluation.benchmarks.aggregates import circular_groups, decide_group
from currreft_jax.evaluation.benchmarks.extraction import NO_OPTION
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem, BenchmarkVerdict, Decision
from currreft_jax.evaluation.benchmarks.judge_prompts import (
    UnreadableVerdict,
    grade_messages,
    option_messages,
    pair_messages,
    read_grade_reply,
    read_option_reply,
    read_pair_reply,
    read_short_answer_reply,
    short_answer_messages,
)
from currreft_jax.evaluation.benchmarks.scorers import score_short_answer
from currreft_jax.evaluation.readable import answer_text
from currreft_jax.structs import Completion

_REPAIR = "Your reply could not be used: {problem}. Reply again, in the form that was asked for, with nothing else."
_GIVEN_UP = frozenset({FailureReason.EMPTY, FailureReason.REFUSED, FailureReason.OVERFLOW, FailureReason.REJECTED})
_SHOWN_FAILURES = 20
_HIGHEST = 10  # score of pairwise judgements

ReadReply = Callable[[str], str | float | tuple[float, float]]


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """A question to the judge.

    Attributes:
        key: tells it from others.
        messages: the conversation.
        read: reads a reply; raises `UnreadableVerdict`.
    """

    key: str
    messages: tuple[Message, ...]
    read: ReadReply


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """What the judge replied.

    Attributes:
        value: as read; None if no reply could be read.
        replies: the raw replies; the second one follows a repair.
        problem: what was wrong with the last one; empty if it was read.
    """

    value: str | float | tuple[float, float] | None
    replies: tuple[str, ...]
    problem: str = ""


class BenchmarkJudge:
    """A model at a server, whose calls are in a ledger: none is made twice.

    Attributes:
        model: its name.
    """

    def __init__(self, judge: Judge, ledger: Path) -> None:
        """Opens the ledger.

        Raises:
            ValueError: a setting is impossible, or the ledger cannot be used.
        """
        self.model = judge.model
        limits = dataclasses.asdict(judge.endpoint)
        settings = EndpointSettings(**limits, url=judge.url, model=judge.model, ledger=ledger)
        self._decoding = Decoding(max_tokens=judge.max_new_tokens, temperature=0.0)
        self._stack = ExitStack()
        self._endpoint = self._stack.enter_context(open_endpoint(settings))

    def summary(self) -> str:
        """Describes the calls so far in one line."""
        return f"{self.model}, judge: {self._endpoint.summary()}"

    def close(self) -> None:
        """Closes connections and ledger."""
        self._stack.close()

    def ask(self, questions: Iterable[JudgeQuestion]) -> dict[str, JudgeAnswer]:
        """Asks questions, many at once; an unreadable reply is asked for again, once.

        Raises:
            EndpointError: some questions have no reply yet; the same command asks them again, and no others.
        """
        answers = {}
        unread = {question.key: (question, ()) for question in questions}
        for is_repair in (False, True):
            asked, unread = unread, {}
            for key, (reply, problem) in self._replies([question for question, _ in asked.values()]).items():
                question, earlier = asked[key]
                replies = (*earlier, *([reply] if reply else []))
                if not problem:
                    try:
                        answers[key] = JudgeAnswer(question.read(reply), replies)
                        continue
                    except UnreadableVerdict as error:
                        problem = str(error)
                answers[key] = JudgeAnswer(None, replies, problem)
                if reply and not is_repair:
                    repair = Message("user", (_REPAIR.format(problem=problem),))
                    messages = (*question.messages, Message("assistant", (reply,)), repair)
                    unread[key] = dataclasses.replace(question, messages=messages), replies
        return answers

    def _replies(self, questions: Sequence[JudgeQuestion]) -> dict[str, tuple[str, str]]:
        """Returns each question's reply and, if the judge gave none, why."""
        requests = (Request(question.key, question.messages, self._decoding) for question in questions)
        replies, failures = {}, []
        for outcome in self._endpoint.answers(requests):
            if not isinstance(outcome, Failure):
                replies[outcome.key] = outcome.texts[0], ""
            elif outcome.reason in _GIVEN_UP:
                replies[outcome.key] = "", f"{outcome.reason}: {outcome.message}"
            else:
                failures.append(f"{outcome.key}: {outcome.reason}: {outcome.message}")
        if failures:
            more = len(failures) - _SHOWN_FAILURES
            head = f"{self.model}: {len(failures)} judgements are missing; run the same command to ask for them again:"
            shown = [*failures[:_SHOWN_FAILURES], *([f"and {more} more"] if more > 0 else [])]
            raise EndpointError("\n  ".join([head, *shown]))
        return replies


def judge_undecided(
    name: BenchmarkName,
    items: Sequence[BenchmarkItem],
    completions: Mapping[str, Completion],
    verdicts: Mapping[str, BenchmarkVerdict],
    judge: BenchmarkJudge,
) -> dict[str, BenchmarkVerdict]:
    """Judges what the rules leave undecided, and returns the verdicts of all items.

    Of a circular group the first undecided rotation is judged, then the next, until one is wrong.

    Args:
        name: of the benchmark.
        items: in order.
        completions: answers, by the items' keys.
        verdicts: of the rules, by the items' keys.
        judge: to ask.

    Raises:
        EndpointError: some judgements are missing.
    """
    ask = {BenchmarkName.LLAVABENCH: _judge_pairs, BenchmarkName.MMVET: _judge_grades}.get(name, _judge_readings)
    verdicts, asked = dict(verdicts), set[str]()
    while True:
        open_items = []
        for group in circular_groups(items):
            _, decision = decide_group([verdicts[item.key] for item in group])
            undecided = [item for item in group if verdicts[item.key].decision is Decision.UNDECIDED]
            if decision is Decision.UNDECIDED and undecided[0].key not in asked:
                open_items.append(undecided[0])
        if not open_items:
            return verdicts
        asked |= {item.key for item in open_items}
        # Who is still thinking has not answered.
        verdicts |= ask([item for item in open_items if answer_text(completions[item.key])], completions, judge)


def _judge_readings(
    items: Sequence[BenchmarkItem], completions: Mapping[str, Completion], judge: BenchmarkJudge
) -> dict[str, BenchmarkVerdict]:
    """Has the judge read the options, numbers and texts that the rules cannot."""
    questions = []
    for item in items:
        is_choice = item.answer_type is AnswerType.CHOICE
        build, read = (
            (option_messages, read_option_reply) if is_choice else (short_answer_messages, read_short_answer_reply)
        )
        messages = build(item, answer_text(completions[item.key]))
        questions.append(JudgeQuestion(item.key, messages, lambda reply, read=read, item=item: read(item, reply)))
    answers = judge.ask(questions)
    return {item.key: _reading_verdict(item, answers[item.key]) for item in items}


def _reading_verdict(item: BenchmarkItem, answer: JudgeAnswer) -> BenchmarkVerdict:
    if not isinstance(answer.value, str):
        return _failed(item, answer)
    if answer.value in ("", NO_OPTION):
        return BenchmarkVerdict(item.key, None, Decision.UNDECIDED, "the judge finds none", answer.replies)
    found = score_short_answer(item, Completion(answer.value), Extraction.READABLE)
    return BenchmarkVerdict(item.key, found.score or 0.0, Decision.JUDGE, answer.value, answer.replies)


def _judge_grades(
    items: Sequence[BenchmarkItem], completions: Mapping[str, Completion], judge: BenchmarkJudge
) -> dict[str, BenchmarkVerdict]:
    answers = judge.ask(
        JudgeQuestion(item.key, grade_messages(item, answer_text(completions[item.key])), read_grade_reply)
        for item in items
    )
    return {item.key: _grade_verdict(item, answers[item.key]) for item in items}


def _grade_verdict(item: BenchmarkItem, answer: JudgeAnswer) -> BenchmarkVerdict:
    if not isinstance(answer.value, float):
        return _failed(item, answer)
    return BenchmarkVerdict(item.key, answer.value, Decision.JUDGE, replies=answer.replies)


def _judge_pairs(
    items: Sequence[BenchmarkItem], completions: Mapping[str, Completion], judge: BenchmarkJudge
) -> dict[str, BenchmarkVerdict]:
    """Compares each answer with the reference in both orders; the scores are the means of both."""
    questions = []
    for item in items:
        answer = answer_text(completions[item.key])
        orders = {"reference first": (item.reference, answer), "reference second": (answer, item.reference)}
        questions += [
            JudgeQuestion(f"{item.key}, {order}", pair_messages(item, *pair), read_pair_reply)
            for order, pair in orders.items()
        ]
    answers = judge.ask(questions)
    verdicts = {}
    for item in items:
        one, other = (answers[f"{item.key}, reference {place}"] for place in ("first", "second"))
        replies = (*one.replies, *other.replies)
        if not (isinstance(one.value, tuple) and isinstance(other.value, tuple)):
            verdicts[item.key] = _failed(item, JudgeAnswer(None, replies, one.problem or other.problem))
            continue
        score = fmean((one.value[1], other.value[0])) / _HIGHEST
        reference = fmean((one.value[0], other.value[1])) / _HIGHEST
        verdicts[item.key] = BenchmarkVerdict(item.key, score, Decision.JUDGE, "", replies, reference)
    return verdicts


def _failed(item: BenchmarkItem, answer: JudgeAnswer) -> BenchmarkVerdict:
    return BenchmarkVerdict(item.key, None, Decision.FAILED, answer.problem, answer.replies)
