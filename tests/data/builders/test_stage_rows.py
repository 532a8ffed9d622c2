"""Yes/no rows and rows with options: balance, gold answers, negatives, boxes, independence of order."""

import re
from collections import Counter
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import image_negatives, math_negatives, stage_rows
from currreft_jax.data.builders.converter import AnnotatedImage, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.images import smart_resize
from currreft_jax.data.prompts import PAPER, question_messages
from currreft_jax.rewards import score_completions
from currreft_jax.structs import Completion, Frame, Reason, Row
from tests.data.builders.dataset_files import find_red_box, voc_object, write_coco_set, write_voc_image

COUNT = 420


def math_row(number: int) -> Row:
    forms = (f"{number}", f"\\frac{{{number}}}{{7}}", f"{number}.5", f"{number}°", f"{number}0")
    gold = f"{number}\\sqrt{{2}}" if number % 20 == 0 else forms[number % 5]
    return Row(f"m{number}", Task.MATH, Kind.OPEN, f"Find x{number}.", gold, source="made")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ConvertedData:
    folder = tmp_path_factory.mktemp("set")
    write_coco_set(folder, COUNT)
    items = []
    for name, tasks in (("refcoco", (Task.DETECTION,)), ("coco", (Task.CLASSIFY,))):
        items += FORMATS[name].convert(DatasetSource(folder, folder, folder / "w", name=name, tasks=tasks))
    data = collect_items(items)
    rows = [math_row(number) for number in range(1, COUNT + 1)]
    # Options of the source: one equal to the gold in another notation, and two that are not.
    wrong = {row.id: (row.solution.replace("frac", "dfrac"), "3000", "\\frac{1}{3000}") for row in rows[::2]}
    return replace(data, rows=[*data.rows, *rows], wrong_answers=wrong)


@pytest.fixture(scope="module")
def judged(data, pool):
    return stage_rows.generate_rows(data.rows, Kind.JUDGE, data, 0, pool)


@pytest.fixture(scope="module")
def chosen(data, pool):
    return stage_rows.generate_rows(data.rows, Kind.CHOICE, data, 0, pool)


def of_task(rows, task):
    return [row for row in rows if row.task is task]


def complete(answer: str) -> Completion:
    return Completion(f"<think>so</think><answer>{answer}</answer>", 10)


def frames_of(row: Row) -> tuple[Frame, Frame]:
    with Image.open(row.images[0]) as image:
        height, width = smart_resize(image.height, image.width, 28, 3136, 12000)
        return Frame(image.width, image.height), Frame(width, height)


def test_every_open_row_makes_a_row_of_each_kind(data, judged, chosen):
    assert Counter(row.task for row in data.rows) == {task: COUNT for task in Task if task is not Task.OTHER}
    for generated in (judged, chosen):
        assert Counter(row.task for row in generated.rows) == Counter(row.task for row in data.rows)
        assert generated.dropped == {}


@pytest.mark.parametrize("task", [Task.DETECTION, Task.CLASSIFY, Task.MATH])
def test_yes_and_no_are_balanced(judged, task):
    rows = of_task(judged.rows, task)
    assert abs(sum(row.solution == "yes" for row in rows) / len(rows) - 0.5) <= 0.01


@pytest.mark.parametrize("task", [Task.DETECTION, Task.MATH])
def test_letters_are_balanced(chosen, task):
    rows = of_task(chosen.rows, task)
    shares = [count / len(rows) for count in Counter(row.solution for row in rows).values()]
    assert len(shares) == 4
    assert max(shares) - min(shares) <= 0.01


@pytest.mark.parametrize("size", [4, 5])
def test_letters_of_several_right_options_are_balanced(chosen, size):
    rows = [row for row in of_task(chosen.rows, Task.CLASSIFY) if len(row.options) == size]
    letters = Counter(letter for row in rows for letter in row.solution.split(", "))
    assert len(rows) > COUNT / 3
    assert len(letters) == size
    assert max(letters.values()) - min(letters.values()) <= 0.01 * len(rows)
    assert {len(row.solution.split(", ")) for row in rows} == {1, 2, 3}


def test_every_gold_earns_the_full_reward_and_no_distractor_does(data, judged, chosen, pool):
    rows, right, wrong = [], [], []
    for row in (*judged.rows, *chosen.rows):
        opposite = {"yes": "no", "no": "yes"}.get(row.solution)
        letters = ascii_uppercase[: len(row.options)]
        rows.append(row)
        right.append([complete(row.solution)])
        if opposite:
            wrong.append([complete(opposite)] * 4)
        else:
            gold = set(row.solution.split(", "))
            # Wrong letters alone, a wrong letter with the gold, and all letters at once.
            wrong_letters = [letter for letter in letters if letter not in gold]
            answers = [wrong_letters[0], wrong_letters[-1], ", ".join([*gold, wrong_letters[0]]), ", ".join(letters)]
            wrong.append([complete(answer) for answer in answers])
    assert (score_completions(rows, right, pool=pool).total == 2).all()
    assert (score_completions(rows, wrong, pool=pool).parts["accuracy"] == 0).all()
    open_rows = [row for row in data.rows if row.kind is Kind.OPEN]
    frames = [frames_of(row)[0] if row.images else None for row in open_rows]
    golds = [[complete(row.solution)] for row in open_rows]
    assert (score_completions(open_rows, golds, frames=frames, pool=pool).total == 2).all()


def test_the_reward_of_the_open_row_accepts_only_the_right_option(data, chosen, pool):
    open_rows = {f"{row.id}-choice": row for row in data.rows}
    rows, completions, expected = [], [], []
    for row in chosen.rows:
        if row.task is Task.CLASSIFY:
            gold = set(open_rows[row.id].solution.split(", "))
            right = {row.options[ascii_uppercase.index(letter)] for letter in row.solution.split(", ")}
            assert right <= gold
            assert not (set(row.options) - right) & gold
            continue
        texts = [str(list(box)) for box in row.boxes] if row.task is Task.DETECTION else list(row.options)
        rows.append(open_rows[row.id])
        completions.append([complete(text) for text in texts])
        expected.append([float(letter == row.solution) for letter in "ABCD"])
    np.testing.assert_array_equal(score_completions(rows, completions, pool=pool).parts["accuracy"], expected)


def test_the_reward_of_the_open_row_accepts_a_proposed_answer_iff_yes(data, judged, pool):
    open_rows = {f"{row.id}-judge": row for row in data.rows}
    rows, completions, expected = [], [], []
    for row in judged.rows:
        if row.task is Task.CLASSIFY:
            label = row.problem.rpartition(": ")[2]
            assert (label in open_rows[row.id].solution.split(", ")) == (row.solution == "yes")
            continue
        proposed = re.search(r"Proposed answer: (.*)\n", row.problem)
        rows.append(open_rows[row.id])
        completions.append([complete(proposed[1] if proposed else str(list(row.boxes[0])))])
        expected.append([float(row.solution == "yes")])
    np.testing.assert_array_equal(score_completions(rows, completions, pool=pool).parts["accuracy"], expected)


def test_wrong_boxes_overlap_neither_the_gold_nor_each_other(data, judged, chosen):
    open_rows = {row.id: row for row in data.rows}
    for row in of_task(judged.rows, Task.DETECTION):
        gold = stage_rows.list_gold_boxes(open_rows[row.id.removesuffix("-judge")])
        iou = image_negatives.pairwise_iou(row.boxes, gold).max()
        assert iou == 1 if row.solution == "yes" else iou < 0.3
    for row in of_task(chosen.rows, Task.DETECTION):
        gold = stage_rows.list_gold_boxes(open_rows[row.id.removesuffix("-choice")])
        right = ascii_uppercase.index(row.solution)
        iou = image_negatives.pairwise_iou(row.boxes, gold).max(axis=1)
        assert iou[right] == 1
        assert (np.delete(iou, right) < 0.3).all()
        between = image_negatives.pairwise_iou(row.boxes, row.boxes)[~np.eye(4, dtype=bool)]
        assert (between < 0.5).all()


def test_other_objects_of_the_category_are_the_first_negatives(data, judged):
    open_rows = {row.id: row for row in data.rows}
    for row in of_task(judged.rows, Task.DETECTION):
        if row.solution == "no":
            image = data.images[row.images[0]]
            dogs = {box for label, box in image.objects if label == "dog"}
            (gold,) = stage_rows.list_gold_boxes(open_rows[row.id.removesuffix("-judge")])
            assert set(row.boxes) == dogs - {gold}


def test_negatives_are_moved_boxes_if_an_image_has_no_other_object(pool):
    row = Row("r", Task.DETECTION, Kind.OPEN, "?", "[10, 20, 60, 80]", ("x.png",), frame=Frame(300, 200))
    annotated = stage_rows.annotate_from_golds(ConvertedData([row]))
    assert annotated.images["x.png"].objects == (("", (10.0, 20.0, 60.0, 80.0)),)
    (made,) = stage_rows.generate_rows([row], Kind.CHOICE, annotated, 0, pool).rows
    assert len(set(made.boxes)) == 4
    assert all(0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200 for x1, y1, x2, y2 in made.boxes)


@pytest.mark.parametrize(
    ("solution", "reason"),
    [("[0, 0, 300, 200]", "no room for wrong boxes"), ("[5, 5, 9, 9]", "the box is too small to be told from others")],
)
def test_rows_without_valid_negatives_are_dropped_and_counted(pool, solution, reason):
    row = Row("r", Task.DETECTION, Kind.OPEN, "?", solution, ("x.png",), frame=Frame(300, 200))
    made = stage_rows.generate_rows([row], Kind.JUDGE, stage_rows.annotate_from_golds(ConvertedData([row])), 0, pool)
    assert (made.rows, made.dropped) == ([], {reason: ["r"]})


def test_a_category_annotated_as_a_crowd_is_never_absent(pool):
    rows = [
        Row(f"r{n}", Task.CLASSIFY, Kind.OPEN, "?", gold, (f"{n}.png",), source="s")
        for n, gold in enumerate(["dog", "cat", "person", "bus", "car"])
    ]
    images = {"0.png": AnnotatedImage("0.png", Frame(9, 9), (), frozenset({"dog", "Person"}))}
    for seed in range(20):
        made = stage_rows.generate_rows(rows, Kind.CHOICE, ConvertedData(rows, images), seed, pool).rows
        (first,) = [row for row in made if row.id == "r0-choice"]
        assert set(first.options) == {"dog", "cat", "bus", "car"}


def test_absent_categories_that_often_occur_with_the_present_ones_come_first():
    counts = image_negatives.count_pairs([["dog", "ball"]] * 50 + [["dog", "bus"]] * 2)
    firsts = Counter(
        image_negatives.absent_labels(["dog"], ["dog", "ball", "bus", "cup"], counts, seed)[0] for seed in range(300)
    )
    assert firsts["ball"] > 0.85 * 300
    assert set(firsts) == {"ball", "bus", "cup"}


def test_generation_ignores_the_order_of_the_rows(data, judged, chosen, pool):
    reversed_data = replace(data, rows=data.rows[::-1], images=dict(reversed(data.images.items())))
    for kind, generated in ((Kind.JUDGE, judged), (Kind.CHOICE, chosen)):
        again = stage_rows.generate_rows(reversed_data.rows, kind, reversed_data, 0, pool)
        assert again.rows == generated.rows


def test_another_seed_gives_other_rows(data, judged, pool):
    again = stage_rows.generate_rows(of_task(data.rows, Task.DETECTION), Kind.JUDGE, data, 1, pool).rows
    assert sorted(again, key=lambda row: row.id) != sorted(of_task(judged.rows, Task.DETECTION), key=lambda row: row.id)


def test_source_options_equal_to_the_gold_are_not_selected(pool):
    row = Row("r", Task.MATH, Kind.OPEN, "Find x.", "\\frac{1}{2}")
    selected = math_negatives.select_wrong_answers([row], {"r": ["0.5", "\\frac{2}{4}", "2", "4/2", "3"]}, 3, 0, pool)[
        "r"
    ]
    assert {"2", "3"} & set(selected)
    assert not {"0.5", "\\frac{2}{4}"} & set(selected)
    assert len({"2", "4/2"} & set(selected)) == 1
    assert len(selected) == 3


def test_answers_without_a_number_have_no_near_misses(pool):
    assert math_negatives.near_misses("\\sqrt{x}", 3, 0, "r") == []
    row = Row("r", Task.MATH, Kind.OPEN, "Find x.", "\\pi")
    made = stage_rows.generate_rows([row], Kind.JUDGE, ConvertedData(), 0, pool)
    assert made.dropped == {"too few wrong answers": ["r"]}


def test_near_misses_keep_the_format_of_the_answer():
    assert set(math_negatives.near_misses("12.5%", 3, 0, "r")) <= {f"{x:.1f}%" for x in np.arange(0, 30, 0.1)}
    assert "12" not in math_negatives.near_misses("12", 3, 0, "r")
    assert all(int(text) >= 0 for text in math_negatives.near_misses("1", 3, 0, "r"))


def test_the_rank_of_the_right_option_is_uniform(pool):
    rows = [Row(f"r{n}", Task.MATH, Kind.OPEN, "How many?", str(40 + n % 50)) for n in range(1600)]
    made = stage_rows.generate_rows(rows, Kind.CHOICE, ConvertedData(), 0, pool).rows
    golds = {f"{row.id}-choice": row.solution for row in rows}
    ranks = Counter(sorted(row.options, key=int).index(golds[row.id]) for row in made)
    assert all(0.22 < ranks[rank] / 1600 < 0.28 for rank in range(4)), ranks


def test_other_rows_than_open_ones_are_refused(judged, pool):
    with pytest.raises(ValueError, match="only open rows of detection"):
        stage_rows.generate_rows(judged.rows[:1], Kind.CHOICE, ConvertedData(), 0, pool)


def test_boxes_in_the_text_match_the_pixels_after_the_resize(tmp_path, pool):
    """The box in a generated text is where the resized image shows the red rectangle."""
    sizes = [(640, 480, (37, 51, 301, 222)), (333, 517, (12, 200, 130, 490)), (1000, 201, (401, 20, 777, 160))]
    for index, (width, height, box) in enumerate(sizes):
        write_voc_image(tmp_path, f"{index:06d}", width, height, [voc_object("dog", box)], box)
    source = DatasetSource(tmp_path, tmp_path, tmp_path / "w", name="voc", tasks=(Task.DETECTION,))
    data = collect_items(FORMATS["voc"].convert(source))
    for kind in (Kind.JUDGE, Kind.CHOICE):
        for row in stage_rows.generate_rows(data.rows, kind, data, 0, pool).rows:
            with Image.open(row.images[0]) as image:
                height, width = smart_resize(image.height, image.width, 28, 3136, 60_000)
                frames = Frame(image.width, image.height), Frame(width, height)
                measured = find_red_box(image.resize((width, height), Image.Resampling.BICUBIC))
            assert frames[0] != frames[1]
            text = question_messages(row, PAPER, [frames])[-1]["content"][-1]["text"]
            boxes = [[int(x) for x in match.split(", ")] for match in re.findall(r"\[(\d+(?:, \d+){3})\]", text)]
            assert len(boxes) == (1 if kind is Kind.JUDGE else 4)
            if kind is Kind.JUDGE and row.solution == "no":
                continue
            right = boxes[0 if kind is Kind.JUDGE else ascii_uppercase.index(row.solution)]
            assert np.abs(np.array(right) - measured).max() <= 1, (right, measured)


def test_unreadable_answers_are_not_unequal(pool):
    assert math_negatives.compare_unequal([("2", "3"), ("2", "2.0"), ("2", "\\frac{"), ("x+1", "1+x")], pool) == [
        True,
        False,
        False,
        False,
    ]
    assert Reason.NOT_EQUAL.value == "not_equal"
