"""The input pipeline: examples of a mixture in a global order, prefetched in threads.

Row i of the global order belongs to step i // batch_size; of the rows of a step, each of H hosts takes every H-th. The
order depends on the seed alone, so a run that is resumed on another number of hosts continues with the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import grain
from tqdm import tqdm

from currreft_jax.config import Data, OnBadRow
from currreft_jax.config.wording import plural
from currreft_jax.data.buckets import BatchDims, ShapeBuckets, batch_dims, larger_buckets
from currreft_jax.data.examples import Example, ReadImage, make_example
from currreft_jax.data.fields import LineError
from currreft_jax.data.images import ImageError
from currreft_jax.data.mixture import Mixture, MixtureError, SourceRows, refuse_errors
from currreft_jax.data.packing import BudgetError
from currreft_jax.data.processor import Processor, PromptError
from currreft_jax.data.prompts import Template
from currreft_jax.rewards import RowError

T = TypeVar("T")
Excess = dict[str, tuple[int, Sequence[int]]]
_LONGEST = {
    "data.prompt_lengths": ("the longest prompt has", "tokens"),
    "data.completion_lengths": ("the longest gold answer has", "tokens"),
    "data.slots": ("the images of a row need", "slots"),
}
_ROW_ERRORS = (LineError, ImageError, PromptError, RowError)


class BadRowError(LineError, MixtureError):
    """A row cannot be tokenized or exceeds the largest bucket; the message names file and line.

    Attributes:
        excess: bucket sizes that it exceeds, as in `BudgetError`; empty for another cause.
    """

    def __init__(self, location: str, problem: str, excess: Excess | None = None):
        super().__init__(location, problem.removeprefix(f"{location}: "))
        self.excess = excess or {}


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of the global order.

    Attributes:
        source: index of its source in the mixture.
        index: index of the row in its file.
        occurrence: how often the row came before.
    """

    source: int
    index: int
    occurrence: int


def global_order(mixture: Mixture, seed: int) -> grain.MapDataset[RowRef]:
    """Returns the infinite global order: sources are shuffled anew each epoch and interleaved by weight."""
    datasets = [
        grain.MapDataset.source(source.indices.tolist())
        .seed(seed + source_index)
        .shuffle()
        .repeat()
        .map_with_index(_row_ref(source_index, len(source.indices)))
        for source_index, source in enumerate(mixture.sources)
    ]
    return grain.MapDataset.mix(datasets, weights=[source.weight for source in mixture.sources])


def _row_ref(source_index: int, num_rows: int) -> Callable[[int, int], RowRef]:
    return lambda position, index: RowRef(source_index, index, position // num_rows)


class Pipeline:
    """The examples of a stage, prefetched in threads.

    Attributes:
        mixture: rows of the stage.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        template: Template,
        data: Data,
        buckets: ShapeBuckets,
        *,
        seed: int,
        host_index: int = 0,
        num_hosts: int = 1,
        with_answer: bool = False,
    ):
        """Configures the pipeline; nothing is read before `batches`.

        Args:
            mixture: rows of the stage.
            processor: processor of the model.
            template: prompt template.
            data: batch size, threads and prefetching.
            buckets: the shapes that examples must fit into.
            seed: seed of the global order.
            host_index: index of this host.
            num_hosts: number of hosts that share each batch.
            with_answer: whether to tokenize gold completions.

        Raises:
            ValueError: the batch does not divide into hosts.
        """
        if data.batch_size % num_hosts:
            raise ValueError(f"data.batch_size ({data.batch_size}) does not divide into {num_hosts} hosts")
        self.mixture = mixture
        self._load = lambda ref: _load_example(mixture, processor, template, buckets, ref, with_answer)
        self._data = data
        self._seed = seed
        self._host_index, self._num_hosts = host_index, num_hosts

    def batches(self, start: int) -> Iterator[list[Example]]:
        """Yields this host's batches, beginning after `start` steps, without end.

        Raises:
            BadRowError: a row cannot be tokenized or exceeds the largest bucket.
        """
        local_batch_size = self._data.batch_size // self._num_hosts
        first = start * self._data.batch_size + self._host_index
        refs = global_order(self.mixture, self._seed)[first :: self._num_hosts]
        options = grain.ReadOptions(
            num_threads=self._data.threads, prefetch_buffer_size=self._data.prefetch * local_batch_size
        )
        examples = iter(refs.map(self._load).to_iter_dataset(options))
        while True:
            yield list(islice(examples, local_batch_size))


def drop_bad_rows(
    mixture: Mixture,
    processor: Processor,
    template: Template,
    data: Data,
    buckets: ShapeBuckets,
    *,
    with_answer: bool,
) -> Mixture:
    """Removes rows that cannot be tokenized or exceed the largest bucket, if `data.on_bad_row` is skip.

    Decodes every image once.

    Raises:
        MixtureError: more than `data.max_bad_rows` rows are bad, or no rows are left.
    """
    if data.on_bad_row is OnBadRow.ERROR:
        return mixture
    ((kept, _),) = _visit_rows(
        [mixture],
        data,
        "checking rows",
        lambda mixture, ref: _load_example(mixture, processor, template, buckets, ref, with_answer),
    )
    return kept


def measured_examples(source: SourceRows, processor: Processor, template: Template) -> Iterator[Example]:
    """Yields the rows of a source that can be used; of images the sizes are read, and not the pixels."""
    for index in source.indices:
        location = source.file.location(int(index))
        try:
            row = source.file[int(index)]
            yield make_example(row, processor, template, location=location, read_image=processor.measure_image)
        except _ROW_ERRORS:  # told by those who read all rows
            continue


RowKey = tuple[int, int]  # (id of the open file, index of the row in the file)


def row_key_of(mixture: Mixture, ref: RowRef) -> RowKey:
    """Returns a key of a row that leaving other rows out of the mixture does not change."""
    return id(mixture.sources[ref.source].file), ref.index


def measure_rows(
    mixtures: Sequence[Mixture],
    processor: Processor,
    template: Template,
    data: Data,
    buckets: ShapeBuckets,
    *,
    with_answer: bool,
) -> list[tuple[Mixture, dict[RowKey, BatchDims]]]:
    """Measures every row of stages, as a batch of its own; reads the sizes of images, and not their pixels.

    Returns:
        Each mixture without rows that cannot be tokenized or exceed the largest bucket, and the sizes of the others.

    Raises:
        MixtureError: there are such rows and `data.on_bad_row` is error, or more than `data.max_bad_rows` in a stage.
    """

    def measure(mixture: Mixture, ref: RowRef) -> tuple[RowKey, BatchDims]:
        example = _load_example(
            mixture, processor, template, buckets, ref, with_answer, read_image=processor.measure_image
        )
        return row_key_of(mixture, ref), batch_dims([example], processor.config, 1)

    return [(kept, dict(sizes)) for kept, sizes in _visit_rows(mixtures, data, "measuring rows", measure)]


def _visit_rows(
    mixtures: Sequence[Mixture], data: Data, title: str, visit: Callable[[Mixture, RowRef], T]
) -> list[tuple[Mixture, list[T]]]:
    """Calls a function for every row, in threads.

    Returns:
        Each mixture without the rows for which it raises `BadRowError`, and its results for the others.

    Raises:
        MixtureError: `data` refuses so many of them, or no rows are left.
    """
    refs = [
        (mixture, RowRef(k, int(index), 0))
        for mixture in mixtures
        for k, source in enumerate(mixture.sources)
        for index in source.indices
    ]

    def result_or_error(ref: tuple[Mixture, RowRef]) -> T | BadRowError:
        try:
            return visit(*ref)
        except BadRowError as error:
            return error

    with ThreadPoolExecutor(data.threads) as threads:
        found = list(
            tqdm(threads.map(result_or_error, refs), title, len(refs), unit=" rows", leave=False, mininterval=1)
        )
    errors = {result.location: result for result in found if isinstance(result, BadRowError)}  # a replayed row once
    if data.on_bad_row is OnBadRow.ERROR:
        refuse_errors(list(errors.values()), data, _describe_longest(list(errors.values())))
    results, visited = iter(zip(refs, found, strict=True)), []
    for mixture in mixtures:
        own = [(ref, result) for (_, ref), result in islice(results, mixture.num_rows)]
        bad = {(ref.source, ref.index): result for ref, result in own if isinstance(result, BadRowError)}
        kept = mixture.without(bad, "unusable", data, _describe_longest(list(bad.values())))
        visited.append((kept, [result for _, result in own if not isinstance(result, BadRowError)]))
    return visited


def _describe_longest(errors: Sequence[BadRowError]) -> str:
    """Says how long the longest rows are, and what to set; empty unless all rows are too long and nothing else."""
    if not errors or not all(error.excess for error in errors):
        return ""
    longest: Excess = {}
    for name, (needed, buckets) in ((name, size) for error in errors for name, size in error.excess.items()):
        longest[name] = max(longest.get(name, (0, buckets)), (needed, buckets))
    needs = ", ".join(
        f"{' '.join((_LONGEST[name][0], str(needed), _LONGEST[name][1]))}, where {max(buckets)} are the most"
        for name, (needed, buckets) in longest.items()
    )
    rows = f"too long: {plural(len(errors), 'row')}, the first {errors[0].location}"
    return f"{rows}; {needs}: set {larger_buckets(longest)}"


def _load_example(
    mixture: Mixture,
    processor: Processor,
    template: Template,
    buckets: ShapeBuckets,
    ref: RowRef,
    with_answer: bool,
    read_image: ReadImage | None = None,
) -> Example:
    file = mixture.sources[ref.source].file
    location = file.location(ref.index)
    try:
        example = make_example(
            file[ref.index],
            processor,
            template,
            location=location,
            occurrence=ref.occurrence,
            with_answer=with_answer,
            read_image=read_image,
        )
        buckets.check(batch_dims([example], processor.config, 1))
    except BudgetError as error:
        raise BadRowError(location, str(error), error.excess) from error
    except _ROW_ERRORS as error:
        raise BadRowError(location, error.problem if isinstance(error, RowError | LineError) else str(error)) from error
    return example
