r"""The readable reading: the answer that a careful person finds in a text, whatever its layout. Loads no JAX.

A base model knows no tags, so its strict accuracy measures the layout as well. This reading takes the content of
`<answer>` where there is one, else the text after the thoughts, and finds the answer there. It never guesses: two
different candidates are no answer, nor is the article in "A cat", nor a number that the token limit may have cut.
The answer that it finds is scored by the same rules as any other.

| kind, task | read besides what the strict parser reads |
|---|---|
| judge | "Yes, …", "No, …", "the answer is no", a last sentence of one word, the whole text "true" or "false" |
| choice | "the answer is (B)", "Option B", "B. text", `\boxed{B}`, "A and C", lettered lines, an option's text |
| open detection | (x1, y1), (x2, y2); x1=…, y1=…, x2=…, y2=…; four numbers alone |
| open classify | "The image shows a dog and a cat.", lists with bullets or numbers |
| open math | the last box or "the answer is …", the last line, the right side of its equation, the only number |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from string import ascii_uppercase

import numpy as np

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.rewards.binary import parse_yes_no
from currreft_jax.rewards.boxes import named_corners
from currreft_jax.rewards.choice import parse_letters
from currreft_jax.rewards.classify import gold_labels
from currreft_jax.rewards.maths import gold_expression, parse_expression
from currreft_jax.structs import Completion, Reason, Row


class Found(StrEnum):
    """Where the answer was found.

    | value | meaning |
    |---|---|
    | answer | in the only closed `<answer>` element |
    | last_answer | in the last of several |
    | open_answer | after an `<answer>` that is not closed |
    | text | in the text after the thoughts |
    | none | nowhere |
    """

    ANSWER = "answer"
    LAST_ANSWER = "last_answer"
    OPEN_ANSWER = "open_answer"
    TEXT = "text"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer in a completion.

    Attributes:
        answer: as the strict parsers read it; empty where none was found.
        found: where.
    """

    answer: str
    found: Found


Finder = Callable[[str, Row, Rewards], str | None]

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:answer|think)>", re.IGNORECASE)
_STATED = re.compile(
    r"(?:answers?|options?|choices?|conclusion|result)(?: is| are| would be|:|=)+\s*:?\s*", re.IGNORECASE
)
_CLAUSE = re.compile(r"[,.;:](?:\s|$)| because | since | as ")
_MARKUP = re.compile(r"\*\*|__|`|^#+ ", re.MULTILINE)
_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")

_YES_NO_STATED = re.compile(
    r"(?:answer|conclusion)(?: is| would be| must be|:)+\s*:?\s*[\"']?(yes|no)\b(?![\s-]*\w)", re.IGNORECASE
)
_YES_NO_LEAD = re.compile(
    r"\W*(yes|no)(?:\s*[,.;:!\n—–]|\s+-|\s*$|\s+(?:it|there|this|that|they|the)\b)", re.IGNORECASE
)
_YES_NO_LAST = re.compile(r"(?:^|[.:!?\n])\s*[\"'(]?(yes|no)[\"')]?\W*$", re.IGNORECASE)
_SYNONYMS = {"true": "yes", "correct": "yes", "right": "yes", "false": "no", "incorrect": "no", "wrong": "no"}

_AND = re.compile(r"\s*(?:,|;|&|\band\b|\bor\b)\s*", re.IGNORECASE)
_LEAD_LETTER = re.compile(r"(?:(?:option|choice|answer)\s+)?(?:\(([A-Z])\)|([A-Z])\s*(?:[.):]|$))", re.IGNORECASE)
_MARKED_LETTER = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\b")

_PAIRS = re.compile(r"\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\)\s*(?:,|to|and|-|–)?\s*\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\)")
_NAMED = re.compile(
    r"x_?(?:1|min)\W{1,5}([\d.]+)\W+y_?(?:1|min)\W{1,5}([\d.]+)\W+x_?(?:2|max)\W{1,5}([\d.]+)\W+y_?(?:2|max)\W{1,5}([\d.]+)",
    re.IGNORECASE,
)
_ROUND = re.compile(r"\(\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*\)")
_FOUR = re.compile(r"\W*([\d.]+)[\s,;]+([\d.]+)[\s,;]+([\d.]+)[\s,;]+([\d.]+)\W*")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)

_INTRODUCTION = re.compile(
    r"^.{0,80}?\b(?:shows|contains|depicts|has|displays|includes|features|shown|are|is|see|identify|present)\b:?\s+",
    re.IGNORECASE | re.DOTALL,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)
_ARTICLE = re.compile(r"^(?:an?|the|some|one)\s+", re.IGNORECASE)

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|\.\d)")
_NUMBER_ALONE = re.compile(rf"(?<!\w-){_NUMBER.pattern}")
_SCIENTIFIC = re.compile(r"^\s*(-?\d+(?:\.\d+)?[eE][-+]?\d{1,2})\s*$")
_NUMBER_LIST = re.compile(r"\[\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)*\s*\]")
_RIGHT_SIDE = re.compile(r"=\s*([^=]+)$")


def read_answer(row: Row, completion: Completion, settings: Rewards) -> Reading:
    """Finds the answer of a completion to a row.

    Args:
        row: of a kind and task that a rule scores.
        completion: what the model wrote.
        settings: aliases of labels, and limits of math-verify.
    """
    find = _FINDERS[row.kind, row.task if row.kind is Kind.OPEN else None]
    for content, found in _regions(completion):
        answer = find(text, row, settings) if (text := _TAG.sub(" ", content).strip()) else None
        if answer is not None:
            return Reading(answer.strip(), found)
    return Reading("", Found.NONE)


def answer_text(completion: Completion) -> str:
    """Returns the part of a completion in which its answer stands; empty while it is still thinking."""
    return next((_TAG.sub(" ", content).strip() for content, _ in _regions(completion)), "")


def read_number(text: str) -> str | None:
    """Reads the number that a text gives: in its last box, after "the answer is", or its only one.

    Returns:
        The number without separators of thousands; None if there is none, or different ones.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    plain = _MARKUP.sub("", text).replace("$", "")
    for part in [*_BOXED.findall(text)[-1:], *stated_parts(plain), plain]:
        numbers = set(_SCIENTIFIC.findall(part) or _NUMBER_ALONE.findall(part))
        if len(numbers) == 1:
            return numbers.pop().replace(",", "")
    return None


def read_list(text: str) -> str | None:
    """Reads the only list of numbers in a text, such as `[1, 2.5]`; None if there is none, or different ones."""
    lists = set(_NUMBER_LIST.findall(text))
    return lists.pop() if len(lists) == 1 else None


def _regions(completion: Completion) -> Iterator[tuple[str, Found]]:
    """Yields the part of a text in which the answer stands: the tag's content, or else what follows the thoughts."""
    text = completion.text
    closed = _ANSWER.findall(text)
    if closed:
        yield closed[-1], Found.ANSWER if len(closed) == 1 else Found.LAST_ANSWER
        return
    if not completion.finished:  # its last word may be cut off
        text = text[: max((match.start() for match in re.finditer(r"\s", text)), default=0)]
    _, opened, rest = text.rpartition("<answer>")
    if opened:
        yield rest, Found.OPEN_ANSWER
        return
    _, thoughts_closed, after = text.rpartition("</think>")
    if thoughts_closed or "<think>" not in text:
        yield after, Found.TEXT


def _plain(text: str) -> str:
    """Removes Markdown and LaTeX around words."""
    inner = _WRAPPED.sub(r"\1", _MARKUP.sub("", text))
    return _WRAPPED.sub(r"\1", inner).replace("$", "").strip()


def stated_parts(text: str) -> list[str]:
    """Returns what follows the last "the answer is": its line, and the first clause of it; none without one."""
    *_, last = [None, *_STATED.finditer(text)]
    if not last:
        return []
    line = text[last.end() :].partition("\n")[0].strip()
    return [line, _CLAUSE.split(line)[0]]


def _find_yes_no(text: str, row: Row, settings: Rewards) -> str | None:
    text = _plain(text)
    if isinstance(parse_yes_no(text), bool):
        return text
    if word := _SYNONYMS.get(text.strip(" .!\"'").casefold()):
        return word
    stated = {word.casefold() for word in _YES_NO_STATED.findall(text)}
    first, last = _YES_NO_LEAD.match(text), _YES_NO_LAST.search(text)
    words = stated or {match[1].casefold() for match in (first, last) if match}
    return words.pop() if len(words) == 1 else None


def _find_letters(text: str, row: Row, settings: Rewards) -> str | None:
    text = _plain(text)
    for part in [*stated_parts(text), text]:
        part = part.strip(" !")
        if letters := _letters(part, row) or _option_texts(part, row):
            return letters
    marked = {first or second for first, second in _MARKED_LETTER.findall(text)}
    return _join_letters(marked, row) if len(marked) == 1 else None


def _letters(text: str, row: Row) -> str | None:
    """Reads letters alone, joined by "and", or at the beginning of each line."""
    text = text.strip()
    if isinstance(letters := parse_letters(text, row), frozenset) and len(text.strip("().\"'")) >= 1:
        return ", ".join(sorted(letters))
    pieces = [piece.strip(" .()") for piece in _AND.split(text.rstrip(" .")) if piece.strip(" .()")]
    if pieces and all(len(piece) == 1 and piece.isupper() for piece in pieces):
        return _join_letters(set(pieces), row)
    leads = [_LEAD_LETTER.match(line.strip()) for line in text.splitlines() if line.strip()]
    found = {(lead[1] or lead[2]).upper() for lead in leads if lead}
    if leads and leads[0] and (row.multiple or len(found) == 1):
        return _join_letters(found, row)
    return None


def _option_texts(text: str, row: Row) -> str | None:
    """Reads the texts of options, written instead of their letters."""
    letters = {_bare(option): letter for letter, option in zip(ascii_uppercase, row.options, strict=False)}
    if _bare(text) in letters:
        return letters[_bare(text)]
    pieces = [_bare(piece) for piece in re.split(r",|\n|;|\band\b", text) if _bare(piece)]
    if row.multiple and pieces and all(piece in letters for piece in pieces):
        return _join_letters({letters[piece] for piece in pieces}, row)
    return None


def _bare(text: str) -> str:
    return _ARTICLE.sub("", " ".join(text.casefold().split()).strip(" .!\"'"))


def _join_letters(letters: set[str], row: Row) -> str | None:
    joined = ", ".join(sorted(letters))
    return joined if letters and isinstance(parse_letters(joined, row), frozenset) else None


def _find_boxes(text: str, row: Row, settings: Rewards) -> str | None:
    fenced = _FENCE.findall(text)
    for part in [fenced[-1], text] if fenced else [text]:
        corners = named_corners(part.strip())
        if isinstance(corners, np.ndarray):
            return json.dumps(corners.tolist())
    for pattern in (_NAMED, _PAIRS, _ROUND):
        if boxes := pattern.findall(text):
            return _boxes_json(boxes)
    four = _FOUR.fullmatch(text)
    return _boxes_json([four.groups()]) if four else None


def _boxes_json(boxes: list[tuple[str, ...]]) -> str | None:
    try:
        return json.dumps([[float(number.rstrip(".")) for number in box] for box in boxes])
    except ValueError:  # such as 1.2.3
        return None


def _find_labels(text: str, row: Row, settings: Rewards) -> str | None:
    if text.startswith(("[", "{", "```")):
        content = _FENCE.sub(r"\1", text).strip().strip("[]{}")
        return ", ".join(re.findall(r"[\"']([^\"']+)[\"']", content)) or content
    text = _plain(text)
    text = stated[0] if (stated := stated_parts(text)) else text
    gold = gold_labels(row, settings)
    if text.strip(" .").casefold() in gold:
        return text
    lines = _BULLET.sub("", text).strip()
    if "\n" not in lines:
        lines = _INTRODUCTION.sub("", lines.partition(". ")[0])
    labels = []
    for piece in re.split(r"[,，、;\n]", lines):
        whole = re.sub(r"^(?:and|or)\s+", "", piece.strip(" .:"))
        keep = settings.aliases.get(whole.casefold(), whole.casefold()) in gold
        parts = [whole] if keep else re.split(r"\s+and\s+", whole)
        labels += parts if keep else [_ARTICLE.sub("", part.strip(" .")) for part in parts]
    return ", ".join(label for label in labels if label) or None


def _find_expression(text: str, row: Row, settings: Rewards) -> str | None:
    if boxed := _BOXED.findall(text):
        return boxed[-1].strip() or None
    gold = gold_expression(row, settings.maths)
    lines = [_MARKUP.sub("", line).strip() for line in text.splitlines() if line.strip()]
    right_side = _RIGHT_SIDE.search(lines[-1].rstrip(" .")) if lines else None
    sides = [right_side[1]] if right_side else []
    for part in (text, *stated_parts(_MARKUP.sub("", text)), *lines[-1:], *sides):
        parsed = parse_expression(part.strip(), settings.maths)
        if isinstance(parsed, Reason) or parsed.unread or parsed.words:
            continue
        if parsed.is_equation == gold.is_equation:
            return part
    numbers = set(_NUMBER.findall(text))
    if len(numbers) == 1:
        return numbers.pop()
    return text if gold.words else None


_FINDERS: dict[tuple[Kind, Task | None], Finder] = {
    (Kind.JUDGE, None): _find_yes_no,
    (Kind.CHOICE, None): _find_letters,
    (Kind.OPEN, Task.DETECTION): _find_boxes,
    (Kind.OPEN, Task.CLASSIFY): _find_labels,
    (Kind.OPEN, Task.MATH): _find_expression,
}
