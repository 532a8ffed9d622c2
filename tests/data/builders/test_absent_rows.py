"""Rows that ask for something the image does not show: their share, their answers, and the stages made of them."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import stage_rows
from currreft_jax.data.builders.absent_rows import with_absent_rows
from currreft_jax.data.builders.converter import AnnotatedImage, BuildError, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.question_templates import CATEGORY_OR_NONE, JUDGE_CATEGORY, NO_OBJECT, REGION
from currreft_jax.rewards import check_rows, score_completions
from currreft_jax.structs import Completion, Frame, Reason, Row
from tests.data.builders.dataset_files import write_coco_set, write_image, write_json_lines

COUNT = 120
SHARE = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ConvertedData:
    folder = tmp_path_factory.mktemp("set")
    write_coco_set(folder, COUNT)
    source = DatasetSource(folder, folder, folder / "w", name="coco", tasks=(Task.DETECTION,))
    return collect_items(FORMATS["coco"].convert(source))


@pytest.fixture(scope="module")
def rows(data) -> list[Row]:
    return with_absent_rows(data.rows, data.images, SHARE, 0)


@pytest.fixture(scope="module")
def generated(data, rows, pool) -> dict[Kind, stage_rows.GeneratedRows]:
    return {kind: stage_rows.generate_rows(rows, kind, data, 0, pool) for kind in (Kind.JUDGE, Kind.CHOICE)}


def absent_of(rows) -> list[Row]:
    return [row for row in rows if "-absent" in row.id]


def test_a_share_of_the_questions_asks_for_what_is_absent(data, rows):
    absent = absent_of(rows)
    assert len(rows) == len(data.rows) and len({row.id for row in rows}) == len(rows)
    assert len(absent) == round(SHARE * len(rows))
    assert {row.solution for row in absent} == {"[]"}
    for before, row in zip(data.rows, rows, strict=True):
        # The same words in every question: they do not give away that nothing is there.
        assert row.problem.startswith(CATEGORY_OR_NONE.open)
        category, labels = row.problem.removeprefix(CATEGORY_OR_NONE.open), data.images[row.images[0]].labels
        assert (category in labels) == ("-absent" not in row.id)
        assert row in absent or (row.id, row.solution) == (before.id, before.solution)
    assert max(Counter((row.images, row.problem) for row in rows).values()) == 1
    assert check_rows(rows) == []


def test_categories_that_often_occur_with_the_present_ones_are_asked_for_more_often():
    frame, images = Frame(90, 90), {}
    for index in range(400):  # a ball is with the dog in half of the images, a cup never
        labels = {"dog", "ball"} if index % 2 else {"dog"} if index else {"cup"}
        images[f"{index}.png"] = AnnotatedImage(f"{index}.png", frame, (), frozenset(labels))
    rows = [
        Row(f"r{index}", Task.DETECTION, Kind.OPEN, f"{CATEGORY_OR_NONE.open}dog", "[1, 2, 30, 40]", (f"{index}.png",))
        for index in range(2, 400, 2)
    ]
    asked = Counter(row.problem.rpartition(" ")[2] for row in absent_of(with_absent_rows(rows, images, 0.9, 0)))
    assert asked["ball"] > 9 * asked["cup"]


def test_the_draws_depend_on_seed_and_ids_alone(data, rows):
    assert sorted(with_absent_rows(data.rows[::-1], data.images, SHARE, 0), key=repr) == sorted(rows, key=repr)
    assert with_absent_rows(data.rows, data.images, SHARE, 1) != rows


def test_an_unreliable_category_is_not_absent():
    image = AnnotatedImage("x.png", Frame(90, 90), (), frozenset({"dog", "person"}))  # the person may be a crowd
    row = Row("r", Task.DETECTION, Kind.OPEN, f"{CATEGORY_OR_NONE.open}dog", "[1, 2, 30, 40]", ("x.png",))
    with pytest.raises(BuildError, match="takes 1 questions for an absent category, and the images allow 0; lower"):
        with_absent_rows([row], {"x.png": image}, 0.9, 0)


def test_what_an_expression_describes_is_not_known_to_be_absent(tmp_path):
    write_coco_set(tmp_path, 4)
    data = collect_items(FORMATS["refcoco"].convert(DatasetSource(tmp_path, tmp_path, tmp_path / "w", name="ref")))
    with pytest.raises(BuildError, match=r"row ref-\d-\d asks .*build from objects that are all annotated"):
        with_absent_rows(data.rows, data.images, SHARE, 0)
    named = replace(data.rows[0], problem=f"{REGION.open}dog")  # even if it is the name of a category
    with pytest.raises(BuildError, match="build from objects that are all annotated"):
        with_absent_rows([named], data.images, SHARE, 0)
    with pytest.raises(BuildError, match="and there are none; --tasks takes detection"):
        with_absent_rows([], data.images, SHARE, 0)


def test_yes_no_rows_ask_whether_the_category_is_there(data, rows, generated):
    judged = generated[Kind.JUDGE]
    assert judged.dropped == {}
    assert len(judged.rows) == len(rows)
    assert abs(Counter(row.solution for row in judged.rows)["yes"] - len(rows) / 2) <= 1
    absent = absent_of(judged.rows)
    assert min(Counter(row.solution for row in absent).values()) > len(absent) / 4  # the question gives nothing away
    for row in absent:
        assert row.problem.startswith(JUDGE_CATEGORY) and row.boxes == ()
        category = row.problem.removeprefix(JUDGE_CATEGORY)
        assert (category in data.images[row.images[0]].labels) == (row.solution == "yes")
    assert max(Counter((row.images, row.problem, row.boxes) for row in judged.rows).values()) == 1


def test_every_choice_row_offers_that_there_is_no_such_object(data, rows, generated):
    chosen, open_rows = generated[Kind.CHOICE], {row.id: row for row in rows}
    assert chosen.dropped == {}
    assert len(chosen.rows) == len(rows)
    letters = Counter(row.solution for row in chosen.rows)
    assert len(letters) == 4 and max(letters.values()) - min(letters.values()) <= 1
    scored, completions, expected = [], [], []
    for row in chosen.rows:
        assert row.options.count(NO_OBJECT) == 1
        assert [option for option in row.options if option != NO_OBJECT] == ["{box:0}", "{box:1}", "{box:2}"]
        answers = [
            "[]" if option == NO_OBJECT else str(list(row.boxes[int(re.sub(r"\D", "", option))]))
            for option in row.options
        ]
        scored.append(open_rows[row.id.removesuffix("-choice")])
        completions.append([Completion(f"<think>so</think><answer>{answer}</answer>") for answer in answers])
        expected.append([float(letter == row.solution) for letter in "ABCD"])
    np.testing.assert_array_equal(score_completions(scored, completions).parts["accuracy"], expected)


def test_a_table_may_say_that_there_is_nothing_to_find(tmp_path):
    write_image(tmp_path / "a.png", 60, 40)
    write_json_lines(tmp_path / "t.jsonl", [{"problem": "Find the cat.", "solution": "[]", "image": "a.png"}])
    source = DatasetSource(tmp_path, tmp_path, tmp_path / "w", name="table", task=Task.DETECTION)
    (row,) = collect_items(FORMATS["table"].convert(source)).rows
    assert (row.solution, row.frame) == ("[]", Frame(60, 40))
    assert check_rows([row]) == []


def test_rows_of_ones_own_without_known_categories_make_choices_and_no_yes_no_rows(pool):
    row = Row("r", Task.DETECTION, Kind.OPEN, "Find the cat.", "[]", ("x.png",), frame=Frame(300, 200))
    data = stage_rows.annotate_from_golds(ConvertedData([row]))
    judged = stage_rows.generate_rows([row], Kind.JUDGE, data, 0, pool)
    reason = "nothing to find, and no other category is known to be in the image"
    assert (judged.rows, judged.dropped) == ([], {reason: ["r"]})
    (chosen,) = stage_rows.generate_rows([row], Kind.CHOICE, data, 0, pool).rows
    assert chosen.options["ABCD".index(chosen.solution)] == NO_OBJECT
    assert len(set(chosen.boxes)) == 3
    assert all(0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200 for x1, y1, x2, y2 in chosen.boxes)


def test_rows_are_unchanged_if_nothing_is_absent(data, pool):
    """No row offers an answer that is never right."""
    made = stage_rows.generate_rows(data.rows[:8], Kind.CHOICE, data, 0, pool).rows
    assert all(NO_OBJECT not in row.options for row in made)
    answer = Completion("<think>so</think><answer>[]</answer>")
    scores = score_completions(data.rows[:1], [[answer]])
    assert scores.reasons["accuracy"][0, 0] is Reason.NO_BOXES


def test_an_image_gives_each_of_its_absent_rows_another_question(data, pool):
    path, image = next((path, image) for path, image in data.images.items() if len(image.labels) == 3)
    row = next(row for row in data.rows if row.images == (path,))
    rows = [
        replace(row, id=f"r{index}", problem=f"{CATEGORY_OR_NONE.open}thing {index}", solution="[]")
        for index in range(5)
    ]
    judged = stage_rows.generate_rows(rows, Kind.JUDGE, data, 0, pool)
    assert len({made.problem for made in judged.rows}) == len(judged.rows) == len(image.labels)
    assert sum(map(len, judged.dropped.values())) == 2
