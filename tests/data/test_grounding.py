"""ms-swift's grounding rows: names and boxes replace their tags, in the frame that the model sees."""

from pathlib import Path

import pytest

from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.findings import Problem
from currreft_jax.data.prompts import PAPER, answer_turns, question_messages
from currreft_jax.data.rows import parse_row, row_to_json
from currreft_jax.data.validate import InputFile, validate_files
from currreft_jax.structs import Frame, Row, Turn
from tests import tiny
from tests.data.builders.dataset_files import write_json_lines

FRAMES = [(Frame(200, 100), Frame(196, 112))]  # factors 0.98 and 1.12
GROUNDED = {
    "messages": [
        {"role": "user", "content": "<image>Find the <ref-object> left of <bbox>."},
        {"role": "assistant", "content": "The <ref-object>: <bbox><bbox>"},
    ],
    "images": ["a.png"],
    "objects": {
        "ref": ["dog", "brown dog"],
        "bbox": [[100, 50, 150, 75], [0, 0, 20, 10.5], [50, 20, 100, 100]],
        "bbox_type": "real",
        "image_id": [0, 0, 0],
    },
}


def parse(row: dict) -> Row:
    return parse_row(Fields(row, "swift.jsonl:3"), image_root=Path("/"))


def with_objects(**objects) -> dict:
    return GROUNDED | {"objects": GROUNDED["objects"] | objects}


def with_texts(question: str, answer: str, objects=None) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["a.png"], "objects": objects}


FRACTIONS = with_objects(bbox=[[0.5, 0.5, 0.75, 0.75], [0, 0, 0.1, 0.105], [0.25, 0.2, 0.5, 1]], bbox_type="norm1")


@pytest.mark.parametrize("row", [GROUNDED, FRACTIONS], ids=["pixels", "fractions"])
def test_tags_become_names_and_boxes_in_the_resized_frame(row):
    parsed = parse(row)
    (user,) = question_messages(parsed, PAPER, FRAMES)
    # x: 100 * 0.98 = 98, 150 * 0.98 = 147; y: 50 * 1.12 = 56, 75 * 1.12 = 84
    assert user["content"] == [
        {"type": "image"},
        {"type": "text", "text": "Find the dog left of [98, 56, 147, 84]."},
    ]
    (answer,) = answer_turns(parsed, FRAMES)
    assert answer == Turn("assistant", "The brown dog: [0, 0, 20, 12][49, 22, 98, 112]")
    assert parse(row_to_json(parsed)) == parsed


def test_boxes_of_conversations_are_fields_as_in_questions():
    row = with_texts("<image>What is at {box:0}?", "A dog.") | {"boxes": [[100, 50, 150, 75]]}
    (user,) = question_messages(parse(row), PAPER, FRAMES)
    assert user["content"][-1]["text"] == "What is at [98, 56, 147, 84]?"


def test_closed_tags_are_text_where_nothing_replaces_them():
    answer = "<bbox>[1, 2, 3, 4]</bbox>"
    assert parse(with_texts("<image>Answer in <bbox></bbox>.", answer)).messages[1].text == answer


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"problem": "Where is <ref-object>?"}, 'have <ref-object>, but there is no "objects"'),
        ({"options": ["<bbox>", "b"], "kind": "choice", "solution": "A"}, 'have <bbox>, but there is no "objects"'),
        ({"objects": {"ref": ["dog"], "bbox": []}}, '"objects" is read in conversations alone'),
    ],
)
def test_tags_of_other_rows_are_refused(keys, message):
    with pytest.raises(LineError) as refused:
        parse({"task": "detection", "kind": "open", "problem": "?", "solution": "[0, 0, 9, 9]"} | keys)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (with_texts("<image>Find <ref-object>.", "there"), 'have <ref-object>, but there is no "objects" whose "ref"'),
        (with_texts("<image>Find it.", "<bbox>"), 'have <bbox>, but there is no "objects" whose "bbox" replaces it'),
        (with_objects(ref=["dog"]), 'the messages have 2 <ref-object>, but "objects" has 1 ref; write one for each'),
        (with_objects(bbox=[[1, 2, 3, 4]]), 'the messages have 3 <bbox>, but "objects" has 1 bbox'),
        (with_objects(bbox=[[1, 2]] * 3), "points are not read"),
        (with_objects(bbox=[[[1, 2, 3, 4]]] * 3), "points are not read"),
        (with_objects(ref="dog"), '"objects" is {"ref": "dog"'),
        (with_objects(bbox=[[3, 2, 1, 4]] * 3), '"boxes" has [3, 2, 1, 4]; it takes'),
        (
            with_objects(bbox_type="norm1000"),
            "\"bbox_type\" is 'norm1000'; it takes real, for pixels, or norm1, for fra",
        ),
        (with_objects(bbox_type="norm1"), "boxes from 0 to 1, as bbox_type is norm1"),
        (with_objects(image_id=[0, 1, 0]), '"image_id" names another image than the first'),
        (GROUNDED | {"boxes": [[0, 0, 1, 1]]}, 'both "boxes" and "objects"; write one of them'),
        (FRACTIONS | {"frame": [10, 10]}, 'both "frame" and "objects"; write one of them'),
        (GROUNDED | {"objects": '[{"caption": "dog"}]'}, '"objects" is "[{'),
        (GROUNDED | {"images": []}, "the messages have 1 <image>, but there are 0 images"),
        (with_texts("<image>At {box:1}?", "x") | {"boxes": [[0, 0, 1, 1]]}, 'name {box:1}, but "boxes" has 1'),
        (with_texts("<image><video>What?", "x") | {"videos": ["a.mp4"]}, '"videos" is not read; leave the row out'),
        (with_texts("<image><audio>What?", "x") | {"audios": ["a.mp3"]}, '"audios" is not read; leave the row out'),
    ],
)
def test_what_cannot_be_filled_in_is_refused(row, message):
    with pytest.raises(LineError) as refused:
        parse(row)
    assert str(refused.value).startswith("swift.jsonl:3: ")
    assert message in str(refused.value)


def test_fractions_are_of_any_image_and_stay_inside(tmp_path):
    tiny.picture(200, 100).save(tmp_path / "a.png")
    outside = with_texts("<image>At {box:0}?", "x") | {"boxes": [[0.5, 0.5, 1.2, 1]], "frame": [1, 1]}
    tall = outside | {"boxes": [[0.5, 0.5, 0.9, 1]], "id": "tall"}
    path = write_json_lines(tmp_path / "rows.jsonl", [FRACTIONS, outside, tall])
    (finding,) = validate_files([InputFile(str(path))], PromptBudget()).findings
    assert (finding.problem, finding.location) == (Problem.BOX, f"{path}:2")
