"""From a mixture to batches: a global order that any host can continue, read ahead in threads.

Row i of the global order belongs to step i // batch_size, and of a step's rows each host takes every H-th. The order
is a function of the seed alone, so that a run on another number of hosts goes on with exactly the rows that would have
come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import Protocol

import grain
import numpy as np
from tqdm import tqdm

from currreft_jax.config import Data, OnBadRow
from currreft_jax.data.examples import Example, example
from currreft_jax.data.images import ImageError
from currreft_jax.data.mixture import Mixture, MixtureError
from currreft_jax.data.packing import (
    BatchShape,
    BudgetError,
    balance_shards,
    collate,
    image_slots,
    max_slots_per_image,
    slots_per_shard,
    smallest_bucket,
)
from currreft_jax.data.processor import Processor, PromptError
from currreft_jax.data.prompts import Template
from currreft_jax.data.rows import LineError
from currreft_jax.models.config import ModelConfig
from currreft_jax.rewards import RowError
from currreft_jax.structs import GroupBatch

_BAD = (LineError, ImageError, PromptError, RowError, BudgetError)


class BadRow(LineError, MixtureError):
    """A row that cannot be shown or is too long for its batch; the message names file and line."""

    def __init__(self, where: str, problem: str):
        super().__init__(where, problem.removeprefix(f"{where}: "))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row of the global order stands.

    Attributes:
        part: of the mixture.
        index: of the row in its file.
        occurrence: how many times the row was met before.
    """

    part: int
    index: int
    occurrence: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What the largest members of a microbatch need; the maximum over hosts decides for all.

    Attributes:
        length: tokens of a prompt.
        slots: of a data shard.
        reach: slots of an image.
        completion: tokens of a completion.
    """

    length: int
    slots: int
    reach: int
    completion: int


@dataclass(frozen=True, slots=True)
class Ladders:
    """The static shapes that batches may take.

    Attributes:
        lengths: of prompts.
        slots: of a data shard; 0 stands for a batch without images.
        reaches: slots of the largest image.
        completions: lengths of completions.
    """

    lengths: tuple[int, ...]
    slots: tuple[int, ...]
    reaches: tuple[int, ...]
    completions: tuple[int, ...]

    def shape(self, needs: Needs) -> tuple[BatchShape, int]:
        """The smallest shape and completion length that hold a batch.

        Raises:
            BudgetError: none does.
        """
        slots = smallest_bucket(needs.slots, self.slots, "data.slots")
        length = smallest_bucket(needs.length, self.lengths, "data.prompt_lengths")
        reach = smallest_bucket(needs.reach, self.reaches, "slots of an image")
        completion = smallest_bucket(needs.completion, self.completions, "data.completion_lengths")
        return BatchShape(length, slots, reach), completion


def order(mixture: Mixture, seed: int) -> grain.MapDataset[Place]:
    """The endless global order: each part is shuffled anew in every epoch, and parts are interleaved by weight."""
    datasets = [
        grain.MapDataset.source(part.indices.tolist())
        .seed(seed + number)
        .shuffle()
        .repeat()
        .map_with_index(_placed(number, len(part.indices)))
        for number, part in enumerate(mixture.parts)
    ]
    return grain.MapDataset.mix(datasets, weights=[part.weight for part in mixture.parts])


def _placed(number: int, size: int) -> Callable[[int, int], Place]:
    return lambda position, index: Place(number, index, position // size)


class Pipeline:
    """The examples of a stage, read ahead in threads.

    Attributes:
        mixture: what is read.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        wording: Template,
        data: Data,
        ladders: Ladders,
        *,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        with_answer: bool = False,
    ):
        """Prepares to read; see `batches`.

        Raises:
            ValueError: the batch does not divide into hosts.
        """
        if data.batch_size % hosts:
            raise ValueError(f"data.batch_size ({data.batch_size}) does not divide into {hosts} hosts")
        self.mixture = mixture
        self._read = lambda place: _load(mixture, processor, wording, ladders, place, with_answer)
        self._data = data
        self._seed = seed
        self._host, self._hosts = host, hosts

    def batches(self, start: int) -> Iterator[list[Example]]:
        """This host's examples of step `start`, `start + 1` and so on, endlessly.

        Raises:
            BadRow: a row cannot be shown or is too long.
        """
        own = self._data.batch_size // self._hosts
        rows = order(self.mixture, self._seed)[start * self._data.batch_size + self._host :: self._hosts]
        options = grain.ReadOptions(num_threads=self._data.threads, prefetch_buffer_size=self._data.prefetch * own)
        examples = iter(rows.map(self._read).to_iter_dataset(options))
        while True:
            yield list(islice(examples, own))


def _load(
    mixture: Mixture, processor: Processor, wording: Template, ladders: Ladders, place: Place, with_answer: bool
) -> Example:
    file = mixture.parts[place.part].file
    where = file.where(place.index)
    try:
        row = file[place.index]
        it = example(row, processor, wording, where=where, occurrence=place.occurrence, with_answer=with_answer)
        ladders.shape(needs([it], processor.config, 1))
    except _BAD as error:
        raise BadRow(where, error.problem if isinstance(error, RowError | LineError) else str(error)) from error
    return it


def usable(
    mixture: Mixture, processor: Processor, wording: Template, data: Data, ladders: Ladders, *, with_answer: bool
) -> Mixture:
    """The mixture without the rows that cannot be shown; reads every image once.

    Raises:
        MixtureError: more than `data.max_bad_rows` rows are bad, or nothing is left.
    """
    if data.on_bad_row is OnBadRow.ERROR:
        return mixture
    errors = list(mixture.errors)
    places = [(number, int(index)) for number, part in enumerate(mixture.parts) for index in part.indices]

    def problem(place: tuple[int, int]) -> BadRow | None:
        try:
            _load(mixture, processor, wording, ladders, Place(*place, 0), with_answer)
        except BadRow as error:
            return error
        return None

    with ThreadPoolExecutor(data.threads) as threads:
        problems = list(tqdm(threads.map(problem, places), "checking rows", len(places), unit=" rows", leave=False))
    errors += [found for found in problems if found]
    if len(errors) > data.max_bad_rows:
        raise MixtureError(
            "\n  ".join([f"{len(errors)} bad rows, more than data.max_bad_rows:", *map(str, errors[:20])])
        )
    good = {place for place, found in zip(places, problems, strict=True) if not found}
    parts = [
        replace(part, indices=np.array([i for i in part.indices if (number, int(i)) in good], np.int64))
        for number, part in enumerate(mixture.parts)
    ]
    kept = tuple(part for part in parts if len(part.indices))
    if not kept:
        raise MixtureError("no row is left: " + str(errors[0]))
    left_out = mixture.left_out + type(mixture.left_out)({"unusable": sum(map(bool, problems))})
    return replace(mixture, parts=kept, errors=tuple(errors), left_out=left_out)


class Budgeted(Protocol):
    """A processor, or what stands for one that is not there."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        ...

    @property
    def max_pixels(self) -> int:
        """Area that larger images are shrunk to."""
        ...


def ladders(data: Data, processor: Budgeted, prompts: int) -> Ladders:
    """The shapes for batches whose data shards hold `prompts` prompts each, of a microbatch."""
    largest = max_slots_per_image(processor.max_pixels, processor.config.vision)
    slots = tuple(data.slots) or _rungs(largest * prompts, 1.25)
    return Ladders(tuple(data.prompt_lengths), (0, *slots), (0, *_rungs(largest, 1.5)), tuple(data.completion_lengths))


def _rungs(top: int, ratio: float) -> tuple[int, ...]:
    """Whole numbers up to `top`, each at most about `ratio` times the one before it."""
    rungs = [top]
    while rungs[-1] > 1:
        rungs.append(min(rungs[-1] - 1, ceil(rungs[-1] / ratio)))
    return tuple(reversed(rungs))


def arranged(examples: Sequence[Example], config: ModelConfig, shards: int, parts: int) -> list[list[Example]]:
    """A host's examples of a step as microbatches: of similar length, their images spread evenly over data shards."""
    by_prompt = {id(it.prompt): it for it in examples}
    ordered = sorted(examples, key=lambda it: len(it.prompt.tokens) + len(it.tokens))
    size = len(ordered) // parts
    return [
        [
            by_prompt[id(prompt)]
            for prompt in balance_shards([it.prompt for it in ordered[start : start + size]], config.vision, shards)
        ]
        for start in range(0, len(ordered), size)
    ]


def needs(examples: Sequence[Example], config: ModelConfig, shards: int) -> Needs:
    """What a microbatch of this host needs."""
    return Needs(
        length=max(len(it.prompt.tokens) for it in examples),
        slots=slots_per_shard([it.prompt for it in examples], config.vision, shards),
        reach=max((image_slots(image, config.vision) for it in examples for image in it.prompt.images), default=0),
        completion=max(len(it.tokens) for it in examples),
    )


def gold_batch(
    examples: Sequence[Example], config: ModelConfig, shape: BatchShape, completion: int, shards: int
) -> tuple[GroupBatch, np.ndarray]:
    """One microbatch with its gold completions, G = 1, and which of their tokens are learnt, bool `[P, 1, T]`."""
    tokens = np.full((len(examples), 1, completion), config.bos_token_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, it in enumerate(examples):
        tokens[row, 0, : len(it.tokens)] = it.tokens
        mask[row, 0, : len(it.tokens)] = it.mask
    return GroupBatch(collate([it.prompt for it in examples], config, shape, shards), tokens), mask
