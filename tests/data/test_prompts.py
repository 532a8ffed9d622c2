"""Prompt templates match the authors' prompts; boxes are written in the resized frame."""

import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.config import Kind, Task
from currreft_jax.data.prompts import (
    PAPER,
    Template,
    answer_turns,
    format_row_boxes,
    load_template,
    question_messages,
)
from currreft_jax.rewards import RowError, score_completions
from currreft_jax.rewards.boxes import format_box
from currreft_jax.structs import Completion, Frame, Row, Turn

THINK = (
    "First output the thinking process in <think> </think> tags and then output the final answer in"
    " <answer> </answer> tags."
)
YES_OR_NO = f"{THINK} Ensure your final answer is exactly 'yes' or 'no'."
LETTER = f"{THINK} Ensure your final answer is exactly one of the provided option letters without any additional text."
LETTERS = (
    f"{THINK} Based on the given options, select all options that accurately describe what is shown in the image."
    " Ensure your final answer is exactly one or more of the provided option letters without any additional text."
)
JSON = f"{THINK} Output the final answer in JSON format in <answer> </answer> tags."

PROMPTS = [
    ("judge", "detection", {}, f"Q? {YES_OR_NO}"),
    ("judge", "classify", {}, f"Q? {YES_OR_NO}"),
    ("judge", "math", {}, f"Q? {YES_OR_NO}"),
    ("choice", "math", {}, f"Q? {LETTER}"),
    ("choice", "detection", {"options": ("a dog", "a cat")}, f"Q?\nOptions:\nA. a dog\nB. a cat\n{LETTER}"),
    ("choice", "classify", {"multiple": True}, f"Q? {LETTERS}"),
    ("choice", "classify", {"options": ("dog",), "multiple": True}, f"Q?\nOptions:\nA. dog\n{LETTERS}"),
    ("open", "detection", {}, f"Q? {JSON}"),
    ("open", "classify", {}, f"Q? {THINK}"),
    ("open", "math", {}, f"Q? {THINK}"),
    ("open", "other", {}, f"Q? {THINK}"),
]


SAME = [(Frame(9, 9), Frame(9, 9))]


def row_of(kind: str, task: str, problem: str = "Q?", solution: str = "yes", **fields) -> Row:
    return Row("r", Task(task), Kind(kind), problem, solution, **{"images": ("a.png",), **fields})


def text_of(row: Row, template: Template = PAPER, frames=SAME) -> str:
    *_, user = question_messages(row, template, frames)
    return user["content"][-1]["text"]


@pytest.mark.parametrize(("kind", "task", "fields", "text"), PROMPTS)
def test_paper_template_matches_the_authors_prompts(kind, task, fields, text):
    row = row_of(kind, task, **fields)
    assert question_messages(row, PAPER, []) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    ]


def test_any_number_of_images():
    for images in ((), ("a", "b", "c")):
        (user,) = question_messages(row_of("open", "math", images=images), PAPER, [])
        assert [item["type"] for item in user["content"]] == ["image"] * len(images) + ["text"]


def test_a_template_with_a_system_message_and_no_instruction():
    bare = Template("", system="Think.", options="\nChoose:")
    row = row_of("choice", "math", options=("1", "2"))
    system, user = question_messages(row, bare, [])
    assert system == {"role": "system", "content": "Think."}
    assert user["content"][-1]["text"] == "Q?\nChoose:\nA. 1\nB. 2"


def test_load_template_by_name_and_import_path(monkeypatch):
    assert load_template("paper") is PAPER
    module = ModuleType("my_templates")
    vars(module).update(MINE=Template("Answer."), OTHER="Answer.")
    monkeypatch.setitem(sys.modules, "my_templates", module)
    assert load_template("my_templates:MINE") == Template("Answer.")
    for name, message in [
        ("papre", "no prompt template 'papre'; write package.module:NAME, or one of paper"),
        ("my_templates:OTHER", "my_templates defines no Template of the name 'OTHER'"),
        ("my_templates:GONE", "my_templates defines no Template of the name 'GONE'"),
        ("no_such_module:X", "no_such_module cannot be imported"),
        ("papre", "or one of .*; nearest: paper"),
        ("my_templates:MIN", "defines no Template of the name 'MIN'; nearest: MINE"),
        ("my_templates.py:MINE", "my_templates.py is a path: write my_templates:MINE"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_template(name)


# original 100 x 80 -> resized 56 x 84; boxes measured in 200 x 160, or in the original where no frame is given
FRAMES = [(Frame(100, 80), Frame(56, 84))]


@pytest.mark.parametrize(
    ("frame", "box", "written"),
    [
        (None, (0, 0, 100, 80), "[0, 0, 56, 84]"),
        (None, (10, 20, 30, 40), "[6, 21, 17, 42]"),
        (Frame(200, 160), (20, 40, 60, 80), "[6, 21, 17, 42]"),
        (Frame(56, 84), (1.4, 2.6, 3.5, 4.5), "[1, 3, 4, 4]"),
    ],
)
def test_boxes_are_written_in_the_resized_frame(frame, box, written):
    row = row_of("judge", "detection", "Is {box:0} the dog?", frame=frame, boxes=(box,))
    assert format_row_boxes(row, FRAMES) == [written]
    assert text_of(row, frames=FRAMES) == f"Is {written} the dog? {YES_OR_NO}"
    gold = row_of("open", "detection", solution=str(list(box)), frame=frame)
    assert answer_turns(gold, FRAMES) == [Turn("assistant", f"<answer>{written}</answer>")]


def test_more_than_ten_boxes_and_boxes_in_options():
    boxes = tuple((float(n), 0.0, float(n + 1), 1.0) for n in range(12))
    row = row_of("judge", "detection", "".join(f"{{box:{n}}}" for n in range(12)), boxes=boxes)
    assert text_of(row).startswith("".join(map(format_box, boxes)))
    row = row_of("choice", "detection", options=("{box:1}", "{box:0}"), boxes=((1, 1, 2, 2), (3, 3, 4, 4)))
    assert "\nA. [3, 3, 4, 4]\nB. [1, 1, 2, 2]\n" in text_of(row)


def test_rows_without_boxes_need_no_frames():
    assert format_row_boxes(row_of("open", "math", images=()), []) == []


@pytest.mark.parametrize(
    ("kind", "task", "solution", "fields", "target"),
    [
        ("judge", "math", " yes ", {}, "yes"),
        ("choice", "math", "<answer> B </answer>", {"options": ("1", "2")}, "B"),
        ("open", "math", r"<think>long</think><answer>\frac12</answer>", {}, r"\frac12"),
        ("open", "classify", "dog, dining table", {}, "dog, dining table"),
        ("open", "detection", '{"bbox_2d": [0, 0, 9, 9]}', {}, "[0, 0, 9, 9]"),
        ("open", "detection", "[[0, 0, 9, 9], [1, 1, 2, 2]]", {}, "[[0, 0, 9, 9], [1, 1, 2, 2]]"),
    ],
)
def test_answer_turns_hold_the_gold_answer_with_full_reward(kind, task, solution, fields, target):
    row = row_of(kind, task, solution=solution, frame=Frame(9, 9), **fields)
    (turn,) = answer_turns(row, SAME)
    assert turn == Turn("assistant", f"<answer>{target}</answer>")
    scores = score_completions([row], [[Completion(turn.text)]])
    assert scores.parts["accuracy"][0, 0] == 1


def test_malformed_gold_answers_raise():
    with pytest.raises(RowError, match="row r: solution 'x' is no gold answer"):
        answer_turns(row_of("open", "detection", solution="x"), FRAMES)
    with pytest.raises(RowError, match="leaves its frame"):
        answer_turns(row_of("open", "detection", solution="[0, 0, 120, 80]"), FRAMES)


CHAT = (
    Turn("system", "Be brief."),
    Turn("user", "<image>\nWhat<image>"),
    Turn("assistant", "Dogs."),
    Turn("user", "Sure?"),
    Turn("assistant", "Yes."),
)


def test_chat_rows_bypass_the_template():
    row = Row("r", Task.OTHER, Kind.CHAT, "", "", ("a", "b"), messages=CHAT)
    image = {"type": "image"}
    assert question_messages(row, PAPER, []) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "\nWhat"}, image]},
    ]
    assert answer_turns(row, []) == list(CHAT[2:])


def test_unmarked_images_precede_the_first_user_text():
    turns = (Turn("system", "s"), Turn("user", "q"), Turn("user", "r"), Turn("assistant", "a"))
    messages = question_messages(Row("r", Task.OTHER, Kind.CHAT, "", "", ("a", "b"), messages=turns), PAPER, [])
    assert [[item["type"] for item in message["content"]] for message in messages] == [
        ["text"],
        ["image", "image", "text"],
        ["text"],
    ]


@given(st.lists(st.floats(-0.49, 1e6), min_size=4, max_size=4))
def test_formatted_boxes_are_whole_pixels(box):
    rounded = [int(x) for x in format_box(box)[1:-1].split(", ")]
    assert all(abs(a - b) <= 0.5 for a, b in zip(rounded, box, strict=True))
    assert "-" not in format_box(box)
