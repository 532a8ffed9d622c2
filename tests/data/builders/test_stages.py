"""From open rows to yes/no rows and options: balance, golds, distractors, boxes, order."""

import re
from collections import Counter
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders import answers, negatives, stages
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.items import Material, Scene, Source, collect
from currreft_jax.data.images import smart_resize
from currreft_jax.data.prompts import PAPER, question_messages
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.structs import Completion, Frame, Reason, Row
from tests.data.builders import published as pub

COUNT = 420


@pytest.fixture(scope="module")
def pool():
    with MathsPool(Maths()) as workers:
        yield workers


def maths_row(number: int) -> Row:
    forms = (f"{number}", f"\\frac{{{number}}}{{7}}", f"{number}.5", f"{number}°", f"{number}0")
    gold = f"{number}\\sqrt{{2}}" if number % 20 == 0 else forms[number % 5]
    return Row(f"m{number}", Task.MATH, Kind.OPEN, f"Find x{number}.", gold, source="made")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("set")
    pub.scene_set(folder, COUNT)
    items = []
    for format, tasks in (("refcoco", (Task.DETECTION,)), ("coco", (Task.CLASSIFY,))):
        items += FORMATS[format].convert(Source(folder, folder, folder / "w", name=format, tasks=tasks))
    found = collect(items)
    rows = [maths_row(number) for number in range(1, COUNT + 1)]
    # What a source offers: one option equal to the gold in other words, and two that are not.
    wrong = {row.id: (row.solution.replace("frac", "dfrac"), "3000", "\\frac{1}{3000}") for row in rows[::2]}
    return replace(found, rows=[*found.rows, *rows], wrong=wrong)


@pytest.fixture(scope="module")
def judged(material, pool):
    return stages.generate(material.rows, Kind.JUDGE, material, 0, pool)


@pytest.fixture(scope="module")
def chosen(material, pool):
    return stages.generate(material.rows, Kind.CHOICE, material, 0, pool)


def of_task(rows, task):
    return [row for row in rows if row.task is task]


def said(answer: str) -> Completion:
    return Completion(f"<think>so</think><answer>{answer}</answer>", 10)


def frames_of(row: Row) -> tuple[Frame, Frame]:
    with Image.open(row.images[0]) as image:
        height, width = smart_resize(image.height, image.width, 28, 3136, 12000)
        return Frame(image.width, image.height), Frame(width, height)


def test_every_open_row_has_both_forms(material, judged, chosen):
    assert Counter(row.task for row in material.rows) == {task: COUNT for task in Task if task is not Task.OTHER}
    for made in (judged, chosen):
        assert Counter(row.task for row in made.rows) == Counter(row.task for row in material.rows)
        assert made.dropped == {}


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


def test_every_gold_earns_the_full_reward_and_no_distractor_does(material, judged, chosen, pool):
    rows, right, wrong = [], [], []
    for row in (*judged.rows, *chosen.rows):
        others = {"yes": "no", "no": "yes"}.get(row.solution)
        letters = ascii_uppercase[: len(row.options)]
        rows.append(row)
        right.append([said(row.solution)])
        if others:
            wrong.append([said(others)] * 4)
        else:
            gold = set(row.solution.split(", "))
            # Each wrong letter alone, beside the gold, and all letters at once.
            bad = [letter for letter in letters if letter not in gold]
            tried = [bad[0], bad[-1], ", ".join([*gold, bad[0]]), ", ".join(letters)]
            wrong.append([said(text) for text in tried])
    assert (score_completions(rows, right, pool=pool).total == 2).all()
    assert (score_completions(rows, wrong, pool=pool).parts["accuracy"] == 0).all()
    opens = [row for row in material.rows if row.kind is Kind.OPEN]
    frames = [frames_of(row)[0] if row.images else None for row in opens]
    assert (
        score_completions(opens, [[said(row.solution)] for row in opens], frames=frames, pool=pool).total == 2
    ).all()


def test_an_open_question_tells_right_options_from_wrong_ones(material, chosen, pool):
    """What stands behind each letter is judged by the reward of the open row that it came from."""
    opens = {f"{row.id}-choice": row for row in material.rows}
    rows, shown, expected = [], [], []
    for row in chosen.rows:
        if row.task is Task.CLASSIFY:
            gold = set(opens[row.id].solution.split(", "))
            right = {row.options[ascii_uppercase.index(letter)] for letter in row.solution.split(", ")}
            assert right <= gold
            assert not (set(row.options) - right) & gold
            continue
        texts = [str(list(box)) for box in row.boxes] if row.task is Task.DETECTION else list(row.options)
        rows.append(opens[row.id])
        shown.append([said(text) for text in texts])
        expected.append([float(letter == row.solution) for letter in "ABCD"])
    np.testing.assert_array_equal(score_completions(rows, shown, pool=pool).parts["accuracy"], expected)


def test_a_judged_answer_is_right_exactly_when_the_row_says_yes(material, judged, pool):
    opens = {f"{row.id}-judge": row for row in material.rows}
    rows, shown, expected = [], [], []
    for row in judged.rows:
        if row.task is Task.CLASSIFY:
            label = row.problem.rpartition(": ")[2]
            assert (label in opens[row.id].solution.split(", ")) == (row.solution == "yes")
            continue
        proposed = re.search(r"Proposed answer: (.*)\n", row.problem)
        rows.append(opens[row.id])
        shown.append([said(proposed[1] if proposed else str(list(row.boxes[0])))])
        expected.append([float(row.solution == "yes")])
    np.testing.assert_array_equal(score_completions(rows, shown, pool=pool).parts["accuracy"], expected)


def test_wrong_boxes_are_neither_near_the_gold_nor_near_each_other(material, judged, chosen):
    opens = {row.id: row for row in material.rows}
    for row in of_task(judged.rows, Task.DETECTION):
        gold = stages._gold_boxes(opens[row.id.removesuffix("-judge")])
        overlap = negatives.overlaps(row.boxes, gold).max()
        assert overlap == 1 if row.solution == "yes" else overlap < 0.3
    for row in of_task(chosen.rows, Task.DETECTION):
        gold = stages._gold_boxes(opens[row.id.removesuffix("-choice")])
        right = ascii_uppercase.index(row.solution)
        overlap = negatives.overlaps(row.boxes, gold).max(axis=1)
        assert overlap[right] == 1
        assert (np.delete(overlap, right) < 0.3).all()
        apart = negatives.overlaps(row.boxes, row.boxes)[~np.eye(4, dtype=bool)]
        assert (apart < 0.5).all()


def test_the_hardest_negative_is_the_other_object_of_the_category(material, judged):
    opens = {row.id: row for row in material.rows}
    for row in of_task(judged.rows, Task.DETECTION):
        if row.solution == "no":
            scene = material.scenes[row.images[0]]
            dogs = {box for label, box in scene.objects if label == "dog"}
            (gold,) = stages._gold_boxes(opens[row.id.removesuffix("-judge")])
            assert set(row.boxes) == dogs - {gold}


def test_negatives_are_moved_boxes_where_an_image_has_no_other_object(pool):
    row = Row("r", Task.DETECTION, Kind.OPEN, "?", "[10, 20, 60, 80]", ("x.png",), frame=Frame(300, 200))
    bare = stages.with_scenes(Material([row], {}, {}, {}, []))
    assert bare.scenes["x.png"].objects == (("", (10.0, 20.0, 60.0, 80.0)),)
    (made,) = stages.generate([row], Kind.CHOICE, bare, 0, pool).rows
    assert len(set(made.boxes)) == 4
    assert all(0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200 for x1, y1, x2, y2 in made.boxes)


@pytest.mark.parametrize(
    ("solution", "reason"),
    [("[0, 0, 300, 200]", "no room for wrong boxes"), ("[5, 5, 9, 9]", "the box is too small to be told from others")],
)
def test_rows_that_have_no_sound_negative_are_counted(pool, solution, reason):
    row = Row("r", Task.DETECTION, Kind.OPEN, "?", solution, ("x.png",), frame=Frame(300, 200))
    made = stages.generate([row], Kind.JUDGE, stages.with_scenes(Material([row], {}, {}, {}, [])), 0, pool)
    assert (made.rows, made.dropped) == ([], {reason: ["r"]})


def test_a_category_that_is_there_as_a_crowd_is_never_called_absent(pool):
    rows = [
        Row(f"r{n}", Task.CLASSIFY, Kind.OPEN, "?", gold, (f"{n}.png",), source="s")
        for n, gold in enumerate(["dog", "cat", "person", "bus", "car"])
    ]
    scenes = {"0.png": Scene("0.png", Frame(9, 9), (), frozenset({"dog", "Person"}))}
    for seed in range(20):
        made = stages.generate(rows, Kind.CHOICE, Material(rows, scenes, {}, {}, []), seed, pool).rows
        (first,) = [row for row in made if row.id == "r0-choice"]
        assert set(first.options) == {"dog", "cat", "bus", "car"}


def test_absent_categories_that_often_stand_together_come_first():
    counts = negatives.together([["dog", "ball"]] * 50 + [["dog", "bus"]] * 2)
    firsts = Counter(negatives.absent(["dog"], ["dog", "ball", "bus", "cup"], counts, seed)[0] for seed in range(300))
    assert firsts["ball"] > 0.85 * 300
    assert set(firsts) == {"ball", "bus", "cup"}


def test_nothing_depends_on_the_order_of_the_rows(material, judged, chosen, pool):
    backwards = replace(material, rows=material.rows[::-1], scenes=dict(reversed(material.scenes.items())))
    for kind, made in ((Kind.JUDGE, judged), (Kind.CHOICE, chosen)):
        again = stages.generate(backwards.rows, kind, backwards, 0, pool)
        assert again.rows == made.rows


def test_another_seed_makes_other_rows(material, judged, pool):
    again = stages.generate(of_task(material.rows, Task.DETECTION), Kind.JUDGE, material, 1, pool).rows
    assert sorted(again, key=lambda row: row.id) != sorted(of_task(judged.rows, Task.DETECTION), key=lambda row: row.id)


def test_a_source_option_that_equals_the_gold_is_no_distractor(pool):
    row = Row("r", Task.MATH, Kind.OPEN, "Find x.", "\\frac{1}{2}")
    found = answers.wrong_answers([row], {"r": ["0.5", "\\frac{2}{4}", "2", "4/2", "3"]}, 3, 0, pool)["r"]
    assert {"2", "3"} & set(found)
    assert not {"0.5", "\\frac{2}{4}"} & set(found)
    assert len({"2", "4/2"} & set(found)) == 1
    assert len(found) == 3


def test_answers_without_a_number_have_no_near_misses(pool):
    assert answers.near_misses("\\sqrt{x}", 3, 0, "r") == []
    row = Row("r", Task.MATH, Kind.OPEN, "Find x.", "\\pi")
    made = stages.generate([row], Kind.JUDGE, Material([], {}, {}, {}, []), 0, pool)
    assert made.dropped == {"too few wrong answers": ["r"]}


def test_near_misses_keep_the_form_of_the_answer():
    assert set(answers.near_misses("12.5%", 3, 0, "r")) <= {f"{x:.1f}%" for x in np.arange(0, 30, 0.1)}
    assert "12" not in answers.near_misses("12", 3, 0, "r")
    assert all(int(text) >= 0 for text in answers.near_misses("1", 3, 0, "r"))


def test_the_right_option_is_no_oftener_the_middle_one(pool):
    rows = [Row(f"r{n}", Task.MATH, Kind.OPEN, "How many?", str(40 + n % 50)) for n in range(1600)]
    made = stages.generate(rows, Kind.CHOICE, Material([], {}, {}, {}, []), 0, pool).rows
    golds = {f"{row.id}-choice": row.solution for row in rows}
    ranks = Counter(sorted(row.options, key=int).index(golds[row.id]) for row in made)
    assert all(0.22 < ranks[rank] / 1600 < 0.28 for rank in range(4)), ranks


def test_only_open_rows_have_other_forms(judged, pool):
    with pytest.raises(ValueError, match="only open rows have other forms"):
        stages.generate(judged.rows[:1], Kind.CHOICE, Material([], {}, {}, {}, []), 0, pool)


def test_boxes_in_the_text_match_the_pixels_after_the_resize(tmp_path, pool):
    """A red rectangle is drawn; the box that a generated text names is where the resized image is red."""
    sizes = [(640, 480, (37, 51, 301, 222)), (333, 517, (12, 200, 130, 490)), (1000, 201, (401, 20, 777, 160))]
    for number, (width, height, box) in enumerate(sizes):
        pub.write_voc(tmp_path, f"{number:06d}", width, height, [pub.voc_object("dog", box)], box)
    source = Source(tmp_path, tmp_path, tmp_path / "w", name="voc", tasks=(Task.DETECTION,))
    found = collect(FORMATS["voc"].convert(source))
    for kind in (Kind.JUDGE, Kind.CHOICE):
        for row in stages.generate(found.rows, kind, found, 0, pool).rows:
            with Image.open(row.images[0]) as image:
                height, width = smart_resize(image.height, image.width, 28, 3136, 60_000)
                frames = Frame(image.width, image.height), Frame(width, height)
                measured = pub.red_box(image.resize((width, height), Image.Resampling.BICUBIC))
            assert frames[0] != frames[1]
            text = question_messages(row, PAPER, [frames])[-1]["content"][-1]["text"]
            written = [[int(x) for x in match.split(", ")] for match in re.findall(r"\[(\d+(?:, \d+){3})\]", text)]
            assert len(written) == (1 if kind is Kind.JUDGE else 4)
            if kind is Kind.JUDGE and row.solution == "no":
                continue
            right = written[0 if kind is Kind.JUDGE else ascii_uppercase.index(row.solution)]
            assert np.abs(np.array(right) - measured).max() <= 1, (right, measured)


def test_unequal_wants_both_answers_to_be_read(pool):
    assert answers.unequal([("2", "3"), ("2", "2.0"), ("2", "\\frac{"), ("x+1", "1+x")], pool) == [
        True,
        False,
        False,
        False,
    ]
    assert Reason.NOT_EQUAL.value == "not_equal"
