"""The readable reading: what a careful person finds in a text, and what nobody can."""

import pytest

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.evaluation.readable import Found, read_answer
from currreft_jax.structs import Completion, Frame, Row

REWARDS = Rewards(aliases={"tv": "tvmonitor"})
OPTIONS = ("teddy bear", "rabbit", "a cat", "dog")
ROWS = {
    "judge": Row("j", Task.DETECTION, Kind.JUDGE, "is it?", "no"),
    "choice": Row("c", Task.CLASSIFY, Kind.CHOICE, "which?", "B", options=OPTIONS),
    "multiple": Row("m", Task.CLASSIFY, Kind.CHOICE, "which?", "A, C", options=OPTIONS, multiple=True),
    "boxes": Row("d", Task.DETECTION, Kind.OPEN, "where?", "[10, 20, 30, 40]", frame=Frame(100, 100)),
    "labels": Row("l", Task.CLASSIFY, Kind.OPEN, "what?", "dog, salt and pepper, person"),
    "maths": Row("n", Task.MATH, Kind.OPEN, "how many?", "4"),
    "equation": Row("e", Task.MATH, Kind.OPEN, "the circle?", "x^2 + y^2 = 9"),
    "word": Row("w", Task.MATH, Kind.OPEN, "which triangle?", "isosceles"),
}


def read(name, text, finished=True):
    reading = read_answer(ROWS[name], Completion(text, finished=finished), REWARDS)
    return reading.answer if reading.found is not Found.NONE else None


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("<think> 3 or 4 </think> <answer> 4 </answer>", "4", Found.ANSWER),
        ("<answer> 3 </answer> no: <answer>4</answer>", "4", Found.LAST_ANSWER),
        ("<think> 3 or 5 </think> <answer> 4", "4", Found.OPEN_ANSWER),
        ("<think> 3 or 5 </think> 4", "4", Found.TEXT),
        ("4", "4", Found.TEXT),
        ("<think> it must be 4", "", Found.NONE),
        ("", "", Found.NONE),
        ("<answer></answer>", "", Found.NONE),
    ],
)
def test_the_answer_stands_in_the_tag_or_after_the_thoughts(text, answer, found):
    reading = read_answer(ROWS["maths"], Completion(text), REWARDS)
    assert (reading.answer, reading.found) == (answer, found)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("The answer is 4", None), ("The answer is 4, as 2 plus 2", "4"), ("<answer> 1", None), ("4", None)],
)
def test_the_last_word_of_a_text_that_the_limit_cut_is_not_read(text, answer):
    assert read("maths", text, finished=False) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No", "No"),
        ("**No.**", "No."),
        ("No, that is correct.", "no"),
        ("Yes, there is a star.", "yes"),
        ("Yes it is", "yes"),
        ("The final answer is: **no**.", "no"),
        ("I looked at the box. It shows a star, so the answer is no.", "no"),
        ("The box shows a star, not a square. No.", "no"),
        ("True", "yes"),
        (r"\boxed{\text{yes}}", "yes"),
        ("There is no star in the image", None),
        ("No star is to be seen", None),
        ("Yes. On second thought: no", None),
        ("yes and no", None),
        ("The answer is yes or no", None),
        ("The answer is yes. Wait, the answer is no.", None),
        ("I cannot tell", None),
    ],
)
def test_yes_or_no(text, answer):
    read_word = read("judge", text)
    assert (read_word and read_word.casefold().strip(".")) == (answer and answer.casefold().strip("."))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("B. rabbit", "B"),
        ("The answer is B", "B"),
        ("The correct answer is (B) rabbit.", "B"),
        ("**Answer: B**", "B"),
        (r"So the answer is \boxed{B}.", "B"),
        ("Option B is the one", "B"),
        ("Rabbit", "B"),
        ("It is a small animal. The answer is a rabbit.", "B"),
        ("cat", "C"),
        ("After looking at (C), I see that it fits.", "C"),
        ("A cat sits on a mat", None),
        ("I see a rabbit and a dog", None),
        ("either (A) or (B)", None),
        ("E", None),
        ("A, B", None),
        ("", None),
    ],
)
def test_option_letters(text, answer):
    assert read("choice", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A, C", "A, C"),
        ("CA", "A, C"),
        ("A and C", "A, C"),
        ("The answers are A and C.", "A, C"),
        ("A. teddy bear\nC. a cat", "A, C"),
        ("teddy bear, cat", "A, C"),
        ("teddy bear and mouse", None),
    ],
)
def test_several_option_letters(text, answer):
    assert read("multiple", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[10, 20, 30, 40]", "[[10.0, 20.0, 30.0, 40.0]]"),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```', "[[10.0, 20.0, 30.0, 40.0]]"),
        ("The dog is at [10, 20, 30, 40].", "[[10.0, 20.0, 30.0, 40.0]]"),
        ("(10, 20), (30, 40)", "[[10.0, 20.0, 30.0, 40.0]]"),
        ("(10,20,30,40)", "[[10.0, 20.0, 30.0, 40.0]]"),
        ("from (10, 20) to (30, 40)", "[[10.0, 20.0, 30.0, 40.0]]"),
        ("x1=10, y1=20, x2=30, y2=40", "[[10.0, 20.0, 30.0, 40.0]]"),
        ('{"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}', "[[10.0, 20.0, 30.0, 40.0]]"),
        ("10, 20, 30, 40", "[[10.0, 20.0, 30.0, 40.0]]"),
        ("[]", "[]"),
        ("It is 10 pixels wide, 20 high, 30 from the left and 40 from the top", None),
        ("[10, 20, 30]", None),
        ("at the top left", None),
    ],
)
def test_boxes(text, answer):
    assert read("boxes", text) == answer


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("dog, person", {"dog", "person"}),
        ('["dog", "person"]', {"dog", "person"}),
        ("['dog', 'person']", {"dog", "person"}),
        ('```json\n["dog", "person"]\n```', {"dog", "person"}),
        ("The image shows a dog and a person.", {"dog", "person"}),
        ("There are a person, a dog, and salt and pepper.", {"dog", "person", "salt and pepper"}),
        ("- dog\n- person", {"dog", "person"}),
        ("1. Dog\n2. Person", {"Dog", "Person"}),
        ("The answer is: dog and person", {"dog", "person"}),
        ("salt and pepper", {"salt and pepper"}),
        ("An old dog", {"old dog"}),
    ],
)
def test_labels(text, labels):
    assert set(read("labels", text).split(", ")) == labels


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("maths", "4", "4"),
        ("maths", r"We get \boxed{3}, no, \boxed{4}", "4"),
        ("maths", r"\boxed{\frac{8}{2}}", r"\frac{8}{2}"),
        ("maths", "There are 4 stars.", "There are 4 stars."),
        ("maths", "First 3, then 1 more.\nThe answer is 4.", "4."),
        ("maths", "I count 3 circles and 1 star.\n3 + 1 = 4", "4"),
        ("maths", "Between 3 and 5", None),
        ("maths", "many", None),
        ("equation", "x^2 + y^2 = 9", "x^2 + y^2 = 9"),
        ("equation", "The radius is 3.\nThe answer is x^2 + y^2 = 9", "x^2 + y^2 = 9"),
        ("word", "isosceles", "isosceles"),
    ],
)
def test_expressions(name, text, answer):
    assert read(name, text) == answer
