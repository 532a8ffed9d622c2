"""Answers of an OpenAI-compatible server to the questions of suites. Loads no JAX."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from currreft_jax.config import EvaluatedModel, Evaluation
from currreft_jax.config.wording import plural
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.processor import MIN_PIXELS
from currreft_jax.data.prompts import load_template, question_messages
from currreft_jax.endpoint import (
    Decoding,
    Endpoint,
    EndpointError,
    EndpointSettings,
    Failure,
    FailureReason,
    Message,
    Reply,
    Request,
    open_endpoint,
)
from currreft_jax.endpoint.settings import validate_endpoint
from currreft_jax.evaluation.suites import SeenImage, SuiteQuestion, SuiteReply
from currreft_jax.structs import Completion, Frame

LEDGER = "calls.ledger"  # in the folder of the model's answers
_BATCH_SIZE = 256  # questions; a batch waits for its slowest
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
        batch_size: number of questions that are answered together.
    """

    def __init__(self, model: EvaluatedModel, evaluation: Evaluation, out: Path, log: Callable[[str], None]) -> None:
        """Checks the settings; nothing is asked yet.

        Args:
            model: its path is the model's name at the server.
            evaluation: all settings.
            out: folder of the answers; the ledger of all calls is in the model's own.
            log: called with a line for people.

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
        )
        validate_endpoint(self._settings)
        self._decoding = Decoding(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=sampling.group_size,
            seed=evaluation.seed,
        )
        self._budget = (
            PromptBudget(min_pixels=evaluation.min_pixels or MIN_PIXELS, max_pixels=evaluation.max_pixels)
            if evaluation.max_pixels
            else None
        )
        self._template, self._log = load_template(evaluation.template), log
        self._stack = ExitStack()
        self._endpoint: Endpoint | None = None
        self.batch_size = _BATCH_SIZE
        self.facts = {
            "model": {"name": model.name, "path": model.path, "endpoint": model.endpoint},
            "pixels": {"min": self._budget.min_pixels, "max": self._budget.max_pixels} if self._budget else {},
            "dtype": "",
            "image_encoding": evaluation.endpoint.image_encoding.value,
        }

    def prepare(self, read: Any, start: int, stop: int) -> None:
        """Opens the ledger."""
        if self._endpoint is None:
            self._settings.ledger.parent.mkdir(parents=True, exist_ok=True)
            self._endpoint = self._stack.enter_context(open_endpoint(self._settings))

    def answer(self, questions: Sequence[SuiteQuestion]) -> list[SuiteReply]:
        """Asks all questions at once.

        Raises:
            EndpointError: the server cannot be reached, or some questions have no answer yet; what was answered is in
                the ledger, and is not asked again.
        """
        assert self._endpoint is not None  # opened by `prepare`
        frames = [[self._seen_frame(image) for image in question.images] for question in questions]
        requests = (
            self._request(str(index), question, resized)
            for index, (question, resized) in enumerate(zip(questions, frames, strict=True))
        )
        outcomes: dict[int, Reply | Failure] = {int(one.key): one for one in self._endpoint.answers(requests)}
        open_failures = [
            f"{questions[index].location}: {outcome.reason}: {outcome.message}"
            for index, outcome in sorted(outcomes.items())
            if isinstance(outcome, Failure) and outcome.reason not in (*_NO_TEXT, *_UNASKABLE)
        ]
        if open_failures:
            more = len(open_failures) - _SHOWN_ERRORS
            count = plural(len(open_failures), "question has", "questions have")
            head = f"{count} no answer yet; run the same command to ask again:"
            shown = [*open_failures[:_SHOWN_ERRORS], *([f"and {more} more"] if more > 0 else [])]
            raise EndpointError("\n  ".join([head, *shown]))
        return [self._reply(outcomes[index], next(iter(resized), None)) for index, resized in enumerate(frames)]

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
        return Request(key, tuple(messages), self._decoding)

    def _content(self, question: SuiteQuestion, image: SeenImage, frame: Frame) -> bytes | Path:
        """Returns an image's file, or the resized image as a PNG file."""
        if not self._budget and image.path in question.row.images:
            return Path(image.path)
        buffer = io.BytesIO()
        image.open().resize((frame.width, frame.height), Image.Resampling.BICUBIC).save(buffer, "png")
        return buffer.getvalue()

    def _reply(self, outcome: Reply | Failure, frame: Frame | None) -> SuiteReply:
        if isinstance(outcome, Reply):
            pairs = zip(outcome.texts, outcome.finish_reasons, strict=True)
            completions = tuple(Completion(text, finished=reason != "length") for text, reason in pairs)
            return SuiteReply(completions, frame)
        if outcome.reason in _NO_TEXT:
            return SuiteReply((Completion(""),) * self._decoding.n, frame)
        return SuiteReply((), frame, f"{outcome.reason}: {outcome.message}")
