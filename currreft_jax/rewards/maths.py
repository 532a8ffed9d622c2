"""Equivalence of mathematical answers.

A gold answer and a completion's are each read as one expression. Numbers, option letters and words are compared here,
exactly; what remains is a `Comparison` for the worker processes of `maths_pool`. No substring is ever compared.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from currreft_jax.config import Maths
from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

# math-verify compares decimals after rounding to six places; differences near that are left to it.
_ROUNDING = Fraction(2, 10**6)
_SAFE_DIGITS = 15

_NUMBER = re.compile(r"([+-]?)((?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+)(\\?%)?")
_FRACTION = re.compile(r"([+-]?)(?:([0-9]+) ?/ ?([0-9]+)|\\[dt]?frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\})")
_SPACE = re.compile(r"(?<!\\)\\[,;! ]|~")
_LETTER = re.compile(r"\(?([A-Za-z])\)?")
_UNIT = re.compile(
    r"(?<=[\d})])"
    r" ?(?:(°|\^ ?\\circ|\^ ?\{ ?\\circ ?\}|\\degree|degrees?)"
    r"|((?:\\(?:text|mathrm|rm) ?\{ ?)?(?:mm|cm|dm|km|m) ?\}? ?(?:\^ ?\{? ?[23] ?\}?|[²³])?))$"
)
_TEXT = re.compile(r"^\\(?:text|mathrm) ?\{([^{}\\]*)\}$")
_DELIMITER = re.compile(r"(?<!\\)(?:\\[()\[\]]|\$\$?)|\\\$")
_SEGMENT = re.compile(r"\$([^$]+)\$")
_COMMAND_TEXT = re.compile(r"\\(?:text|mathrm|operatorname|begin|end|mathbf|rm) ?\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_NOT_PROSE = re.compile(r"and|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|min|max|mod|gcd|lcm", re.IGNORECASE)
_PROSE_NUMBER = re.compile(
    r"(?<![\w.,/^\\])[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?"
    r"(?:\\?%|°| ?(?:mm|cm|dm|km|m)\b)?(?![\w/^\\]|[.,]\d)"
)
_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value and how it was written: percentages and decimals follow rules of their own."""

    value: Fraction
    percent: bool
    digits: int


@dataclass(frozen=True, slots=True)
class Expression:
    """One answer, read.

    Attributes:
        text: without delimiters, box, final full stop and unit.
        unit: empty where none was written.
        number: None for what is not a plain number.
        letter: of an option, in lower case; empty for what is not one letter.
        words: in lower case; empty for what is not made of words.
    """

    text: str
    unit: str
    number: Number | None
    letter: str
    words: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two expressions, as LaTeX, that only math-verify can compare; without an answer: does it read the gold one?"""

    gold: str
    answer: str | None


def read(answer: str, limits: Maths) -> Expression | Reason:
    """An answer as one expression.

    `SEVERAL_ANSWERS` for prose around several expressions or numbers, or for several boxes; `TIMEOUT` for text beyond
    the limits of length and nesting.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    if len(answer) > limits.max_characters or _nesting(answer) > limits.max_nesting:
        return Reason.TIMEOUT
    text = _one_expression(" ".join(_SPACE.sub(" ", answer).replace("−", "-").replace("**", "^").split()))
    if isinstance(text, Reason):
        return text
    text = text.strip().removesuffix(".").rstrip()
    text, unit = _split_unit(text)
    if not text:
        return Reason.EMPTY_ANSWER
    letter = _LETTER.fullmatch(text)
    bare = _TEXT.sub(r"\1", text).strip()
    words = bare.casefold() if _ONLY_WORDS.fullmatch(bare) and _is_prose(bare) else ""
    return Expression(text, unit, _number(text), letter[1].lower() if letter else "", words)


def gold(row: Row, limits: Maths) -> Expression:
    """The gold answer. One that needs math-verify is not yet known to be readable: `maths_pool` tells.

    Raises:
        RowError: for a solution that is empty, over the limits, or several answers.
    """
    expression = read(gold_text(row), limits)
    if isinstance(expression, Reason):
        refuse_gold(row, expression, f"one expression of at most {limits.max_characters} characters")
    return expression


def needs_parser(expression: Expression) -> bool:
    """Whether only math-verify can say that an expression means something."""
    return not (expression.number or expression.letter or expression.words)


def accuracy(gold: Expression, answer: Expression) -> Verdict | Comparison:
    """1 if the answer equals the gold one, else 0, where that can be told exactly; otherwise the comparison to make."""
    equal = _equal(gold, answer)
    if equal is not None:
        return Verdict(1.0) if equal else Verdict(0.0, Reason.NOT_EQUAL)
    if gold.unit == answer.unit or not gold.unit or not answer.unit:
        return Comparison(gold.text, answer.text)
    return Comparison(f"{gold.text} {gold.unit}", f"{answer.text} {answer.unit}")


def _equal(gold: Expression, answer: Expression) -> bool | None:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return None
    if gold.text == answer.text:
        return True
    if gold.number and answer.number:
        return _equal_numbers(gold.number, answer.number)
    if gold.letter and answer.letter:
        return gold.letter == answer.letter
    if gold.words:
        return gold.words == answer.words
    if needs_parser(gold) or needs_parser(answer) or "e" in (gold.letter, answer.letter):  # e may be the constant
        return None
    return False


def _equal_numbers(gold: Number, answer: Number) -> bool | None:
    if gold.percent != answer.percent or max(gold.digits, answer.digits) > _SAFE_DIGITS:
        return None
    if gold.value == answer.value:
        return True
    decimal = gold.digits or answer.digits
    return None if decimal and abs(gold.value - answer.value) < _ROUNDING else False


def _number(text: str) -> Number | None:
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        over, under = (int(group) for group in fraction.groups()[1:] if group)
        return Number(Fraction(-over if fraction[1] == "-" else over, under), False, 0) if under else None
    number = _NUMBER.fullmatch(text)
    if not number:
        return None
    sign, digits, percent = number.groups()
    digits = digits.replace(",", "")
    value = Fraction(f"{sign}{digits}") / (100 if percent else 1)
    return Number(value, bool(percent), len(digits) - 1 if "." in digits else 0)


def _one_expression(text: str) -> str | Reason:
    if text.count("\\boxed") > 1:
        return Reason.SEVERAL_ANSWERS
    if "\\boxed" in text:
        text = _boxed(text)
    text = _DELIMITER.sub(lambda match: "" if match[0] == "\\$" else "$", text)
    segments = set(_SEGMENT.findall(text)) if text.count("$") % 2 == 0 else set()
    outside = _SEGMENT.sub(" ", text) if segments else text.replace("$", "")
    if not _is_prose(outside):
        return text.replace("$", "")
    if len(segments) > 1:
        return Reason.SEVERAL_ANSWERS
    if segments:
        return segments.pop()
    numbers = set(_PROSE_NUMBER.findall(outside))
    if len(numbers) > 1:
        return Reason.SEVERAL_ANSWERS
    return numbers.pop() if numbers and "\\" not in outside else outside


def _split_unit(text: str) -> tuple[str, str]:
    """A quantity without variables as its number and its unit; the unit is LaTeX."""
    unit = _UNIT.search(text)
    if not unit or re.search("[A-Za-z]", _COMMAND_TEXT.sub(" ", text[: unit.start()])):
        return text, ""
    if unit[1]:
        return text[: unit.start()], r"^\circ"
    name = re.sub(r"\\[a-z]+|[{} ]", "", unit[2]).replace("²", "^2").replace("³", "^3")
    return text[: unit.start()], name


def _boxed(text: str) -> str:
    r"""What stands in the only `\boxed{…}`, or the text where its brace never closes."""
    _, _, rest = text.partition("\\boxed")
    rest = rest.lstrip()
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[1:end] if end else text
    return text


def _is_prose(text: str) -> bool:
    return any(not _NOT_PROSE.fullmatch(word) for word in _WORD.findall(_COMMAND_TEXT.sub(" ", text)))


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
