"""Answerers: what completes the prompts of an evaluation.

`open_answerer` makes one for a model's path. Whatever answers questions in another way has the methods of `Answerer`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from currreft_jax.config import EvaluatedModel, Evaluation
from currreft_jax.config.wording import plural
from currreft_jax.data.buckets import larger_buckets
from currreft_jax.data.budget import PromptBudget, prompt_without_patches
from currreft_jax.data.examples import make_example
from currreft_jax.data.packing import BatchShape
from currreft_jax.data.prompts import load_template
from currreft_jax.endpoint import JobBudget
from currreft_jax.evaluation.endpoint_answerer import EndpointAnswerer
from currreft_jax.evaluation.manifest import HASH_BYTES
from currreft_jax.evaluation.suites import SuiteError, SuiteQuestion, SuiteReply
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.runtime.digests import hash_files
from currreft_jax.runtime.multihost import gather_bytes
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import log_compilations
from currreft_jax.sampling.completions import decode_group
from currreft_jax.sampling.continuous import SlotLayout, sample_stream, slot_layout, warm_up_stream
from currreft_jax.sampling.sampler import batch_shape, decode_params, prompt_dims
from currreft_jax.session.meshes import most_copies
from currreft_jax.session.sources import LoadedModel, load_source, load_source_processor, resolve_source
from currreft_jax.structs import Completion, Frame, Prompt

# Answers are sampled under a stage number that no run has, so that two models differ by their parameters alone.
_STAGE = (1 << 20) - 1
_SHOWN_ERRORS = 20
_PREFILLS_AHEAD = 2  # prompts of so many prefills are read before their use


class Answerer(Protocol):
    """Completes prompts. Every host calls each method at the same place.

    Attributes:
        facts: what a manifest says of the model.
    """

    facts: dict[str, Any]

    def check(self, questions: Iterable[SuiteQuestion]) -> None:
        """Refuses questions that cannot be asked; nothing is loaded.

        Raises:
            SuiteError: naming them.
        """
        ...

    def prepare(self, questions: Iterable[SuiteQuestion]) -> None:
        """Makes ready to answer these questions, in this order."""
        ...

    def answers(self, questions: Iterable[SuiteQuestion]) -> Iterator[tuple[int, SuiteReply]]:
        """Answers the questions that it was prepared for.

        Questions are read as they can be asked, a bounded number ahead.

        Yields:
            The number of a question, counted from 0, and its reply, as soon as there is one; all hosts get all replies.
        """
        ...

    def close(self) -> None:
        """Frees what answering needs."""
        ...


def open_answerer(
    model: EvaluatedModel,
    evaluation: Evaluation,
    out: Path,
    log: Callable[[str], None],
    budget: JobBudget | None = None,
) -> Answerer:
    """Opens a model, without loading its parameters, or makes ready to ask a server.

    Args:
        model: the model.
        evaluation: all settings.
        out: folder of the answers.
        log: called with a line for people.
        budget: calls of all servers of a job; None for no limit but the model's own.

    Raises:
        FileNotFoundError: nothing at its path.
        ValueError: no model there, or settings of a server that are impossible.
    """
    if not model.endpoint:
        return ModelAnswerer(model, evaluation, log)
    if jax.process_count() > 1:
        raise ValueError(f"{model.name}: one process asks a server; start the program without a launcher")
    return EndpointAnswerer(model, evaluation, out, log, budget)


def refuse_missing(models: Iterable[EvaluatedModel], template: str) -> None:
    """Refuses models that are not there, and a template that cannot be loaded, before any row is read or drawn.

    Raises:
        FileNotFoundError: nothing at the path of a model.
        ValueError: the template is none.
    """
    load_template(template)
    for model in models:
        if not model.endpoint:
            resolve_source(model.path)


class ModelAnswerer:
    """Samples completions from parameters of this program, on all its devices."""

    def __init__(
        self, model: EvaluatedModel, evaluation: Evaluation, log: Callable[[str], None] = lambda _: None
    ) -> None:
        """Reads the model's processor, and hashes its weights."""
        self._evaluation, self._path, self._name, self._log = evaluation, model.path, model.name, log
        self._options: dict[str, Any] = {
            "dtype": evaluation.dtype or None,
            "min_pixels": evaluation.min_pixels or None,
            "max_pixels": evaluation.max_pixels or None,
        }
        mesh = evaluation.mesh
        self._mesh = make_mesh(mesh.data or most_copies(mesh, jax.devices()), mesh.fsdp, mesh.tensor)
        self._template = load_template(evaluation.template)
        self._loaded: LoadedModel | None = None
        self._decoding: Parameters | None = None
        self._layout: SlotLayout | None = None
        self._compiled: set[tuple[SlotLayout, BatchShape]] = set()
        self._processor = load_source_processor(model.path, **self._options)
        folder = resolve_source(model.path)
        is_main = jax.process_index() == 0  # the host that writes manifests
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if is_main else []
        self.facts = {
            "model": {"name": model.name, "path": model.path, "hash": hash_files(*files, size=HASH_BYTES)},
            "pixels": {"min": self._processor.min_pixels, "max": self._processor.max_pixels},
            "dtype": evaluation.dtype,
        }

    def check(self, questions: Iterable[SuiteQuestion]) -> None:
        """Refuses prompts that are longer than the largest bucket; pixels are not read."""
        lengths, longest, count, shown = self._evaluation.sampling.prompt_lengths, 0, 0, list[str]()
        for question in questions:
            length = len(self._measure(question).tokens)
            if length > max(lengths):
                count, longest = count + 1, max(longest, length)
                if count <= _SHOWN_ERRORS:
                    shown.append(f"{question.location}: {length} tokens")
        if count:
            head = (
                f"{plural(count, 'prompt')} longer than {max(lengths)} tokens, up to {longest}: set"
                f" {larger_buckets({'sampling.prompt_lengths': (longest, lengths)})}, or shrink images:"
            )
            more = [f"and {count - _SHOWN_ERRORS} more"] if count > _SHOWN_ERRORS else []
            raise SuiteError("\n  ".join([head, *shown, *more]))

    def prepare(self, questions: Iterable[SuiteQuestion]) -> None:
        """Compiles the programs for the prompts that are read together, of few shapes, once: nothing compiles later."""
        loaded, sampling = self._load(), self._evaluation.sampling
        layout = slot_layout(loaded.model, sampling, self._evaluation.batch_size, 1)
        representatives: dict[BatchShape, list[_Numbered]] = {}
        for together in _chunks(questions, layout.num_entering):
            measured = [[self._measure(question) for _, question in own] for own in _split(together)]
            dims = [prompt_dims(loaded.model, layout.entering_rows(own)) for own in measured]
            representatives.setdefault(batch_shape(np.max(dims, axis=0), sampling), together)
        if not representatives:
            return
        self._layout = dataclasses.replace(layout, length=max(shape.length for shape in representatives))
        new = {(self._layout, shape): together for shape, together in representatives.items()}
        new = {program: together for program, together in new.items() if program not in self._compiled}
        if not new:
            return
        self._compiled |= new.keys()
        self._log(f"{self._name}: compiling for {plural(len(new), 'shape')} of prompts")
        with log_compilations(lambda line: self._log(f"{self._name}: {line}")) as compiled:
            warm_up_stream(
                loaded.model,
                loaded.params,
                loaded.processor,
                [[self._prompt(question) for _, question in _own(together)] for together in new.values()],
                sampling,
                layout=self._layout,
                weights=self._decoding,
            )
            self._log(f"{self._name}: compiled {compiled()}; no answer compiles more")

    def answers(self, questions: Iterable[SuiteQuestion]) -> Iterator[tuple[int, SuiteReply]]:
        """Samples completions; a question enters as soon as there is room for it."""
        loaded, layout = self._load(), self._layout
        assert layout  # by `prepare`
        asked: dict[int, tuple[int | None, list[int] | None]] = {}  # by this host's number

        def prompts() -> Iterator[Prompt]:
            for own_number, (number, prompt) in enumerate(self._read_ahead(questions, layout)):
                frame = prompt.images[0].resized if prompt.images else None
                asked[own_number] = number, frame and [frame.width, frame.height]
                yield prompt

        for groups in sample_stream(
            loaded.model,
            loaded.params,
            loaded.processor,
            prompts(),
            self._evaluation.sampling,
            layout=layout,
            weights=self._decoding,
            seed=self._evaluation.seed,
            stage=_STAGE,
        ):
            own = []
            for group in groups:
                completions = decode_group(loaded.processor, group)
                own.append([*asked.pop(group.number), list(map(dataclasses.astuple, completions))])
            for content in gather_bytes(json.dumps(own).encode()):
                for number, frame, completions in json.loads(content):
                    if number is not None:
                        replied = tuple(Completion(*fields) for fields in completions)
                        yield number, SuiteReply(replied, Frame(*frame) if frame else None)

    def close(self) -> None:
        """Frees the parameters."""
        self._loaded = self._decoding = None

    def _load(self) -> LoadedModel:
        if self._loaded is None:
            loaded = load_source(self._path, mesh=self._mesh, **self._options)
            self._decoding = decode_params(loaded.model, loaded.params, self._evaluation.sampling)
            self._loaded = loaded
        return self._loaded

    def _read_ahead(
        self, questions: Iterable[SuiteQuestion], layout: SlotLayout
    ) -> Iterator[tuple[int | None, Prompt]]:
        """Reads images and tokenizes the texts of this host's questions, in threads, ahead of their use."""
        reading: deque[tuple[int | None, Future[Prompt]]] = deque()
        with ThreadPoolExecutor(self._evaluation.threads) as pool:
            for together in _chunks(questions, layout.num_entering):
                reading += [(number, pool.submit(self._prompt, question)) for number, question in _own(together)]
                while len(reading) > _PREFILLS_AHEAD * layout.host_entering:
                    number, prompt = reading.popleft()
                    yield number, prompt.result()
            for number, prompt in reading:
                yield number, prompt.result()

    def _prompt(self, question: SuiteQuestion) -> Prompt:
        images = [image.open() for image in question.images]
        example = make_example(question.row, self._processor, self._template, location=question.location, images=images)
        return dataclasses.replace(example.prompt, first_sample=question.first_sample)

    def _measure(self, question: SuiteQuestion) -> Prompt:
        """Makes the prompt of a question without reading pixels."""
        processor, longest = self._processor, max(self._evaluation.sampling.prompt_lengths)
        budget = PromptBudget(longest, processor.min_pixels, processor.max_pixels, processor.config.vision)
        frames = [(image.frame, budget.resized_frame(image.frame)) for image in question.images]
        return prompt_without_patches(question.row, processor, self._template, frames, budget, question.location)


_Numbered = tuple[int | None, SuiteQuestion]  # a question that only fills the last prefill has no number


def _chunks(questions: Iterable[SuiteQuestion], size: int) -> Iterator[list[_Numbered]]:
    """Yields numbered questions that are read together; the last ones are filled up to a multiple of the hosts."""
    numbered: Iterator[_Numbered] = iter(enumerate(questions))
    while together := list(islice(numbered, size)):
        missing = -len(together) % jax.process_count()
        yield [*together, *[(None, together[-1][1])] * missing]


def _split(together: Sequence[_Numbered]) -> list[Sequence[_Numbered]]:
    """Splits questions over the hosts."""
    size = len(together) // jax.process_count()
    return [together[start : start + size] for start in range(0, len(together), size)]


def _own(together: Sequence[_Numbered]) -> Sequence[_Numbered]:
    return _split(together)[jax.process_index()]
