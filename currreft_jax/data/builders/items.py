"""What converters read and what they yield; both are plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.structs import Frame, Row

Box = tuple[float, float, float, float]

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Source:
    """What a converter reads, and how.

    Attributes:
        folder: of the published files.
        images: folder under which images are looked up.
        written: folder for images that a table holds as bytes.
        name: the rows' `source`, and the beginning of their ids.
        origin: the rows' `origin`.
        split: only rows of this published split; every row where empty.
        tasks: of the rows that are wanted from sources that give several.
        kind: open rows, or conversations for supervised training and judges.
        task: of rows whose file does not tell.
        difficult: whether VOC's difficult objects are asked about.
        listed: whether a question about categories lists them all.
        most_boxes: a category with more objects than this is not asked about.
        box_form: a key of `pixels.FORMS`.
        box_scale: a key of `pixels.SCALES`.
        frame: what boxes are measured in, where the image file has another size.
        columns: our key -> the table's column.
    """

    folder: Path
    images: Path
    written: Path
    name: str = ""
    origin: str = ""
    split: str = ""
    tasks: tuple[Task, ...] = (Task.DETECTION, Task.CLASSIFY)
    kind: Kind = Kind.OPEN
    task: Task = Task.MATH
    difficult: bool = False
    listed: bool = True
    most_boxes: int = 4
    box_form: str = "xyxy"
    box_scale: str = "pixels"
    frame: Frame | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known to be in an image: negatives are made of it.

    Attributes:
        image: path.
        frame: that the boxes are measured in.
        objects: (label, box) of each annotated object; an empty label where the category is unknown.
        labels: every category known to be present, with a usable box or without.
    """

    image: str
    frame: Frame
    objects: tuple[tuple[str, Box], ...] = ()
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Wrong:
    """Wrong answers that the source itself gives to a question.

    Attributes:
        id: of the row.
        answers: the options that are not right.
    """

    id: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sound record that makes no row.

    Attributes:
        where: file and line, or the row's id.
        reason: the same words for all such records: they are counted.
    """

    where: str
    reason: str


Item = Row | Scene | Wrong | Dropped | LineError
Converter = Callable[[Source], Iterator[Item]]


@dataclass(frozen=True, slots=True)
class Format:
    """A published format.

    Attributes:
        convert: reads it.
        makes: the rows that come of it.
        needs: what the source folder must hold.
        published: where it can be had.
        licence: as published; noted in every row.
    """

    convert: Converter
    makes: str
    needs: str
    published: str
    licence: str


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that converters yielded.

    Attributes:
        rows: in the order of their files.
        scenes: image path -> what is in it.
        wrong: row id -> the source's own wrong answers.
        dropped: reason -> where.
        bad: records that could not be read and were left out.
    """

    rows: list[Row]
    scenes: dict[str, Scene]
    wrong: dict[str, tuple[str, ...]]
    dropped: dict[str, list[str]]
    bad: list[LineError]


class BuildError(ValueError):
    """Rows cannot be built; the message says what is missing or wrong and what would mend it."""


def each(records: Iterable[Fields | LineError], convert: Callable[[Fields], Iterable[Item]]) -> Iterator[Item]:
    """What every record makes; a record that breaks its schema yields its error instead."""
    for record in records:
        if isinstance(record, LineError):
            yield record
            continue
        try:
            yield from list(convert(record))
        except LineError as error:
            yield error


def collect(items: Iterable[Item], *, skip: bool = False, limit: int = 100) -> Material:
    """Sorts what converters yield.

    Args:
        items: of one converter or several.
        skip: leaves bad records out, and tells which; otherwise any bad record is an error.
        limit: bad records that may be left out.

    Raises:
        BuildError: bad records, or more of them than the limit; the message lists the first ones.
    """
    material = Material([], {}, {}, {}, [])
    allowed, seen = (limit if skip else 0), set[str]()
    for item in items:
        match item:
            case Row():
                if item.id in seen:
                    material.bad.append(LineError(item.source, f"two rows have the id {item.id!r}; make ids unique"))
                else:
                    material.rows.append(item)
                seen.add(item.id)
            case Scene():
                known = material.scenes.get(item.image)
                material.scenes[item.image] = merged(known, item) if known else item
            case Wrong():
                material.wrong[item.id] = item.answers
            case Dropped():
                material.dropped.setdefault(item.reason, []).append(item.where)
            case LineError():
                material.bad.append(item)
        if len(material.bad) > max(allowed, _SHOWN):
            break
    if len(material.bad) > allowed:
        shown = "\n  ".join(str(error) for error in material.bad[:_SHOWN])
        more = " or more" if len(material.bad) > _SHOWN else ""
        advice = (
            f"more than the {limit} of --bad-limit" if skip else "--on-bad-row=skip leaves them out and counts them"
        )
        raise BuildError(f"{min(len(material.bad), _SHOWN)}{more} bad records ({advice}):\n  {shown}")
    return material


def merged(first: Scene, second: Scene) -> Scene:
    """One scene of two records of the same image."""
    objects = tuple(dict.fromkeys((*first.objects, *second.objects)))
    return Scene(first.image, first.frame, objects, first.labels | second.labels)
