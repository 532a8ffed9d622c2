r"""The one expression in the text of an answer: alone, introduced by words, or followed by a unit or a noun.

A word that changes the value (minus, half, root, million, not) is never dropped: where it touches the expression,
the text is no expression. All texts are LaTeX as `maths_notation.to_latex` writes it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import NamedTuple

from currreft_jax.rewards.maths_units import split_unit, unit_at
from currreft_jax.structs import Reason


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words around no expression, or around one whose value they change.

    Attributes:
        text: the whole text.
        unread: the word or symbol that makes it no expression; empty for a text of words alone.
    """

    text: str
    unread: str = ""


class _Token(NamedTuple):
    text: str
    start: int
    is_word: bool


_TOKEN = re.compile(
    r"\\(?:begin|end|operatorname|mathbb|mathcal) ?\{[^{}]*\}|\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?"
    r"|[A-Za-z]+(?:'[A-Za-z]+|-(?!(?:sin|cos|tan|log|sqrt)\b)[A-Za-z]{3,})*|[^\W\d_\x00-\x7f]+|\S"
)
_DELIMITER = re.compile(r"(?<!\\)(?:\\[()\[\]]|\$\$?)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_SEGMENT = re.compile(r"(?<!\\)\$((?:[^$]|(?<=\\)\$)+)(?<!\\)\$")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|boldsymbol|bm|underline|textnormal|textrm|mathrm|mathbf|mbox|rm) ?\{ ?([^{}\\]*) ?\}"
)
_FUNCTIONS = re.compile(
    r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg|exp|min|max|mod|"
    r"gcd|lcm"
)
_SHORT_WORDS = re.compile(r"is|of|in|to|at|it|an|on|we|be|so|by|or|if|as|am|no|us|my|he|up|do|th|st|nd|rd")
_CONNECTORS = re.compile("and|or|[和或与及]")
_LEADING_EQUALS = re.compile(r"^(?:=|\\approx) ?")
_BRACKET_OR_SEPARATOR = re.compile(
    r"[(){}\[\]]|(?<![0-9]),|,(?![0-9]{3}(?![0-9]))|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|[和或与及]"
)
_JOINS_BEFORE = re.compile(
    r"(?:[-+/^_\d{]|\\(?:pm|mp|cdot|times|div|sqrt|sin|cos|tan|log|ln)|(?<![A-Za-z])[A-Za-z]) *$"
)
_JOINS_AFTER = re.compile(r" *(?:[-+/^_\d]|\\(?:pm|mp|cdot|times|div)(?![a-z])|\\?%.*\d|[A-Za-z](?![A-Za-z]))")
_FIGURE = re.compile(r"[A-Z]{1,4}|\\(?:angle|triangle|odot)")
_NEGATIONS = re.compile(r"not|no|never|neither|nor|cannot|without|except|unless|impossible|false|wrong|incorrect|.*n't")
_CHINESE_NEGATION = re.compile("不是|不为|不等|不能|并非|没有|无法")
_INTRODUCTIONS = re.compile(
    r"is|are|was|be|equals|equal|becomes|gives|give|get|gets|have|has|had|obtain|obtains|"
    r"yields|measures|costs|takes|contains|shows|totals|makes|needs|weighs|remains|answer|answers|option"
)
_ELLIPSIS = re.compile(r"[0-9] ?\.\.")
_ADDS = re.compile(r"adds?|sums?|comes|amounts|equals?|simplifies|evaluates|reduces")
_SIGN_WORDS = re.compile("minus|plus|negative|half|double|twice|triple|not")
_COMPARES = re.compile(r"more|less|fewer|greater|larger|smaller|higher|lower|rather|other")
_ANSWER_IS = re.compile(r"(?:[ ,]|the |my |so |final |correct )*answer(?: is)?[ :]+|答案[是为:]+", re.IGNORECASE)
_CHINESE_INTRODUCTION = re.compile("[是为得有共于选择即约]")
# Words that change the value of the number that they touch.
_BEFORE = re.compile(
    r"minus|plus|times|over|under|per|half|third|quarter|double|twice|triple|thrice|square|"
    r"squared|cube|cubed|root|roots|power|exponent|log|logarithm|logarithmic|sine|cosine|tangent|"
    r"secant|factorial|inverse|reciprocal|opposite|negation|absolute|modulus|multiple|multiples|"
    r"divisible|factor|by|before|after|either|and|or|both|than|least|most|less|more|fewer|"
    r"greater|larger|smaller|above|below|beyond|almost|nearly|until|from|negative|successor|"
    r"predecessor|complement|supplement|zero|one|two|three|four|five|six|seven|eight|nine|ten|"
    r"eleven|twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|dozen|dozens|hundred|"
    r"thousand|million|billion|trillion|add|adding|subtract|subtracting|besides|but|impossible|"
    r"modulo|mod|base|raised|choose|arcsine|up|(?:eleven|twelf|(?:thir|four|fif|six|seven|eigh|nine)teen)ths?|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|"
    r"hundredth|thousandth|millionth)s?"
)
_AFTER = re.compile(
    r"minus|plus|over|divided|multiplied|squared|cubed|factorial|or|half|halves|quarter|quarters|"
    r"power|root|least|most|versus|th|st|nd|rd|ish|quadrillion|lakh|crore|gross|dozen|dozens|hundred|hundreds|thousand|thousands|million|"
    r"millions|billion|billions|trillion|trillions|zero|one|two|three|four|five|six|seven|eight|"
    r"nine|ten|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|"
    r"millionth)s?"
)
_CHINESE_OPERATION = re.compile(
    "[负减加乘除半百千万亿不非或]|倍(?=.)|根号|平方(?!单位)|立方(?!单位)|次方|次幂|分之|倒数|相反数|绝对值|一半|和|与|至少|至多|超过|大于|小于|多于|少于|以上|以下|以内"
)
_CHINESE_BEFORE = re.compile(
    "[大小多少高低早晚]于|[至最][多少]|超|不足|接近|将近|近$|几乎|零下|第$|双$|[一二两三四五六七八九]个?$"
)
_CHINESE_AFTER = re.compile("[十兆几余多来折]|成(?!员)|个[半多]|的[两二三]倍")
# Words or a unit in brackets at the end: `5 (approximately)`, `60 (cm)`.
_REMARK = re.compile(r"^(.*[0-9}A-Za-z%]) ?[(\[]([^()\[\]{}0-9]+)[)\]]\.?$")


def one_expression(text: str) -> str | Sentence | Reason:
    r"""Returns the only expression of a text, with its unit: boxed, in dollars, in a sentence, or the whole text.

    Returns:
        The expression in LaTeX; a `Sentence` for words without one; `SEVERAL_ANSWERS` for words around several
        expressions, and for several `\boxed`.
    """
    if text.count("\\boxed") > 1:
        return Reason.SEVERAL_ANSWERS
    if _ELLIPSIS.search(text):
        return Sentence(text, "...")
    text = _DELIMITER.sub("$", text)
    if "\\boxed" in text:
        before, content, after = (_DOLLAR.sub("", part) for part in _split_box(text))
        words = list(takewhile(lambda token: token.is_word, reversed(_tokens(before))))
        return _marked(before, content, after, _after_introduction(words[::-1]))
    segments = set(_SEGMENT.findall(text))
    outside, plain = _SEGMENT.sub(" ", text), _DOLLAR.sub("", text)
    if "$" in _SEGMENT.sub("", text).replace("\\$", "") or not any(map(_is_prose, _tokens(outside))):
        return _in_sentence(plain)
    if len(segments) > 1:
        return Reason.SEVERAL_ANSWERS
    if not segments:
        return _in_sentence(text)
    before, content, *after = _SEGMENT.split(text)
    if re.search("[0-9]", "".join(after)):  # `the value of $x$ is 5`
        return _in_sentence(plain)
    return _marked(before, content, "".join(after), _words(before))


def _marked(before: str, content: str, after: str, words: Sequence[str]) -> str | Sentence | Reason:
    """Returns a boxed or delimited expression and the unit after it.

    Args:
        before: text before it.
        content: the expression.
        after: text after it.
        words: those before it that may change its value.
    """
    if _joins(before, after):
        return _in_sentence(f"{before} {content} {after}")
    rest, unit = _after_unit(after.strip())
    unread = _changing_word(words, _BEFORE) or _negation(words) or _change_after(_words_after(rest))
    if unread:
        return Sentence(f"{before}{content}{after}", unread)
    expression = _in_sentence(content)
    return f"{expression} {unit}".strip() if isinstance(expression, str) else expression


def _in_sentence(text: str) -> str | Sentence | Reason:
    """Returns the only expression of a text without marks: words around it are dropped, a unit is kept."""
    text = _without_remark(" ".join(_TEXT.sub(r" \1 ", text).split()).replace(" ^", "^"))
    tokens = _tokens(text)
    if not any(map(_is_prose, tokens)):
        return text
    start = _index(tokens, 0, lambda token: not _is_introducing(token))
    if start == len(tokens):
        return _letter_or_words(text, tokens)
    past_names = _index(tokens, start, lambda token: not (_is_introducing(token) or _is_name(token)))
    start = past_names if past_names < len(tokens) else start
    negation = _negation([token.text for token in tokens[:start]])
    while start and (
        _is_letter(tokens[start - 1]) or _is_name(tokens[start - 1])
    ):  # `the value is x-5`: the name belongs to the expression
        start -= 1
    end = _index(tokens, start, lambda token: _is_prose(token) or _is_connector(token) or _ends_sentence(token, text))
    last = tokens[end].start if end < len(tokens) else len(text)
    expression = _LEADING_EQUALS.sub("", text[tokens[start].start : last]).rstrip(" ,;:.")
    rest, unit = _after_unit(text[last:])
    after = _tokens(rest)
    glued = next((token.text for token in tokens if _is_glued(token, text)), "")
    if not glued and (any(token.text[0].isdigit() for token in after) or len(split_list(expression)) > 1):
        return Reason.SEVERAL_ANSWERS
    words = [token.text for token in after]
    unread = (
        glued
        or negation
        or _changing_word(_after_introduction(tokens[:start]), _BEFORE)
        or _operation_on_name(tokens[:start])
        or next((token.text for token in after if not _is_introducing(token) and token.text not in "()!"), "")
        or _change_after(words)
        or _negation(words)
    )
    return Sentence(text, unread) if unread else f"{expression} {unit}".rstrip()


def _without_remark(text: str) -> str:
    """Drops words in brackets at the end of a text, and the brackets around a unit."""
    remark = _REMARK.match(text)
    if not remark:
        return text
    words = _tokens(remark[2])
    unit = unit_at(remark[2], 0)
    if unit and unit[1] == len(remark[2]) and (len(remark[2]) > 1 or not remark[2].isascii()):
        return remark[1] if split_unit(remark[1])[1] else f"{remark[1]} {remark[2]}"
    return remark[1] if all(map(_is_prose, words)) and not _change_after([word.text for word in words]) else text


def _index(tokens: Sequence[_Token], start: int, condition: Callable[[_Token], bool]) -> int:
    """Returns the index of the first token from `start` on that meets a condition; their number without one."""
    return next((index for index in range(start, len(tokens)) if condition(tokens[index])), len(tokens))


def _letter_or_words(text: str, tokens: Sequence[_Token]) -> str | Sentence:
    """Returns the letter that a sentence without numbers gives as its answer, or the sentence."""
    *before, last = [token for token in tokens if token.text != "."]
    if _is_letter(last) and before and _introduces(before[-1]):
        negation = _negation([token.text for token in before])
        return Sentence(text, negation) if negation else last.text
    introduction = _ANSWER_IS.match(text)
    return Sentence(text[introduction.end() :].strip() if introduction else text)


def _after_unit(text: str) -> tuple[str, str]:
    """Splits off the unit that begins a text: (rest, unit)."""
    unit = unit_at(text, 0)
    if not unit or (text[: unit[1]] == "in" and unit[1] < len(text)):
        return text, ""
    return text[unit[1] :], text[: unit[1]]


def _after_introduction(tokens: Sequence[_Token]) -> list[str]:
    """Returns the words between the last one that introduces an answer and the end."""
    words: list[str] = []
    for token in tokens:
        if _introduces_after(token, words):
            words = []
        elif token.is_word and not token.text.isascii():
            tail = _CHINESE_INTRODUCTION.split(token.text)
            introduced = len(tail) > 1 and not _CHINESE_BEFORE.search(token.text)
            words = ([tail[-1]] if tail[-1] else []) if introduced else [*words, token.text]
        elif token.is_word:
            words = [*words, token.text]
    return words


def _introduces_after(token: _Token, words: Sequence[str]) -> bool:
    """Returns whether a token that follows words introduces an answer: `is`, `add up to`, a colon."""
    if token.text == ":":
        return not words or not _SIGN_WORDS.fullmatch(words[-1].casefold())
    if token.text == "to":
        return any(map(_ADDS.fullmatch, words[-2:]))
    return bool(_INTRODUCTIONS.fullmatch(token.text.casefold()))


def _changing_word(words: Sequence[str], changing: re.Pattern[str]) -> str:
    """Returns a word that changes the value of the number that it touches; empty if there is none."""
    for word in words:
        chinese = _CHINESE_BEFORE.search(word) if changing is _BEFORE else _CHINESE_AFTER.match(word)
        if changing.fullmatch(word.casefold()) or _CHINESE_OPERATION.search(word) or chinese:
            return word
    return ""


def _operation_on_name(tokens: Sequence[_Token]) -> str:
    """Returns a word that makes another value of a name before an answer: `x squared is 60` does not answer 60."""
    for index, token in enumerate(tokens):
        if _is_letter(token) and token.text.islower() and token.text != "a":
            near = [other.text for other in tokens[max(index - 2, 0) : index + 3] if not _is_connector(other)]
            changing = _changing_word(near, _BEFORE) or _changing_word(near, _AFTER)
            if changing:
                return changing
    return ""


def _change_after(words: Sequence[str]) -> str:
    """Returns a word after a number that changes its value; in `5 times` at the end, turns are counted."""
    compared = next(
        (second for first, second in pairwise(words) if second == "than" and _COMPARES.fullmatch(first)), ""
    )
    return _changing_word(words, _AFTER) or compared or ("times" if "times" in words[:-1] else "")


def _negation(words: Sequence[str]) -> str:
    return next(
        (word for word in words if _NEGATIONS.fullmatch(word.casefold()) or _CHINESE_NEGATION.search(word)),
        "",
    )


def _joins(before: str, after: str) -> bool:
    """Returns whether an operator, a number or a name joins an expression that dollars or a box enclose."""
    return bool(_JOINS_BEFORE.search(before) or _JOINS_AFTER.match(after))


def _words_after(text: str) -> list[str]:
    """Returns the words that directly follow an expression: up to four, in its sentence."""
    return [token.text for token in takewhile(lambda token: token.is_word, _tokens(text)[:4])]


def split_list(expression: str) -> list[str]:
    """Splits an expression at the commas, semicolons and conjunctions outside brackets."""
    members, start, depth = [], 0, 0
    for match in _BRACKET_OR_SEPARATOR.finditer(expression):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if not depth and match[0] not in "([{)]}":
            members.append(expression[start : match.start()].strip())
            start = match.end()
    return [*members, expression[start:].strip()]


def _tokens(text: str) -> list[_Token]:
    return [_Token(match[0], match.start(), _is_word(match[0])) for match in _TOKEN.finditer(text)]


def _words(text: str) -> list[str]:
    return _after_introduction(_tokens(text))


def _is_word(text: str) -> bool:
    """Returns whether a run of letters is a word, and no name, product of names or function."""
    if not text[0].isalpha():
        return False
    if not text.isascii():
        return True
    folded = text.casefold()
    if _FUNCTIONS.fullmatch(folded):
        return False
    if text.isupper() and len(text) <= 4:  # a segment, an angle or a triangle
        return text in ("IS", "ARE", "THE")
    return len(text) >= 3 or bool(_SHORT_WORDS.fullmatch(folded))


def _is_glued(token: _Token, text: str) -> bool:
    """Returns whether a word runs into an expression: `ext{13}`."""
    end = token.start + len(token.text)
    return (
        token.is_word
        and token.text.isascii()
        and token.text not in ("in", "units")
        and text[end : end + 1] in set("0123456789{^_")
    )


def _ends_sentence(token: _Token, text: str) -> bool:
    return token.text == "." and text[token.start + 1 : token.start + 2] == " "


def _is_connector(token: _Token) -> bool:
    return bool(_CONNECTORS.fullmatch(token.text.casefold()))


def _is_prose(token: _Token) -> bool:
    return token.is_word and not _is_connector(token)


def _is_letter(token: _Token) -> bool:
    return len(token.text) == 1 and token.text.isascii() and token.text.isalpha()


def _is_name(token: _Token) -> bool:
    """Returns whether a token names a figure: `AB`, or the sign of an angle before its name."""
    return bool(_FIGURE.fullmatch(token.text)) and not token.is_word


def _introduces(token: _Token) -> bool:
    """Returns whether an answer follows directly."""
    chinese = token.is_word and not token.text.isascii() and _CHINESE_INTRODUCTION.fullmatch(token.text[-1])
    return bool(chinese or token.text == ":" or _INTRODUCTIONS.fullmatch(token.text.casefold()))


def _is_introducing(token: _Token) -> bool:
    return token.is_word or _is_letter(token) or token.text in (",", ":", ";", ".", '"', "'", "?", "!")


def _split_box(text: str) -> tuple[str, str, str]:
    r"""Splits a text at its only `\boxed{…}`; a brace that never closes encloses the rest."""
    before, _, rest = text.partition("\\boxed")
    rest = rest.lstrip()
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return (before, rest[1:end], rest[end + 1 :]) if end else (before, rest, "")
    return before, rest.removeprefix("{"), ""
