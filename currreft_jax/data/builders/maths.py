"""Mathematical questions with one answer: MathV360K, Geo170K, R1-V's sets and the verified 8k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_uppercase

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders import pixels, tables
from currreft_jax.data.builders.items import BuildError, Dropped, Item, Source, Wrong, each
from currreft_jax.data.fields import Fields
from currreft_jax.data.rows import IMAGE
from currreft_jax.rewards import maths
from currreft_jax.structs import Reason, Row

_QUESTION = re.compile(r"(?:^|\n)\s*Question\s*:\s*")
_CHOICES = re.compile(r"\s*(?:^|\n)\s*(?:Choices|Options)\s*:\s*", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-H])\)|([A-H])\s*[.:)])\s*")
_SAID = re.compile(r"the (?:correct |final )?answer is\s*:?\s*|\banswer\s*:\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z])|\n")
_MARGIN = 16  # characters of delimiters, units and the like around an expression
_LETTER = re.compile(r"\(?([A-H])\)?(?:\s*[.:)].*)?", re.DOTALL)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_AMONG = re.compile(r"\bwhich (?:one )?(?:of|option|choice)\b|\bfollowing\b|\boptions?\b|\bchoices?\b", re.IGNORECASE)
_HINT = re.compile(
    r"^(?:Hint\s*:|First perform reasoning|According to the question shown|Based on the image).*?(?:\n|$)"
)


def conversations(source: Source) -> Iterator[Item]:
    """LLaVA conversations of one question, whose reply ends in "The answer is …" or "Answer: …"."""
    _only_open(source)

    def convert(record: Fields) -> Iterator[Item]:
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        turns = list(tables.items(record, "conversations", "a list of turns"))
        if len(turns) != 2:
            yield Dropped(id, "not one question with one reply")
            return
        asked, replied = (turn.text("value") for turn in turns if isinstance(turn, Fields))
        said = _SAID.split(replied)
        if len(said) < 2:
            yield Dropped(id, "the reply does not say what the answer is")
            return
        yield from _question(id, asked, said[-1], record, source)

    for path in tables.files(source.folder):
        yield from each(tables.records(path), convert)


def problems(source: Source) -> Iterator[Item]:
    """Rows of problem, solution and image; what stands in the solution's answer tags is the answer."""
    _only_open(source)

    def convert(record: Fields) -> Iterator[Item]:
        id = f"{source.name}-{record.location.rpartition('/')[2]}"
        tagged = _TAGGED.findall(record.text("solution"))
        if len(tagged) != 1:
            yield Dropped(id, "the solution has not one answer in its tags")
            return
        yield from _question(id, record.text("problem"), tagged[0], record, source)

    for path in tables.files(source.folder):
        yield from each(tables.records(path), convert)


def split_question(text: str) -> tuple[str, dict[str, str]]:
    """A question without hints and choices, and its choices by letter; empty where they are not A, B, C and so on."""
    text = text.replace(IMAGE, "").strip()
    text = _QUESTION.split(text)[-1] if _QUESTION.search(text) else _HINT.sub("", text)
    asked, *rest = _CHOICES.split(text)
    if not rest:
        return asked.strip(), {}
    parts = _OPTION.split(rest[-1].strip())
    letters = [first or second for first, second in zip(parts[1::3], parts[2::3], strict=True)]
    if not letters or letters != list(ascii_uppercase[: len(letters)]):
        return asked.strip(), {}
    return asked.strip(), dict(zip(letters, (text.strip() for text in parts[3::3]), strict=True))


def _question(id: str, asked: str, answer: str, record: Fields, source: Source) -> Iterator[Item]:
    question, choices = split_question(asked)
    gold = _SENTENCE_END.split(answer.strip())[0].removesuffix(".").strip()
    letter = _LETTER.fullmatch(gold)
    if letter and not choices:
        yield Dropped(id, "the answer is a letter without choices")
        return
    if letter:
        if letter[1] not in choices:
            yield Dropped(id, "the answer is a letter that no choice has")
            return
        gold = choices[letter[1]]
    if choices and _AMONG.search(question):
        yield Dropped(id, "the question makes no sense without its choices")
        return
    reason = why_not_open(gold)
    if reason:
        yield Dropped(id, reason)
        return
    images = ()
    if record.keys.get("image"):
        images = (pixels.stored_image(record.keys["image"], source, record)[0],)
    yield Row(id, Task.MATH, Kind.OPEN, question, gold, images, source=source.name, origin=source.origin)
    others = tuple(text for text in dict.fromkeys(choices.values()) if text and text != gold)
    if others:
        yield Wrong(id, others)


def _only_open(source: Source) -> None:
    if source.kind is not Kind.OPEN:
        raise BuildError("these rows become open ones; `build chat` reads conversations as they are")


def why_not_open(gold: str) -> str:
    """Why an answer cannot be asked for without its choices; empty if it can."""
    expression = maths.read(gold, Maths())
    if isinstance(expression, Reason):
        return f"the answer is no single expression ({expression})"
    if expression.words or expression.letter:
        return "the answer is words or a letter"
    return "the answer is a sentence" if len(gold) > len(expression.text) + _MARGIN else ""
