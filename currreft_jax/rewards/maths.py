"""Equivalence of mathematical answers.

Gold answer and answer are each parsed as one expression with its unit. Numbers, option letters and words are compared
here, exactly; any other pair becomes a `Comparison` for the math-verify workers of `maths_pool`. Substrings are never
compared.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from currreft_jax.config import Maths
from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.rewards.maths_notation import to_latex
from currreft_jax.rewards.maths_prose import Sentence, one_expression, split_list
from currreft_jax.rewards.maths_units import PERCENT, Unit, split_unit
from currreft_jax.structs import Reason, Row, Verdict

# A decimal that differs relatively by no more is left to `maths_worker`, whose tolerance is the same.
_TOLERANCE = Fraction(2, 10**6)

_DIGITS = r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"([+-]?) ?({_DIGITS})(?: ?\\(?:cdot|times) ?10 ?\^ ?(?:\{{ ?([+-]?[0-9]{{1,3}}) ?\}}|([0-9])))?")
_FRACTION = re.compile(
    r"([+-]?) ?(?:(?:([0-9]+) )?([0-9]+) ?/ ?([0-9]+)|([0-9]+)? ?\\[dt]?frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\})"
)
_FINAL_STOP = re.compile(r"(?<!\.)[ ,;.]+$")
_QUOTES = re.compile(r"""^(["'])([^"']*)\1$""")
_THREE_LETTERS = re.compile(r"[^\W\d_]{3}")
_MARKED_DIGIT = re.compile(r"[0-9] ?['_]")  # 5' and 5_2 are not 5
_LETTER = re.compile(r"\(?([A-Za-z])\)?")
_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_BRACKET_OR_EQUALS = re.compile(r"[(){}\[\]]|(?<![<>!:=])=(?![=<>])|\\approx(?![a-z])")
_LEADING_EQUALS = re.compile(r"^(?:=|\\approx) ?")
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|Delta|Theta|Omega"
_NAME = re.compile(
    r"\( ?[a-z](?: ?, ?[a-z])+ ?\)"  # the coordinates of a point
    r"|(?:[mS] ?)?(?:\\(?:angle|triangle|overline|vec|odot) ?)*"
    rf"\{{? ?(?:[A-Z]{{1,4}}|[a-z]|\\(?:{_GREEK}))'* ?\}}?"
    r"(?: ?_ ?(?:\{[^{}=]*\}|\w))?'*(?: ?\( ?(?:[A-Za-z]|-?[0-9]+) ?\))?"
)
_READABLE_COMMAND = re.compile(
    r"\\(?:[,;:! {}()\[\]%$|]|[cdt]?frac|sqrt|pi|cdot|times|div|pm|mp|infty|circ|degree|left|right|big|Big|leq?|geq?|"
    r"neq?|lt|gt|text|mathrm|mathbf|mathbb|mathcal|operatorname|begin|end|sum|prod|int|lim|log|ln|lg|exp|"
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|min|max|gcd|binom|choose|cup|cap|in|notin|emptyset|varnothing|to|ldots|dots|"
    r"cdots|angle|triangle|overline|vec|perp|parallel|quad|boxed|approx|mid|lfloor|rfloor|lceil|rceil|setminus|partial|"
    rf"zeta|eta|iota|kappa|nu|xi|chi|psi|varepsilon|upsilon|Gamma|Lambda|Xi|Pi|Sigma|Phi|Psi|{_GREEK})(?![A-Za-z])"
)


@dataclass(frozen=True, slots=True)
class ExactNumber:
    """A rational number as it is written.

    Attributes:
        value: the exact value.
        is_decimal: whether it has a decimal point.
        is_fraction: whether it is a fraction or a mixed number.
    """

    value: Fraction
    is_decimal: bool = False
    is_fraction: bool = False


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed answer.

    Attributes:
        text: LaTeX or words without delimiters, box, name before an equals sign, final full stop and unit.
        unit: None without one.
        name: what an assignment assigns to, `x` in `x = 5`; empty without one.
        is_equation: whether an equals sign remains.
        number: exact value; None unless the text is a plain number.
        letter: option letter in lower case; empty unless the text is one letter.
        words: text in lower case; empty unless it consists of words.
        unread: the word or symbol for which the text is no expression; empty for an expression or words alone.
    """

    text: str
    unit: Unit | None = None
    name: str = ""
    is_equation: bool = False
    number: ExactNumber | None = None
    letter: str = ""
    words: str = ""
    unread: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two expressions in LaTeX that only math-verify can compare; `answer` None asks whether it can parse the gold."""

    gold: str
    answer: str | None


def parse_expression(answer: str, limits: Maths) -> Expression | Reason:
    r"""Parses an answer as one expression.

    Returns:
        The expression; `SEVERAL_ANSWERS` for words around several expressions or numbers, or for several `\boxed`;
        `TIMEOUT` for text beyond the limits of length and nesting.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    if len(answer) > limits.max_characters or _nesting(answer) > limits.max_nesting:
        return Reason.TIMEOUT
    return _parse_cached(answer, limits.max_nesting)


@lru_cache(maxsize=4096)  # completions of a group repeat answers, and epochs their golds
def _parse_cached(answer: str, max_nesting: int) -> Expression | Reason:
    number = exact_number(answer)
    if number:  # the same as below, sooner
        return Expression(answer, number=number)
    latex = to_latex(answer)
    if _nesting(latex) > max_nesting:
        return Reason.TIMEOUT
    text = one_expression(latex)
    if isinstance(text, Reason):
        return text
    if isinstance(text, Sentence):
        return Expression(text.text, words=text.text.removesuffix(".").casefold(), unread=text.unread)
    text = _FINAL_STOP.sub("", _QUOTES.sub(r"\2", text.strip()))
    text = _LEADING_EQUALS.sub("", text)
    if not text:
        return Reason.EMPTY_ANSWER
    if _ONLY_WORDS.fullmatch(text) and _THREE_LETTERS.search(text):
        return Expression(text, words=text.casefold())
    name, text, is_equation = _split_assignment(text)
    text, unit = _split_units(text)
    letter = _LETTER.fullmatch(text)
    number = None if is_equation else exact_number(text)
    return Expression(text, unit, name, is_equation, number, letter[1].lower() if letter else "")


def gold_expression(row: Row, limits: Maths) -> Expression:
    """Parses the gold answer. Whether math-verify can parse it too, if it must, is for `maths_pool` to say.

    Raises:
        RowError: the solution is empty, over the limits, several answers, or changed by a word that cannot be read.
    """
    expression = parse_expression(gold_text(row), limits)
    if isinstance(expression, Reason):
        refuse_gold(row, expression, f"one expression of at most {limits.max_characters} characters")
    if expression.unread:
        refuse_gold(row, Reason.UNPARSABLE, f"an expression; {expression.unread!r} cannot be read in one")
    return expression


def unreadable_part(expression: Expression) -> str:
    """Returns the first character, command or word that no mathematical expression has; the whole text without one."""
    rest = _READABLE_COMMAND.sub(" ", expression.text)
    strange = re.search(r"\\[A-Za-z]*|[^\x00-\x7f]|[A-Za-z]{3,}|[?@#&\"`;]", rest)
    return strange[0] if strange else expression.text


def needs_math_verify(expression: Expression) -> bool:
    """Returns whether only math-verify can tell if the expression is valid."""
    return not (expression.number or expression.letter or expression.words)


def math_accuracy(gold: Expression, answer: Expression) -> Verdict | Comparison:
    """Returns 1 if the answer equals the gold answer, else 0; a `Comparison` if that cannot be decided exactly."""
    equal = _equal(gold, answer)
    if equal is not None:
        return Verdict(1.0) if equal else Verdict(0.0, Reason.NOT_EQUAL)
    return _comparison(gold, answer)


def exact_number(text: str) -> ExactNumber | None:
    """Parses an integer, decimal, fraction, mixed number or power-of-ten notation in LaTeX; None for anything else."""
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        sign, *parts = fraction.groups()
        whole, numerator, denominator = (int(group or 0) for group in (parts[:3] if parts[2] else parts[3:]))
        if not denominator:
            return None
        value = whole + Fraction(numerator, denominator)
        return ExactNumber(-value if sign == "-" else value, is_fraction=True)
    number = _NUMBER.fullmatch(text)
    if not number:
        return None
    sign, digits, braced_exponent, exponent = number.groups()
    value = Fraction(f"{sign}{digits.replace(',', '')}") * Fraction(10) ** int(braced_exponent or exponent or 0)
    return ExactNumber(value, is_decimal="." in digits)


def _equal(gold: Expression, answer: Expression) -> bool | None:
    if gold.unit and answer.unit and gold.unit.dimension != answer.unit.dimension:
        return False
    if gold.words:
        return gold.words == answer.words
    if answer.words or (answer.is_equation and gold.number):
        return False
    if len(gold.name) == len(answer.name) == 1 and gold.name != answer.name:
        return False
    if gold.is_equation != answer.is_equation:
        return None
    if gold.text == answer.text and gold.unit == answer.unit:
        return True
    if gold.number and answer.number:
        return _equal_numbers(gold, answer)
    if _MARKED_DIGIT.search(gold.text) or _MARKED_DIGIT.search(answer.text):
        return False
    if gold.letter and answer.letter:
        return gold.letter == answer.letter
    if (
        needs_math_verify(gold) or needs_math_verify(answer) or "e" in (gold.letter, answer.letter)
    ):  # e may be the constant
        return None
    return False


def _equal_numbers(gold: Expression, answer: Expression) -> bool | None:
    """Compares two rational numbers with their units; None for a decimal that may be a fraction, rounded."""
    assert gold.number
    assert answer.number
    first, second = gold.number, answer.number
    sizes = [(Fraction(1), Fraction(1))]
    if gold.unit and answer.unit:
        if gold.unit.irrational != answer.unit.irrational:
            return None
        sizes = [(gold.unit.size, answer.unit.size)]
    elif PERCENT in (gold.unit, answer.unit):  # 50% is 50, and one half
        sizes.append((Fraction(1, 100 if gold.unit else 1), Fraction(1, 100 if answer.unit else 1)))
    pairs = [(first.value * size, second.value * other) for size, other in sizes]
    if any(value == other for value, other in pairs):
        return True
    may_be_rounded = (first.is_decimal and second.is_fraction) or (second.is_decimal and first.is_fraction)
    return None if may_be_rounded and any(abs(a - b) <= _TOLERANCE * abs(a) for a, b in pairs) else False


def _comparison(gold: Expression, answer: Expression) -> Comparison:
    """Returns the texts for math-verify: scaled to base units where both have one, and with a lone percent sign."""
    if gold.is_equation != answer.is_equation:
        first, second = (f"{side.name} = {side.text}" if side.name else side.text for side in (gold, answer))
        return Comparison(first, second)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return Comparison(_scaled(gold.text, gold.unit), _scaled(answer.text, answer.unit))
    if gold.unit != answer.unit and PERCENT in (gold.unit, answer.unit):
        return Comparison(*(rf"{side.text}\%" if side.unit else side.text for side in (gold, answer)))
    return Comparison(gold.text, answer.text)


def _scaled(text: str, unit: Unit) -> str:
    """Returns an expression, or each member of a list, in base units."""
    size = rf"\frac{{{unit.size.numerator}}}{{{unit.size.denominator}}} {unit.irrational}".rstrip()
    return ", ".join(rf"({member}) \cdot {size}" for member in split_list(text))


def _split_units(text: str) -> tuple[str, Unit | None]:
    """Splits an expression, or each member of a list of expressions, into its value and their common unit."""
    value, unit = split_unit(text)
    if exact_number(value):
        return value, unit
    members = split_list(text)
    quantities = [split_unit(member) for member in members]
    units = {unit for _, unit in quantities if unit}
    if len(units) == 1:
        return ", ".join(value for value, _ in quantities), units.pop()
    return text if text.isascii() else ", ".join(members), None


def _split_assignment(text: str) -> tuple[str, str, bool]:
    """Splits `x = 5` into its name and value. Returns (name, value, whether an equals sign is left)."""
    depth, signs = 0, []
    for match in _BRACKET_OR_EQUALS.finditer(text):
        depth += (match[0] in "([{") - (match[0] in ")]}") if len(match[0]) == 1 else 0
        if match[0] in ("=", r"\approx") and not depth:
            signs.append(match)
    if len(signs) != 1:
        return "", text, bool(signs)
    left, right = text[: signs[0].start()].strip(), text[signs[0].end() :].strip()
    for name, value in ((left, right), (right, left)):
        if _NAME.fullmatch(name) and value:
            return name, value, False
    return "", text, True


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
