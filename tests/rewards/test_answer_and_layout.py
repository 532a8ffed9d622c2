import pytest

from currreft_jax.rewards import RowError
from currreft_jax.rewards.answer import extract_answer, gold_text, parse_json
from currreft_jax.rewards.format import format_reward
from currreft_jax.structs import Completion, Reason
from tests.rewards.helpers import make_row

R = Reason

EXTRACTED = [
    ("plain", "<answer>4</answer>", "4"),
    ("after thoughts", "<think>2+2</think> <answer>4</answer>", "4"),
    ("spaces and newlines around", "<answer>\n 4 \n</answer>", "4"),
    ("inner newlines stay", "<answer>a\nb</answer>", "a\nb"),
    ("empty", "<answer></answer>", ""),
    ("blank", "<answer> \n\t</answer>", ""),
    ("no tag at all", "4", R.NO_ANSWER_TAG),
    ("nothing", "", R.NO_ANSWER_TAG),
    ("official: unclosed tag", "<think>x</think><answer>A", R.NO_ANSWER_TAG),
    ("never opened", "4</answer>", R.NO_ANSWER_TAG),
    ("closed before it opens", "</answer>4<answer>", R.NO_ANSWER_TAG),
    ("other case", "<Answer>4</Answer>", R.NO_ANSWER_TAG),
    ("official: first of several", "<answer>4</answer><answer>5</answer>", R.SEVERAL_ANSWERS),
    ("the same twice", "<answer>4</answer><answer>4</answer>", R.SEVERAL_ANSWERS),
    ("nested", "<answer><answer>4</answer></answer>", R.SEVERAL_ANSWERS),
    ("a second one left open", "<answer>4</answer><answer>", R.SEVERAL_ANSWERS),
    ("rehearsed in the thoughts", "<think><answer>5</answer></think><answer>4</answer>", R.SEVERAL_ANSWERS),
]

LAYOUTS = [
    ("asked for", "<think>x</think><answer>4</answer>", 1),
    ("newline between", "<think>x</think>\n\n<answer>4</answer>", 1),
    ("official: leading space fails", "  <think>x</think><answer>4</answer>\n", 1),
    ("thoughts over lines", "<think>\nx\ny\n</think>\n<answer>\n4\n</answer>", 1),
    ("less-than in thoughts", "<think>1 < 2</think><answer>4</answer>", 1),
    ("official: empty thoughts pass", "<think></think><answer>4</answer>", 0),
    ("blank thoughts", "<think> \n </think><answer>4</answer>", 0),
    ("no thoughts", "<answer>4</answer>", 0),
    ("text before", "So: <think>x</think><answer>4</answer>", 0),
    ("text between", "<think>x</think> thus <answer>4</answer>", 0),
    ("text after", "<think>x</think><answer>4</answer> done", 0),
    ("answer inside the thoughts", "<think>x<answer>4</answer></think>", 0),
    ("thoughts after the answer", "<answer>4</answer><think>x</think>", 0),
    ("thoughts twice", "<think>x</think><think>y</think><answer>4</answer>", 0),
    ("thoughts opened twice", "<think><think>x</think><answer>4</answer>", 0),
    ("thoughts inside the answer", "<think>x</think><answer>4</think></answer>", 0),
    ("the data's own tag", "<thinking>x</thinking><answer>4</answer>", 0),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in EXTRACTED], ids=[case[0] for case in EXTRACTED])
def test_extract_answer(text, expected):
    assert extract_answer(Completion(text)) == expected
    assert isinstance(extract_answer(Completion(text)), Reason) == isinstance(expected, Reason)


@pytest.mark.parametrize(("text", "value"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
def test_format_reward(text, value):
    verdict = format_reward(text)
    assert (verdict.value, verdict.reason) == (value, None if value else R.BAD_LAYOUT)


def test_a_truncated_completion_has_no_answer():
    assert extract_answer(Completion("<think>x</think><answer>4</answer>", finished=False)) is R.TRUNCATED


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("4", "4"),
        (" 4\n", "4"),
        ("<answer> 4 </answer>", "4"),
        ("<thinking>x</thinking><answer>4</answer>", "4"),  # the authors' stage 3
    ],
)
def test_gold_text(solution, gold):
    assert gold_text(make_row("open", "math", solution)) == gold


@pytest.mark.parametrize(
    "solution", ["", "  ", "<answer></answer>", "<answer>4", "<answer>1</answer><answer>2</answer>"]
)
def test_a_solution_without_exactly_one_answer_is_refused(solution):
    with pytest.raises(RowError, match=r"row r7: solution .* is no gold answer .*; kind open, task math expects"):
        gold_text(make_row("open", "math", solution, name="r7"))


@pytest.mark.parametrize(
    "text", ["[1, NaN]", "[Infinity]", "[" * 100_000, "[1", "```", "``````", "```[1", "1" * 5000, ""]
)
def test_json_is_strict(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["[1]", "```json\n[1]\n```", "```\n[1]```", "```json[1]```", " [1] "])
def test_json_may_be_fenced(text):
    assert parse_json(text) == [1]
