"""Tables of users: questions, boxes and answers in their many forms, and messages that name the table's lines."""

import json

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.box_formats import format_boxes
from currreft_jax.data.builders.converter import BuildError, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.custom_table import convert_table
from tests.data.builders.dataset_files import png_bytes, write_image, write_json_lines, write_parquet


def build(folder, **settings) -> ConvertedData:
    source = DatasetSource(folder, folder, folder / "written", name="table", **settings)
    return collect_items(convert_table(source))


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "a.png", 200, 100)
    return tmp_path


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("<image>\nHow many?", "How many?"),
        ("<image>How many?", "How many?"),
        ("How many? <image>", "How many?"),
        ("In this <image>, how many?", "In this, how many?"),
        ("  How many? ", "  How many? "),
    ],
)
def test_image_marks_are_taken_out_of_questions(folder, question, problem):
    write_json_lines(folder / "t.jsonl", [{"problem": question, "solution": "3", "image": "a.png"}])
    (row,) = build(folder).rows
    assert row.problem == problem


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"problem": "<image>Why?"}, "the question has 1 <image>, but there are 0 images; --column image=NAME"),
        ({"problem": "<image><image>Why?", "image": "a.png"}, "the question has 2 <image>, but there are 1 images"),
        ({"problem": "<image>", "image": "a.png"}, '"problem" is ""; it takes a question'),
        ({"problem": "Which?", "options": ["<image>", "b"]}, "problem or options have <image>; remove it"),
        ({"problem": "Is {box:0} red?", "image": "a.png"}, 'the texts name {box:0}, but "boxes" has 0'),
    ],
)
def test_refusals_name_the_line_of_the_source(folder, keys, message):
    write_json_lines(folder / "t.jsonl", [{"problem": "q", "solution": "3"}, {"solution": "3", **keys}])
    with pytest.raises(BuildError) as refused:
        build(folder)
    assert f"{folder / 't.jsonl'}:2: " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("solution", "expected", "form"),
    [
        ([10, 20, 30, 40], "[10, 20, 30, 40]", "xyxy"),
        ([[10, 20, 30, 40], [50, 20, 70, 40]], "[[10, 20, 30, 40], [50, 20, 70, 40]]", "xyxy"),
        ({"bbox_2d": [10, 20, 30, 40], "label": "dog"}, "[10, 20, 30, 40]", "xyxy"),
        ([{"bbox": [10, 20, 20, 20]}, {"box": [50, 20, 20, 20]}], "[[10, 20, 30, 40], [50, 20, 70, 40]]", "xywh"),
        ({"x1": 10, "y1": 20, "x2": 30, "y2": 40}, "[10, 20, 30, 40]", "xyxy"),
        ({"xmin": 11, "ymin": 21, "xmax": 30, "ymax": 40}, "[10, 20, 30, 40]", "voc"),
        ({"x": 10, "y": 20, "width": 20, "height": 20}, "[10, 20, 30, 40]", "xywh"),
        ('[{"bbox_2d": [10, 20, 30, 40]}]', "[10, 20, 30, 40]", "xyxy"),
        ("<answer>[10, 20, 30, 40]</answer>", "[10, 20, 30, 40]", "xyxy"),
        (
            '<think>There.</think> <answer>```json\n[{"box": [10, 20, 30, 40]}]\n```</answer>',
            "[10, 20, 30, 40]",
            "xyxy",
        ),
        ([], "[]", "xyxy"),
        ("[]", "[]", "xyxy"),
    ],
)
def test_boxes_are_read_as_lists_and_objects_and_in_answer_tags(folder, solution, expected, form):
    write_json_lines(folder / "t.jsonl", [{"problem": "Where?", "solution": solution, "image": "a.png"}])
    data = build(folder, task=Task.DETECTION, box_format=form)
    (row,) = data.rows
    assert row.solution == expected
    (image,) = data.images.values()
    assert format_boxes([box for _, box in image.objects]) == expected


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("left", "the solution 'left' is no box; it takes [a, b, c, d], {\"bbox_2d\": [a, b, c, d]} or a list"),
        ("12", "the solution '12' is no box"),
        ([10, 20, 30], "the box is [10, 20, 30]; it takes four numbers"),
        ([[10, 20, 30, "40"]], "it takes four numbers"),
        ({"corners": [10, 20, 30, 40]}, "as an object it has one of these: bbox_2d, bbox, box, x1 y1 x2 y2"),
        ({"bbox": [10, 20, 30, 40], "box": [1, 2, 3, 4]}, "as an object it has one of these"),
        ({"x": 10, "y": 20, "w": 20, "h": 20}, "is not xyxy; give --box-form xywh"),
        ({"xmin": 10, "ymin": 20, "xmax": None, "ymax": 20}, "it takes four numbers"),
    ],
)
def test_other_boxes_are_refused(folder, solution, message):
    write_json_lines(folder / "t.jsonl", [{"problem": "Where?", "solution": solution, "image": "a.png"}])
    with pytest.raises(BuildError) as refused:
        build(folder, task=Task.DETECTION)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("task", "solution", "expected"),
    [
        (Task.MATH, "<think>1 + 2</think><answer> 3 </answer>", "3"),
        (Task.MATH, 2.5, "2.5"),
        (Task.CLASSIFY, "<answer>dog, cat</answer>", "dog, cat"),
        (Task.CLASSIFY, ["dog", "dining table"], "dog, dining table"),
    ],
)
def test_answer_tags_are_taken_off_solutions_of_all_tasks(folder, task, solution, expected):
    write_json_lines(folder / "t.jsonl", [{"problem": "What?", "solution": solution, "image": "a.png"}])
    (row,) = build(folder, task=task).rows
    assert row.solution == expected


def test_solutions_without_one_answer_are_dropped_with_the_line_of_the_source(folder):
    solutions = ["3", "<answer>3", "<answer>3</answer> <answer>4</answer>", "<answer> </answer>"]
    write_json_lines(folder / "t.jsonl", [{"problem": "How many?", "solution": solution} for solution in solutions])
    data = build(folder)
    assert [row.solution for row in data.rows] == ["3"]
    locations = data.dropped["the gold answer of math cannot be read"]
    assert [location.partition(": solution")[0] for location in locations] == [
        f"{folder / 't.jsonl'}:{line}" for line in (2, 3, 4)
    ]


def test_letters_of_detection_choices_are_no_boxes(folder):
    record = {"problem": "Which is the dog?", "solution": "B", "options": ["left", "right"], "image": "a.png"}
    write_json_lines(folder / "t.jsonl", [record])
    (row,) = build(folder, task=Task.DETECTION, kind=Kind.CHOICE).rows
    assert (row.solution, row.options) == ("B", ("left", "right"))


def test_parquet_boxes_and_images(folder):
    pytest.importorskip("pyarrow")
    image = {"bytes": png_bytes(60, 60), "path": None}
    record = {"problem": "<image>Where?", "solution": {"bbox_2d": [1.0, 2.0, 30.5, 40.0]}, "image": image}
    write_parquet(folder / "t.parquet", [record])
    (row,) = build(folder, task=Task.DETECTION).rows
    assert (row.problem, row.solution) == ("Where?", "[1, 2, 30.5, 40]")


def test_lines_of_a_csv_are_those_of_the_file(folder):
    text = 'problem,solution\n"one\ntwo\nthree",3\n\nfour,4\nfive\n"six",\n'
    (folder / "t.csv").write_text(text, "utf-8")
    with pytest.raises(BuildError) as refused:
        build(folder)
    first, second = str(refused.value).splitlines()[1:]
    assert f"{folder / 't.csv'}:7: not as many cells" in first  # lines 2 to 4, 5 and 6 are fine
    assert f"{folder / 't.csv'}:8: problem or solution is empty" in second
    (folder / "t.csv").write_text(text.partition("five")[0], "utf-8")
    assert [(row.id, row.solution) for row in build(folder).rows] == [("table-t.csv:2", "3"), ("table-t.csv:6", "4")]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_a_byte_order_mark_is_no_part_of_the_first_key(folder, name):
    record = {"problem": "How many?", "solution": "3"}
    text = {"t.csv": "problem,solution\nHow many?,3\n", "t.json": json.dumps([record])}.get(name, json.dumps(record))
    (folder / name).write_text(text, "utf-8-sig")
    (row,) = build(folder).rows
    assert (row.problem, row.solution) == ("How many?", "3")


def test_a_csv_of_another_encoding_is_named(folder):
    (folder / "t.csv").write_text("problem,solution\nHow many?,3\n", "utf-16")
    with pytest.raises(BuildError, match=r"t\.csv: not UTF-8 .*; convert it"):
        build(folder)
