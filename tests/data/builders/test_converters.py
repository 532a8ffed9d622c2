"""Every converter on small files of the published schema."""

import json
from pathlib import Path

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.converter import (
    AnnotatedImage,
    BuildError,
    DatasetSource,
    DroppedRecord,
    WrongAnswers,
    collect_items,
)
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.structs import Frame, Turn
from tests.data.builders.dataset_files import (
    coco_instances,
    find_red_box,
    png_bytes,
    voc_object,
    write_image,
    write_json,
    write_json_lines,
    write_parquet,
    write_voc_image,
)


def convert(name: str, folder: Path, **settings):
    source = DatasetSource(folder, folder, folder / "written", name=name, **settings)
    return list(FORMATS[name].convert(source))


def select_rows(items):
    return [item for item in items if hasattr(item, "problem") and hasattr(item, "kind")]


def drop_reasons(items):
    return sorted(item.reason for item in items if isinstance(item, DroppedRecord))


@pytest.fixture
def refer(tmp_path):
    write_image(tmp_path / "train2014" / "COCO_1.png", 100, 80, (10, 20, 40, 50))
    images = [(7, "COCO_1.png", 100, 80)]
    annotations = [(70, 7, 3, (10, 20, 30.5, 30)), (71, 7, 3, (50, 20, 20, 30))]
    write_json(tmp_path / "instances.json", coco_instances(images, annotations, {3: "dog"}))
    sentences = [{"sent_id": 5, "sent": "left dog", "raw": "Left dog", "tokens": []}]
    ref = {"ref_id": 9, "ann_id": 70, "image_id": 7, "category_id": 3, "split": "testA", "sentences": sentences}
    write_json(tmp_path / "refs(unc).json", [ref])
    return tmp_path


@pytest.mark.parametrize("format", ["refcoco", "refgta"])
def test_refer_files(refer, format):
    items = convert(format, refer)
    (row,), (scene,) = select_rows(items), [item for item in items if isinstance(item, AnnotatedImage)]
    assert (row.id, row.task, row.kind, row.split) == (f"{format}-9-5", Task.DETECTION, Kind.OPEN, "testA")
    assert row.problem.endswith("this sentence describes: left dog")
    assert row.solution == "[10, 20, 40.5, 50]"
    assert row.frame == Frame(100, 80)
    assert Path(row.images[0]) == refer / "train2014" / "COCO_1.png"
    assert scene.objects == (("dog", (10.0, 20.0, 40.5, 50.0)), ("dog", (50.0, 20.0, 70.0, 50.0)))


def test_split_selects_a_published_split(refer):
    assert select_rows(convert("refcoco", refer, split="train")) == []
    assert len(select_rows(convert("refcoco", refer, split="testA"))) == 1


def test_a_pickle_is_refused_with_a_remedy(refer):
    (refer / "refs(unc).json").unlink()
    (refer / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(BuildError, match=r"never read.*parquet form.*JSON"):
        convert("refcoco", refer)


def jxu124_row(**changes):
    row = {
        "sentences": [{"raw": "r", "sent": "right cat", "sent_id": 1, "tokens": ["right", "cat"]}],
        "ref_id": 4,
        "category_id": 17,
        "split": "train",
        "image_path": "coco/train2014/a.png",
        "bbox": [10.0, 20.0, 40.0, 50.0],
        "raw_anns": json.dumps({"bbox": [10.0, 20.0, 30.0, 30.0], "category_id": 17}),
        "raw_image_info": json.dumps({"width": 100, "height": 80}),
    }
    return row | changes


def test_jxu124_checks_its_box_against_the_raw_annotation(tmp_path):
    write_image(tmp_path / "coco/train2014/a.png", 100, 80)
    write_json_lines(tmp_path / "train.jsonl", [jxu124_row(), jxu124_row(ref_id=5, bbox=[10.0, 20.0, 30.0, 30.0])])
    items = convert("refcoco-jxu124", tmp_path)
    (row,) = select_rows(items)
    assert (row.id, row.solution, row.frame) == ("refcoco-jxu124-4-0", "[10, 20, 40, 50]", Frame(100, 80))
    with pytest.raises(BuildError, match="is not the raw annotation's box"):
        collect_items(items)


def test_jxu124_as_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    write_image(tmp_path / "coco/train2014/a.png", 100, 80)
    write_parquet(tmp_path / "data" / "train-0.parquet", [jxu124_row()])
    (row,) = select_rows(convert("refcoco-jxu124", tmp_path))
    assert row.problem.endswith("right cat")


def test_lmms_parquet_with_images(tmp_path):
    pytest.importorskip("pyarrow")
    record = {
        "question_id": "1",
        "image": {"bytes": png_bytes(100, 80), "path": "x.png"},
        "answer": ["a cup", "the cup"],
        "bbox": [10.0, 20.0, 30.0, 30.0],
        "segmentation": [10.0, 20.0, 39.0, 21.0, 30.0, 49.5],
        "file_name": "COCO_train2014_1_0.jpg",
    }
    wrong = record | {"question_id": "2", "bbox": [10.0, 20.0, 20.0, 20.0]}
    write_parquet(tmp_path / "val-00000.parquet", [record, wrong])
    items = convert("refcoco-lmms", tmp_path)
    first, second = select_rows(items)
    assert first.solution == second.solution == "[10, 20, 40, 50]"
    assert first.images == second.images
    assert Path(first.images[0]).read_bytes() == png_bytes(100, 80)
    with pytest.raises(BuildError, match="does not contain its outline"):
        collect_items(items)


def test_vlm_r1_problems_and_conversations(tmp_path):
    write_image(tmp_path / "a.png", 100, 80)
    asked = "Please provide the bounding box coordinate of the region this sentence describes: blue cup."
    conversations = [{"from": "human", "value": f"<image>{asked}"}, {"from": "gpt", "value": "[1, 2, 30, 40]"}]
    records = [
        {"image": "a.png", "problem": asked, "solution": [1, 2, 30.5, 40], "normalized_solution": [0, 0, 1, 1]},
        {"image": "a.png", "conversations": conversations},
    ]
    write_json_lines(tmp_path / "rec.jsonl", records)
    first, second = select_rows(convert("vlm-r1", tmp_path))
    assert (first.solution, second.solution) == ("[1, 2, 30.5, 40]", "[1, 2, 30, 40]")
    assert first.problem == second.problem
    assert first.problem.endswith(": blue cup")


def test_boxes_of_a_frame_larger_than_the_stored_image(tmp_path):
    write_image(tmp_path / "a.png", 100, 50)
    asked = "Please provide the bounding box coordinate of the region this sentence describes: a car"
    write_json_lines(tmp_path / "r.jsonl", [{"image": "a.png", "problem": asked, "solution": [900, 20, 1900, 700]}])
    with pytest.raises(BuildError, match="leaves its image of 100 x 50"):
        collect_items(convert("vlm-r1", tmp_path))
    (row,) = collect_items(convert("vlm-r1", tmp_path, frame=Frame(1920, 1080))).rows
    assert (row.solution, row.frame) == ("[900, 20, 1900, 700]", Frame(1920, 1080))


def test_coco_instances(tmp_path):
    write_image(tmp_path / "val2017" / "1.png", 100, 80)
    file = coco_instances(
        [(1, "1.png", 100, 80)],
        [
            (1, 1, 2, (10, 20, 30, 30)),
            (2, 1, 2, (50, 20, 50.4, 30)),
            (3, 1, 9, (0, 0, 20, 20)),
            (4, 1, 5, (0, 0, 9, 9)),
        ],
        {2: "dog", 5: "person", 9: "tea cup", 11: "bus"},
    )
    file["annotations"][3]["iscrowd"] = 1
    write_json(tmp_path / "annotations" / "instances_val2017.json", file)
    items = convert("coco", tmp_path)
    categories, dogs, cups = select_rows(items)
    assert (categories.id, categories.solution, categories.frame, categories.split) == (
        "coco-1",
        "dog, tea cup",
        None,
        "val2017",
    )
    assert "Choose from: dog, tea cup, bus." in categories.problem  # a crowd of persons is neither right nor wrong
    assert (dogs.id, dogs.solution) == ("coco-1-dog", "[[10, 20, 40, 50], [50, 20, 100, 50]]")
    assert cups.solution == "[0, 0, 20, 20]"
    assert drop_reasons(items) == ["the category has crowds or difficult objects"]
    (scene,) = [item for item in items if isinstance(item, AnnotatedImage)]
    assert scene.labels == {"dog", "tea cup", "person"}
    assert len(scene.objects) == 3
    assert [row.task for row in select_rows(convert("coco", tmp_path, tasks=(Task.CLASSIFY,)))] == [Task.CLASSIFY]
    assert drop_reasons(convert("coco", tmp_path, max_boxes=1))[-1] == "the category has more than 1 objects"


def test_an_image_whose_size_differs_from_its_annotations_is_refused(tmp_path):
    write_image(tmp_path / "1.png", 50, 40)
    write_json(
        tmp_path / "instances.json",
        coco_instances([(1, "1.png", 100, 80)], [(1, 1, 2, (1, 2, 3, 4))], {2: "dog"}),
    )
    with pytest.raises(BuildError, match=r"for 100 x 80 pixels, the image has 50 x 40"):
        collect_items(convert("coco", tmp_path))


def test_voc_boxes_are_one_based_and_inclusive(tmp_path):
    from PIL import Image

    box = (7, 11, 40, 53)
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    objects = [
        voc_object("dog", box, parts=part),
        voc_object("cat", (50, 0, 100, 80)),
        voc_object("cat", (60, 5, 70, 20), difficult=1),
        voc_object("sheep", (60, 5, 70, 20), difficult=1),
    ]
    write_voc_image(tmp_path, "000001", 100, 80, objects, box)
    items = convert("voc", tmp_path)
    categories, dog = select_rows(items)
    assert categories.solution == "cat, dog"
    assert "sheep" not in categories.problem
    assert dog.solution == str(list(box))
    assert find_red_box(Image.open(dog.images[0])) == box
    assert drop_reasons(items) == ["the category has crowds or difficult objects"] * 2
    (scene,) = [item for item in items if isinstance(item, AnnotatedImage)]
    assert scene.labels == {"dog", "cat", "sheep"}  # without the head, a part
    with_difficult = select_rows(convert("voc", tmp_path, include_difficult=True))
    assert [row.id for row in with_difficult] == ["voc-000001", "voc-000001-cat", "voc-000001-dog", "voc-000001-sheep"]


def test_voc_splits(tmp_path):
    for name in ("000001", "000002"):
        write_voc_image(tmp_path / "VOC2007", name, 100, 80, [voc_object("dog", (1, 2, 30, 40))])
    write_json(tmp_path / "VOC2007/ImageSets/Main/test.txt", 0).write_text("000002\n")
    assert {row.id for row in select_rows(convert("voc", tmp_path, split="test"))} == {"voc-000002", "voc-000002-dog"}
    with pytest.raises(BuildError, match="--split takes the name of a list"):
        convert("voc", tmp_path, split="train")


@pytest.mark.parametrize(
    "xml",
    [
        b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
    ],
)
def test_voc_xml_with_a_document_type_is_refused(tmp_path, xml):
    (tmp_path / "bad.xml").write_bytes(xml)
    with pytest.raises(BuildError, match="document type declaration"):
        collect_items(convert("voc", tmp_path))


def conversation(asked, replied, **keys):
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": replied}], **keys}


MATHV = "<image>\nHint: Please answer the question and provide the correct option letter, e.g., A, B, at the end.\n"
GEO = (
    "<image>\nFirst perform reasoning, then finally select the question from the choices in the following format:"
    " Answer: xxx.\n"
)

CONVERSATIONS = [
    (
        f"{MATHV}Question: Find x.\nChoices:\n(A) 12\n(B) 13\n(C) 14\n(D) 15",
        "The answer is B",
        ("Find x.", "13", "12 14 15"),
    ),
    (
        f"{GEO}Question:The size of angle 2 is ()\nChoices:\nA:32°\nB:58°",
        "To answer the question: so 90 - 32.\nAnswer:B",
        ("The size of angle 2 is ()", "58°", "32°"),
    ),
    ("<image>\nHint: Give an integer.\nQuestion: How many?", "The answer is 7.", ("How many?", "7", "")),
    (
        f"{GEO}Question: Length?\nChoices:\n(A) 2√{{3}} (B) \\frac{{1}}{{2}}",
        "The answer is (B) 1/2",
        ("Length?", "\\frac{1}{2}", "2√{3}"),
    ),
    ("How long is it?", "It is 3 + 4. The answer is 7. That is all.", ("How long is it?", "7", "")),
]


@pytest.mark.parametrize(("asked", "replied", "expected"), CONVERSATIONS)
def test_math_conversations_with_one_answer(tmp_path, asked, replied, expected):
    write_image(tmp_path / "images" / "1.png", 40, 40)
    write_json(tmp_path / "train.json", [conversation(asked, replied, image="1.png")])
    items = convert("mathv360k", tmp_path)
    (row,) = select_rows(items)
    wrong = [text for item in items if isinstance(item, WrongAnswers) for text in item.answers]
    assert (row.problem, row.solution, " ".join(wrong)) == expected


def test_math_conversations_without_an_open_row_are_dropped_by_reason(tmp_path):
    write_image(tmp_path / "1.png", 40, 40)
    records = [
        conversation("Question: What is it?\nChoices:\n(A) cat\n(B) dog", "The answer is A"),
        conversation("Question: Is it?\nChoices:\n(A) 1\n(B) 2", "The answer is E"),
        conversation("Question: Which of the following is right?\nChoices:\n(A) 1\n(B) 2", "The answer is A"),
        conversation("Question: Which?", "The answer is A"),
        conversation("Question: How many?", "I see seven."),
        {"conversations": conversation("a", "b")["conversations"] * 2},
        conversation("Question: Which numbers?", "The answer is either 3 or maybe 4"),
        conversation("Question: Why?", "The answer is that there are only 5 of them left on the table"),
    ]
    write_json(tmp_path / "qa_tuning.json", records)
    assert drop_reasons(convert("geo170k", tmp_path)) == [
        "not one question with one reply",
        "the answer is a letter that no choice has",
        "the answer is a letter without choices",
        "the answer is a sentence",
        "the answer is no single expression (several_answers)",
        "the answer is words or a letter",
        "the question makes no sense without its choices",
        "the reply does not say what the answer is",
    ]


@pytest.mark.parametrize("format", ["open-r1-8k", "geoqa-r1v", "clevr-70k"])
def test_problems_with_the_image_in_the_row(tmp_path, format):
    pytest.importorskip("pyarrow")
    image = {"bytes": png_bytes(), "path": None}
    records = [
        {"image": image, "problem": "How many items are there?", "solution": "<answer> 3 </answer>"},
        {"image": image, "problem": "Find x.", "solution": "<think>so</think>\n<answer>\\frac{1}{2}</answer>"},
        {"image": image, "problem": "Find y.", "solution": "so 3"},
    ]
    write_parquet(tmp_path / "train-0.parquet", records)
    items = convert(format, tmp_path)
    assert [(row.problem, row.solution) for row in select_rows(items)] == [
        ("How many items are there?", "3"),
        ("Find x.", "\\frac{1}{2}"),
    ]
    assert {row.images for row in select_rows(items)} == {select_rows(items)[0].images}
    assert Path(select_rows(items)[0].images[0]).suffix == ".png"
    assert drop_reasons(items) == ["the solution has not one answer in its tags"]


def test_clevr_questions_scenes_and_r1v_test(tmp_path):
    write_image(tmp_path / "images/train/c1.png", 48, 32)
    asked = {"image_filename": "c1.png", "split": "train", "question_index": 5}
    records = [asked | {"question": "How many cubes?", "answer": "2"}]
    records += [asked | {"question": "Any cube?", "answer": "yes", "question_index": 6}]
    write_json(tmp_path / "questions" / "CLEVR_train_questions.json", {"info": {}, "questions": records})
    write_json(tmp_path / "s" / "scenes.json", {"scenes": [{"image_filename": "c1.png", "objects": [{}, {}, {}]}]})
    write_json_lines(
        tmp_path / "t" / "superclevr.jsonl",
        [{"image_path": "./images/c1.png", "question": "How many different items?", "ground_truth": 3}],
    )

    def collect(name, folder):
        items = FORMATS[name].convert(DatasetSource(tmp_path / folder, tmp_path, tmp_path / "w", name=name))
        return collect_items(items)

    questions = collect("clevr", "questions")
    assert [(row.problem, row.solution) for row in questions.rows] == [("How many cubes?", "2")]
    assert list(questions.dropped) == ["the answer is not a count"]
    assert [(row.problem, row.solution) for row in collect("clevr-scenes", "s").rows] == [
        ("How many different items are there in the image?", "3")
    ]
    assert [row.solution for row in collect("superclevr-r1v", "t").rows] == ["3"]


def test_chat_conversations_are_unchanged(tmp_path):
    write_image(tmp_path / "1.png", 40, 40)
    write_json_lines(
        tmp_path / "train.jsonl",
        [conversation("<image>\nWhat?", "<SUMMARY> It is …", image="1.png"), conversation("Text only?", "Yes.")],
    )
    first, second = select_rows(convert("chat", tmp_path))
    assert first.kind is Kind.CHAT
    assert first.messages == (Turn("user", "<image>\nWhat?"), Turn("assistant", "<SUMMARY> It is …"))
    assert [len(row.images) for row in (first, second)] == [1, 0]


def test_chat_fills_in_the_objects_of_ms_swift(tmp_path):
    write_image(tmp_path / "1.png", 40, 40)
    turns = [("user", "<image>Find the <ref-object>."), ("assistant", "<bbox>")]
    record = {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": ["1.png"],
        "objects": {"ref": ["cup"], "bbox": [[1, 2, 30, 35.5]]},
    }
    write_json_lines(tmp_path / "swift.jsonl", [record, record | {"objects": None}, record | {"videos": ["a.mp4"]}])
    data = collect_items(convert("chat", tmp_path), skip=True)
    (row,) = data.rows
    assert row.messages == (Turn("user", "<image>Find the cup."), Turn("assistant", "{box:0}"))
    assert (row.boxes, row.source) == (((1.0, 2.0, 30.0, 35.5),), "chat")
    assert "swift.jsonl:2: the texts have <ref-object>, but there is no" in str(data.bad_records[0])
    assert 'swift.jsonl:3: "videos" is not read' in str(data.bad_records[1])


def test_chat_with_more_image_tokens_than_images_is_refused(tmp_path):
    write_image(tmp_path / "1.png", 40, 40)
    write_json(tmp_path / "c.json", [conversation("<image><image>?", "x", image="1.png")])
    with pytest.raises(BuildError, match="2 <image>, but there are 1 images"):
        collect_items(convert("chat", tmp_path))


def test_cauldron(tmp_path):
    pytest.importorskip("pyarrow")
    texts = [{"user": "What is it?", "assistant": "A cup.", "source": "x"}, {"user": "Why?", "assistant": "So."}]
    write_parquet(tmp_path / "t.parquet", [{"images": [{"bytes": png_bytes(), "path": None}], "texts": texts}])
    first, second = select_rows(convert("cauldron", tmp_path))
    assert first.messages == (Turn("user", "What is it?"), Turn("assistant", "A cup."))
    assert first.images == second.images


def test_science_qa(tmp_path):
    write_image(tmp_path / "images/train/1/image.png", 40, 40)
    problem = {
        "question": "Which is longest?",
        "choices": ["a mile", "an inch"],
        "answer": 0,
        "hint": "Look.",
        "image": "image.png",
        "solution": "A mile is long.",
        "split": "train",
    }
    write_json(tmp_path / "problems.json", {"1": problem, "2": problem | {"image": None, "split": "test"}})
    source = DatasetSource(tmp_path, tmp_path / "images", tmp_path / "w", name="scienceqa")
    first, second = select_rows(FORMATS["scienceqa"].convert(source))
    assert first.id == "scienceqa-1"
    assert first.messages[0].text == "Context: Look.\nWhich is longest?\nOptions:\nA. a mile\nB. an inch"
    assert first.messages[1].text == "A mile is long.\nThe answer is A. a mile"
    assert (len(first.images), second.images, second.split) == (1, (), "test")


def test_visual7w_vsr_geomverse_and_text(tmp_path):
    for name in ("v7w_1.png", "000000000001.png", "g.png"):
        write_image(tmp_path / "images" / name, 40, 40)
    pair = {"qa_id": 6, "question": "What?", "answer": "Wood.", "multiple_choices": ["Tile.", "Glass.", "Cement."]}
    image = {"filename": "v7w_1.png", "image_id": 1, "split": "train", "qa_pairs": [pair]}
    write_json(tmp_path / "dataset_v7w_telling.json", {"dataset": "visual7w-telling", "images": [image]})
    (row,) = select_rows(convert("visual7w", tmp_path))
    assert row.messages[0].text == "What?\nOptions:\nA. Tile.\nB. Glass.\nC. Wood.\nD. Cement."
    assert row.messages[1].text == "The answer is C. Wood."

    (tmp_path / "dataset_v7w_telling.json").unlink()
    statement = {"image": "000000000001.png", "caption": "The cat is in the box.", "label": 1, "relation": "in"}
    path = write_json_lines(tmp_path / "vsr.jsonl", [statement])
    (row,) = select_rows(convert("vsr", tmp_path))
    assert row.messages[1] == Turn("assistant", "Yes")

    path.unlink()
    path = write_json_lines(
        tmp_path / "g.jsonl", [{"image_path": "images/g.png", "question": "Area?", "cot": "2 x 3", "label": 6.5}]
    )
    (row,) = select_rows(convert("geomverse", tmp_path))
    assert (row.task, row.solution) == (Task.MATH, "6.5")
    (row,) = select_rows(convert("geomverse", tmp_path, kind=Kind.CHAT))
    assert row.messages[1].text == "2 x 3\nThe answer is 6.5."

    path.unlink()
    write_json_lines(
        tmp_path / "s1k.jsonl",
        [
            {"question": "1 + 1?", "solution": "2", "cot_type": "math"},
            {"question": "Why is it blue?", "solution": "Rayleigh.", "cot_type": "science"},
            {"question": "Why?", "solution": "", "cot_type": "science"},
        ],
    )
    items = convert("text", tmp_path, split="science")
    assert [row.messages[1].text for row in select_rows(items)] == ["Rayleigh."]
    assert drop_reasons(items) == ["no solution"]


def test_a_custom_table_with_boxes_of_another_format(tmp_path):
    write_image(tmp_path / "a.png", 200, 100)
    (tmp_path / "t.csv").write_text(
        'file,asked,gold,name\na.png,"Where, please?","[500, 100, 1000, 250]",x1\n', "utf-8"
    )
    columns = {"image": "file", "problem": "asked", "solution": "gold", "id": "name"}
    settings = {"task": Task.DETECTION, "columns": columns, "box_format": "xyxy", "box_scale": "thousand"}
    (row,) = collect_items(convert("table", tmp_path, **settings)).rows
    assert (row.id, row.problem, row.solution) == ("table-x1", "Where, please?", "[100, 10, 200, 25]")
    settings |= {"box_scale": "unit"}
    with pytest.raises(BuildError, match=r"\(xyxy, unit\) leaves its image of 200 x 100"):
        collect_items(convert("table", tmp_path, **settings))
    with pytest.raises(BuildError, match="no column 'gone'; there are file, asked, gold, name"):
        collect_items(convert("table", tmp_path, **(settings | {"columns": columns | {"problem": "gone"}})))


def test_a_custom_table_of_choices(tmp_path):
    (tmp_path / "t.tsv").write_text("problem\tsolution\toptions\nWhich?\tB\tred|blue\n", "utf-8")
    (row,) = collect_items(convert("table", tmp_path, kind=Kind.CHOICE)).rows
    assert (row.kind, row.options, row.solution, row.images) == (Kind.CHOICE, ("red", "blue"), "B", ())


def test_errors_name_file_and_line(tmp_path):
    (tmp_path / "t.csv").write_text("problem,solution\nHow many?,3\nHow many?\n", "utf-8")
    with pytest.raises(BuildError, match=r"t\.csv:3: not as many cells as the header has"):
        collect_items(convert("table", tmp_path))
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.jsonl").write_text('{"problem": "How many?", "solution": "3"}\n{"problem": \n[]\n', "utf-8")
    with pytest.raises(BuildError, match=r"2 bad records.*\n.*t\.jsonl:2: not JSON.*\n.*t\.jsonl:3: a list"):
        collect_items(convert("table", tmp_path))
    data = collect_items(convert("table", tmp_path), skip=True, limit=2)
    assert (len(data.rows), len(data.bad_records)) == (1, 2)
    with pytest.raises(BuildError, match="more than the 1 of --bad-limit"):
        collect_items(convert("table", tmp_path), skip=True, limit=1)


def test_missing_ambiguous_and_damaged_images_are_refused(tmp_path):
    write_json_lines(tmp_path / "t.jsonl", [{"problem": "How many?", "solution": "3", "image": "a.png"}])
    with pytest.raises(BuildError, match=r"t\.jsonl:1: no image a\.png under .*--images takes"):
        collect_items(convert("table", tmp_path))
    other = tmp_path / "other"
    for sub in ("one", "two"):
        write_image(other / sub / "a.png", 30, 30)
    write_json_lines(other / "t.jsonl", [{"problem": "How many?", "solution": "3", "image": "a.png"}])
    with pytest.raises(BuildError, match=r"there are .*one/a\.png and .*two/a\.png"):
        collect_items(convert("table", other))
    third = tmp_path / "third"
    write_json_lines(third / "t.jsonl", [{"problem": "How many?", "solution": "3", "image": "a.png"}])
    (third / "a.png").write_bytes(b"not an image")
    with pytest.raises(BuildError, match="not a readable image"):
        collect_items(convert("table", third))


def test_rotated_images_are_measured_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    asked = "Please provide the bounding box coordinate of the region this sentence describes: x"
    write_json_lines(tmp_path / "r.jsonl", [{"image": "a.jpg", "problem": asked, "solution": [1, 2, 30, 55]}])
    (row,) = collect_items(convert("vlm-r1", tmp_path)).rows
    assert row.frame == Frame(40, 60)


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    from currreft_jax.data.builders import records

    monkeypatch.setattr(records, "find_spec", lambda name: None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(BuildError, match=r"pip install -e '\.\[data\]'"):
        collect_items(convert("table", tmp_path))
