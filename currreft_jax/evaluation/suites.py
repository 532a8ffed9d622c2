"""Suites: rows to answer, read on demand, with their own, blank or shuffled images. Loads no JAX."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from currreft_jax.config import BenchmarkName, Data, Evaluation, ImageCondition, Rewards, Source, Stage, Suite
from currreft_jax.config.wording import plural
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.fields import LineError, list_equal
from currreft_jax.data.images import open_image
from currreft_jax.data.leaks import image_key
from currreft_jax.data.mixture import Mixture, load_mixture
from currreft_jax.data.row_checks import ImageInfo, LocatedRow, inspect_image
from currreft_jax.evaluation.benchmarks.files import LoadedBenchmark, load_benchmark
from currreft_jax.evaluation.benchmarks.rows import maths_row, write_benchmark_rows
from currreft_jax.rewards import MathsPool, check_rows
from currreft_jax.structs import Completion, Frame, Row

GREY = (127, 127, 127)
_CHUNK = 256
_SHOWN_ERRORS = 20


class SuiteError(ValueError):
    """A suite cannot be evaluated; the message names files, lines and the remedy."""


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An image as it is shown to a model.

    Attributes:
        path: where its pixels are; empty for a grey one.
        frame: its size, that of the row's own image.
    """

    path: str
    frame: Frame

    def open(self) -> Image.Image:
        """Reads or makes the image."""
        size = (self.frame.width, self.frame.height)
        if not self.path:
            return Image.new("RGB", size, GREY)
        image = open_image(self.path)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class SuiteQuestion:
    """A row to answer.

    Attributes:
        row: with the frame that its boxes are measured in.
        location: file and line.
        image_keys: keys of the row's own images, by their pixels.
        images: as they are shown.
        first_sample: number of its first completion; other numbers are other draws.
    """

    row: Row
    location: str
    image_keys: tuple[str, ...]
    images: tuple[SeenImage, ...]
    first_sample: int = 0

    @property
    def image(self) -> str:
        """Key of all images of the row together; empty without images."""
        if len(self.image_keys) < 2:
            return self.image_keys[0] if self.image_keys else ""
        return hashlib.blake2b("\0".join(self.image_keys).encode(), digest_size=16).hexdigest()


class SuiteReply(NamedTuple):
    """The completions of a question.

    Attributes:
        completions: `[G]`; empty if the question could not be asked.
        frame: the frame in which the first image was seen, and boxes are written; None for the image's own.
        failure: why it could not be asked; empty if it was answered.
    """

    completions: tuple[Completion, ...]
    frame: Frame | None
    failure: str = ""


class LoadedSuite:
    """The rows of a suite, of which only ids, places in the files and image sizes are held in memory.

    Attributes:
        settings: name, files and domain.
        ids: of the rows, in order.
        excluded: number of rows of other kinds and tasks, or without the image that they need, that were left out.
        benchmark: content of the published file; None for files of rows.
    """

    def __init__(
        self,
        settings: Suite,
        mixture: Mixture,
        images: Mapping[str, ImageInfo],
        seed: int,
        benchmark: LoadedBenchmark | None = None,
        folder: TemporaryDirectory[str] | None = None,
    ) -> None:
        """Takes over the open files.

        Args:
            settings: the suite.
            mixture: its rows.
            images: of all rows, by path; `load_suites` fills it.
            seed: seed of shuffled images.
            benchmark: content of the published file that the rows were made of; None without one.
            folder: folder of the rows and images that were made of it, which `close` removes.

        Raises:
            SuiteError: two rows have the same id.
        """
        self.settings, self.benchmark, self._folder = settings, benchmark, folder
        self.excluded = sum(mixture.excluded.values()) + (len(benchmark.without_image) if benchmark else 0)
        self._sources, self._images, self._seed = mixture.sources, images, seed
        self._starts = np.cumsum([0, *(len(source.indices) for source in mixture.sources)]).tolist()
        self.ids = tuple(row_id for source in mixture.sources for row_id in source.ids)
        self._others: dict[str, str] = {}
        places: dict[str, int] = {}
        for index, row_id in enumerate(self.ids):
            if places.setdefault(row_id, index) != index:
                raise SuiteError(
                    f"suite {settings.name}: {self.location(index)} has the id {row_id!r} of"
                    f" {self.location(places[row_id])}; give each row an id of its own"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Closes the files."""
        for source in self._sources:
            source.file.close()
        if self._folder:
            self._folder.cleanup()

    def _place(self, index: int) -> tuple[int, int]:
        source = bisect_right(self._starts, index) - 1
        return source, int(self._sources[source].indices[index - self._starts[source]])

    def location(self, index: int) -> str:
        """Returns file and line of a row."""
        if self.benchmark:
            return self.benchmark.items[index].location
        source, row = self._place(index)
        return self._sources[source].file.location(row)

    def row(self, index: int) -> Row:
        """Reads a row."""
        source, row = self._place(index)
        return self._sources[source].file[row]

    def located_rows(self) -> Iterator[LocatedRow]:
        """Reads all rows, one by one."""
        for index in range(len(self)):
            source, row = self._place(index)
            file = self._sources[source].file
            yield LocatedRow(file[row], str(file.path), self.location(index), "test")

    def conditions(self, wanted: Sequence[ImageCondition]) -> list[ImageCondition]:
        """Returns the wanted images, of which a suite without any has only its own.

        Raises:
            SuiteError: they are to be shuffled, but the suite has only one.
        """
        if not any(self.row(index).images for index in range(len(self))):
            return [images for images in wanted if images is ImageCondition.ORIGINAL]
        if ImageCondition.SHUFFLED in wanted:
            self._others = self._shuffle()
        return list(wanted)

    def question(self, index: int, images: ImageCondition) -> SuiteQuestion:
        """Reads a row to answer, after `conditions` if images are to be shuffled."""
        row = self.row(index)
        frames = [frames[0] for path in row.images if (frames := self._images[path].frames)]
        if frames and not row.frame:
            row = replace(row, frame=frames[0])
        keys = [image_key(path, self._images) for path in row.images]
        paths: Sequence[str] = row.images
        if images is ImageCondition.BLANK:
            paths = [""] * len(keys)
        elif images is ImageCondition.SHUFFLED and keys:
            paths = [self._others[key] for key in keys]
        seen = tuple(SeenImage(path, frame) for path, frame in zip(paths, frames, strict=True))
        return SuiteQuestion(row, self.location(index), tuple(keys), seen)

    def questions(self, start: int, stop: int, images: ImageCondition) -> list[SuiteQuestion]:
        """Reads the rows from `start` up to `stop`, or the last one."""
        return [self.question(index, images) for index in range(start, min(stop, len(self)))]

    def _shuffle(self) -> dict[str, str]:
        """Gives each image of the suite, by its key, the path of another; a cycle through all of them."""
        paths = {image_key(path, self._images): path for located in self.located_rows() for path in located.row.images}
        if len(paths) < 2:
            raise SuiteError(f"suite {self.settings.name} has one image only: nothing to shuffle")
        order = sorted(paths, key=lambda key: hashlib.blake2b(f"{self._seed}\0{key}".encode()).digest())
        return {key: paths[other] for key, other in zip(order, [*order[1:], order[0]], strict=True)}


def load_suites(evaluation: Evaluation) -> tuple[list[LoadedSuite], dict[str, ImageInfo]]:
    """Opens all suites and decodes each image once.

    Returns:
        The suites, and their images by path.

    Raises:
        FileNotFoundError: a file of rows does not exist.
        MixtureError: rows are malformed, or none are left.
        SuiteError: images are missing or unreadable, all of which the message names, or ids are repeated.
    """
    data, images, suites, problems = Data(), dict[str, ImageInfo](), list[LoadedSuite](), list[str]()
    for settings in evaluation.suites:
        suite = _load_suite(settings, data, images, evaluation.seed)
        suites.append(suite)
        problems += inspect_images(suite.located_rows(), images, evaluation.threads)
    if problems:
        raise SuiteError("\n  ".join([f"{plural(len(problems), 'image')} of the suites cannot be used:", *problems]))
    return suites, images


def _load_suite(settings: Suite, data: Data, images: Mapping[str, ImageInfo], seed: int) -> LoadedSuite:
    if not settings.benchmark:
        stage = Stage(settings.name, settings.sources, kinds=settings.kinds, tasks=settings.tasks)
        return LoadedSuite(settings, load_mixture([stage], 0, data, seed), images, seed)
    benchmark, folder = load_benchmark(settings), TemporaryDirectory(prefix="currreft-benchmark-")
    rows = write_benchmark_rows(benchmark, Path(folder.name))
    mixture = load_mixture([Stage(settings.name, [Source(str(rows))])], 0, data, seed)
    return LoadedSuite(settings, mixture, images, seed, benchmark, folder)


def inspect_images(rows: Iterator[LocatedRow], images: dict[str, ImageInfo], threads: int) -> list[str]:
    """Decodes the images of rows that are not yet in `images`, and adds them; returns the problems of unusable ones."""
    first: dict[str, str] = {}
    for located in rows:
        for path in located.row.images:
            if path not in images:
                first.setdefault(path, located.location)
    budget = PromptBudget()
    with ThreadPoolExecutor(threads) as pool:
        infos = pool.map(lambda path: inspect_image(path, budget), first)
        found = dict(zip(first, infos, strict=True))
    images.update(found)
    return [f"{first[path]}: {info.message}" for path, info in found.items() if not info.frames]


def refuse_unscorable_rows(suite: LoadedSuite, settings: Rewards, pool: MathsPool) -> None:
    """Refuses a suite with rows that cannot be scored.

    Raises:
        SuiteError: naming file and line of the first 20 of them; rows with the same problem are one line.
    """
    unscorable: list[LineError] = []
    for start in range(0, len(suite), _CHUNK):
        questions = suite.questions(start, start + _CHUNK, ImageCondition.ORIGINAL)
        rows = [question.row for question in questions]
        if suite.benchmark:  # its loader has checked all but the golds of maths
            is_maths = suite.benchmark.name is BenchmarkName.MATH
            rows = [maths_row(item) for item in suite.benchmark.items[start : start + _CHUNK]] if is_maths else []
        locations = {id(row): question.location for row, question in zip(rows, questions, strict=False)}
        errors = check_rows(rows, settings, pool=pool)
        unscorable += [LineError(locations[id(error.row)], error.problem) for error in errors]
    if unscorable:
        name = f"suite {suite.settings.name}: {plural(len(unscorable), 'row')} cannot be scored:"
        raise SuiteError("\n  ".join([name, *list_equal(unscorable, _SHOWN_ERRORS)]))
