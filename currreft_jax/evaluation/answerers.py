"""Answerers: what completes the prompts of an evaluation.

`open_answerer` makes one for a model's path. Whatever answers questions in another way has the methods of `Answerer`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from currreft_jax.config import EvaluatedModel, Evaluation
from currreft_jax.data.budget import PromptBudget, prompt_without_patches
from currreft_jax.data.examples import make_example
from currreft_jax.data.packing import BatchShape
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation.endpoint_answerer import EndpointAnswerer
from currreft_jax.evaluation.manifest import HASH_BYTES
from currreft_jax.evaluation.suites import SuiteError, SuiteQuestion, SuiteReply
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.digests import hash_files
from currreft_jax.runtime.multihost import gather_bytes
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.sampling.abstract import warm_up
from currreft_jax.sampling.completions import decode_completions
from currreft_jax.sampling.sampler import batch_shape, decode_params, prompt_dims, sample
from currreft_jax.session.meshes import most_copies
from currreft_jax.session.sources import LoadedModel, load_source, load_source_processor, resolve_source
from currreft_jax.structs import Completion, Frame, Prompt

# Answers are sampled under a stage number that no run has, so that two models differ by their parameters alone.
_STAGE = (1 << 20) - 1
_SHOWN_ERRORS = 20


class QuestionReader(Protocol):
    """The questions of a suite, by index."""

    def __call__(self, start: int, stop: int) -> list[SuiteQuestion]:
        """Reads the questions from `start` up to `stop`, or the last one."""
        ...


class Answerer(Protocol):
    """Completes prompts. Every host calls each method at the same place.

    Attributes:
        facts: what a manifest says of the model.
        batch_size: number of questions that are answered together.
    """

    facts: dict[str, Any]
    batch_size: int

    def prepare(self, read: QuestionReader, start: int, stop: int) -> None:
        """Makes ready to answer the questions from `start`, a multiple of the batch size, up to `stop`.

        Raises:
            SuiteError: some of them cannot be asked.
        """
        ...

    def answer(self, questions: Sequence[SuiteQuestion]) -> list[SuiteReply]:
        """Answers up to a batch of questions; all hosts get all replies."""
        ...

    def close(self) -> None:
        """Frees what answering needs."""
        ...


def open_answerer(model: EvaluatedModel, evaluation: Evaluation, out: Path, log: Callable[[str], None]) -> Answerer:
    """Opens a model, without loading its parameters, or makes ready to ask a server.

    Args:
        model: the model.
        evaluation: all settings.
        out: folder of the answers.
        log: called with a line for people.

    Raises:
        FileNotFoundError: nothing at its path.
        ValueError: no model there, or settings of a server that are impossible.
    """
    if not model.endpoint:
        return ModelAnswerer(model, evaluation)
    if jax.process_count() > 1:
        raise ValueError(f"{model.name}: one process asks a server; start the program without a launcher")
    return EndpointAnswerer(model, evaluation, out, log)


class ModelAnswerer:
    """Samples completions from parameters of this program, on all its devices."""

    def __init__(self, model: EvaluatedModel, evaluation: Evaluation) -> None:
        """Reads the model's processor, and hashes its weights."""
        self._evaluation, self._path = evaluation, model.path
        self._options: dict[str, Any] = {
            "dtype": evaluation.dtype or None,
            "min_pixels": evaluation.min_pixels or None,
            "max_pixels": evaluation.max_pixels or None,
        }
        mesh = evaluation.mesh
        self._mesh = make_mesh(mesh.data or most_copies(mesh, jax.devices()), mesh.fsdp, mesh.tensor)
        self.batch_size = -(-evaluation.batch_size // self._mesh.size) * self._mesh.size
        self._template = load_template(evaluation.template)
        self._loaded: LoadedModel | None = None
        self._decoding: Parameters | None = None
        self._shapes: set[BatchShape] = set()
        self._processor = load_source_processor(model.path, **self._options)
        folder = resolve_source(model.path)
        is_main = jax.process_index() == 0  # the host that writes manifests
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if is_main else []
        self.facts = {
            "model": {"name": model.name, "path": model.path, "hash": hash_files(*files, size=HASH_BYTES)},
            "pixels": {"min": self._processor.min_pixels, "max": self._processor.max_pixels},
            "dtype": evaluation.dtype,
        }

    def prepare(self, read: QuestionReader, start: int, stop: int) -> None:
        """Compiles the programs for all batch shapes of the questions, which are few: nothing compiles later."""
        loaded = self._load()
        representatives: dict[BatchShape, int] = {}
        for first in range(start, stop, self.batch_size):
            questions = read(first, min(first + self.batch_size, stop))
            dims = [prompt_dims(loaded.model, self._measure(own)) for own in self._split(questions)]
            shape = batch_shape(np.max(dims, axis=0), self._evaluation.sampling)
            if shape not in self._shapes:
                representatives.setdefault(shape, first)
        for shape, first in representatives.items():
            prompts = self._prompts(self._own(read(first, min(first + self.batch_size, stop))))
            model, params, settings = loaded.model, loaded.params, self._evaluation.sampling
            warm_up(model, params, loaded.processor, prompts, settings, weights=self._decoding)
            self._shapes.add(shape)

    def answer(self, questions: Sequence[SuiteQuestion]) -> list[SuiteReply]:
        """Samples the completions of a batch; the last question is repeated to fill it."""
        loaded = self._load()
        prompts = self._prompts(self._own(questions))
        rollout = sample(
            loaded.model,
            loaded.params,
            loaded.processor,
            prompts,
            self._evaluation.sampling,
            weights=self._decoding,
            seed=self._evaluation.seed,
            stage=_STAGE,
        )
        texts = decode_completions(loaded.processor, rollout).texts
        frames = [prompt.images[0].resized if prompt.images else None for prompt in prompts]
        own = [
            [[dataclasses.astuple(completion) for completion in group], frame and [frame.width, frame.height]]
            for group, frame in zip(texts, frames, strict=True)
        ]
        gathered = [reply for content in gather_bytes(json.dumps(own).encode()) for reply in json.loads(content)]
        return [
            SuiteReply(tuple(Completion(*fields) for fields in group), Frame(*frame) if frame else None)
            for group, frame in gathered[: len(questions)]
        ]

    def close(self) -> None:
        """Frees the parameters."""
        self._loaded = self._decoding = None

    def _load(self) -> LoadedModel:
        if self._loaded is None:
            loaded = load_source(self._path, mesh=self._mesh, **self._options)
            self._decoding = decode_params(loaded.model, loaded.params, self._evaluation.sampling)
            self._loaded = loaded
        return self._loaded

    def _split(self, questions: Sequence[SuiteQuestion]) -> list[Sequence[SuiteQuestion]]:
        """Splits a batch, filled with its last question, over the hosts."""
        full = [*questions, *[questions[-1]] * (self.batch_size - len(questions))]
        size = self.batch_size // jax.process_count()
        return [full[start : start + size] for start in range(0, self.batch_size, size)]

    def _own(self, questions: Sequence[SuiteQuestion]) -> Sequence[SuiteQuestion]:
        return self._split(questions)[jax.process_index()]

    def _prompts(self, questions: Sequence[SuiteQuestion]) -> list[Prompt]:
        """Reads images and tokenizes texts; a repeated question once."""
        unique = {question.row.id: question for question in questions}
        with ThreadPoolExecutor(self._evaluation.threads) as pool:
            prompts = dict(zip(unique, pool.map(self._prompt, unique.values()), strict=True))
        return [prompts[question.row.id] for question in questions]

    def _prompt(self, question: SuiteQuestion) -> Prompt:
        images = [image.open() for image in question.images]
        example = make_example(question.row, self._processor, self._template, location=question.location, images=images)
        return dataclasses.replace(example.prompt, first_sample=question.first_sample)

    def _measure(self, questions: Sequence[SuiteQuestion]) -> list[Prompt]:
        """Makes the prompts of questions without reading pixels.

        Raises:
            SuiteError: some are longer than the largest bucket; the message names each of them.
        """
        processor, longest = self._processor, max(self._evaluation.sampling.prompt_lengths)
        budget = PromptBudget(longest, processor.min_pixels, processor.max_pixels, processor.config.vision)
        unique: dict[str, Prompt] = {}
        for question in questions:
            if question.row.id not in unique:
                frames = [(image.frame, budget.resized_frame(image.frame)) for image in question.images]
                unique[question.row.id] = prompt_without_patches(
                    question.row, processor, self._template, frames, budget, question.location
                )
        long = [prompt for prompt in unique.values() if len(prompt.tokens) > longest]
        if long:
            named = [f"{prompt.name}: {len(prompt.tokens)} tokens" for prompt in long[:_SHOWN_ERRORS]]
            head = (
                f"prompts are longer than {longest} tokens; raise --config.sampling.prompt_lengths, or shrink images:"
            )
            raise SuiteError("\n  ".join([head, *named]))
        return [unique[question.row.id] for question in questions]
