"""Equivalence of mathematical answers.

Gold answer and answer are each parsed as one expression. Numbers, option letters and words are compared here, exactly;
any other pair becomes a `Comparison` for the math-verify workers of `maths_pool`. Substrings are never compared.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from currreft_jax.config import Maths
from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

# math-verify rounds decimals to six places; pairs that differ by about as little are left to it.
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
class ExactNumber:
    """A number without variables.

    Attributes:
        value: the exact value; 1/2 for 50%.
        percent: whether it was written as a percentage.
        decimals: digits after the decimal point; 0 for integers and fractions.
    """

    value: Fraction
    percent: bool
    decimals: int


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed answer.

    Attributes:
        text: LaTeX or words without delimiters, box, final full stop and unit.
        unit: unit in LaTeX; empty without one.
        number: exact value; None unless the text is a plain number.
        letter: option letter in lower case; empty unless the text is one letter.
        words: text in lower case; empty unless it consists of words.
    """

    text: str
    unit: str
    number: ExactNumber | None
    letter: str
    words: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two expressions in LaTeX that only math-verify can compare; `answer` None asks whether it can parse the gold."""

    gold: str
    answer: str | None


def parse_expression(answer: str, limits: Maths) -> Expression | Reason:
    r"""Parses an answer as one expression.

    Returns:
        The expression; `SEVERAL_ANSWERS` for prose around several expressions or numbers, or for several `\boxed`;
        `TIMEOUT` for text beyond the limits of length and nesting.
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
    return Expression(text, unit, _exact_number(text), letter[1].lower() if letter else "", words)


def gold_expression(row: Row, limits: Maths) -> Expression:
    """Parses the gold answer. Whether math-verify can parse it too, if it must, is for `maths_pool` to say.

    Raises:
        RowError: the solution is empty, over the limits, or several answers.
    """
    expression = parse_expression(gold_text(row), limits)
    if isinstance(expression, Reason):
        refuse_gold(row, expression, f"one expression of at most {limits.max_characters} characters")
    return expression


def needs_math_verify(expression: Expression) -> bool:
    """Returns whether only math-verify can tell if the expression is valid."""
    return not (expression.number or expression.letter or expression.words)


def math_accuracy(gold: Expression, answer: Expression) -> Verdict | Comparison:
    """Returns 1 if the answer equals the gold answer, else 0; a `Comparison` if that cannot be decided exactly."""
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
    if (
        needs_math_verify(gold) or needs_math_verify(answer) or "e" in (gold.letter, answer.letter)
    ):  # e may be the constant
        return None
    return False


def _equal_numbers(gold: ExactNumber, answer: ExactNumber) -> bool | None:
    if gold.percent != answer.percent or max(gold.decimals, answer.decimals) > _SAFE_DIGITS:
        return None
    if gold.value == answer.value:
        return True
    is_decimal = gold.decimals or answer.decimals
    return None if is_decimal and abs(gold.value - answer.value) < _ROUNDING else False


def _exact_number(text: str) -> ExactNumber | None:
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        numerator, denominator = (int(group) for group in fraction.groups()[1:] if group)
        if not denominator:
            return None
        return ExactNumber(Fraction(-numerator if fraction[1] == "-" else numerator, denominator), False, 0)
    number = _NUMBER.fullmatch(text)
    if not number:
        return None
    sign, digits, percent = number.groups()
    digits = digits.replace(",", "")
    value = Fraction(f"{sign}{digits}") / (100 if percent else 1)
    return ExactNumber(value, bool(percent), len(digits) - 1 if "." in digits else 0)


def _one_expression(text: str) -> str | Reason:
    """Returns the only expression or number of a text: boxed, in dollars, in prose, or the whole text."""
    if text.count("\\boxed") > 1:
        return Reason.SEVERAL_ANSWERS
    if "\\boxed" in text:
        text = _box_content(text)
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
    """Splits a quantity without variables into number and unit, both LaTeX; the unit is empty without one."""
    unit = _UNIT.search(text)
    if not unit or re.search("[A-Za-z]", _COMMAND_TEXT.sub(" ", text[: unit.start()])):
        return text, ""
    if unit[1]:
        return text[: unit.start()], r"^\circ"
    name = re.sub(r"\\[a-z]+|[{} ]", "", unit[2]).replace("²", "^2").replace("³", "^3")
    return text[: unit.start()], name


def _box_content(text: str) -> str:
    r"""Returns the content of the only `\boxed{…}`, or the text if its brace never closes."""
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
