"""Units of quantities, as symbols and as English and Chinese words."""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of one quantity, or of a product or quotient of several.

    Attributes:
        dimension: pairs (quantity, exponent), sorted; units of one dimension convert.
        size: the unit in base units: metres, grams, seconds, degrees, dollars, ….
        irrational: further factor of the size, in LaTeX; empty without one.
    """

    dimension: tuple[tuple[str, int], ...]
    size: Fraction
    irrational: str = ""


# Quantity, exponent, size, and names separated by `|`, in the LaTeX that `maths_notation.to_latex` writes.
_TABLE = [
    ("length", 1, "1/1000000000", "nm|nanometer|nanometre|纳米"),
    ("length", 1, "1/1000000", r"\mu m|micrometer|micrometre|micron|微米"),
    ("length", 1, "1/1000", "mm|millimeter|millimetre|毫米"),
    ("length", 1, "1/100", "cm|centimeter|centimetre|厘米|公分"),
    ("length", 1, "1/10", "dm|decimeter|decimetre|分米"),
    ("length", 1, "1", "m|meter|metre|米"),
    ("length", 1, "1000", "km|kilometer|kilometre|千米|公里"),
    ("length", 1, "500", "里"),
    ("length", 1, "1852", "nmi|海里"),
    ("length", 1, "0.0254", "in|inch|inches|英寸"),
    ("length", 1, "0.3048", "ft|foot|feet|英尺"),
    ("length", 1, "0.9144", "yd|yard"),
    ("length", 1, "1609.344", "mi|mile|英里"),
    ("length", 2, "10000", "ha|hectare|公顷"),
    ("length", 2, "4046.8564224", "acre"),
    ("length", 2, "2000/3", "亩"),
    ("length", 3, "1/1000000", "ml|mL|milliliter|millilitre|毫升"),
    ("length", 3, "1/1000", "L|liter|litre|升"),
    ("mass", 1, "1/1000", "mg|milligram|毫克"),
    ("mass", 1, "1", "g|gram|克"),
    ("mass", 1, "1000", "kg|kilogram|kilo|千克|公斤"),
    ("mass", 1, "500", "斤"),
    ("mass", 1, "1000000", "tonne|ton|吨"),
    ("mass", 1, "28.349523125", "oz|ounce"),
    ("mass", 1, "453.59237", "lb|lbs|pound"),
    ("time", 1, "1/1000", "ms|millisecond|毫秒"),
    ("time", 1, "1", "s|sec|second|秒|秒钟"),
    ("time", 1, "60", "min|minute|分钟"),
    ("time", 1, "3600", "h|hr|hour|小时|个小时|时"),
    ("time", 1, "86400", "day|天"),
    ("time", 1, "604800", "week|周|星期|个星期"),
    ("month", 1, "1", "month|个月"),
    ("month", 1, "12", "year|年"),
    ("angle", 1, "1", r"^\circ|\degree|degree|deg|度"),
    ("Celsius", 1, "1", r"^\circ C|degree Celsius|degrees Celsius|摄氏度"),
    ("Fahrenheit", 1, "1", r"^\circ F|degree Fahrenheit|degrees Fahrenheit|华氏度"),
    ("dollar", 1, "1", r"\$|USD|dollar|美元"),
    ("dollar", 1, "1/100", "cent|美分"),
    ("yuan", 1, "1", r"\yen|RMB|CNY|yuan|元|块|块钱|人民币"),
    ("yuan", 1, "1/10", "角"),
    ("euro", 1, "1", "€|EUR|euro|欧元"),
    ("sterling", 1, "1", "£|GBP|英镑"),
    ("percent", 1, "1", r"\%|%|percent|per cent"),
]
_NAMES = {
    name + plural: Unit(((quantity, exponent),), Fraction(size))
    for quantity, exponent, size, names in _TABLE
    for name in names.split("|")
    for plural in (["", "s"] if re.fullmatch("[a-z]{3,}", name) else [""])
} | {
    "mph": Unit((("length", 1), ("time", -1)), Fraction("1609.344") / 3600),
    "kph": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
    **dict.fromkeys(("rad", "radian", "radians", "弧度"), Unit((("angle", 1),), Fraction(180), r"\frac{1}{\pi}")),
}
# Without a space these are variables: `4s` may be four sides.
_APART = {"s", "g", "h", "L"}
_COMPACT_NAMES = {
    name.replace(" ", ""): unit for name, unit in _NAMES.items()
}  # `_NAME` takes them without spaces, too
PERCENT = _NAMES["%"]

_NAME = "|".join(
    rf"{re.escape(name).replace(re.escape(' '), ' ?')}{'(?![A-Za-z])' if name[-1] < '{' and name[-1].isalpha() else ''}"
    for name in sorted(_NAMES, key=len, reverse=True)
)
_FACTOR = re.compile(
    r"(?:(?P<square>square |sq\.? ?|平方)|(?P<cubic>cubic |cu\.? ?|立方))?"
    rf"(?P<name>{_NAME})"
    r"(?: ?\^ ?\{? ?(?P<power>-?[123]) ?\}?|(?<=[a-z])(?P<digit>[23])(?![\d.]))?"
)
_QUOTIENT, _PRODUCT = re.compile(r" ?/ ?| per | ?每 ?"), re.compile(r" ?\\cdot ")
_BOUNDARY = re.compile(r"(?<=[\w)}\]!'])( ?)(?=[A-Za-z\\^%€£]|[^\x00-\x7f])")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")


def unit_at(text: str, start: int) -> tuple[Unit, int] | None:
    """Returns the unit at an index of a LaTeX text, and the index after it; None if there is none."""
    unit, end = _factor_at(text, start) or (None, start)
    if not unit:
        return None
    for separator, sign in ((_PRODUCT, 1), (_QUOTIENT, -1)):
        match = separator.match(text, end)
        factor = _factor_at(text, match.end()) if match else None
        if factor:
            unit, end = _multiply(unit, factor[0], sign), factor[1]
    return unit, end


def split_unit(text: str) -> tuple[str, Unit | None]:
    """Splits a quantity in LaTeX into its value and the longest unit that ends it; None without one."""
    for boundary in _BOUNDARY.finditer(text):
        unit = unit_at(text, boundary.end())
        value, symbol = text[: boundary.start()], text[boundary.end() :]
        if unit and unit[1] == len(text) and _may_follow(value, symbol, apart=bool(boundary[1])):
            return value, unit[0]
    return text, None


def _may_follow(value: str, symbol: str, *, apart: bool) -> bool:
    """Returns whether a symbol is a unit of the value before it, and not a variable or a part of one."""
    letters = re.match("[A-Za-z]*", symbol)
    name = letters[0] if letters else ""
    if name and value[-1].isalpha() and not apart:
        return False
    if len(name) == 1 and re.search("[A-Za-z]", _LATEX_COMMAND.sub(" ", value)):
        return False
    return apart or name not in _APART


def _factor_at(text: str, start: int) -> tuple[Unit, int] | None:
    match = _FACTOR.match(text, start)
    if not match:
        return None
    unit = _COMPACT_NAMES[match["name"].replace(" ", "")]
    power = int(match["power"] or match["digit"] or (2 if match["square"] else 3 if match["cubic"] else 1))
    dimension = tuple((quantity, exponent * power) for quantity, exponent in unit.dimension)
    return Unit(dimension, unit.size**power, unit.irrational), match.end()


def _multiply(first: Unit, second: Unit, sign: int) -> Unit:
    exponents = Counter(dict(first.dimension))
    for quantity, exponent in second.dimension:
        exponents[quantity] += sign * exponent
    return Unit(
        tuple(sorted((quantity, exponent) for quantity, exponent in exponents.items() if exponent)),
        first.size * second.size**sign,
        first.irrational or second.irrational,
    )
