"""Math questions with one answer: MathV360K, Geo170K, R1-V's sets and the verified 8k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_uppercase

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders.converter import (
    BuildError,
    ConvertedItem,
    DatasetSource,
    DroppedRecord,
    WrongAnswers,
    convert_records,
)
from currreft_jax.data.builders.image_files import load_image_cell
from currreft_jax.data.builders.records import (
    file_split,
    find_files,
    list_objects,
    read_records,
    record_name,
)
from currreft_jax.data.fields import Fields
from currreft_jax.data.rows import IMAGE
from currreft_jax.rewards import maths
from currreft_jax.structs import Reason, Row

_QUESTION = re.compile(r"(?:^|\n)\s*Question\s*:\s*")
_CHOICES = re.compile(r"\s*(?:^|\n)\s*(?:Choices|Options)\s*:\s*", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-H])\)|([A-H])\s*[.:)])\s*")
_ANSWER_PREFIX = re.compile(r"the (?:correct |final )?answer is\s*:?\s*|\banswer\s*:\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])|\n")
_MAX_EXTRA_CHARACTERS = 16  # delimiters, units and the like around an expression
_LETTER = re.compile(r"\(?([A-H])\)?(?:\s*[.:)].*)?", re.DOTALL)
_TAGGED_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REFERS_TO_CHOICES = re.compile(
    r"\bwhich (?:one )?(?:of|option|choice)\b|\bfollowing\b|\boptions?\b|\bchoices?\b", re.IGNORECASE
)
_HINT = re.compile(
    r"^(?:Hint\s*:|First perform reasoning|According to the question shown|Based on the image).*?(?:\n|$)"
)


def convert_conversations(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts LLaVA conversations of one question whose reply ends in "The answer is …" or "Answer: …".

    Raises:
        BuildError: the source asks for conversations, which `build chat` converts.
    """
    _check_open(source)

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        row_id = f"{source.name}-{record_name(record)}"
        if len(record.take("conversations", list, "a list of turns")) != 2:
            yield DroppedRecord(row_id, "not one question with one reply")
            return
        question, reply = (turn.text("value") for turn in list_objects(record, "conversations", "a list of turns"))
        parts = _ANSWER_PREFIX.split(reply)
        if len(parts) < 2:
            yield DroppedRecord(row_id, "the reply does not say what the answer is")
            return
        yield from _open_row(row_id, question, parts[-1], record, source)

    for path in find_files(source.folder):
        yield from convert_records(read_records(path), convert)


def convert_problems(source: DatasetSource) -> Iterator[ConvertedItem]:
    """Converts records of problem, image and solution, taking the gold answer from the solution's answer tags.

    EasyR1's form is read too: problem, images and `answer`, which needs no tags.

    Raises:
        BuildError: the source asks for conversations, which `build chat` converts.
    """
    _check_open(source)

    def convert(record: Fields) -> Iterator[ConvertedItem]:
        row_id = f"{source.name}-{record_name(record)}"
        answers = _stated_answers(record)
        if len(answers) != 1:
            yield DroppedRecord(row_id, "the solution has not one answer in its tags")
            return
        yield from _open_row(row_id, record.text("problem"), answers[0], record, source)

    for path in find_files(source.folder):
        yield from convert_records(read_records(path), convert)


def split_choices(text: str) -> tuple[str, dict[str, str]]:
    """Splits a question from its hints and choices.

    Returns:
        The question, and letter -> choice; no choices unless their letters are A, B, C and so on.
    """
    text = text.replace(IMAGE, "").strip()
    text = _QUESTION.split(text)[-1] if _QUESTION.search(text) else _HINT.sub("", text)
    question, *rest = _CHOICES.split(text)
    if not rest:
        return question.strip(), {}
    parts = _OPTION.split(rest[-1].strip())
    letters = [first or second for first, second in zip(parts[1::3], parts[2::3], strict=True)]
    if not letters or letters != list(ascii_uppercase[: len(letters)]):
        return question.strip(), {}
    return question.strip(), dict(zip(letters, (choice.strip() for choice in parts[3::3]), strict=True))


def reason_against_open(gold: str) -> str:
    """Returns why a gold answer cannot be asked for without choices; empty if it can."""
    expression = maths.parse_expression(gold, Maths())
    if isinstance(expression, Reason):
        return f"the answer is no single expression ({expression})"
    if expression.words or expression.letter:
        return "the answer is words or a letter"
    return "the answer is a sentence" if len(gold) > len(expression.text) + _MAX_EXTRA_CHARACTERS else ""


def _stated_answers(record: Fields) -> list[str]:
    """Returns the answers in the tags of the solution; the whole `answer` if the record has none, or it has no tags."""
    if "solution" in record.keys or "answer" not in record.keys:
        return _TAGGED_ANSWER.findall(record.text("solution"))
    answer = record.keys["answer"]
    if type(answer) not in (str, int, float):
        record.refuse_value("answer", "a text or a number")
    return _TAGGED_ANSWER.findall(str(answer)) or [str(answer)]


def _open_row(
    row_id: str, text: str, answer: str, record: Fields, source: DatasetSource
) -> Iterator[Row | WrongAnswers | DroppedRecord]:
    split = file_split(record)
    if source.split and split != source.split:
        return
    question, choices = split_choices(text)
    gold = _SENTENCE_END.split(answer.strip())[0].removesuffix(".").strip()
    letter = _LETTER.fullmatch(gold)
    if letter and not choices:
        yield DroppedRecord(row_id, "the answer is a letter without choices")
        return
    if letter:
        if letter[1] not in choices:
            yield DroppedRecord(row_id, "the answer is a letter that no choice has")
            return
        gold = choices[letter[1]]
    if choices and _REFERS_TO_CHOICES.search(question):
        yield DroppedRecord(row_id, "the question makes no sense without its choices")
        return
    reason = reason_against_open(gold)
    if reason:
        yield DroppedRecord(row_id, reason)
        return
    cell = record.keys.get("image") or record.keys.get("images")
    if IMAGE in text and not cell:
        record.refuse(f'the question has {IMAGE}, but the record has no "image"; add it, or remove {IMAGE}')
    yield Row(
        row_id,
        Task.MATH,
        Kind.OPEN,
        question,
        gold,
        (load_image_cell(cell, source, record)[0],) if cell else (),
        source=source.name,
        split=split,
        origin=source.origin,
    )
    wrong = tuple(choice for choice in dict.fromkeys(choices.values()) if choice and choice != gold)
    if wrong:
        yield WrongAnswers(row_id, wrong)


def _check_open(source: DatasetSource) -> None:
    if source.kind is not Kind.OPEN:
        raise BuildError(f"--kind={source.kind.value}: this format makes open rows; `build chat` reads conversations")
