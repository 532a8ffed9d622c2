"""The judge that is a model at an OpenAI-compatible server. Loads no JAX."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from currreft_jax.config import Judge, JudgeKind
from currreft_jax.config.checks import refuse, refuse_wrong_types
from currreft_jax.data.images import ImageError
from currreft_jax.data.prompts import Template
from currreft_jax.endpoint import (
    Decoding,
    EndpointError,
    EndpointSettings,
    Failure,
    FailureReason,
    JobBudget,
    Reply,
    Request,
    open_endpoint,
    schema_format,
)
from currreft_jax.endpoint.settings import validate_server
from currreft_jax.judges.judgement import Judged, Judgement, Unjudged, overall_score
from currreft_jax.judges.prompt import PROMPT_VERSION, SCHEMA, judge_messages, repair_messages
from currreft_jax.judges.score_reply import UnreadableReply, parse_score_reply

LARGEST_GAP = 10.0  # between the overall score that a reply gives and the mean of its criteria
_SHOWN_FAILURES = 20
_REJECTED_ROWS = 3  # so many rows that a server rejects in every form, before it has taken any, are no accident
_NO_TEXT = (FailureReason.EMPTY, FailureReason.REFUSED)
_UNASKABLE = (FailureReason.OVERFLOW, FailureReason.REJECTED, FailureReason.IMAGE)
# The next answers would fail alike.
_HOPELESS = (FailureReason.BUDGET, FailureReason.ACCESS, FailureReason.MODEL, FailureReason.URL)


class ReplyForm(Enum):
    """How the server is asked for JSON; the values stand in messages."""

    SCHEMA = "JSON of a schema"
    JSON_OBJECT = "a JSON object"
    TEXT = "plain text"

    def response_format(self) -> dict[str, Any] | None:
        """Returns the field of the request; None for plain text."""
        formats = {ReplyForm.SCHEMA: schema_format(SCHEMA), ReplyForm.JSON_OBJECT: {"type": "json_object"}}
        return formats.get(self)


class EndpointJudge:
    """Asks a model for scores; an `AnswerJudge`.

    An unreadable reply is followed by one further request that says what was wrong. No call is made twice: replies are
    in the ledger.

    Attributes:
        facts: what manifest and provenance say of the judge.
    """

    def __init__(
        self,
        judge: Judge,
        template: Template,
        ledger: Path,
        log: Callable[[str], None],
        budget: JobBudget | None = None,
    ) -> None:
        """Opens the ledger.

        Args:
            judge: settings of model and server.
            template: the text around the questions that the answers were given to.
            ledger: file of the calls.
            log: called with a line for people.
            budget: calls of all servers of the job; None for no limit but the judge's own.

        Raises:
            ValueError: a setting is impossible, or the ledger cannot be used.
            OSError: the ledger cannot be opened.
        """
        validate_judge(judge)
        settings = EndpointSettings(
            **dataclasses.asdict(judge.endpoint), url=judge.url, model=judge.model, ledger=ledger, job_budget=budget
        )
        self.facts = {
            **{"kind": "endpoint", "model": judge.model, "url": judge.url, "prompt_version": PROMPT_VERSION},
            **{"max_new_tokens": judge.max_new_tokens, "image_encoding": settings.image_encoding.value},
        }
        self._decoding = Decoding(max_tokens=judge.max_new_tokens, temperature=0.0)
        self._model, self._template, self._log = judge.model, template, log
        self._form: ReplyForm | None = None  # until the server has taken a request
        self._rejected_rows = 0
        self._counts: Counter[str] = Counter()
        self._stack = ExitStack()
        self._endpoint = self._stack.enter_context(open_endpoint(settings))

    def judge(self, answers: Iterable[Judged]) -> Iterator[Judgement]:
        """Judges answers, and yields a judgement for each as they come.

        A repair is asked for between two answers, so that nothing waits for it; those of the last replies follow at the
        end.

        Raises:
            EndpointError: the server cannot be reached or rejects all requests, or some answers have no judgement yet;
                what was judged is in the ledger, and is not asked again. It is raised at the end, but where the
                following answers would fail alike no more of them are read.
            RowError: the gold answer of a row is malformed.
            ValueError: two answers have the same key.
        """
        progress, remaining = _AskedAnswers(), iter(answers)
        while self._form is None and not progress.hopeless and (answer := next(remaining, None)):
            request = self._request(answer, progress)
            if request:
                yield from self._settle([self._find_form(request)], progress)
        yield from self._settle(self._endpoint.answers(self._requests(remaining, progress)), progress)
        while progress.repairs:
            repairs = [*progress.repairs]
            progress.repairs.clear()
            yield from self._settle(self._endpoint.answers(repairs), progress)
        yield from map(self._counted, progress.without_image)
        if progress.failures:
            raise self._error(progress)

    def summary(self) -> str:
        """Describes answers and calls so far in one line."""
        unjudged = {reason: self._counts[reason] for reason in Unjudged if self._counts[reason]}
        reasons = f" ({', '.join(f'{reason} {count:,}' for reason, count in unjudged.items())})" if unjudged else ""
        return (
            f"{self._model}: {self._counts['judged']:,} answers judged, {sum(unjudged.values()):,} unjudged{reasons},"
            f" {self._counts['repairs']:,} replies asked for again; requests: {self._endpoint.summary()}"
        )

    def close(self) -> None:
        """Closes connections and ledger; a second call does nothing."""
        self._stack.close()

    def _find_form(self, request: Request) -> Reply | Failure:
        """Asks in each form until the server takes one, in which all later requests are made.

        Raises:
            EndpointError: the server rejects all requests.
        """
        rejections: list[Failure] = []
        for form in ReplyForm:
            (outcome,) = self._endpoint.answers([replace(request, response_format=form.response_format())])
            if isinstance(outcome, Failure) and outcome.reason is FailureReason.REJECTED:
                rejections.append(outcome)
                continue
            if isinstance(outcome, Reply) or outcome.reason in _NO_TEXT:
                self._form = form
                if form is not ReplyForm.SCHEMA:
                    self._log(f"{self._model}: the server takes no JSON schema, so it is asked for {form.value}")
            return outcome
        self._rejected_rows += 1
        if self._rejected_rows == _REJECTED_ROWS:
            raise EndpointError(f"{self._model}: the server rejects every request: {rejections[-1].message}")
        return rejections[-1]

    def _requests(self, answers: Iterator[Judged], progress: _AskedAnswers) -> Iterator[Request]:
        """Yields the repairs that are due, and the requests of the answers."""
        while not progress.hopeless:
            while progress.repairs:
                yield progress.repairs.popleft()
            answer = next(answers, None)
            if answer is None:
                return
            request = self._request(answer, progress)
            if request:
                yield request

    def _request(self, answer: Judged, progress: _AskedAnswers) -> Request | None:
        """Builds the request of an answer; None if an image cannot be read."""
        if answer.key in progress.asked:
            raise ValueError(f"two answers have the key {answer.key!r}; give each a key of its own")
        try:
            messages = judge_messages(answer, self._template)
        except ImageError as error:
            failure = Failure(answer.key, FailureReason.IMAGE, str(error))
            progress.without_image.append(_judge_failure(failure))
            return None
        request = Request(answer.key, messages, self._decoding, self._response_format())
        progress.asked[answer.key] = _Asked(answer.completion.text, request)
        return request

    def _response_format(self) -> dict[str, Any] | None:
        return (self._form or ReplyForm.SCHEMA).response_format()

    def _settle(self, outcomes: Iterable[Reply | Failure], progress: _AskedAnswers) -> Iterator[Judgement]:
        """Yields the judgements of outcomes; an unreadable reply becomes a repair, once."""
        for outcome in outcomes:
            asked = progress.asked.pop(outcome.key)
            if isinstance(outcome, Failure):
                if outcome.reason in (*_NO_TEXT, *_UNASKABLE):
                    yield self._counted(_judge_failure(outcome))
                else:
                    progress.failures.append(f"{outcome.key}: {outcome.reason}: {outcome.message}")
                    progress.hopeless |= outcome.reason in _HOPELESS or len(progress.failures) == _SHOWN_FAILURES
                continue
            try:
                judgement = _judge_reply(outcome, asked)
            except UnreadableReply as error:
                if not asked.repaired:
                    self._counts["repairs"] += 1
                    progress.repair(asked, outcome, str(error), self._response_format())
                    continue
                problem = f"after a repair: {error}"
                judgement = Judgement(outcome.key, None, None, problem, outcome.texts[0], Unjudged.UNREADABLE)
            yield self._counted(judgement)

    def _counted(self, judgement: Judgement) -> Judgement:
        self._counts[judgement.unjudged or "judged"] += 1
        return judgement

    def _error(self, progress: _AskedAnswers) -> EndpointError:
        more = len(progress.failures) - _SHOWN_FAILURES
        rest = " and no more were read" if progress.hopeless else ""
        head = (
            f"{self._model}: {len(progress.failures)} answers have no judgement yet{rest};"
            " run the same command to ask for them again:"
        )
        shown = [*progress.failures[:_SHOWN_FAILURES], *([f"and {more} more"] if more > 0 else [])]
        return EndpointError("\n  ".join([head, *shown]))


def self_judging_warning(judge: Judge, generator: str) -> str:
    """Returns a line that warns of a model which judges its own answers; empty where it does not.

    Models prefer their own answers, so that the scores are too high.

    Args:
        judge: settings of the judge.
        generator: path or name of the model that answers; its last part counts, in any case.
    """
    same = Path(judge.model).name.casefold() == Path(generator).name.casefold()
    if judge.kind is not JudgeKind.ENDPOINT or not same:
        return ""
    return f"{judge.model} judges its own answers, and models prefer those: let another model judge, or the rules"


def validate_judge(judge: Judge) -> None:
    """Refuses impossible settings of a judge.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("judge", judge, Judge)
    is_model = judge.kind is JudgeKind.ENDPOINT
    empty = "an empty text while judge.kind is rules; for a model set judge.kind=endpoint"
    demands = [
        (is_model or not judge.model, "model", repr(judge.model), empty),
        (is_model or not judge.url, "url", repr(judge.url), empty),
        (not is_model or bool(judge.model), "model", "empty", "the name of a model at the server"),
        (not is_model or bool(judge.url), "url", "empty", "the base URL of a server, such as http://localhost:8000/v1"),
        (judge.max_new_tokens >= 1, "max_new_tokens", judge.max_new_tokens, "1 or more"),
    ]
    refuse("judge", demands)
    if is_model:
        validate_server(judge.url, judge.endpoint, url_name="judge.url", name="judge.endpoint")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request without an outcome yet.

    Attributes:
        answer: the text that is judged.
        request: what the server is asked.
        repaired: whether it follows an unreadable reply.
    """

    answer: str
    request: Request
    repaired: bool = False


@dataclass(slots=True)
class _AskedAnswers:
    """One stream of answers.

    Attributes:
        asked: requests without an outcome, by the answer's key.
        repairs: further requests that are due.
        without_image: answers whose images cannot be read.
        failures: of answers that are to be asked about again.
        hopeless: whether the following answers would fail alike.
    """

    asked: dict[str, _Asked] = field(default_factory=dict)
    repairs: deque[Request] = field(default_factory=deque)
    without_image: list[Judgement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    hopeless: bool = False

    def repair(self, asked: _Asked, reply: Reply, problem: str, response_format: dict[str, Any] | None) -> None:
        """Asks again, and says what was wrong with the reply."""
        messages = repair_messages(asked.request.messages, reply.texts[0], problem)
        request = replace(asked.request, messages=messages, response_format=response_format)
        self.asked[reply.key] = _Asked(asked.answer, request, repaired=True)
        self.repairs.append(request)


def _judge_failure(failure: Failure) -> Judgement:
    """Returns the judgement of a failure that another call would repeat."""
    reason = Unjudged.REFUSED if failure.reason in _NO_TEXT else Unjudged.FAILED
    return Judgement(failure.key, None, None, f"{failure.reason}: {failure.message}", unjudged=reason)


def _judge_reply(reply: Reply, asked: _Asked) -> Judgement:
    """Reads a reply.

    Raises:
        UnreadableReply: it holds no scores.
    """
    (text,) = reply.texts
    try:
        found = parse_score_reply(text, asked.answer)
    except UnreadableReply as error:
        limit = asked.request.decoding.max_tokens
        if reply.finish_reasons == ("length",):
            raise UnreadableReply(f"it was cut off at {limit} tokens") from error
        raise
    overall = overall_score(found.scores)
    if abs(found.overall - overall) > LARGEST_GAP:
        problem = f"overall is {found.overall:g}, but the mean of the criteria is {overall:g}: {found.rationale}"
        return Judgement(reply.key, None, None, problem, text, Unjudged.INCONSISTENT)
    return Judgement(reply.key, found.scores, overall, found.rationale, text)
