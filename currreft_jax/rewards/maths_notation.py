r"""Mathematical notation in LaTeX, as math-verify parses it: `√3` and `sqrt(3)` become `\sqrt{3}`."""

import re
import unicodedata

# Characters that NFKC would change: `²` would become `2`, and `½` would join the number before it.
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+")
_VULGAR_FRACTION = re.compile("[¼½¾⅐-⅞]")

# A space ends each command: a letter may follow.
_GREEK = {
    chr(code): rf"\{unicodedata.name(chr(code)).rsplit(' ', 1)[1].lower().replace('lamda', 'lambda')} "
    for code in (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA))
    if chr(code) != "ο"
}
_COMMANDS = _GREEK | {
    **{"ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta ", "Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta "},
    **{"Λ": r"\Lambda ", "Ξ": r"\Xi ", "Π": r"\Pi ", "Σ": r"\Sigma ", "Φ": r"\Phi ", "Ψ": r"\Psi ", "Ω": r"\Omega "},
    **{"·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "×": r"\times ", "✕": r"\times ", "÷": r"\div "},
    **{"±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ "},
    **{"≤": r"\leq ", "⩽": r"\leq ", "≦": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ", "≧": r"\geq ", "≠": r"\neq "},
    **{"≈": r"\approx ", "≅": r"\cong ", "≡": r"\equiv ", "∽": r"\sim ", "∼": r"\sim "},
    **{"∠": r"\angle ", "△": r"\triangle ", "⊥": r"\perp ", "∥": r"\parallel ", "‖": r"\parallel "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R} "},
    **{"→": r"\to ", "⇒": r"\Rightarrow ", "¬": r"\neg "},
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/"},
    **{"′": "'", "’": "'", "‘": "'", "″": "''", "“": '"', "”": '"', "。": ".", "、": ", ", "∣": "|"},
    **{
        "∶": ":",
        "⊙": r"\odot ",
        "∴": "",
        "…": "...",
        "，": ", ",
        "；": "; ",
        "且": " and ",
        "【": "[",
        "】": "]",
        "〔": "(",
        "〕": ")",
        "「": '"',
        "」": '"',
        "¥": r"\yen ",
        "￥": r"\yen ",
    },
    **{"\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": ""},
}
_TRANSLATED = str.maketrans(_COMMANDS)

_PLAIN = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 .,:;!?$%/+=()-]*")  # without marks of Markdown or LaTeX
_MARKUP = re.compile(r"</?(?:b|i|u|em|strong)>|^\s*(?:#+|-)\s+(?=[A-Za-z*])")
_EMPHASIS = re.compile(r"(?<![0-9A-Za-z)}\]*_])(\*\*|\*|__|_) ?([^*_]+?) ?\1(?![0-9A-Za-z({\[\\*_])")
_ESCAPED_TWICE = re.compile(
    r"\\(?=\\(?:[dt]?frac|sqrt|left|right|text|boxed|pi|cdot|times|pm|circ|angle|infty|theta|alpha|beta)(?![A-Za-z]))"
)
_PANDOC_SUPERSCRIPT = re.compile(r"\^(-?\w{1,3})\^")
_GROUP_SPACE = re.compile(r"(?<=\d)(?:,(?:\\!)+ ?|(?:\\[,!:; ]|~|[\u2009\u202f\u00a0])+|\{,\})(?=\d{3}(?!\d))")
_DIGITS = r"(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
_MONEY = re.compile(rf"(\\\$|£|€|\\yen) ?({_DIGITS}(?: \\cdot 10\^\{{[0-9]+\}})?)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_LONE_DOLLAR = re.compile(r"(?<!\\)\$(?=[ \d.])")
_SCIENTIFIC = re.compile(r"(?<=[0-9.])[eE]([+-]?[0-9]{1,3})(?!\w|\.[0-9])")
_NEGATIVE = re.compile(r"\b(?:minus|negative) (?=[\d.\\($])|负(?=[\d.\\(])", re.IGNORECASE)
_SCALE = re.compile(
    r"(?<=[0-9}]) ?(hundred|thousand|million|billion|trillion|百万|千万|万|亿|百(?!分)|千(?![米克瓦卡]))s?(?![A-Za-z])",
    re.IGNORECASE,
)
_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
    "百万": 6,
    "千万": 7,
    "万": 4,
    "亿": 8,
    "百": 2,
    "千": 3,
}
_DOZEN = re.compile(r"(?<=[0-9}]) ?(?:dozens?)(?![A-Za-z])", re.IGNORECASE)
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|dot|bar) ?\{ ?([0-9]{1,9}) ?\}")
_TIMES_POWER = re.compile(r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)")
_CHINESE_PERCENT = re.compile(rf"百分之 ?({_DIGITS})")
_DEGREES_AND_MINUTES = re.compile(r"(?<![0-9.])([0-9]{1,4}) ?\^\\circ ?([0-9]{1,2}) ?'(?!')")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:! ]|quad\b|qquad\b)|~")
_NEGATIVE_POWER = re.compile(r"\^ ?(-[0-9]+)")
_CIRCLE = re.compile(r"(?:\{\})? ?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-z]))")
_PI = re.compile(r"(?<![A-Za-z\\])(?:pi|Pi|PI)(?![A-Za-z])")
_FUNCTION = re.compile(r"(?<![A-Za-z\\])((?:arc)?(?:sin|cos|tan)|cot|csc|log|ln|lg)(?![a-z])")
_MAX_ROOTS = 32
_ROOT = re.compile(r"[√∛∜]|(?<![A-Za-z\\])(?:[Ss]qrt|cbrt)(?![A-Za-z])")
_ROOT_COMMANDS = {"√": r"\sqrt", "sqrt": r"\sqrt", "∛": r"\sqrt[3]", "cbrt": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ATOM = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z]")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def to_latex(text: str) -> str:
    """Rewrites Unicode symbols, full-width forms, Markdown and calculator notation as LaTeX on one line.

    Digits that spaces or braces group (`10{,}080`) become one number.
    """
    if not _PLAIN.fullmatch(text):
        text = _marks(text)
    text = _FUNCTION.sub(r"\\\1 ", _PI.sub(r"\\pi ", text))
    return _quantities(" ".join(_roots(text).split()))


def _marks(text: str) -> str:
    """Rewrites Markdown, spacing commands and superscripts."""
    text = _EMPHASIS.sub(r"\2", _MARKUP.sub("", text))
    if not text.isascii():
        text = _symbols(text)
    text = _EMPHASIS.sub(r"\2", _GROUP_SPACE.sub("", _ESCAPED_TWICE.sub("", text))).replace("`", "")
    text = text.replace("**", "^").replace("*", r" \cdot ")
    text = _SPACE.sub(" ", _PANDOC_SUPERSCRIPT.sub(r"^{\1}", text))
    return _CIRCLE.sub(r"^\\circ ", _NEGATIVE_POWER.sub(r"^{\1}", text))


def _repeating_decimal(match: re.Match[str]) -> str:
    whole, once, repeated = match.groups()
    denominator = 10 ** len(once) * (10 ** len(repeated) - 1)
    numerator = int(f"{whole}{once}{repeated}") - int(f"{whole}{once}" or 0)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _symbols(text: str) -> str:
    """Rewrites Unicode symbols and full-width forms."""
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", _GROUP_SPACE.sub("", text))
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR_FRACTION.sub(_vulgar_fraction, text)
    return unicodedata.normalize("NFKC", text.translate(_TRANSLATED)).translate(_TRANSLATED)


def _quantities(text: str) -> str:
    """Rewrites signs, scales, percentages, money and degrees in words or calculator notation."""
    if len(_DOLLAR.findall(text)) == 1:
        text = _LONE_DOLLAR.sub(r"\\$", text)
    text = _SCALE.sub(lambda match: rf" \cdot 10^{{{_SCALES[match[1].casefold()]}}}", text)
    text = _MONEY.sub(r"\2 \1", text)
    text = _REPEATING.sub(_repeating_decimal, text)
    text = _TIMES_POWER.sub(r" \\times ", text)
    text = _CHINESE_PERCENT.sub(r"\1%", text)
    text = _DEGREES_AND_MINUTES.sub(lambda match: rf"\frac{{{60 * int(match[1]) + int(match[2])}}}{{60}}^\circ", text)
    text = _NEGATIVE.sub("-", _SCIENTIFIC.sub(r" \\cdot 10^{\1}", text))
    return _DOZEN.sub(r" \\cdot 12", text)


def _vulgar_fraction(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _roots(text: str) -> str:
    """Rewrites every root sign of an expression; the last first, so that the operand of each is LaTeX already."""
    signs = list(_ROOT.finditer(text))
    for match in reversed(signs if len(signs) <= _MAX_ROOTS else []):
        start = match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip())
        end = _operand_end(text, start)
        operand = text[start:end]
        if operand.startswith("{") and operand.endswith("}"):
            operand = operand[1:-1]
        text = f"{text[: match.start()]}{_ROOT_COMMANDS[match[0].lower()]}{{{operand}}}{text[end:]}"
    return text


def _operand_end(text: str, start: int) -> int:
    r"""Returns where the operand of a root ends: a group, a number, a letter, or a command with its arguments."""
    if text[start : start + 1] in _CLOSING:
        return _group_end(text, start)
    atom = _ATOM.match(text, start)
    if not atom:
        return start
    end = atom.end()
    while atom[0].startswith("\\") and text[end : end + 1] in ("{", "["):
        end = _group_end(text, end)
    return end


def _group_end(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`; the end of the text without one."""
    opening, closing = text[start], _CLOSING[text[start]]
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == opening) - (text[index] == closing)
        if not depth:
            return index + 1
    return len(text)
