"""Answers of an OpenAI-compatible server to the questions of suites. Loads no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from currreft_jax.config import EvaluatedModel, Evaluation
from currreft_jax.config.wording import plural
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.images import resized_png
from currreft_jax.data.processor import MIN_PIXELS
from currreft_jax.data.prompts import load_template, question_messages
from currreft_jax.endpoint import (
    Decoding,
    Endpoint,
    EndpointError,
    EndpointSettings,
    Failure,
    FailureReason,
    JobBudget,
    Message,
    Reply,
    Request,
    open_endpoint,
)
from currreft_jax.endpoint.settings import validate_endpoint
from currreft_jax.evaluation.suites import SeenImage, SuiteQuestion, SuiteReply
from currreft_jax.structs import Completion, Frame

LEDGER = "calls.ledger"  # in the folder of the model's answers
_MAX_OPEN = 256  # questions without an answer yet, after which a run ends
_SHOWN_ERRORS = 20
_NO_TEXT = (FailureReason.EMPTY, FailureReason.REFUSED)  # the model answered, and wrong
_UNASKABLE = (FailureReason.OVERFLOW, FailureReason.REJECTED, FailureReason.IMAGE)  # never graded


class EndpointAnswerer:
    """Asks a server; has the methods of `evaluation.answerers.Answerer`.

    Images are resized as for a model of this program, so that a server of Qwen2.5-VL sees the same pixels. An empty
    answer and a refusal are wrong answers. A question that the server cannot take, such as one beyond its context, has
    a failure instead of an answer.

    Attributes:
        facts: what a manifest says of the model.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        evaluation: Evaluation,
        out: Path,
        log: Callable[[str], None],
        budget: JobBudget | None = None,
    ) -> None:
        """Checks the settings; nothing is asked yet.

        Args:
            model: its path is the model's name at the server.
            evaluation: all settings.
            out: folder of the answers; the ledger of all calls is in the model's own.
            log: called with a line for people.
            budget: calls of all servers of the job; None for no limit but the model's own.

        Raises:
            ValueError: a setting is impossible.
        """
        sampling = evaluation.sampling
        self._settings = EndpointSettings(
            **dataclasses.asdict(evaluation.endpoint),
            url=model.endpoint,
            model=model.path,
            ledger=out / model.name / LEDGER,
            extra_body={"top_k": sampling.top_k} if sampling.top_k else {},
            job_budget=budget,
        )
        validate_endpoint(self._settings)
        self._decoding = Decoding(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=sampling.group_size,
            seed=evaluation.seed,
        )
        self._seed = evaluation.seed
        self._budget = (
            PromptBudget(min_pixels=evaluation.min_pixels or MIN_PIXELS, max_pixels=evaluation.max_pixels)
            if evaluation.max_pixels
            else None
        )
        self._template, self._log = load_template(evaluation.template), log
        self._stack = ExitStack()
        self._endpoint: Endpoint | None = None
        self.facts = {
            "model": {"name": model.name, "path": model.path, "endpoint": model.endpoint},
            "pixels": {"min": self._budget.min_pixels, "max": self._budget.max_pixels} if self._budget else {},
            "dtype": "",
            "image_encoding": evaluation.endpoint.image_encoding.value,
        }

    def check(self, questions: Iterable[SuiteQuestion]) -> None:
        """Accepts all questions: the server alone knows what it takes."""

    def prepare(self, questions: Iterable[SuiteQuestion]) -> None:
        """Opens the ledger."""
        if self._endpoint is None:
            self._settings.ledger.parent.mkdir(parents=True, exist_ok=True)
            self._endpoint = self._stack.enter_context(open_endpoint(self._settings))

    def answers(self, questions: Iterable[SuiteQuestion]) -> Iterator[tuple[int, SuiteReply]]:
        """Asks questions, as many at once as the server takes; yields the replies as they come.

        Raises:
            EndpointError: the server cannot be reached, or some questions have no answer yet; what was answered is in
                the ledger, and is not asked again.
        """
        assert self._endpoint is not None  # opened by `prepare`
        asked: dict[int, tuple[str, Frame | None]] = {}  # location and frame of the questions in flight

        def requests() -> Iterator[Request]:
            for number, question in enumerate(questions):
                resized = [self._seen_frame(image) for image in question.images]
                asked[number] = question.location, next(iter(resized), None)
                yield self._request(str(number), question, resized)

        unanswered: dict[int, str] = {}
        for outcome in self._endpoint.answers(requests()):
            location, frame = asked.pop(int(outcome.key))
            if isinstance(outcome, Failure) and outcome.reason not in (*_NO_TEXT, *_UNASKABLE):
                unanswered[int(outcome.key)] = f"{location}: {outcome.reason}: {outcome.message}"
                if len(unanswered) == _MAX_OPEN:
                    break
            else:
                yield int(outcome.key), self._reply(outcome, frame)
        if unanswered:
            more = len(unanswered) - _SHOWN_ERRORS
            count = plural(len(unanswered), "question has", "questions have")
            head = f"{count} no answer yet; run the same command to ask again:"
            shown = [unanswered[number] for number in sorted(unanswered)][:_SHOWN_ERRORS]
            raise EndpointError("\n  ".join([head, *shown, *([f"and {more} more"] if more > 0 else [])]))

    def close(self) -> None:
        """Closes the connections and the ledger, and says what was asked; a second call does nothing."""
        if self._endpoint:
            self._log(f"{self._settings.model}: {self._endpoint.summary()}")
        self._endpoint = None
        self._stack.close()

    def _seen_frame(self, image: SeenImage) -> Frame:
        """Returns the frame in which an image is sent."""
        return self._budget.resized_frame(image.frame) if self._budget else image.frame

    def _request(self, key: str, question: SuiteQuestion, resized: Sequence[Frame]) -> Request:
        frames = [(image.frame, new) for image, new in zip(question.images, resized, strict=True)]
        contents = iter(
            [self._content(question, image, new) for image, new in zip(question.images, resized, strict=True)]
        )
        messages = []
        for message in question_messages(question.row, self._template, frames):
            items = message["content"]
            if isinstance(items, str):
                items = [{"type": "text", "text": items}]
            parts = tuple(next(contents) if item["type"] == "image" else item["text"] for item in items)
            messages.append(Message(message["role"], parts))
        decoding = dataclasses.replace(self._decoding, seed=self._seed + question.first_sample)
        return Request(key, tuple(messages), decoding)

    def _content(self, question: SuiteQuestion, image: SeenImage, frame: Frame) -> bytes | Path:
        """Returns an image's file, or the resized image as a PNG file."""
        if not self._budget and image.path in question.row.images:
            return Path(image.path)
        return resized_png(image.open(), frame)

    def _reply(self, outcome: Reply | Failure, frame: Frame | None) -> SuiteReply:
        if isinstance(outcome, Reply):
            pairs = zip(outcome.texts, outcome.finish_reasons, strict=True)
            completions = tuple(Completion(text, finished=reason != "length") for text, reason in pairs)
            return SuiteReply(completions, frame)
        if outcome.reason in _NO_TEXT:
            return SuiteReply((Completion(""),) * self._decoding.n, frame)
        return SuiteReply((), frame, f"{outcome.reason}: {outcome.message}")
