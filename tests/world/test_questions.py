"""Golds and wrong answers are held against the scene, by reading the question's own text, and against the rewards."""

from collections import Counter, defaultdict
from dataclasses import replace
from string import ascii_uppercase

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import check_rows, score_completions
from currreft_jax.structs import Completion
from currreft_jax.world.lessons import reasoned
from currreft_jax.world.prompts import MULTIPLE, SUFFIXES, spell, user_text
from currreft_jax.world.questions import COLUMNS, KINDS, OPTIONS, PLURALS, ROWS, TASKS, ask, iou, place
from currreft_jax.world.scenes import COLOURS, HELD_OUT, SHAPES, domains, scene
from currreft_jax.world.settings import Settings

SETTINGS = Settings()
HARD = replace(SETTINGS, near_boxes=0.7, empty_boxes=0.0, near_numbers=1.0, mixed_pairs=1.0, sums=1.0)
SINGULAR = {plural: name for name, plural in PLURALS.items()}


def asked(domain: str, task: Task, kind: Kind, count: int, settings: Settings = SETTINGS, seed: int = 0):
    known = domains(settings)[domain]
    for index in range(count):
        shown = scene(seed, index, known, settings)
        yield shown, ask(shown, task, kind, image="i.png", split="test", settings=settings)


def cells(settings: Settings = SETTINGS):
    return [(domain, task, kind) for domain in domains(settings) for task in TASKS for kind in KINDS]


def accuracy(row, answer: str) -> float:
    return float(score_completions([row], [[Completion(reasoned("look", answer))]]).parts["accuracy"][0, 0])


@pytest.mark.parametrize("settings", [SETTINGS, HARD], ids=["default", "hard"])
def test_every_gold_earns_the_full_reward(settings):
    rows, completions = [], []
    for domain, task, kind in cells(settings):
        for _, question in asked(domain, task, kind, 40, settings):
            rows.append(question.row)
            completions.append([Completion(reasoned(question.thought, question.row.solution))])
    assert not check_rows(rows)
    assert (score_completions(rows, completions).total == 2.0).all()


@pytest.mark.parametrize("settings", [SETTINGS, HARD], ids=["default", "hard"])
@pytest.mark.parametrize("domain", ["in", "any", "counts", "straddle"])
def test_no_wrong_option_does(domain, settings):
    """Neither its letter to the choice row, nor its text to the open row that asks the same."""
    for task in (Task.DETECTION, Task.MATH):
        pairs = zip(
            asked(domain, task, Kind.CHOICE, 40, settings), asked(domain, task, Kind.OPEN, 40, settings), strict=True
        )
        for (_, choice), (_, question) in pairs:
            assert choice.row.problem == question.row.problem
            texts = [spell(box) for box in choice.row.boxes] or list(choice.row.options)
            assert len(set(texts)) == OPTIONS
            for letter, text in zip(ascii_uppercase, texts, strict=False):
                right = letter == choice.row.solution
                assert accuracy(choice.row, letter) == right
                assert accuracy(question.row, text) == right
    for _, choice in asked(domain, Task.CLASSIFY, Kind.CHOICE, 40, settings):
        right = set(choice.row.solution.split(", "))
        for letter in "ABCD":
            assert accuracy(choice.row, letter) == (1.0 if right == {letter} else 0.2 if letter in right else 0.0)
    for task in TASKS:
        for _, judge in asked(domain, task, Kind.JUDGE, 40, settings):
            assert accuracy(judge.row, "no" if judge.row.solution == "yes" else "yes") == 0.0


def counted(things, text: str) -> int:
    names = [SINGULAR.get(name, name) for name in text.removeprefix("how many ").split("?")[0].split(" plus ")]
    assert len(set(names)) == len(names)
    return sum(name in thing.pair for name in names for thing in things)


def named(thing) -> set[str]:
    return {thing.colour, thing.shape, " ".join(thing.pair)}


def gone_through(shown, letter: str) -> str:
    seen = [*zip("ABCD", shown, strict=True)]["ABCD".index(letter) :: -1]
    (right, text), *wrong = seen
    return ", ".join([*(f"{name} {it} no" for name, it in reversed(wrong)), f"{right} {text} yes"])


@pytest.mark.parametrize(("domain", "task", "kind"), cells())
def test_golds_are_true(domain, task, kind):
    for shown, question in asked(domain, task, kind, 60):
        row, things = question.row, shown.things
        side = next((side for side in (*ROWS, *COLUMNS) if f"in the {side} " in row.problem), None)
        present = set().union(*(named(thing) for thing in things if not side or side in place(thing.box).split()))
        if task is Task.DETECTION:
            _, _, _, colour, shape = row.problem.split("?")[0].split()
            (target,) = [thing for thing in things if thing.pair == (colour, shape)]
            where = f"{colour} {shape} {place(target.box)}"
            answers = [target.box]
            if kind is Kind.OPEN:
                assert row.solution == spell(target.box) and question.thought == where
            elif kind is Kind.JUDGE:
                assert row.solution == ("yes" if row.boxes == (target.box,) else "no")
                assert row.boxes[0] == target.box or iou(row.boxes[0], target.box) < 0.25
                assert question.thought == f"{where}, box {place(row.boxes[0])}"
            else:
                assert [row.boxes["ABCD".index(row.solution)]] == answers
                assert all(box == target.box or iou(box, target.box) < 0.25 for box in row.boxes)
                assert question.thought == f"{where}, {gone_through(map(place, row.boxes), row.solution)}"
        elif task is Task.MATH:
            total = counted(things, row.problem)
            if kind is Kind.OPEN:
                assert row.solution == str(total)
            elif kind is Kind.JUDGE:
                shown_number = int(row.problem.split("is it ")[1].rstrip("?"))
                assert shown_number >= 0 and row.solution == ("yes" if shown_number == total else "no")
            else:
                assert row.options["ABCD".index(row.solution)] == str(total)
                assert question.thought.endswith(f", {gone_through(row.options, row.solution)}")
        elif kind is Kind.JUDGE:
            name = row.problem.removeprefix("is there any ").rstrip("?").split(" in the ")[0]
            assert row.solution == ("yes" if name in present else "no")
            sought, *seen = question.thought.split(", ")
            assert sought == name and seen[-1].endswith(row.solution)
            assert all(it.endswith(" no") and it != f"{name} no" for it in seen[:-1])
        else:
            subject = row.problem.split()[1]
            names = {"shapes": SHAPES, "colours": COLOURS, "objects": present - {*SHAPES, *COLOURS}}[subject]
            if kind is Kind.OPEN:
                assert sorted(row.solution.split(", ")) == sorted(present & set(names))
            else:
                right = {text for letter, text in zip("ABCD", row.options, strict=True) if letter in row.solution}
                assert right == present & set(row.options)
                assert 1 <= len(right) <= 3 and len(set(row.options)) == OPTIONS
                told = dict(it.rsplit(" ", 1) for it in question.thought.split(", "))
                offered = dict(zip(row.options, "ABCD", strict=True))
                assert told == {label: offered.get(label, "none") for label in told}
                assert row.solution.split(", ") == sorted({*told.values()} - {"none"})


@pytest.mark.parametrize("task", TASKS)
def test_yes_and_no_and_letters_are_balanced(task):
    answers = Counter(question.row.solution for _, question in asked("in", task, Kind.JUDGE, 3000))
    assert answers == {"yes": 1500, "no": 1500}
    letters = Counter()
    for _, question in asked("in", task, Kind.CHOICE, 3000):
        letters.update(question.row.solution.split(", "))
    assert all(abs(count / letters.total() - 0.25) < 0.01 for count in letters.values())
    assert set(letters) == set("ABCD")


def test_no_open_answer_is_worth_guessing():
    """A constant answer earns less than half."""
    for task in TASKS:
        answers = Counter(question.row.solution for _, question in asked("in", task, Kind.OPEN, 1000))
        assert answers.most_common(1)[0][1] < 500, task


def test_wrong_boxes_are_those_of_other_objects_where_there_are_any():
    for shown, question in asked("counts", Task.DETECTION, Kind.CHOICE, 100):
        assert set(question.row.boxes) <= {thing.box for thing in shown.things}


def test_held_out_pairs_are_not_even_named_in_domain():
    for task in TASKS:
        for kind in KINDS:
            for _, question in asked("in", task, kind, 300):
                text = user_text(question.row)
                assert not any(" ".join(pair) in text for pair in HELD_OUT)


@pytest.mark.parametrize("domain", ["shapes", "colours", "pairs"])
def test_questions_on_an_axis_of_pairs_are_about_them(domain):
    novel = domains(SETTINGS)[domain].novel
    for shown, question in asked(domain, Task.DETECTION, Kind.OPEN, 100):
        assert tuple(question.row.problem.rstrip("?").split()[-2:]) in novel
        assert any(thing.pair in novel for thing in shown.things)


def test_rows_tell_what_they_are():
    rows = [question.row for task in TASKS for kind in KINDS for _, question in asked("in", task, kind, 20)]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert (row.source, row.split, row.images) == ("world", "test", ("i.png",))
        assert row.multiple == (row.kind is Kind.CHOICE and row.task is Task.CLASSIFY)
        assert len(row.options) == (OPTIONS if row.kind is Kind.CHOICE else 0)
        assert all(f"{{box:{index}}}" in row.problem + "".join(row.options) for index in range(len(row.boxes)))
        assert "{" not in user_text(row)
    assert set(SUFFIXES) == {(kind, task) for kind in KINDS for task in TASKS}


def test_prompts_look_like_this():
    shown = scene(0, 2, domains(SETTINGS)["in"], SETTINGS)
    texts = {
        (kind, task): user_text(ask(shown, task, kind, image="", split="", settings=SETTINGS).row)
        for kind in KINDS
        for task in TASKS
    }
    where, which = "where is the yellow square?", "which shapes are there?"
    many = "how many stars plus squares?"
    assert texts == {
        (Kind.JUDGE, Task.DETECTION): f"{where} is it [56, 29, 83, 56]? yes or no?",
        (Kind.JUDGE, Task.CLASSIFY): "is there any triangle? yes or no?",
        (Kind.JUDGE, Task.MATH): f"{many} is it 2? yes or no?",
        (Kind.CHOICE, Task.DETECTION): (
            f"{where}\nA. [60, 64, 77, 84]\nB. [10, 34, 25, 56]\nC. [56, 29, 83, 56]\nD. [46, 2, 62, 26]\none letter."
        ),
        (Kind.CHOICE, Task.CLASSIFY): f"{which}\nA. circle\nB. triangle\nC. star\nD. square\n{MULTIPLE}",
        (Kind.CHOICE, Task.MATH): f"{many}\nA. 2\nB. 1\nC. 3\nD. 4\none letter.",
        (Kind.OPEN, Task.DETECTION): f"{where} give a box.",
        (Kind.OPEN, Task.CLASSIFY): f"{which} give names.",
        (Kind.OPEN, Task.MATH): f"{many} give a number.",
    }


def test_thoughts_are_short():
    lengths = defaultdict(int)
    for domain, task, kind in cells():
        for _, question in asked(domain, task, kind, 100):
            lengths[domain] = max(lengths[domain], len(question.thought.replace(",", "").split()))
    assert max(lengths.values()) <= 28


def test_further_questions_of_a_task_differ():
    shown = scene(0, 0, domains(SETTINGS)["counts"], SETTINGS)
    rows = [
        ask(shown, Task.DETECTION, Kind.JUDGE, image="", split="", settings=SETTINGS, number=number).row
        for number in range(6)
    ]
    assert len({row.id for row in rows}) == 6
    assert len({(row.problem, row.boxes) for row in rows}) > 3
    assert Counter(row.solution for row in rows) == {"yes": 3, "no": 3}
