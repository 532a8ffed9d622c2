"""The converter interface: a source, the items that its converter yields, and how they are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from currreft_jax.config import Kind, Task
from currreft_jax.config.wording import plural
from currreft_jax.data.builders.box_formats import Box
from currreft_jax.data.fields import Fields, LineError, count_causes
from currreft_jax.data.rows import parse_row, row_to_json
from currreft_jax.structs import Frame, Row

_MAX_ERRORS_SHOWN = 20  # of different causes
_MAX_ERRORS_COUNTED = 1000


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """A published data set on disk, and how to convert it.

    Attributes:
        folder: holds the published files.
        image_folder: images are looked up under it.
        extracted_images: images that a table holds as bytes are written to it.
        name: the rows' `source` and the prefix of their ids.
        origin: the rows' `origin`.
        split: converts only this published split; every split if empty.
        tasks: tasks to make rows of, for sources with several.
        kind: open rows, or conversations for supervised training and judges.
        task: task of the rows, for files that do not name one.
        include_difficult: asks about VOC's difficult objects.
        list_categories: questions about categories list those to choose from.
        max_boxes: categories with more objects than this are not asked about.
        box_format: of a table, a key of `BOX_FORMATS`; where empty, the only one that fits all boxes.
        box_scale: a key of `BOX_SCALES`.
        frame: size that boxes are measured in, if it is not that of the image file.
        annotated_frame: boxes are measured in the size that their annotations state, whatever that of the image file.
        columns: row key -> column of the table; of the solution also the four columns of a box, with commas.
        question: of all rows of a table, with `{column}` fields; where empty, a column holds the questions.
        multiple: several options of each row of a table may be right; else its column of this name says it.
    """

    folder: Path
    image_folder: Path
    extracted_images: Path
    name: str = ""
    origin: str = ""
    split: str = ""
    tasks: tuple[Task, ...] = (Task.DETECTION, Task.CLASSIFY)
    kind: Kind = Kind.OPEN
    task: Task = Task.MATH
    include_difficult: bool = False
    list_categories: bool = True
    max_boxes: int = 4
    box_format: str = ""
    box_scale: str = "pixels"
    frame: Frame | None = None
    annotated_frame: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    question: str = ""
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """The annotations of an image, from which negatives are generated.

    Attributes:
        image: path.
        frame: size that the boxes are measured in.
        objects: (label, box) of each annotated object; the label is empty if the category is unknown.
        labels: every category known to be in the image, with or without a usable box.
    """

    image: str
    frame: Frame
    objects: tuple[tuple[str, Box], ...] = ()
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """Wrong answers that the source itself offers for a question.

    Attributes:
        row_id: id of the row.
        answers: the wrong options.
    """

    row_id: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DroppedRecord:
    """A valid record that makes no row.

    Attributes:
        location: file and line, or a row id.
        reason: the same text for all records of one cause: they are counted by it.
    """

    location: str
    reason: str


@dataclass(frozen=True, slots=True)
class Remark:
    """A decision of a converter that its user should know of.

    Attributes:
        text: a line of the report.
    """

    text: str


ConvertedItem = Row | AnnotatedImage | WrongAnswers | DroppedRecord | Remark | LineError
Converter = Callable[[DatasetSource], Iterator[ConvertedItem]]


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """A published format.

    Attributes:
        convert: its converter.
        output: tasks or kinds of the rows.
        required_files: files that the source folder must hold.
        homepage: address of the data set.
        licence: as published; written to every row.
    """

    convert: Converter
    output: str
    required_files: str
    homepage: str
    licence: str

    @property
    def origin(self) -> str:
        """The rows' `origin`: address and licence."""
        return "; ".join(part for part in (self.homepage, self.licence) if part)


@dataclass(frozen=True, slots=True)
class ConvertedData:
    """All items of a converter, by type.

    Attributes:
        rows: in file order.
        images: image path -> its annotations.
        wrong_answers: row id -> wrong answers that the source offers.
        dropped: reason -> locations or row ids.
        remarks: lines of the report.
        bad_records: records that could not be read and were skipped.
    """

    rows: list[Row] = field(default_factory=list)
    images: dict[str, AnnotatedImage] = field(default_factory=dict)
    wrong_answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    bad_records: list[LineError] = field(default_factory=list)


class BuildError(ValueError):
    """Rows cannot be built; the message names the cause and the remedy."""


def convert_records(
    records: Iterable[Fields | LineError], convert: Callable[[Fields], Iterable[ConvertedItem]]
) -> Iterator[ConvertedItem]:
    """Yields the items of every record; of a record that breaks its schema or the rows', only the error."""
    for record in records:
        if isinstance(record, LineError):
            yield record
            continue
        try:
            items = list(convert(record))
            for row in (item for item in items if isinstance(item, Row)):
                # Read as from a file, but with the location in the source.
                parse_row(Fields(row_to_json(row), record.location), image_root=Path())
            yield from items
        except LineError as error:
            yield error


def collect_items(items: Iterable[ConvertedItem], *, skip: bool = False, limit: int = 100) -> ConvertedData:
    """Sorts the items of one converter or several by type.

    Args:
        items: what the converters yield.
        skip: skips and lists bad records; otherwise a bad record is an error.
        limit: maximum number of skipped records.

    Raises:
        BuildError: there are bad records, or more than `limit`; the message counts them by cause.
    """
    data = ConvertedData()
    allowed, ids, questions = (limit if skip else 0), set[str](), set[Row]()
    for item in items:
        match item:
            case Row():
                if item.id in ids:
                    data.bad_records.append(
                        LineError(
                            item.source,
                            f"two rows have the id {item.id!r}; build one --split or one file at a time, each into its"
                            " own --out, or make the ids of the records unique",
                            cause="two rows have one id",
                        )
                    )
                elif (question := replace(item, id="")) in questions:
                    data.dropped.setdefault("asks and answers the same as another row", []).append(item.id)
                else:
                    questions.add(question)
                    data.rows.append(item)
                ids.add(item.id)
            case AnnotatedImage():
                known = data.images.get(item.image)
                data.images[item.image] = merge_annotations(known, item) if known else item
            case WrongAnswers():
                data.wrong_answers[item.row_id] = item.answers
            case DroppedRecord():
                data.dropped.setdefault(item.reason, []).append(item.location)
            case Remark():
                data.remarks.append(item.text)
            case LineError():
                data.bad_records.append(item)
        if len(data.bad_records) >= max(allowed + 1, _MAX_ERRORS_COUNTED):
            break
    if len(data.bad_records) > allowed:
        count = plural(len(data.bad_records), "bad record")
        more = " or more" if len(data.bad_records) >= _MAX_ERRORS_COUNTED else ""
        advice = f"more than the {limit} of --bad-limit" if skip else "--on-bad-row=skip skips and counts them"
        shown = "\n".join(list_causes(data.bad_records, _MAX_ERRORS_SHOWN))
        raise BuildError(f"{count}{more} ({advice}), the first of each kind:\n{shown}")
    return data


def list_causes(errors: Iterable[LineError], most: int) -> list[str]:
    """Lists bad records by cause, each with its number and the first of them."""
    causes = count_causes(errors)
    lines = [f"{count:>8}  {error}" for count, error in causes[:most]]
    return [*lines, f"{'':>8}  and {plural(len(causes) - most, 'other kind')}"] if len(causes) > most else lines


def merge_annotations(first: AnnotatedImage, second: AnnotatedImage) -> AnnotatedImage:
    """Merges the annotations of two records of the same image."""
    objects = tuple(dict.fromkeys((*first.objects, *second.objects)))
    return AnnotatedImage(first.image, first.frame, objects, first.labels | second.labels)
