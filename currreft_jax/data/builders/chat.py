"""Conversations for supervised training and for judges: the sets of the paper's self-improvement phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import coco, pixels, tables
from currreft_jax.data.builders.items import Dropped, Item, Source, each
from currreft_jax.data.fields import Fields
from currreft_jax.data.prompts import format_options
from currreft_jax.data.rows import IMAGE, ROLES
from currreft_jax.structs import Row, Turn


def llava(source: Source) -> Iterator[Item]:
    """LLaVA conversations as they are: LLaVA-CoT-100k, the subsets of LLaVA-OneVision-Data, Geo170K."""

    def convert(record: Fields) -> Iterator[Item]:
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        turns = [_turn(turn) for turn in tables.items(record, "conversations", "a list of turns")]
        if not turns or turns[-1].role != "assistant" or turns[0].role == "assistant":
            record.refuse('"conversations" takes turns, of which an assistant speaks last')
        cells = record.keys.get("image") or record.keys.get("images") or []
        images = [pixels.stored_image(cell, source, record)[0] for cell in (cells if _is_list(cells) else [cells])]
        marked = sum(turn.text.count(IMAGE) for turn in turns)
        if marked not in (0, len(images)):
            record.refuse(f"the turns have {marked} {IMAGE}, but there are {len(images)} images")
        yield _chat(id, turns, images, source)

    for path in tables.files(source.folder):
        yield from each(tables.records(path), convert)


def cauldron(source: Source) -> Iterator[Item]:
    """The Cauldron: images, and texts of user and assistant; each text makes a row."""

    def convert(record: Fields) -> Iterator[Item]:
        name = record.location.rpartition("/")[2]
        cells = record.take("images", list, "a list of images")
        images = [pixels.stored_image(cell, source, record)[0] for cell in cells]
        for number, text in enumerate(tables.items(record, "texts", "a list of texts")):
            if not isinstance(text, Fields):
                raise text
            turns = [Turn("user", text.text("user")), Turn("assistant", text.text("assistant"))]
            yield _chat(f"{source.name}-{name}-{number}", turns, images, source)

    for path in tables.files(source.folder):
        yield from each(tables.records(path), convert)


def science_qa(source: Source) -> Iterator[Item]:
    """ScienceQA, as `problems.json` with a folder of images or as parquet; the reply is the solution and the option."""

    def convert(record: Fields, key: str = "") -> Iterator[Item]:
        split = str(record.keys.get("split", ""))
        if source.split and split and split != source.split:
            return
        id = f"{source.name}-{key or record.location.rpartition('/')[2]}"
        choices = record.texts("choices", "a list of options")
        answer = coco.number(record, "answer")
        if not 0 <= answer < len(choices):
            record.refuse_value("answer", f"the place of one of the {len(choices)} choices, from 0")
        image = record.keys.get("image")
        if image and key:
            image = f"{split}/{key}/{image}"
        images = [pixels.stored_image(image, source, record)[0]] if image else []
        asked = _with_options(record.text("question"), choices, str(record.keys.get("hint") or ""))
        reason = str(record.keys.get("solution") or "").strip()
        said = f"The answer is {ascii_uppercase[answer]}. {choices[answer]}"
        turns = [Turn("user", asked), Turn("assistant", f"{reason}\n{said}" if reason else said)]
        yield _chat(id, turns, images, source, split)

    for path in tables.files(source.folder, (".json", ".parquet")):
        if path.suffix == ".json" and path.name != "problems.json":
            continue
        if path.suffix == ".parquet":
            yield from each(tables.records(path), convert)
            continue
        file = tables.json_object(path)
        for key in file.keys:
            yield from each([tables.nested(file, key)], lambda record, key=key: convert(record, key))


def visual7w(source: Source) -> Iterator[Item]:
    """Visual7W's telling questions, with their four options."""

    def convert(record: Fields) -> Iterator[Item]:
        split = record.text("split", "")
        if source.split and split != source.split:
            return
        image, _ = pixels.find_image(record.text("filename"), source, record)
        for pair in tables.items(record, "qa_pairs", "a list of questions"):
            if not isinstance(pair, Fields):
                raise pair
            right, others = pair.text("answer"), pair.texts("multiple_choices", "a list of options")
            number = coco.number(pair, "qa_id")
            # The right option stands at a place of the question's own, as nothing in the file orders them.
            place = number % (len(others) + 1)
            options = [*others[:place], right, *others[place:]]
            asked = _with_options(pair.text("question"), options)
            said = f"The answer is {ascii_uppercase[place]}. {right}"
            turns = [Turn("user", asked), Turn("assistant", said)]
            yield _chat(f"{source.name}-{number}", turns, [image], source, split)

    for path in tables.files(source.folder, (".json",), "*v7w*"):
        yield from each(tables.items(tables.json_object(path), "images", "a list of images"), convert)


def vsr(source: Source) -> Iterator[Item]:
    """VSR: statements about images that are true or false."""

    def convert(record: Fields) -> Iterator[Item]:
        label = record.keys.get("label")
        if label not in (0, 1):
            record.refuse_value("label", "0 or 1")
        image, _ = pixels.stored_image(record.keys.get("image"), source, record)
        asked = f"Is this statement about the image true? Answer yes or no. {record.text('caption')}"
        turns = [Turn("user", asked), Turn("assistant", "Yes" if label else "No")]
        yield _chat(f"{source.name}-{record.location.rpartition('/')[2]}", turns, [image], source)

    for path in tables.files(source.folder, (".jsonl", ".parquet")):
        yield from each(tables.records(path), convert)


def geomverse(source: Source) -> Iterator[Item]:
    """GeomVerse: question, image_path, the chain of thought as cot, and the label."""

    def convert(record: Fields) -> Iterator[Item]:
        image, _ = pixels.find_image(record.text("image_path"), source, record)
        label = record.keys.get("label")
        if type(label) not in (str, int, float):
            record.refuse_value("label", "the answer")
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        if source.kind is Kind.CHAT:
            said = f"{record.text('cot')}\nThe answer is {label}."
            turns = [Turn("user", record.text("question")), Turn("assistant", said)]
            yield _chat(id, turns, [image], source)
        else:
            question, gold = record.text("question"), str(label)
            yield Row(id, Task.MATH, Kind.OPEN, question, gold, (image,), source=source.name, origin=source.origin)

    for path in tables.files(source.folder, (".jsonl",)):
        yield from each(tables.records(path), convert)


def text_only(source: Source) -> Iterator[Item]:
    """Questions without images, as s1K-1.1 has them; `--split` takes one of its kinds: math, science, crossword."""

    def convert(record: Fields) -> Iterator[Item]:
        kind = str(record.keys.get("cot_type", ""))
        if source.split and kind != source.split:
            return
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        answer = str(record.keys.get("solution") or record.keys.get("answer") or "").strip()
        if not answer:
            yield Dropped(id, "no solution")
            return
        turns = [Turn("user", record.text("question")), Turn("assistant", answer)]
        yield _chat(id, turns, [], source, kind)

    for path in tables.files(source.folder):
        yield from each(tables.records(path), convert)


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, Fields):
        raise turn
    role = ROLES.get(str(turn.keys.get("from")))
    if role is None:
        turn.refuse_value("from", ", ".join(ROLES))
    return Turn(role, turn.text("value"))


def _with_options(question: str, options: Sequence[str], context: str = "") -> str:
    before = f"Context: {context.strip()}\n" if context.strip() else ""
    return f"{before}{question}\nOptions:{format_options(options)}"


def _chat(id: str, turns: Sequence[Turn], images: Sequence[str], source: Source, split: str = "") -> Row:
    return Row(
        id=id,
        task=Task.OTHER,
        kind=Kind.CHAT,
        problem="",
        solution="",
        images=tuple(images),
        messages=tuple(turns),
        source=source.name,
        split=split,
        origin=source.origin,
    )


def _is_list(cells: Any) -> bool:
    return isinstance(cells, list)
