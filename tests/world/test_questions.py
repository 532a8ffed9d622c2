"""Gold and wrong answers against the scene, by parsing the question's own text, and against the rewards."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import check_rows, score_completions
from currreft_jax.rewards.boxes import corners_iou, format_box
from currreft_jax.structs import Completion
from currreft_jax.world.pretraining import completion_text
from currreft_jax.world.question_text import MULTIPLE_SUFFIX, SUFFIXES, user_text
from currreft_jax.world.questions import (
    KINDS,
    NUM_OPTIONS,
    PLURALS,
    TASKS,
    cell_name,
    make_question,
)
from currreft_jax.world.scenes import COLOURS, HELD_OUT, SHAPES, domains, make_scene
from currreft_jax.world.settings import DIFFICULTIES, WorldSettings

SETTINGS = WorldSettings()
HARD = replace(DIFFICULTIES["hard"], near_boxes=0.7, empty_boxes=0.0, near_numbers=1.0, mixed_pairs=1.0, sums=1.0)
SINGULAR = {plural: name for name, plural in PLURALS.items()}


def scenes_and_questions(
    domain: str, task: Task, kind: Kind, count: int, settings: WorldSettings = SETTINGS, seed: int = 0
):
    for index in range(count):
        scene = make_scene(seed, index, domains(settings)[domain], settings)
        yield scene, make_question(scene, task, kind, image="i.png", split="test", settings=settings)


def cells(settings: WorldSettings = SETTINGS):
    return [(domain, task, kind) for domain in domains(settings) for task in TASKS for kind in KINDS]


def accuracy(row, answer: str) -> float:
    return float(score_completions([row], [[Completion(completion_text("look", answer))]]).parts["accuracy"][0, 0])


@pytest.mark.parametrize("settings", [SETTINGS, HARD], ids=["default", "hard"])
def test_every_gold_answer_earns_the_full_reward(settings):
    rows, completions = [], []
    for domain, task, kind in cells(settings):
        for _, question in scenes_and_questions(domain, task, kind, 40, settings):
            rows.append(question.row)
            completions.append([Completion(completion_text(question.thought, question.row.solution))])
    assert not check_rows(rows)
    assert (score_completions(rows, completions).total == 2.0).all()


@pytest.mark.parametrize("settings", [SETTINGS, HARD], ids=["default", "hard"])
@pytest.mark.parametrize("domain", ["in", "any", "counts", "straddle"])
def test_no_wrong_option_earns_accuracy(domain, settings):
    """Neither its letter in the choice row, nor its text in the open row with the same problem."""
    for task in (Task.DETECTION, Task.MATH):
        pairs = zip(
            scenes_and_questions(domain, task, Kind.CHOICE, 40, settings),
            scenes_and_questions(domain, task, Kind.OPEN, 40, settings),
            strict=True,
        )
        for (_, choice), (_, question) in pairs:
            assert choice.row.problem == question.row.problem
            texts = [format_box(box) for box in choice.row.boxes] or list(choice.row.options)
            assert len(set(texts)) == NUM_OPTIONS
            for letter, text in zip(ascii_uppercase, texts, strict=False):
                right = letter == choice.row.solution
                assert accuracy(choice.row, letter) == right
                assert accuracy(question.row, text) == right
    for _, choice in scenes_and_questions(domain, Task.CLASSIFY, Kind.CHOICE, 40, settings):
        right = set(choice.row.solution.split(", "))
        for letter in "ABCD":
            assert accuracy(choice.row, letter) == (1.0 if right == {letter} else 0.2 if letter in right else 0.0)
    for task in TASKS:
        for _, judge in scenes_and_questions(domain, task, Kind.JUDGE, 40, settings):
            assert accuracy(judge.row, "no" if judge.row.solution == "yes" else "yes") == 0.0


def meets(obj, condition: str) -> bool:
    """Whether the object has the name, or is in the row or column, that one condition of a question asks for."""
    line = re.fullmatch(r"in the (\w+) (row|column)", condition)
    name = condition.removeprefix("a ")
    return line[1] in cell_name(obj.box).split() if line else SINGULAR.get(name, name) in obj.pair


def count_objects(objects, problem: str) -> int:
    things = problem.removeprefix("how many ").split("?")[0]
    if " are " in things:
        subject, conditions = things.split(" are ")
        objects = [obj for obj in objects if subject == "objects" or meets(obj, subject)]
        return sum(any(meets(obj, condition) for condition in conditions.split(" or ")) for obj in objects)
    first, *others = re.split(" plus | - ", things)
    assert len({first, *others}) == 1 + len(others)
    sign = -1 if " - " in things else 1
    return sum(meets(obj, first) + sign * sum(meets(obj, name) for name in others) for obj in objects)


def conditions_of(problem: str) -> list[str]:
    """Returns the conditions of a label question, either of which a label's object meets."""
    return re.findall(r"in the \w+ (?:row|column)|(?<= or )(?:a )?\w+", problem.split("?")[0])


def found_items(thought: str, conditions: list[str]) -> list[str]:
    """Returns what a thought lists, without the headings of composed questions."""
    parts = thought.split("; ")
    if len(conditions) == 2:
        headings = [condition.removeprefix("in the ").removeprefix("a ").split()[0] for condition in conditions]
        assert all(part.startswith(f"{heading} ") for part, heading in zip(parts, headings, strict=False))
        parts = [part.split(" ", 1)[1] for part in parts]
    return [item for part in parts for item in part.split(", ")]


def thought_total(thought: str) -> int:
    """Returns the total that a thought about a count leads to: a calculation, a tally or a list of names."""
    if "-" in thought or "plus" in thought:
        return eval(thought.replace("plus", "+"))
    last = thought.split(", ")[-1]
    return int(last.split()[-1]) if last[-1].isdigit() else 0 if thought == "none" else len(thought.split())


def names_of(obj) -> set[str]:
    return {obj.colour, obj.shape, " ".join(obj.pair)}


def expected_options_thought(options, letter: str) -> str:
    upto_right = [*zip("ABCD", options, strict=True)][: "ABCD".index(letter) + 1]
    *wrong, (right_letter, right_option) = upto_right
    return ", ".join([*(f"{name} {option} no" for name, option in wrong), f"{right_letter} {right_option} yes"])


def iou(first, second) -> float:
    return corners_iou(np.array([first]), np.array([second]))[0, 0]


@pytest.mark.parametrize(("domain", "task", "kind"), cells())
def test_gold_answers_and_thoughts_are_right(domain, task, kind):
    for scene, question in scenes_and_questions(domain, task, kind, 60):
        row, objects = question.row, scene.objects
        conditions = conditions_of(row.problem)
        present = set().union(*(names_of(o) for o in objects if not conditions or any(meets(o, c) for c in conditions)))
        if task is Task.DETECTION:
            _, _, _, colour, shape = row.problem.split("?")[0].split()
            (target,) = [obj for obj in objects if obj.pair == (colour, shape)]
            location = f"{colour} {shape} {cell_name(target.box)}"
            if kind is Kind.OPEN:
                assert row.solution == format_box(target.box) and question.thought == location
            elif kind is Kind.JUDGE:
                assert row.solution == ("yes" if row.boxes == (target.box,) else "no")
                assert row.boxes[0] == target.box or iou(row.boxes[0], target.box) < 0.25
                assert question.thought == f"{location}, box {cell_name(row.boxes[0])}"
            else:
                assert row.boxes["ABCD".index(row.solution)] == target.box
                assert all(box == target.box or iou(box, target.box) < 0.25 for box in row.boxes)
                assert (
                    question.thought
                    == f"{location}, {expected_options_thought(map(cell_name, row.boxes), row.solution)}"
                )
        elif task is Task.MATH:
            total = count_objects(objects, row.problem)
            assert total >= 0
            if kind is Kind.OPEN:
                assert row.solution == str(total)
                assert thought_total(question.thought) == total
            elif kind is Kind.JUDGE:
                proposed = int(row.problem.split("is it ")[1].rstrip("?"))
                assert proposed >= 0 and row.solution == ("yes" if proposed == total else "no")
            else:
                assert row.options["ABCD".index(row.solution)] == str(total)
                assert question.thought.endswith(f", {expected_options_thought(row.options, row.solution)}")
        elif kind is Kind.JUDGE:
            name = row.problem.removeprefix("is there any ").rstrip("?").split(" in the ")[0]
            assert row.solution == ("yes" if name in present else "no")
            target_name, searches = question.thought.split(", ", 1)
            labels = found_items(searches, conditions)
            assert target_name == name and labels[-1].endswith(row.solution)
            assert all(label.endswith(" no") and label != f"{name} no" for label in labels[:-1])
        else:
            subject = row.problem.split()[1]
            names = {"shapes": SHAPES, "colours": COLOURS, "objects": present - {*SHAPES, *COLOURS}}[subject]
            if kind is Kind.OPEN:
                assert sorted(row.solution.split(", ")) == sorted(present & set(names))
                assert list(dict.fromkeys(found_items(question.thought, conditions))) == row.solution.split(", ")
            else:
                right = {text for letter, text in zip("ABCD", row.options, strict=True) if letter in row.solution}
                assert right == present & set(row.options)
                assert 1 <= len(right) <= 3 and len(set(row.options)) == NUM_OPTIONS
                letters = dict(item.rsplit(" ", 1) for item in found_items(question.thought, conditions))
                offered = dict(zip(row.options, "ABCD", strict=True))
                assert letters == {label: offered.get(label, "none") for label in letters}
                assert row.solution.split(", ") == sorted({*letters.values()} - {"none"})


@pytest.mark.parametrize("task", TASKS)
def test_yes_and_no_and_letters_are_balanced(task):
    answers = Counter(question.row.solution for _, question in scenes_and_questions("in", task, Kind.JUDGE, 3000))
    assert answers == {"yes": 1500, "no": 1500}
    letters = Counter()
    for _, question in scenes_and_questions("in", task, Kind.CHOICE, 3000):
        letters.update(question.row.solution.split(", "))
    assert all(abs(count / letters.total() - 0.25) < 0.01 for count in letters.values())
    assert set(letters) == set("ABCD")


def test_no_constant_answer_earns_half():
    for task in TASKS:
        answers = Counter(question.row.solution for _, question in scenes_and_questions("in", task, Kind.OPEN, 1000))
        assert answers.most_common(1)[0][1] < 500, task


def test_wrong_boxes_show_other_objects_if_there_are_enough():
    for scene, question in scenes_and_questions("counts", Task.DETECTION, Kind.CHOICE, 100):
        assert set(question.row.boxes) <= {obj.box for obj in scene.objects}


def test_held_out_pairs_are_not_named_in_domain():
    for task in TASKS:
        for kind in KINDS:
            for _, question in scenes_and_questions("in", task, kind, 300):
                text = user_text(question.row)
                assert not any(" ".join(pair) in text for pair in HELD_OUT)


@pytest.mark.parametrize("domain", ["shapes", "colours", "pairs"])
def test_questions_on_an_axis_of_pairs_are_about_novel_pairs(domain):
    novel = domains(SETTINGS)[domain].novel
    for scene, question in scenes_and_questions(domain, Task.DETECTION, Kind.OPEN, 100):
        assert tuple(question.row.problem.rstrip("?").split()[-2:]) in novel
        assert any(obj.pair in novel for obj in scene.objects)


def test_row_fields():
    rows = [
        question.row for task in TASKS for kind in KINDS for _, question in scenes_and_questions("in", task, kind, 20)
    ]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert (row.source, row.split, row.images) == ("world", "test", ("i.png",))
        assert row.multiple == (row.kind is Kind.CHOICE and row.task is Task.CLASSIFY)
        assert len(row.options) == (NUM_OPTIONS if row.kind is Kind.CHOICE else 0)
        assert all(f"{{box:{index}}}" in row.problem + "".join(row.options) for index in range(len(row.boxes)))
        assert "{" not in user_text(row)
    assert set(SUFFIXES) == {(kind, task) for kind in KINDS for task in TASKS}


def test_prompts_by_kind_and_task():
    scene = make_scene(0, 2, domains(SETTINGS)["in"], SETTINGS)
    texts = {
        (kind, task): user_text(make_question(scene, task, kind, image="", split="", settings=SETTINGS).row)
        for kind in KINDS
        for task in TASKS
    }
    boxes, labels = "where is the yellow square?", "which shapes are there?"
    math = "how many objects are yellow or circles?"
    assert texts == {
        (Kind.JUDGE, Task.DETECTION): f"{boxes} is it [56, 29, 83, 56]? yes or no?",
        (Kind.JUDGE, Task.CLASSIFY): "is there any triangle? yes or no?",
        (Kind.JUDGE, Task.MATH): f"{math} is it 1? yes or no?",
        (Kind.CHOICE, Task.DETECTION): (
            f"{boxes}\nA. [60, 64, 77, 84]\nB. [10, 34, 25, 56]\nC. [56, 29, 83, 56]\nD. [46, 2, 62, 26]\none letter."
        ),
        (Kind.CHOICE, Task.CLASSIFY): f"{labels}\nA. circle\nB. triangle\nC. star\nD. square\n{MULTIPLE_SUFFIX}",
        (Kind.CHOICE, Task.MATH): f"{math}\nA. 1\nB. 0\nC. 2\nD. 3\none letter.",
        (Kind.OPEN, Task.DETECTION): f"{boxes} give a box.",
        (Kind.OPEN, Task.CLASSIFY): f"{labels} give names.",
        (Kind.OPEN, Task.MATH): f"{math} give a number.",
    }


def test_thoughts_are_short():
    lengths = defaultdict(int)
    for domain, task, kind in cells():
        for _, question in scenes_and_questions(domain, task, kind, 100):
            lengths[domain] = max(lengths[domain], len(question.thought.replace(",", "").split()))
    assert max(lengths.values()) <= 36


def test_questions_of_one_task_about_one_scene_differ():
    scene = make_scene(0, 0, domains(SETTINGS)["counts"], SETTINGS)
    rows = [
        make_question(
            scene, Task.DETECTION, Kind.JUDGE, image="", split="", settings=SETTINGS, question_index=index
        ).row
        for index in range(6)
    ]
    assert len({row.id for row in rows}) == 6
    assert len({(row.problem, row.boxes) for row in rows}) > 3
    assert Counter(row.solution for row in rows) == {"yes": 3, "no": 3}
