import pytest
from scipy import constants

from currreft_jax.config import Maths, Rewards
from currreft_jax.rewards import RowError, check_rows
from currreft_jax.rewards.maths import Comparison, Expression, gold_expression, math_accuracy, parse_expression
from currreft_jax.rewards.maths_units import unit_at
from currreft_jax.structs import Reason
from tests.rewards.helpers import accuracy, make_row

R = Reason

# (case, solution, answer, value, reason): decided without math-verify
EXACT = [
    ("integer", "42", "42", 1, None),
    ("official: digits glued to the tag", "<answer>4</answer>", "4", 1, None),
    ("leading zeros", "7", "007", 1, None),
    ("thousands", "1234567", "1,234,567", 1, None),
    ("plus", "3", "+3", 1, None),
    ("minus sign", "-3", "−3", 1, None),
    ("decimal of an integer", "5", "5.0", 1, None),
    ("no zero before the point", "0.5", ".5", 1, None),
    ("trailing zeros", "3.5", "3.500", 1, None),
    ("fraction", "1/2", "2/4", 1, None),
    ("fraction and decimal", "3/8", "0.375", 1, None),
    ("LaTeX fraction", r"\frac{3}{4}", "0.75", 1, None),
    ("negative LaTeX fraction", r"-\dfrac{1}{2}", "-1/2", 1, None),
    ("fraction of an integer", "7", "14/2", 1, None),
    ("percentages", "50%", "50.0%", 1, None),
    ("escaped percentage", "25%", r"25\%", 1, None),
    ("final full stop", "12", "12.", 1, None),
    ("dollars", "12", "$12$", 1, None),
    ("round brackets", "12", r"\(12\)", 1, None),
    ("square brackets", "12", r"\[12\]", 1, None),
    ("box", "12", r"\boxed{12}", 1, None),
    ("currency", "12", "$12", 1, None),
    ("degree sign", "30", "30°", 1, None),
    ("degrees", r"30^\circ", "30°", 1, None),
    ("degrees in braces", r"30^{\circ}", "30", 1, None),
    ("degrees in words", "30°", "30 degrees", 1, None),
    ("unit", "12", "12 cm", 1, None),
    ("unit in text", r"12\text{ cm}", "12cm", 1, None),
    ("area", "12", "12 cm^2", 1, None),
    ("area, two ways", "12 cm²", r"12\text{ cm}^{2}", 1, None),
    ("sentence around one number", "12", "The area is 12.", 1, None),
    ("sentence around one formula", "12", "The area is $12$ in all", 1, None),
    ("noun", "5", "5 apples", 1, None),
    ("option letter", "B", "B", 1, None),
    ("option in brackets", "B", "(b)", 1, None),
    ("gold option in brackets", "(B)", "B.", 1, None),
    ("word", "blue", "Blue", 1, None),
    ("word in text", "parallel", r"\text{parallel}", 1, None),
    ("the same LaTeX", r"2\sqrt{3}", r"$2\sqrt{3}$", 1, None),
    ("another integer", "42", "43", 0, R.NOT_EQUAL),
    ("official: 1 is in 21", "21", "1", 0, R.NOT_EQUAL),
    ("official: 21 holds 1", "1", "21", 0, R.NOT_EQUAL),
    ("official evaluation: 4 is in 14", "4", "14", 0, R.NOT_EQUAL),
    ("sign", "-3", "3", 0, R.NOT_EQUAL),
    ("next decimal", "0.5", "0.51", 0, R.NOT_EQUAL),
    ("rounded too far", "1/3", "0.33", 0, R.NOT_EQUAL),
    ("fraction upside down", "2/3", "3/2", 0, R.NOT_EQUAL),
    ("other percentage", "50%", "5%", 0, R.NOT_EQUAL),
    ("twenty digits", "12345678901234567890", "12345678901234567891", 0, R.NOT_EQUAL),
    ("another letter", "B", "C", 0, R.NOT_EQUAL),
    ("official: two missing letters are equal", "12", "no idea", 0, R.NOT_EQUAL),
    ("anagram", "blue", "lube", 0, R.NOT_EQUAL),
    ("word for a number", "5", "five", 0, R.NOT_EQUAL),
    ("word for a letter", "B", "blue", 0, R.NOT_EQUAL),
    ("number for a word", "blue", "5", 0, R.NOT_EQUAL),
    ("part of a word", "isosceles triangle", "triangle", 0, R.NOT_EQUAL),
    ("letter of the gold word", "blue", "b", 0, R.NOT_EQUAL),
    ("two numbers in a sentence", "12", "The sides are 5 and 12", 0, R.SEVERAL_ANSWERS),
    ("two formulas in a sentence", "12", "either $5$ or maybe $12$", 0, R.SEVERAL_ANSWERS),
    ("two boxes", "12", r"\boxed{5} \boxed{12}", 0, R.SEVERAL_ANSWERS),
    ("official: the empty answer is in everything", "12", "", 0, R.EMPTY_ANSWER),
    ("only dollars", "12", "$$", 0, R.EMPTY_ANSWER),
    ("only a full stop", "12", ".", 0, R.EMPTY_ANSWER),
    ("a megabyte of digits", "7", "7" * 1_000_000, 0, R.TIMEOUT),
    ("deep nesting", "7", "(" * 200 + "7" + ")" * 200, 0, R.TIMEOUT),
]

# (case, solution, answer, value, reason): decided by math-verify
PARSED = [
    ("root", r"2\sqrt{3}", r"\sqrt{12}", 1, None),
    ("root without braces", r"\sqrt{2}", r"$\sqrt2$", 1, None),
    ("root and unit", r"8\sqrt{3}", r"8\sqrt{3} cm", 1, None),
    ("order of terms", "x^2+1", "1+x^2", 1, None),
    ("power written by stars", "x^2", "x**2", 1, None),
    ("assignment", "5", "x=5", 1, None),
    ("set, any order", "3, 4", "4 and 3", 1, None),
    ("ratio", "2:3", "10:15", 1, None),
    ("mixed number", "1.5", r"1\frac{1}{2}", 1, None),
    ("percentage and fraction", "50%", "1/2", 1, None),
    ("six decimals of a third", "1/3", "0.333333", 1, None),
    ("interval", "1<x<2", "(1,2)", 1, None),
    ("pi", r"2\pi", "2π", 1, None),
    ("power", "8", "2^3", 1, None),
    ("root missing", r"2\sqrt{3}", "2", 0, R.NOT_EQUAL),
    ("order of a point", "(3,4)", "(4,3)", 0, R.NOT_EQUAL),
    ("hedged", "4", "3 or 4", 0, R.NOT_EQUAL),
    ("listed", "4", "1, 2, 3, 4", 0, R.NOT_EQUAL),
    ("both variables", "4", "x=3, y=4", 0, R.NOT_EQUAL),
    ("letters for a number", "5", "ab", 0, R.NOT_EQUAL),
    ("other unit of area", "12 cm^2", "12 m^2", 0, R.NOT_EQUAL),
    ("gibberish with the number in it", r"2\sqrt{3}", r"2\foo{", 0, R.UNPARSABLE),
    ("marks", r"\sqrt{2}", "?!", 0, R.UNPARSABLE),
]


def table(cases):
    rows = [(make_row("open", "math", case[1]), *case[2:]) for case in cases]
    return pytest.mark.parametrize(("row", "answer", "value", "reason"), rows, ids=[case[0] for case in cases])


@table(EXACT)
def test_decided_exactly(row, answer, value, reason):
    limits = Maths()
    parsed = parse_expression(answer, limits)
    assert isinstance(parsed, Reason) or not isinstance(math_accuracy(gold_expression(row, limits), parsed), Comparison)
    assert accuracy(row, answer) == (value, reason)


@table(PARSED)
def test_decided_by_math_verify(row, answer, value, reason, pool):
    assert accuracy(row, answer, pool=pool) == (value, reason)


def test_a_pool_is_opened_if_none_is_given():
    assert accuracy(make_row("open", "math", r"\sqrt{8}"), r"2\sqrt{2}", Rewards(maths=Maths(workers=1))) == (1, None)


def test_check_rows_finds_gold_answers_that_cannot_be_parsed(pool):
    solutions = ["4", "B", "blue", r"\sqrt{2}", r"\foo{", "1/0", "1" * 2000, "5 apples and 3 pears", "9^{9^{9^{9}}}!"]
    rows = [make_row("open", "math", solution, name=f"row {n}") for n, solution in enumerate(solutions)]
    errors = check_rows(rows, pool=pool)
    assert [error.row.id for error in errors] == ["row 6", "row 7", "row 4", "row 5", "row 8"]
    assert "at most 1000 characters" in errors[0].problem
    assert "several_answers" in errors[1].problem
    assert "rewrite it as LaTeX" in errors[2].problem


def test_scoring_refuses_a_gold_answer_that_cannot_be_parsed(pool):
    with pytest.raises(RowError, match=r"row r: .* math-verify cannot read"):
        accuracy(make_row("open", "math", r"\foo{"), r"\sqrt{2}", pool=pool)


@pytest.mark.parametrize(
    ("answer", "text", "dimension"),
    [
        ("5 cm", "5", ("length", 1)),
        (r"5\,\text{m}^2", "5", ("length", 2)),
        (r"3\sqrt{2} \mathrm{ km}", r"3\sqrt{2}", ("length", 1)),
        ("60^\\circ", "60", ("angle", 1)),
    ],
)
def test_units_are_split_off(answer, text, dimension):
    parsed = parse_expression(answer, Maths())
    assert isinstance(parsed, Expression)
    assert parsed.unit
    assert (parsed.text, *parsed.unit.dimension) == (text, dimension)


# In metres, their powers, grams, seconds and degrees.
SIZES = {
    **{
        "nm": constants.nano,
        r"\mu m": constants.micro,
        "mm": constants.milli,
        "cm": constants.centi,
        "km": constants.kilo,
    },
    **{"in": constants.inch, "ft": constants.foot, "yd": constants.yard, "mi": constants.mile},
    **{"nmi": constants.nautical_mile, "ha": constants.hectare, "acre": constants.acre, "L": constants.liter},
    **{"ml": constants.milli * constants.liter, "mph": constants.mph, "kph": constants.kmh},
    **{"kg": constants.kilo, "tonne": constants.mega, "oz": 1000 * constants.oz, "lb": 1000 * constants.pound},
    **{"min": constants.minute, "h": constants.hour, "day": constants.day, "week": constants.week},
    **{"里": 500, "斤": 500, "亩": 60 * (10 / 3) ** 2, "公分": 0.01, "海里": 1852},  # a mu is 60 square zhang
    **{"square feet": constants.foot**2, "cubic yard": constants.yard**3, "km^2": 1e6, "平方厘米": 1e-4},
}


@pytest.mark.parametrize("name", SIZES)
def test_units_have_the_sizes_that_scipy_gives(name):
    unit, end = unit_at(name, 0) or (None, 0)
    assert unit and end == len(name) and float(unit.size) == pytest.approx(SIZES[name], rel=1e-12)
