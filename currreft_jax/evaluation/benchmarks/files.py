"""Loads the published files of benchmarks as downloaded. Loads no JAX.

A table's images are base64; a text of at most 64 characters is the index of the row that has the image. Lists are
Python's, as texts; they are parsed as literals and never evaluated. docs/benchmarks.md has names, sources and hashes.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

from currreft_jax.config import BenchmarkName, Suite
from currreft_jax.data.builders.records import read_records
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.evaluation.benchmarks.items import ROTATION, AnswerType, BenchmarkItem
from currreft_jax.evaluation.benchmarks.prompts import MATH_SYSTEM, choice_prompt

_LONGEST_INDEX = 64  # characters of a cell that names the row of its image
_FORMULAS = "Handwritten Mathematical Expression Recognition"
_SKILLS = {"rec", "ocr", "know", "gen", "spat", "math"}  # MMVet's capabilities

# Names and MD5 sums of the published files, the default one first.
PUBLISHED: dict[BenchmarkName, dict[str, str]] = {
    BenchmarkName.MATHVISTA: {"MathVista_MINI": "f199b98e178e5a2a20e7048f5dcb0464"},
    BenchmarkName.MATH: {},  # MATH-500 is published without one
    BenchmarkName.AI2D: {
        "AI2D_TEST": "0f593e0d1c7df9a3d69bf1f947e71975",
        "AI2D_TEST_NO_MASK": "fd8f463634d4fe9fbd23b876e8eea5be",
    },
    BenchmarkName.MMVET: {"MMVet": "748aa6d4aa9d4de798306a63718455e3"},
    BenchmarkName.MMBENCH: {
        "MMBench_DEV_EN": "b6caf1133a01c6bb705cf753bb527ed8",
        "MMBench_DEV_EN_V11": "30c05be8f2f347a50be25aa067248184",
    },
    BenchmarkName.OCRBENCH: {"OCRBench": "e953d98a987cc6e26ef717b61260b778"},
    BenchmarkName.LLAVABENCH: {"LLaVABench": "d382a093f749a697820d3dadd61c8428"},
}


class BenchmarkError(ValueError):
    """The file of a benchmark cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class LoadedBenchmark:
    """The content of a benchmark's file.

    Attributes:
        name: of the benchmark.
        items: in the file's order; rows without an image are left out.
        images: contents of the image files, by the items' keys; empty for a benchmark of texts.
        published: name of the published file; empty if it is none whose hash is known.
        md5: of the file.
        without_image: locations of the rows that were left out.
    """

    name: BenchmarkName
    items: tuple[BenchmarkItem, ...]
    images: dict[str, bytes]
    published: str
    md5: str
    without_image: tuple[str, ...]


def load_benchmark(suite: Suite) -> LoadedBenchmark:
    """Reads the file of a benchmark's suite.

    Raises:
        FileNotFoundError: the file does not exist.
        BenchmarkError: it is not a published one, which `suite.any_file` allows, or a row is malformed.
    """
    name, path = suite.benchmark, Path(suite.sources[0].file)
    assert name  # a suite of a benchmark
    md5 = _md5(path)
    published = next((known for known, value in PUBLISHED[name].items() if value == md5), "")
    if PUBLISHED[name] and not published and not suite.any_file:
        files = " or ".join(f"{known}.tsv (MD5 {value})" for known, value in PUBLISHED[name].items())
        raise BenchmarkError(
            f"{path} has the MD5 {md5}, but {name.value} is {files}; download it again, or accept the file by the"
            " suite's any_file"
        )
    try:
        records = list(_records(path))
        items = tuple(map(_PARSERS[name], records))
        _refuse_repeated(items)
        images: dict[str, bytes] = {}
        if name is not BenchmarkName.MATH:
            images = _read_images(records, items)
    except LineError as error:
        raise BenchmarkError(str(error)) from error
    if not items:
        raise BenchmarkError(f"{path} holds no rows; download it again")
    if name is not BenchmarkName.MATH and not images:
        raise BenchmarkError(f"{path}: no row has an image; download it again")
    shown = tuple(item for item in items if item.key in images or name is BenchmarkName.MATH)
    missing = tuple(item.location for item in items if item not in shown)
    if suite.instruction:
        shown = tuple(replace(item, prompt=f"{item.prompt.rstrip()}\n{suite.instruction}") for item in shown)
    return LoadedBenchmark(name, shown, images, published, md5, missing)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _records(path: Path) -> Iterator[Fields]:
    for record in read_records(path):
        if isinstance(record, LineError):
            raise record
        yield record


def _refuse_repeated(items: tuple[BenchmarkItem, ...]) -> None:
    first: dict[str, BenchmarkItem] = {}
    for item in items:
        if first.setdefault(item.key, item) is not item:
            raise LineError(item.location, f"index {item.key} is that of {first[item.key].location}; download it again")
    for item in items:
        if item.group not in first:
            raise LineError(item.location, f"a rotation of row {item.group}, which the file lacks; download it again")


def _read_images(records: list[Fields], items: tuple[BenchmarkItem, ...]) -> dict[str, bytes]:
    """Decodes the images of all rows that have one, by the items' keys."""
    cells = {item.key: record.text("image", "").strip() for record, item in zip(records, items, strict=True)}
    locations = {item.key: item.location for item in items}
    images: dict[str, bytes] = {}
    for key, cell in cells.items():
        owner = key
        if 0 < len(cell) <= _LONGEST_INDEX:
            owner = _whole(cell)
            if owner not in cells:
                raise LineError(locations[key], f'"image" is {cell!r}, but no row has this index; download it again')
        if content := cells[owner]:
            if owner not in images:
                images[owner] = _decode(content, locations[owner])
            images[key] = images[owner]
    return images


def _decode(cell: str, location: str) -> bytes:
    try:
        if len(cell) <= _LONGEST_INDEX:
            raise ValueError("it names another row")
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LineError(location, f'"image" is no base64 image ({error}); download the file again') from error


def _whole(cell: str) -> str:
    """Returns a whole number without the decimals that tables with empty cells have: `3.0` is 3."""
    whole = cell.strip().removesuffix(".0")
    return str(int(whole)) if whole.isdecimal() else cell


def _key(record: Fields) -> str:
    key = _whole(_text(record, "index"))
    if not key.isdecimal():
        record.refuse_value("index", "a whole number")
    return key


def _text(record: Fields, column: str) -> str:
    """Returns the text of a cell that must not be empty."""
    text = record.text(column, meaning="a text")
    if not text.strip():
        record.refuse_value(column, "a text; the cell is empty")
    return text


def _literal_list(record: Fields, column: str) -> tuple[str, ...]:
    """Parses a Python list of texts or numbers, without evaluating it."""
    text = _text(record, column)
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list) or not values or not all(isinstance(value, str | int | float) for value in values):
        record.refuse_value(column, "a Python list of texts")
    return tuple(map(str, values))


def _options(record: Fields) -> tuple[str, ...]:
    cells = [record.text(letter, "") for letter in ascii_uppercase]
    count = next((index for index, cell in enumerate(cells) if not cell.strip()), len(cells))
    if not count or any(cell.strip() for cell in cells[count:]):
        record.refuse("options are A, B, C and so on, without a gap; download the file again")
    return tuple(cells[:count])


def _optional(record: Fields, *columns: str) -> tuple[str, ...]:
    return tuple(text for column in columns if (text := record.text(column, "").strip()))


def _gold_letter(record: Fields, column: str, options: tuple[str, ...]) -> str:
    gold = _text(record, column).strip()
    if gold not in ascii_uppercase[: len(options)] or len(gold) != 1:
        record.refuse_value(column, f"a letter of the {len(options)} options")
    return gold


def _parse_choice(record: Fields) -> BenchmarkItem:
    """Parses a row of AI2D or MMBench."""
    question, options, key = _text(record, "question"), _options(record), _key(record)
    return BenchmarkItem(
        key,
        record.location,
        choice_prompt(question, options, record.text("hint", "").strip()),
        question,
        (_gold_letter(record, "answer", options),),
        AnswerType.CHOICE,
        options,
        _optional(record, "category", "l2-category"),
        group=str(int(key) % ROTATION),
    )


def _parse_ai2d(record: Fields) -> BenchmarkItem:
    item = _parse_choice(record)
    return replace(item, group=item.key)


def _parse_mathvista(record: Fields) -> BenchmarkItem:
    question, key = _text(record, "question"), _key(record)
    skills = _text(record, "skills")
    categories = (_text(record, "task"), *(_literal_list(record, "skills") if skills[:1] == "[" else (skills,)))
    base = _item(record, key, question, (), categories)
    if _text(record, "question_type") == AnswerType.CHOICE:
        options = _literal_list(record, "choices")
        gold = _gold_letter(record, "answer_option", options)
        return replace(base, golds=(gold,), answer_type=AnswerType.CHOICE, options=options)
    kind, gold = record.text("answer_type").strip(), _text(record, "answer").strip()
    if kind not in set(AnswerType) - {AnswerType.CHOICE}:
        record.refuse_value("answer_type", "integer, float, text or list")
    answer_type = AnswerType(kind)
    if answer_type in (AnswerType.INTEGER, AnswerType.FLOAT) and not _is_number(gold):
        record.refuse_value("answer", f"a number, as its answer_type is {kind}")
    if answer_type is AnswerType.LIST:
        _literal_list(record, "answer")
    precision = _whole(record.text("precision", "").strip())
    return replace(
        base, golds=(gold,), answer_type=answer_type, precision=int(precision) if precision.isdecimal() else None
    )


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _parse_mmvet(record: Fields) -> BenchmarkItem:
    question, key, category = _text(record, "question"), _key(record), _text(record, "category").strip()
    skills = tuple(skill for skill in category.split(",") if skill)
    if not set(skills) <= _SKILLS:
        record.refuse_value("category", f"{', '.join(sorted(_SKILLS))}, joined by commas")
    # A combination of one capability would have its name.
    categories = (*skills, f"only {category}" if len(skills) == 1 else category)
    return _item(record, key, question, (_text(record, "answer").strip(),), categories)


def _parse_ocrbench(record: Fields) -> BenchmarkItem:
    question, key, category = _text(record, "question"), _key(record), _text(record, "category").strip()
    golds = _literal_list(record, "answer")
    if not all(gold.strip() for gold in golds):
        record.refuse_value("answer", "a list of texts that are not empty, as an empty one is in every answer")
    item = _item(record, key, question, golds, (category,))
    return replace(item, case_sensitive=category == _FORMULAS)


def _parse_llavabench(record: Fields) -> BenchmarkItem:
    reference, category = _text(record, "gpt4_ans"), _text(record, "category").strip()
    item = _item(record, _key(record), _text(record, "question"), (reference,), (category,))
    return replace(item, caption=_text(record, "caption"), reference=reference)


def _parse_math(record: Fields) -> BenchmarkItem:
    level = record.keys.get("level")
    categories = (_text(record, "subject"), *([f"level {level}"] if level is not None else []))
    key, problem, answer = (_text(record, column) for column in ("unique_id", "problem", "answer"))
    return replace(_item(record, key, problem, (answer,), categories), system=MATH_SYSTEM)


def _item(
    record: Fields, key: str, question: str, golds: tuple[str, ...], categories: tuple[str, ...]
) -> BenchmarkItem:
    """Returns an item whose question is the whole prompt."""
    return BenchmarkItem(key, record.location, question, question, golds, categories=categories, group=key)


_PARSERS: dict[BenchmarkName, Callable[[Fields], BenchmarkItem]] = {
    BenchmarkName.MATHVISTA: _parse_mathvista,
    BenchmarkName.MATH: _parse_math,
    BenchmarkName.AI2D: _parse_ai2d,
    BenchmarkName.MMVET: _parse_mmvet,
    BenchmarkName.MMBENCH: _parse_choice,
    BenchmarkName.OCRBENCH: _parse_ocrbench,
    BenchmarkName.LLAVABENCH: _parse_llavabench,
}
