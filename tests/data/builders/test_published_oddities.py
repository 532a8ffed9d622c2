"""Every converter on the known oddities of the published files: one case each, as listed in docs/data.md."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.converter import BuildError, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.format_detection import detect_format
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.gold_filter import take_readable
from currreft_jax.data.builders.recipe import PAPER, Recipe, RecipeSource
from currreft_jax.data.builders.recipe_assembly import AssemblyOptions, assemble
from currreft_jax.data.builders.stage_rows import generate_rows
from currreft_jax.data.images import open_image
from currreft_jax.structs import Frame
from tests.data.builders.dataset_files import (
    coco_instances,
    png_bytes,
    read_rows,
    voc_object,
    write_image,
    write_json,
    write_json_lines,
    write_parquet,
    write_voc_image,
)

HALF = Frame(100, 80)  # of the images below, whose annotations may state another size
ASKED = "Please provide the bounding box coordinate of the region this sentence describes: "
CATEGORIES = {1: "dog", 2: "cat", 3: "tea cup"}


def build(name: str, folder: Path, *, skip: bool = False, **settings) -> ConvertedData:
    source = DatasetSource(folder, folder, folder / "written", name=name, **settings)
    return collect_items(FORMATS[name].convert(source), skip=skip)


def solutions(data: ConvertedData, task: Task = Task.DETECTION) -> list[str]:
    return [row.solution for row in data.rows if row.task is task]


def write_coco(folder: Path, boxes, *, stated: Frame = HALF, **changes) -> dict:
    """Writes one image with boxes of (category, x, y, width, height), and returns the instances file."""
    write_image(folder / "1.png", HALF.width, HALF.height)
    annotations = [(index, 1, category, box) for index, (category, *box) in enumerate(boxes)]
    file = coco_instances([(1, "1.png", stated.width, stated.height)], annotations, CATEGORIES) | changes
    write_json(folder / "instances.json", file)
    return file


# Boxes.

EMPTY_BOXES = {
    "no height": [96.65, 8.33, 1.03, 0.0],  # two of COCO's 860,001 boxes
    "no width": [10, 10, 0, 5],
    "negative height": [10, 30, 20, -5],
    "negative width": [40, 30, -20, 5],
    "negative width, past the edge": [10, 30, -20, 5],
    "less than a hundredth of a pixel": [10, 10, 20, 0.004],
    "outside by less than a pixel": [100, 10, 0.5, 20],
}


@pytest.mark.parametrize("empty", EMPTY_BOXES.values(), ids=EMPTY_BOXES)
def test_coco_counts_a_box_without_area_and_keeps_its_image(tmp_path, empty):
    write_coco(tmp_path, [(1, 10, 20, 30, 30), (1, *empty), (2, *empty), (3, 0, 0, 20, 20)])
    data = build("coco", tmp_path)
    assert len(data.dropped["the box has no area"]) == 2
    assert data.dropped["the box has no area"][0].endswith("instances.json annotations[1]")
    assert solutions(data) == ["[10, 20, 40, 50]", "[0, 0, 20, 20]"]
    (row,) = (row for row in data.rows if row.task is Task.CLASSIFY)
    assert row.solution == "dog, tea cup"
    assert "Choose from: dog, tea cup." in row.problem  # whether a cat is in the image is not known
    (image,) = data.images.values()
    assert image.labels == {"dog", "cat", "tea cup"}  # so that no wrong answer is made of the cat
    assert data.dropped["no box of the category has an area"] == ["coco-1-cat"]


BAD_BOXES = {"outside": [90, 10, 40, 20], "three numbers": [1, 2, 3], "no box": None, "text": ["1", "2", "3", "4"]}


@pytest.mark.parametrize("bad", BAD_BOXES.values(), ids=BAD_BOXES)
def test_a_bad_coco_box_is_an_error_that_costs_its_category_alone(tmp_path, bad):
    file = write_coco(tmp_path, [(1, 10, 20, 30, 30), (1, 1, 1, 5, 5), (2, 50, 20, 20, 30)])
    file["annotations"][1]["bbox"] = bad
    write_json(tmp_path / "instances.json", file)
    with pytest.raises(BuildError, match=r"instances\.json annotations\[1\]: the box"):
        build("coco", tmp_path)
    data = build("coco", tmp_path, skip=True)
    assert (len(data.bad_records), solutions(data)) == (1, ["[50, 20, 70, 50]"])
    assert data.dropped["a box of the category is bad"] == ["coco-1-dog"]


def test_a_coco_box_annotated_twice_is_one_right_answer(tmp_path):
    write_coco(tmp_path, [(1, 10, 20, 30, 30), (1, 10, 20, 30, 30)])
    assert solutions(build("coco", tmp_path)) == ["[10, 20, 40, 50]"]


def write_refs(folder: Path, boxes) -> None:
    """Writes one image with boxes of (category, x, y, width, height), and a reference to each."""
    write_coco(folder, boxes)
    refs = [
        {
            "ref_id": index,
            "ann_id": index,
            "image_id": 1,
            "category_id": category,
            "split": "train",
            "sentences": [{"sent_id": index, "sent": f"animal {index}"}],
        }
        for index, (category, *_) in enumerate(boxes)
    ]
    write_json(folder / "refs(unc).json", refs)


@pytest.mark.parametrize("format", ["refcoco", "refgta"])
@pytest.mark.parametrize(
    "bad", [*EMPTY_BOXES.values(), *([box] for box in BAD_BOXES.values())], ids=[*EMPTY_BOXES, *BAD_BOXES]
)
def test_another_objects_bad_box_costs_no_sound_reference(tmp_path, format, bad):
    write_refs(tmp_path, [(2, 0, 0, 9, 9), (1, 10, 20, 30, 30), (1, 50, 20, 20, 30)])
    file = json.loads((tmp_path / "instances.json").read_text())
    file["annotations"][0]["bbox"] = bad[0] if len(bad) == 1 else bad
    write_json(tmp_path / "instances.json", file)
    data = build(format, tmp_path, skip=True)
    assert solutions(data) == ["[10, 20, 40, 50]", "[50, 20, 70, 50]"]
    assert data.dropped["the box of its object cannot be used"] == [f"{format}-0"]
    assert len(data.bad_records) + len(data.dropped.get("the box has no area", [])) == 1  # once, not for each ref
    assert [label for image in data.images.values() for label, _ in image.objects] == ["dog", "dog"]


def test_a_bad_sentence_leaves_its_images_annotations(tmp_path):
    write_refs(tmp_path, [(2, 0, 0, 9, 9), (1, 10, 20, 30, 30)])
    refs = json.loads((tmp_path / "refs(unc).json").read_text())
    refs[0]["sentences"] = [{"sent_id": 0}]
    write_json(tmp_path / "refs(unc).json", refs)
    data = build("refcoco", tmp_path, skip=True)
    assert (len(data.rows), len(data.bad_records)) == (1, 1)
    assert len(next(iter(data.images.values())).objects) == 2


def jxu124(box, **changes) -> dict:
    x, y, width, height = box
    row = {"sentences": [{"sent": "it"}], "ref_id": 4, "category_id": 17, "split": "train", "image_path": "1.png"}
    stated = {"width": HALF.width, "height": HALF.height}
    row |= {"bbox": [x, y, x + width, y + height], "raw_anns": json.dumps({"bbox": box})}
    return row | {"raw_image_info": json.dumps(stated)} | changes


def lmms(box, **changes) -> dict:
    return {"question_id": "7", "image": "1.png", "answer": ["it"], "bbox": box, "file_name": "COCO_1_0.jpg"} | changes


def vlm_r1(box, **changes) -> dict:
    x, y, width, height = box
    return {"image": "1.png", "problem": f"{ASKED}it", "solution": [x, y, x + width, y + height]} | changes


REFERENCES = {"refcoco-jxu124": jxu124, "refcoco-lmms": lmms, "vlm-r1": vlm_r1}


@pytest.mark.parametrize("format", REFERENCES)
def test_a_reference_without_area_is_dropped_and_counted(tmp_path, format):
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    record = REFERENCES[format]
    boxes = [EMPTY_BOXES["no height"], EMPTY_BOXES["negative width"], [10, 20, 30.25, 30]]
    write_json_lines(tmp_path / "train-0.jsonl", [record(box) for box in boxes])
    data = build(format, tmp_path)
    assert solutions(data) == ["[10, 20, 40.25, 50]"]
    assert len(data.dropped["the box has no area"]) == 2


def test_boxes_of_32_bits_are_rounded_to_hundredths(tmp_path):
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    box = [struct.unpack("f", struct.pack("f", x))[0] for x in (10.1, 20.2, 30.3, 40.4)]
    write_json_lines(tmp_path / "val-0.jsonl", [lmms(box)])
    assert solutions(build("refcoco-lmms", tmp_path)) == ["[10.1, 20.2, 40.4, 60.6]"]


VOC_CORNERS = {
    "one pixel wide": ((10, 20, 10, 40), "[9, 19, 10, 40]"),
    "floats": ((45.700000762939453, 20, 60.5, 40), "[44.7, 19, 60.5, 40]"),
    "0-based": ((0, 0, 99, 79), "[0, 0, 99, 79]"),
    "negative width": ((60, 20, 10, 40), None),
    "no height": ((10, 41, 60, 40), None),
}


@pytest.mark.parametrize(("corners", "expected"), VOC_CORNERS.values(), ids=VOC_CORNERS)
def test_voc_corners(tmp_path, corners, expected):
    x1, y1, x2, y2 = corners
    objects = [voc_object("dog", (x1 - 1, y1 - 1, x2, y2)), voc_object("cat", (5, 5, 20, 20))]
    write_voc_image(tmp_path, "1", HALF.width, HALF.height, objects)
    data = build("voc", tmp_path)
    assert solutions(data) == ["[5, 5, 20, 20]", *([expected] if expected else [])]
    assert data.dropped.get("the box has no area", []) == (
        [] if expected else [f"{tmp_path / 'Annotations' / '1.xml'} object[0]"]
    )


@pytest.mark.parametrize("difficult", ["", "<difficult/>", "<difficult>0</difficult>"])
def test_voc_objects_without_difficult_are_not_difficult(tmp_path, difficult):
    text = voc_object("dog", (5, 5, 20, 20)).replace("<difficult>0</difficult>", difficult)
    write_voc_image(tmp_path, "1", HALF.width, HALF.height, [text])
    assert solutions(build("voc", tmp_path)) == ["[5, 5, 20, 20]"]


@pytest.mark.parametrize("box", ["", "<bndbox><xmin>a</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"])
def test_a_bad_voc_box_is_an_error_that_costs_its_category_alone(tmp_path, box):
    objects = [f"<object><name>dog</name>{box}</object>", voc_object("cat", (5, 5, 20, 20))]
    write_voc_image(tmp_path, "1", HALF.width, HALF.height, objects)
    with pytest.raises(BuildError, match=r"1\.xml object\[0\]: <"):
        build("voc", tmp_path)
    assert solutions(build("voc", tmp_path, skip=True)) == ["[5, 5, 20, 20]"]


# Frames.

DOUBLE = Frame(200, 160)


def write_framed(name: str, folder: Path, stated: Frame, box) -> None:
    """Writes one image of size `HALF` with one box of x, y, width, height; its annotations state another size."""
    if name == "voc":
        x, y, width, height = box
        objects = [voc_object("dog", (x, y, x + width, y + height))]
        write_voc_image(folder, "1", HALF.width, HALF.height, objects)
        path = folder / "Annotations" / "1.xml"
        size = f"<width>{stated.width}</width><height>{stated.height}</height>"
        path.write_text(path.read_text().replace("<width>100</width><height>80</height>", size))
    elif name == "refcoco-jxu124":
        write_image(folder / "1.png", HALF.width, HALF.height)
        info = json.dumps({"width": stated.width, "height": stated.height})
        write_json_lines(folder / "train.jsonl", [jxu124(box, raw_image_info=info)])
    else:
        write_refs(folder, [(1, *box)])
        write_coco(folder, [(1, *box)], stated=stated)


WITH_SIZES = ["coco", "voc", "refcoco", "refgta", "refcoco-jxu124"]


@pytest.mark.parametrize("name", WITH_SIZES)
@pytest.mark.parametrize("settings", [{"frame": DOUBLE}, {"annotated_frame": True}], ids=["size", "annotated"])
def test_frame_is_heeded_where_the_message_offers_it(tmp_path, name, settings):
    write_framed(name, tmp_path, DOUBLE, [20, 30, 160, 110])
    with pytest.raises(BuildError, match=r"for 200 x 160 pixels, the image has 100 x 80; .*--frame=annotated"):
        build(name, tmp_path)
    (row,) = (row for row in build(name, tmp_path, **settings).rows if row.task is Task.DETECTION)
    assert (row.solution, row.frame) == ("[20, 30, 180, 140]", DOUBLE)


@pytest.mark.parametrize("name", WITH_SIZES)
def test_frame_overrides_a_size_that_follows_the_resized_image(tmp_path, name):
    write_framed(name, tmp_path, HALF, [20, 30, 160, 110])
    with pytest.raises(BuildError, match="leaves its image of 100 x 80"):
        build(name, tmp_path)
    (row,) = (row for row in build(name, tmp_path, frame=DOUBLE).rows if row.task is Task.DETECTION)
    assert (row.solution, row.frame) == ("[20, 30, 180, 140]", DOUBLE)


@pytest.mark.parametrize("name", WITH_SIZES)
def test_one_frame_does_not_fit_images_that_were_of_other_sizes(tmp_path, name):
    write_framed(name, tmp_path, Frame(300, 200), [20, 30, 60, 50])
    with pytest.raises(BuildError, match=r"300 x 200 pixels, the image has 100 x 80, --frame says 200 x 160"):
        build(name, tmp_path, frame=DOUBLE)


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_a_stated_size_of_zero_states_none(tmp_path, name):
    write_framed(name, tmp_path, Frame(0, 0), [20, 30, 60, 40])
    for settings in ({}, {"annotated_frame": True}):
        (row,) = (row for row in build(name, tmp_path, **settings).rows if row.task is Task.DETECTION)
        assert (row.solution, row.frame) == ("[20, 30, 80, 70]", HALF)


def test_a_coco_image_may_state_no_size(tmp_path):
    file = write_coco(tmp_path, [(1, 10, 20, 30, 30)])
    del file["images"][0]["width"], file["images"][0]["height"]
    write_json(tmp_path / "instances.json", file)
    assert solutions(build("coco", tmp_path)) == ["[10, 20, 40, 50]"]
    file["images"][0]["width"] = HALF.width
    write_json(tmp_path / "instances.json", file)
    with pytest.raises(BuildError, match=r'"height" is missing'):
        build("coco", tmp_path)


@pytest.mark.parametrize("name", ["refcoco-lmms", "vlm-r1"])
def test_frame_is_heeded_where_no_size_is_stated(tmp_path, name):
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    write_json_lines(tmp_path / "train-0.jsonl", [REFERENCES[name]([20, 30, 160, 110])])
    (row,) = build(name, tmp_path, frame=DOUBLE).rows
    assert (row.solution, row.frame) == ("[20, 30, 180, 140]", DOUBLE)


# Categories of one's own.


def test_voc_files_with_categories_of_their_own_bring_their_own_list(tmp_path, pool):
    for index, name in enumerate(("helmet", "vest", "person", "glove", "boot")):
        write_voc_image(tmp_path, f"{index}", HALF.width, HALF.height, [voc_object(name, (5, 5, 60, 60))])
    write_json(tmp_path / "ImageSets/Main/test.txt", 0).write_text("0\n")
    (row,) = (row for row in build("voc", tmp_path, split="test").rows if row.task is Task.CLASSIFY)
    # The list is that of the folder, the same for every split.
    assert "Choose from: boot, glove, helmet, person, vest. " in row.problem
    data = build("voc", tmp_path)
    golds = {row.solution for row in data.rows if row.task is Task.CLASSIFY}
    rows = [row for row in data.rows if row.task is Task.CLASSIFY]
    choices = generate_rows(rows, Kind.CHOICE, data, 0, pool).rows
    assert {option for choice in choices for option in choice.options} == golds
    assert len(choices) == 5


def test_vocs_own_categories_are_listed_whole(tmp_path):
    write_voc_image(tmp_path, "1", HALF.width, HALF.height, [voc_object("dog", (5, 5, 60, 60))])
    (row,) = (row for row in build("voc", tmp_path).rows if row.task is Task.CLASSIFY)
    assert "Choose from: aeroplane, bicycle, " in row.problem


def test_a_coco_file_of_any_name_is_a_source(tmp_path):
    write_coco(tmp_path, [(1, 5, 5, 50, 50)])
    path = (tmp_path / "instances.json").rename(tmp_path / "_annotations.coco.json")
    source = DatasetSource(path, tmp_path, tmp_path / "written", name="mine")
    assert {row.split for row in collect_items(FORMATS["coco"].convert(source)).rows} == {""}


def test_a_coco_file_brings_its_own_list_without_repeats(tmp_path):
    names = [{"id": 9, "name": "tea cup"}, {"id": 4, "name": "lid"}, {"id": 7, "name": "lid"}]
    write_coco(tmp_path, [(9, 5, 5, 50, 50)], categories=names)
    (row,) = (row for row in build("coco", tmp_path).rows if row.task is Task.CLASSIFY)
    assert "Choose from: lid, tea cup. " in row.problem


# Ids, and what stands twice.


@pytest.mark.parametrize("key", ["images", "categories"])
def test_a_coco_id_used_twice_is_an_error(tmp_path, key):
    file = write_coco(tmp_path, [(1, 5, 5, 50, 50)])
    file[key].append(file[key][0] | {"file_name": "2.png", "name": "other"})
    write_json(tmp_path / "instances.json", file)
    with pytest.raises(BuildError, match=rf'{key}\[\d\]: "id" is 1; it takes an id that no other of the {key} has'):
        build("coco", tmp_path)
    assert len(build("coco", tmp_path, skip=True).rows) == 2


def test_coco_annotation_ids_play_no_part_but_those_of_references_do(tmp_path):
    write_refs(tmp_path, [(1, 5, 5, 50, 50), (2, 5, 5, 40, 40)])
    file = json.loads((tmp_path / "instances.json").read_text())
    file["annotations"].append(file["annotations"][0] | {"bbox": [1, 1, 9, 9]})
    write_json(tmp_path / "instances.json", file)
    assert len(build("coco", tmp_path).rows) == 3
    with pytest.raises(BuildError, match=r'annotations\[2\]: "id" is 0; it takes an id that no other'):
        build("refcoco", tmp_path)


def test_an_annotation_of_an_image_that_is_not_in_the_file_is_counted(tmp_path):
    file = write_coco(tmp_path, [(1, 5, 5, 50, 50)])
    file["annotations"].append(file["annotations"][0] | {"image_id": 99})
    write_json(tmp_path / "instances.json", file)
    assert len(build("coco", tmp_path).dropped["its image is not in the file"]) == 1


def test_an_entry_without_an_id_is_one_bad_record(tmp_path):
    file = write_coco(tmp_path, [(1, 5, 5, 50, 50)])
    file["annotations"].append({"bbox": [1, 2, 3, 4]})
    write_json(tmp_path / "instances.json", file)
    data = build("coco", tmp_path, skip=True)
    assert (len(data.rows), [str(error).rpartition("instances.json ")[2] for error in data.bad_records]) == (
        2,
        ['annotations[1]: "image_id" is missing; it takes a whole number'],
    )


def test_two_files_of_references_are_built_one_at_a_time(tmp_path):
    write_refs(tmp_path, [(1, 5, 5, 50, 50)])
    refs = tmp_path / "refs(unc).json"
    (tmp_path / "refs(google).json").write_bytes(refs.read_bytes())
    with pytest.raises(BuildError, match=r"holds refs\(google\)\.json and refs\(unc\)\.json.*--source takes one"):
        build("refcoco", tmp_path)
    source = DatasetSource(refs, tmp_path, tmp_path / "written", name="refcoco")
    assert len(collect_items(FORMATS["refcoco"].convert(source)).rows) == 1


def test_a_question_id_of_lmms_may_stand_twice(tmp_path):
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    write_json_lines(tmp_path / "val-0.jsonl", [lmms([1, 2, 30, 40]), lmms([5, 6, 30, 40])])
    assert len(build("refcoco-lmms", tmp_path).rows) == 2


def test_a_record_published_twice_makes_one_row(tmp_path):
    """Geo170K holds its questions as JSON and as parquet; RefCOCO some expressions twice."""
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    turns = [{"from": "human", "value": "<image>\nQuestion: Find x."}, {"from": "gpt", "value": "The answer is 7."}]
    for name in ("qa_tuning.json", "data.json"):
        write_json(tmp_path / name, [{"image": "1.png", "conversations": turns}])
    data = build("geo170k", tmp_path)
    assert [row.id.partition(":")[0] for row in data.rows] == ["geo170k-data.json"]
    assert len(data.dropped["asks and answers the same as another row"]) == 1


def test_an_id_used_by_two_rows_names_a_remedy(tmp_path):
    for split in ("train", "val"):
        write_coco(tmp_path, [(1, 5, 5, 50, 50)])
        (tmp_path / "instances.json").rename(tmp_path / f"instances_{split}.json")
    with pytest.raises(BuildError, match=r"two rows have the id 'coco-1'; build one --split"):
        build("coco", tmp_path)
    assert len(build("coco", tmp_path, split="val").rows) == 2


# Images.


def write_mode(path: Path, mode: str) -> Path:
    """Writes an image of a Pillow mode; P holds a transparent colour."""
    rgba = Image.new("RGBA", (HALF.width, HALF.height), (200, 30, 30, 128))
    if mode == "I;16":
        image = Image.fromarray(np.full((HALF.height, HALF.width), 40_000, np.uint16))
    else:
        image = rgba.convert("RGB").convert(mode) if mode in ("CMYK", "P") else rgba.convert(mode)
    path = path.with_suffix(".jpg" if mode == "CMYK" else ".png")
    if mode == "P":
        image.info["transparency"] = 0
    image.save(path)
    return path


MODES = ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_grey_transparent_and_printed_images_are_found_and_decoded(tmp_path, mode):
    path = write_mode(tmp_path / "1", mode)
    stated = [(1, path.name, HALF.width, HALF.height)]
    write_json(tmp_path / "instances.json", coco_instances(stated, [(1, 1, 1, (5, 5, 50, 50))], CATEGORIES))
    row = build("coco", tmp_path).rows[1]
    assert row.frame == HALF
    assert (open_image(row.images[0]).mode, open_image(row.images[0]).size) == ("RGB", (HALF.width, HALF.height))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["clevr-70k", "refcoco-lmms", "cauldron"])
def test_grey_transparent_and_printed_images_in_tables(tmp_path, mode, format):
    pytest.importorskip("pyarrow")
    path = write_mode(tmp_path / "1", mode)
    cell = {"bytes": path.read_bytes(), "path": None}
    records = {
        "clevr-70k": {"images": [cell], "problem": "<image>How many?", "answer": "3"},
        "refcoco-lmms": lmms([5.0, 5.0, 50.0, 50.0], image=cell),
        "cauldron": {"images": [cell], "texts": [{"user": "What?", "assistant": "A cup."}]},
    }
    path.unlink()
    write_parquet(tmp_path / "val-0.parquet", [records[format]])
    (row,) = build(format, tmp_path).rows
    assert open_image(row.images[0]).mode == "RGB"


# Counting, and gold answers.

COUNTED = "How many different items are there in the image?"


def clevr_count(answer, **changes) -> dict:
    """Returns a record of BUAADreamer/clevr_count_70k."""
    return {
        "images": [{"bytes": png_bytes(), "path": None}],
        "problem": f"<image>{COUNTED}",
        "answer": answer,
    } | changes


@pytest.mark.parametrize("answer", ["5", " 5 ", "<answer> 5 </answer>"])
def test_clevr_70k_as_easyr1_reads_it(tmp_path, answer):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [clevr_count(answer)])
    write_parquet(tmp_path / "data" / "train-00000-of-00021.parquet", [clevr_count("4")])
    assert detect_format(tmp_path, PAPER.out_of_domain[2].formats) == "clevr-70k"
    test, train = build("clevr-70k", tmp_path).rows
    assert (test.problem, test.solution, test.split) == (COUNTED, "5", "test")
    assert (train.solution, train.split, len(train.images)) == ("4", "train", 1)
    assert [row.id for row in build("clevr-70k", tmp_path, split="test").rows] == [test.id]


def test_clevr_70k_as_json(tmp_path):
    write_image(tmp_path / "images" / "c.png", 40, 30)
    records = [clevr_count(3, images=["images/c.png"]), clevr_count("4", images=["c.png"])]
    write_json(tmp_path / "test.json", records)
    assert solutions(build("clevr-70k", tmp_path), Task.MATH) == ["3", "4"]


def test_the_recipe_finds_clevr_70k(tmp_path):
    pytest.importorskip("pyarrow")
    cells = [{"bytes": png_bytes(shade=shade), "path": None} for shade in (10, 20, 30)]
    records = [clevr_count(str(count), images=[cell]) for count, cell in enumerate(cells)]
    write_parquet(tmp_path / "sets" / "clevr-70k" / "data" / "test-00000-of-00001.parquet", records)
    (source,) = (source for source in PAPER.out_of_domain if source.folder == "clevr-70k")
    recipe = Recipe((), 0, (RecipeSource(source.folder, source.formats, source.task, 3),), ())
    assemble(tmp_path / "sets", tmp_path / "out", recipe, AssemblyOptions())
    rows = read_rows(tmp_path / "out" / "test" / "out-math.jsonl")
    assert sorted(row.solution for row in rows) == ["0", "1", "2"]
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["formats"]["clevr-70k"] == "clevr-70k"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, '"answer" is null; it takes a text or a number'),
        ({"images": []}, 'the question has <image>, but the record has no "image"'),
        ({"images": ["1.png", "1.png"]}, "the image is a list"),
    ],
)
def test_a_broken_count_is_refused(tmp_path, changes, message):
    write_image(tmp_path / "1.png", 40, 30)
    write_json_lines(tmp_path / "test.jsonl", [clevr_count("3", images="1.png") | changes])
    with pytest.raises(BuildError, match=message):
        build("clevr-70k", tmp_path)


def test_an_error_shows_a_cell_with_the_bytes_of_an_image(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "t.parquet", [{"images": {"bytes": png_bytes(), "path": None}, "texts": []}])
    with pytest.raises(BuildError, match=r'"images" is .*it takes a list of images'):
        build("cauldron", tmp_path)


def test_clevr_answers_that_are_no_counts_are_dropped(tmp_path):
    write_image(tmp_path / "c.png", 40, 30)
    record = {"image_filename": "c.png", "question": "How many?", "question_index": 0}
    answers = [{"answer": "2"}, {"answer": 3}, {"answer": "yes"}, {"answer": True}, {}]  # the last as in CLEVR's test
    records = [record | answer | {"question_index": index} for index, answer in enumerate(answers)]
    write_json(tmp_path / "CLEVR_test_questions.json", {"questions": records})
    data = build("clevr", tmp_path)
    assert solutions(data, Task.MATH) == ["2", "3"]
    assert len(data.dropped["the answer is not a count"]) == 3


def test_an_empty_scene_counts_nothing(tmp_path):
    write_image(tmp_path / "c.png", 40, 30)
    write_json(tmp_path / "scenes.json", {"scenes": [{"image_filename": "c.png", "objects": []}]})
    assert solutions(build("clevr-scenes", tmp_path), Task.MATH) == ["0"]


@pytest.mark.parametrize("count", [3, "3"])
def test_r1vs_counts_are_numbers_or_texts(tmp_path, count):
    write_image(tmp_path / "images" / "c.png", 40, 30)
    record = {"image_path": "./images/c.png", "question": "How many?", "ground_truth": count}
    write_json_lines(tmp_path / "superclevr.jsonl", [record])
    assert solutions(build("superclevr-r1v", tmp_path), Task.MATH) == ["3"]


GOLDS = ["√3", "2√{3}", "\\sqrt{3}", "9米", "5cm^2^", "30°"]


@pytest.mark.parametrize("gold", GOLDS)
@pytest.mark.parametrize("format", ["geoqa-r1v", "geo170k"])
def test_golds_with_roots_and_units_are_kept(tmp_path, pool, gold, format):
    turns = [{"from": "human", "value": "Question: Find x."}, {"from": "gpt", "value": f"So.\nAnswer: {gold}"}]
    tagged = {"problem": "Find x.", "solution": f"<answer> {gold} </answer>"}
    write_json_lines(tmp_path / "train.jsonl", [tagged if format == "geoqa-r1v" else {"conversations": turns}])
    data = build(format, tmp_path)
    assert solutions(data, Task.MATH) == [gold]
    assert take_readable(data.rows, None, data.dropped, pool) == data.rows


# Published splits.


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("refcoco_train.json", "train"),
        ("refcoco_testA.json", "testA"),
        ("refcocop_val.json", "val"),
        ("rec.json", ""),
        ("contrain_rec.json", ""),
    ],
)
def test_vlm_r1_states_the_split_in_the_files_name(tmp_path, name, split):
    write_image(tmp_path / "1.png", HALF.width, HALF.height)
    write_json(tmp_path / name, [vlm_r1([1, 2, 30, 40])])
    assert [row.split for row in build("vlm-r1", tmp_path).rows] == [split]
    assert len(build("vlm-r1", tmp_path, split="train").rows) == (split == "train")
