"""Tables of users: questions, boxes and answers in their many forms, and messages that name the table's lines."""

import json
import re

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.box_formats import format_boxes
from currreft_jax.data.builders.converter import BuildError, ConvertedData, DatasetSource, collect_items, list_causes
from currreft_jax.data.builders.custom_table import convert_table
from tests.data.builders.dataset_files import png_bytes, write_image, write_json_lines, write_parquet


def build(folder, skip=False, **settings) -> ConvertedData:
    source = DatasetSource(folder, folder, folder / "written", name="table", **settings)
    return collect_items(convert_table(source), skip=skip)


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
        build(folder, task=Task.DETECTION, box_format="xyxy")
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


# Tables of boxes


def write_csv(folder, text: str) -> None:
    (folder / "t.csv").write_text(text, "utf-8")


def build_boxes(folder, question="Where is the {label}?", **settings) -> ConvertedData:
    return build(folder, task=Task.DETECTION, question=question, **settings)


CORNERS = "filename,label,xmin,ymin,xmax,ymax\n"


def test_columns_of_corners_and_labels_become_one_row_a_question(folder):
    write_image(folder / "b.png", 200, 100)
    lines = ["a.png,dog,0,20,30,40", "a.png,cat,10,20,30.5,40", "b.png,dog,1,2,3,4", "a.png,dog,50,20,70,40"]
    write_csv(folder, CORNERS + "\n".join([*lines, lines[-1]]) + "\n")
    data = build_boxes(folder)
    assert [(row.id, row.problem, row.solution, row.images[0][-5:], row.extra) for row in data.rows] == [
        ("table-t.csv:2", "Where is the dog?", "[[0, 20, 30, 40], [50, 20, 70, 40]]", "a.png", {"label": "dog"}),
        ("table-t.csv:3", "Where is the cat?", "[10, 20, 30.5, 40]", "a.png", {"label": "cat"}),
        ("table-t.csv:4", "Where is the dog?", "[1, 2, 3, 4]", "b.png", {"label": "dog"}),
    ]
    assert data.remarks == [
        "boxes are xyxy, corners counted from 0, the second one outside the box: that alone fits all 5 boxes (xywh 0,"
        " voc 4)",
        "5 records became 3 rows: all boxes of one question about one image are one answer",
        "columns: image from filename, boxes from xmin ymin xmax ymax",
        "columns kept as extra, for rewards of your own: label",
    ]
    assert ("dog", (50.0, 20.0, 70.0, 40.0)) in data.images[str(folder / "a.png")].objects


def test_a_question_with_a_broken_box_is_dropped_whole(folder):
    write_csv(folder, CORNERS + "a.png,dog,0,20,30,40\na.png,cat,10,20,30,40\na.png,dog,150,20,900,40\n")
    data = build_boxes(folder, box_format="xyxy", skip=True)
    assert [row.problem for row in data.rows] == ["Where is the cat?"]
    assert dict(data.dropped) == {"a record of the same question is broken": ["table-t.csv:2"]}
    assert [error.location[-7:] for error in data.bad_records] == ["t.csv:4"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("filename,class,x,y,w,h\na.png,dog,10,20,20,20\n", "xywh"),
        ("path,category,Left,Top,Width,Height\na.png,dog,10,20,20,20\n", "xywh"),
        ('image,label,solution\na.png,dog,"[50, 20, 20, 20]"\n', "xywh"),
        ('image,label,solution\na.png,dog,"[0, 20, 150, 90]"\n', "xyxy"),
        ('image,label,solution\na.png,dog,"{""bbox_2d"": [10, 20, 30, 40]}"\n', "xyxy"),
    ],
)
def test_the_only_box_format_that_fits_all_boxes_is_taken_and_told(folder, table, expected):
    write_csv(folder, table)
    data = build_boxes(folder)
    assert data.remarks[0].startswith(f"boxes are {expected}, ")
    assert len(data.rows) == 1


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            ["110,20,190,40", "1,1,30,40"],
            "--box-form is missing: xyxy and voc fit all 2 boxes. xyxy: corners counted from 0",
        ),
        (
            ["50,20,20,20", "60,20,150,90"],
            "no format fits all 2 boxes: xyxy fits 1, xywh fits 1, voc fits 1. The first",
        ),
        (["50,20,20,20", "0,0,150,190"], "t.csv:3: the box [0.0, 0.0, 150.0, 190.0] (xywh, pixels) leaves its image"),
        (["0.1,0.2,0.05,0.4", "0.5,0.2,0.7,0.3"], "no number of a box is above 1: give --box-scale unit"),
    ],
)
def test_a_box_format_that_the_boxes_do_not_decide_is_asked_for(folder, boxes, message):
    write_csv(folder, "filename,label,a,b,c,d\n" + "".join(f"a.png,dog{n},{box}\n" for n, box in enumerate(boxes)))
    with pytest.raises(BuildError) as refused:
        build_boxes(folder, columns={"solution": "a,b,c,d"})
    assert message in str(refused.value)


def test_four_columns_are_read_in_the_order_in_which_they_are_named(folder):
    write_csv(folder, "filename,label,a,b,c,d\na.png,dog,40,30,20,10\n")
    data = build_boxes(folder, columns={"solution": "d, c, b, a"}, box_format="xyxy")
    assert [row.solution for row in data.rows] == ["[10, 20, 30, 40]"]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (CORNERS, {"question": ""}, "t.csv:2: no column for the question: give --question 'Where is the {label}?'"),
        (
            CORNERS,
            {"question": "Where is the {lable}?"},
            "--question has {lable}, and no column is called so; nearest: label; there",
        ),
        (CORNERS, {"columns": {"problem": "label"}}, "--question and --column problem=…: give one of them"),
        (
            CORNERS,
            {"columns": {"solution": "xmin,ymin,xmax,ymix"}},
            "no column 'ymix'; nearest: ymin, ymax; there are filename, label, xmin",
        ),
        (CORNERS, {"columns": {"labell": "label"}}, "--column labell=…: it takes id, problem, solution, image"),
        (
            CORNERS.replace("filename", "file,path"),
            {},
            "file and path could both be the image: give --column image=NAME",
        ),
        (CORNERS.replace("ymax", "ymax,x1,y1,x2,y2"), {}, "could both be boxes: name four by --column solution"),
        (
            CORNERS.replace("ymax", "bottom"),
            {},
            "no column for the answer: give --column solution=NAME, or of the four",
        ),
    ],
)
def test_missing_and_doubtful_columns_are_told_once(folder, table, settings, message):
    write_csv(folder, table + ",".join(["a.png"] * table.count(",")) + ",1\n")
    with pytest.raises(BuildError) as refused:
        build_boxes(folder, **settings)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_objects_in_a_record_of_their_image_are_asked_for_as_records(folder):
    objects = [{"label": "dog", "box": [1, 2, 30, 40]}, {"label": "cat", "box": [5, 6, 70, 80]}]
    write_json_lines(folder / "t.jsonl", [{"image": "a.png", "objects": objects}])
    with pytest.raises(BuildError, match="the objects in 'objects' have it: write a record for each, with its image"):
        build_boxes(folder)


def test_a_cell_that_is_no_number_is_named_with_its_line(folder):
    write_csv(folder, CORNERS + "a.png,dog,0,20,30,40\na.png,cat,10,,30,40\n")
    with pytest.raises(BuildError, match=r't\.csv:3: "ymin" is ""; it takes a number: a side of the box'):
        build_boxes(folder)


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (
            CORNERS + "a.jpg,dog,1,2,3,4\nc.png,cat,1,2,3,4\n",
            {},
            "no image a.jpg under FOLDER; nearest: a.png; --im",
        ),
        (
            CORNERS + "9999.jpg,dog,1,2,3,4\n8888.jpg,cat,1,2,3,4\n",
            {},
            "no image 9999.jpg under FOLDER; it holds 1 image, such as a.png; --images takes the folder of the images",
        ),
        (
            CORNERS + "a.png,dog,10,2,3,4\na.png,cat,30,2,3,4\n",
            {},
            "the box [10.0, 2.0, 3.0, 4.0] (xyxy) has no area; correct it or",
        ),
        (
            CORNERS + "a.png,dog,1,2,300,4\na.png,cat,1,2,400,4\n",
            {},
            "the box [1.0, 2.0, 300.0, 4.0] (xyxy, pixels) leaves its image of 200 x 100",
        ),
        (
            CORNERS + "a.png,dog,1,2,3,4\na.png,cat,5,6,7,8\n",
            {"box_format": "xywh"},
            "'ymax': 4.0} is not xywh; give --box-form xyxy or voc",
        ),
        ("image,label,solution\na.png,dog,1 2\na.png,cat,3 4\n", {}, "the solution '1 2' is no box; it takes"),
        ("image,label,solution\na.png,dog,[1]\na.png,cat,[2]\n", {}, "the box is [1]; it takes four numbers"),
        ('image,label,solution\n,dog,"[1, 2, 3, 4]"\n,cat,"[1, 2, 3, 4]"\n', {}, "a detection row without an"),
    ],
)
def test_one_mistake_in_all_records_is_one_line_with_its_count(folder, table, settings, message):
    write_csv(folder, table)
    with pytest.raises(BuildError) as refused:
        build_boxes(folder, **{"box_format": "xyxy", **settings})
    first, line = str(refused.value).splitlines()
    assert first == "2 bad records (--on-bad-row=skip skips and counts them), the first of each kind:"
    assert line.startswith(f"       2  {folder / 't.csv'}:2: ") and message.replace("FOLDER", str(folder)) in line


def test_mistakes_are_counted_beyond_those_that_are_listed(folder):
    lines = [f"a.png,dog{n},1,2,{300 + n},4\n" for n in range(40)]
    write_csv(folder, CORNERS + "".join([*lines, "b.png,cat,1,2,3,4\n", "a.png,cat,1,2,3,4\n"]))
    data = build_boxes(folder, box_format="xyxy", skip=True)
    assert list_causes(data.bad_records, 1)[1:] == ["          and 1 other kind"]
    with pytest.raises(BuildError, match=r"41 bad records(.*\n){1} +40  .*\n +1  .*: no image b.png"):
        build_boxes(folder, box_format="xyxy")


@pytest.mark.parametrize("column", ["img", "images"])
def test_images_in_a_column_of_another_name_are_not_left_out(folder, column):
    record = {"problem": "What?", "solution": "dog", column: "a.png" if column == "img" else ["a.png"]}
    write_json_lines(folder / "t.jsonl", [record, record])
    with pytest.raises(BuildError) as refused:
        build(folder, task=Task.CLASSIFY)
    remedy = f"no column is called image, and {column!r} names image files: give --column image={column}, or remove it"
    assert str(refused.value) == f"{folder / 't.jsonl'}:1: {remedy}"
    (row,) = build(folder, task=Task.CLASSIFY, columns={"image": column}).rows
    assert row.images


def test_a_forgotten_task_of_boxes_is_named(folder):
    write_csv(folder, CORNERS + "a.png,dog,1,2,3,4\n")
    with pytest.raises(BuildError, match="no column for the answer, but xmin ymin xmax ymax hold a box: give --task"):
        build(folder, question="Where is the {label}?")


@pytest.mark.parametrize(
    ("solutions", "options", "remark"),
    [
        (["yes", "No"], "", "all solutions are yes or no: --kind judge makes"),
        (["true", "false"], "", "all solutions are true or false: written yes and no, --kind judge"),
        (["B", "A"], "cat|dog", "all solutions are letters of options: --kind choice makes"),
        (["[1, 2, 3, 4]", "[1, 2, 3.5, 4]"], "", "all solutions are boxes: --task detection makes"),
        (["yes", "3"], "", ""),
        (["B", "A"], "", ""),
        (["[1, 2, 3, 4]", "[1, 2]"], "", ""),
    ],
)
def test_solutions_of_another_kind_are_told(folder, solutions, options, remark):
    records = [{"problem": "Which?", "solution": solution, "options": options} for solution in solutions]
    write_json_lines(folder / "t.jsonl", records)
    remarks = build(folder, task=Task.OTHER).remarks
    assert [text.startswith(remark) for text in remarks] == ([True] if remark else [])


def test_a_box_and_nothing_to_find_contradict_each_other(folder):
    records = [{"problem": "Where?", "solution": solution, "image": "a.png"} for solution in ([0, 1, 9, 9], [])]
    write_json_lines(folder / "t.jsonl", records)
    with pytest.raises(BuildError, match="one record has a box, and another says that there is none"):
        build(folder, task=Task.DETECTION, box_format="xyxy")


# Tasks of one's own


def test_rows_of_another_task_keep_their_columns(folder):
    write_csv(folder, "image,reading,tolerance,unit,boxes\na.png,70,5,bar,2\na.png,71,,,2\n")
    settings = {"columns": {"solution": "reading"}, "question": "What does the gauge show?"}
    data = build(folder, task=Task.OTHER, **settings)
    assert [(row.solution, row.extra) for row in data.rows] == [("70", {"tolerance": "5", "unit": "bar"}), ("71", {})]
    assert data.remarks == [
        "columns: solution from reading",
        "columns kept as extra, for rewards of your own: tolerance, unit",
        "columns not read, as rows have keys of these names: boxes",
    ]


def test_the_image_of_a_question_is_found_by_its_usual_names(folder):
    write_csv(folder, "file,question,answer\na.png,Is it red?,yes\n")
    columns = {"problem": "question", "solution": "answer"}
    (row,) = build(folder, task=Task.CLASSIFY, kind=Kind.JUDGE, columns=columns).rows
    assert row.images[0].endswith("a.png") and not row.extra


def test_extra_cells_of_parquet_keep_their_types_and_bytes_stay_behind(folder):
    pytest.importorskip("pyarrow")
    record = {"problem": "What?", "solution": "70", "tolerance": 5.0, "thumbnail": b"x", "marks": [0, 100]}
    write_parquet(folder / "t.parquet", [record])
    data = build(folder, task=Task.OTHER)
    assert [row.extra for row in data.rows] == [{"tolerance": 5.0, "marks": [0, 100]}]
    assert data.remarks == [
        "columns kept as extra, for rewards of your own: tolerance, marks",
        "columns with what JSON cannot hold: thumbnail",
    ]


OPTIONS = "image,question,first,second,third,multiple,answer\n"
CHOICE = {"kind": Kind.CHOICE, "task": Task.CLASSIFY}
NAMED = {"problem": "question", "solution": "answer", "options": "first, second, third"}


def build_choices(folder, table: str, **settings) -> ConvertedData:
    (folder / "t.csv").write_text(table, "utf-8")
    return build(folder, **{**CHOICE, "columns": NAMED, **settings})


def test_options_stand_in_columns_of_their_own(folder):
    data = build_choices(folder, f'{OPTIONS}a.png,What?,cat,dog,,,B\na.png,Which?,cat, dog ,cow,yes,"A, C"\n')
    assert [(row.options, row.multiple, row.solution) for row in data.rows] == [
        (("cat", "dog"), False, "B"),
        (("cat", "dog", "cow"), True, "A, C"),
    ]
    assert not any(row.extra for row in data.rows)
    assert "columns: problem from question, solution from answer, options from first second third" in data.remarks
    (row,) = build_choices(folder, f"{OPTIONS}a.png,What?,cat,dog,cow,,B\n", multiple=True).rows
    assert row.multiple


@pytest.mark.parametrize(
    ("line", "columns", "message"),
    [
        ("a.png,What?,cat,,cow,,A", {}, "t.csv:2: the option 'second' is empty, and 'third' is not; fill it"),
        ("a.png,What?,cat,dog,,maybe,A", {}, 't.csv:2: "multiple" is "maybe"; it takes yes or no'),
        ("a.png,What?,,,,,A", {}, "t.csv:2: a choice row without options; --column options=A,B,C names their columns"),
        ("a.png,What?,cat,,,,A", {"options": "first,secnd"}, "t.csv:2: no column 'secnd'; nearest: second; there are"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_their_line(folder, line, columns, message):
    with pytest.raises(BuildError, match=re.escape(message)):
        build_choices(folder, f"{OPTIONS}{line}\n", columns=NAMED | columns)


def test_options_may_stand_in_the_question(folder):
    (row,) = build_choices(folder, f"{OPTIONS}a.png,Which? A. cat B. dog,,,,,B\n").rows
    assert row.options == ()
