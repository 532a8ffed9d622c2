import pytest

from currreft_jax.config import PartialCredit, Rewards
from currreft_jax.rewards import RowError, check_rows
from currreft_jax.structs import Reason
from tests.rewards.helpers import accuracy, make_row

R = Reason

# (case, solution, answer, value, reason); equation 2
BINARY = [
    ("yes", "yes", "yes", 1, None),
    ("no", "no", "no", 1, None),
    ("case", "yes", "YES", 1, None),
    ("gold's case", "No", "no", 1, None),
    ("final full stop", "yes", "Yes.", 1, None),
    ("spaces", "no", " \n no \t", 1, None),
    ("space before the full stop", "no", "no .", 1, None),
    ("flipped", "yes", "no", 0, R.NOT_EQUAL),
    ("flipped back", "no", "yes", 0, R.NOT_EQUAL),
    ("official: yes before no", "yes", "No, that is correct", 0, R.NOT_YES_OR_NO),
    ("official: both words are yes", "yes", "yes and no", 0, R.NOT_YES_OR_NO),
    ("both the other way", "no", "no or yes", 0, R.NOT_YES_OR_NO),
    ("official: true is yes", "yes", "true", 0, R.NOT_YES_OR_NO),
    ("official: correct is yes", "yes", "correct", 0, R.NOT_YES_OR_NO),
    ("official: incorrect is no", "no", "incorrect", 0, R.NOT_YES_OR_NO),
    ("a sentence", "yes", "yes, it does", 0, R.NOT_YES_OR_NO),
    ("twice", "yes", "yes yes", 0, R.NOT_YES_OR_NO),
    ("a letter", "yes", "y", 0, R.NOT_YES_OR_NO),
    ("no is in nose", "no", "nose", 0, R.NOT_YES_OR_NO),
    ("other mark", "yes", "yes!", 0, R.NOT_YES_OR_NO),
    ("two full stops", "yes", "yes..", 0, R.NOT_YES_OR_NO),
    ("only a full stop", "yes", ".", 0, R.NOT_YES_OR_NO),
    ("empty", "no", "", 0, R.EMPTY_ANSWER),
    ("blank", "no", "  \n", 0, R.EMPTY_ANSWER),
]

# (case, solution, answer, value, reason); equation 3, four options
SINGLE = [
    ("the letter", "B", "B", 1, None),
    ("in brackets", "B", "(B)", 1, None),
    ("half a bracket", "B", "B)", 1, None),
    ("full stop", "B", "B.", 1, None),
    ("lower case", "B", "b", 1, None),
    ("quoted", "B", '"B"', 1, None),
    ("gold in brackets", "(B)", "B", 1, None),
    ("named twice", "B", "B, B", 1, None),
    ("another", "B", "C", 0, R.NOT_EQUAL),
    ("two", "B", "A, B", 0, R.SEVERAL_OPTIONS),
    ("two without separator", "B", "AB", 0, R.SEVERAL_OPTIONS),
    ("every one", "B", "A B C D", 0, R.SEVERAL_OPTIONS),
    ("not offered", "B", "E", 0, R.UNKNOWN_OPTION),
    ("official: F+ is read as nothing", "B", "F", 0, R.UNKNOWN_OPTION),
    ("official: the article is option A", "A", "a dog", 0, R.NOT_LETTERS),
    ("a sentence", "B", "The answer is B", 0, R.NOT_LETTERS),
    ("letter and text", "B", "B: a dog", 0, R.NOT_LETTERS),
    ("letter and word", "B", "B dog", 0, R.NOT_LETTERS),
    ("number", "B", "2", 0, R.NOT_LETTERS),
    ("a word of letters", "B", "cab", 0, R.NOT_LETTERS),
    ("a letter twice in a run", "B", "BB", 0, R.NOT_LETTERS),
    ("Greek capital", "B", "Β", 0, R.NOT_LETTERS),
    ("only marks", "B", "().", 0, R.NOT_LETTERS),
    ("official: '' == ''", "B", "", 0, R.EMPTY_ANSWER),
]

# (case, solution, answer, value, reason); equation 4, five options
MULTIPLE = [
    ("all of them", "A, C", "A, C", 1, None),
    ("official: order matters", "A,C", "C,A", 1, None),
    ("other separators", "A,C", "C; A", 1, None),
    ("lines", "A,C", "A\nC", 1, None),
    ("no separator", "A,C", "AC", 1, None),
    ("Chinese comma", "A,C", "A、C", 1, None),
    ("brackets", "A,C", "(A) (C)", 1, None),
    ("JSON", "A,C", '["A", "C"]', 1, None),
    ("lower case", "A,C", "a, c", 1, None),
    ("one gold, one answer", "D", "D", 1, None),
    ("official: no partial credit", "A,C", "A", 0.2, R.NOT_EQUAL),
    ("two of three", "A,B,D", "A, D", 0.2, R.NOT_EQUAL),
    ("one of three", "A,B,D", "B", 0.2, R.NOT_EQUAL),
    ("one right, one wrong", "A,C", "A, B", 0, R.NOT_EQUAL),
    ("superset", "A,C", "A, B, C", 0, R.NOT_EQUAL),
    ("every one", "A,C", "A B C D E", 0, R.NOT_EQUAL),
    ("none right", "A,C", "B, D", 0, R.NOT_EQUAL),
    ("wrong for one gold", "D", "A, D", 0, R.NOT_EQUAL),
    ("right ones and one not offered", "A,C", "A, C, F", 0, R.UNKNOWN_OPTION),
    ("and", "A,C", "A and C", 0, R.NOT_LETTERS),
    ("letters in a word", "A,C", "ace", 0, R.NOT_LETTERS),
    ("empty", "A,C", "", 0, R.EMPTY_ANSWER),
]


def table(cases, options, multiple, kind):
    rows = [(make_row(kind, "math", case[1], options, multiple), *case[2:]) for case in cases]
    return pytest.mark.parametrize(("row", "answer", "value", "reason"), rows, ids=[case[0] for case in cases])


@table(BINARY, 0, False, "judge")
def test_binary(row, answer, value, reason):
    assert accuracy(row, answer) == (value, reason)


@table(SINGLE, 4, False, "choice")
def test_single_choice(row, answer, value, reason):
    assert accuracy(row, answer) == (value, reason)


@table(MULTIPLE, 5, True, "choice")
def test_multiple_choice(row, answer, value, reason):
    assert accuracy(row, answer) == (value, reason)


@pytest.mark.parametrize(
    ("credit", "incomplete", "mixed"),
    [(PartialCredit.SUBSET, 0.3, 0), (PartialCredit.OVERLAP, 0.3, 0.3), (PartialCredit.NONE, 0, 0)],
)
def test_the_readings_of_equation_4(credit, incomplete, mixed):
    settings = Rewards(partial_credit=credit, partial_value=0.3)
    row = make_row("choice", "classify", "A, C", 4, True)
    answers = {"A, C": 1, "A": incomplete, "A, B": mixed, "A, B, C": mixed, "B": 0}
    assert {answer: accuracy(row, answer, settings)[0] for answer in answers} == answers


def test_a_row_without_options_accepts_any_letter():
    row = make_row("choice", "math", "H")
    assert accuracy(row, "H") == (1, None)
    assert accuracy(row, "Z") == (0, R.NOT_EQUAL)


@pytest.mark.parametrize(
    ("kind", "solution", "options", "multiple", "remedy"),
    [
        ("judge", "maybe", 0, False, "expects yes or no"),
        ("judge", "yes no", 0, False, "expects yes or no$"),
        ("judge", "True", 0, False, "expects yes or no: write yes"),
        ("choice", "Option 2 ", 4, False, "it has 4 options; write C, the letter of this option"),
        ("choice", "E", 4, False, "it has 4 options"),
        ("choice", "dog", 4, True, "one or more of its letters"),
        ("choice", "A, B", 4, False, '"multiple": true'),
        ("choice", "2", 0, False, "no list of options"),
    ],
)
def test_an_invalid_gold_answer_is_refused_with_a_remedy(kind, solution, options, multiple, remedy):
    row = make_row(kind, "detection", solution, options, multiple, name="q3")
    with pytest.raises(RowError, match=remedy):
        accuracy(row, "A")
    [error] = check_rows([row])
    assert "q3" in str(error)
