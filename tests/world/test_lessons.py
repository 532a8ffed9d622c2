from collections import Counter
from random import Random

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import score_completions
from currreft_jax.structs import Completion
from currreft_jax.world.lessons import BROKEN, caption, caption_lesson, conversation, lessons, reasoned
from currreft_jax.world.prompts import spell
from currreft_jax.world.questions import place
from currreft_jax.world.scenes import domains, scene
from currreft_jax.world.settings import Settings

SETTINGS = Settings()
IN = domains(SETTINGS)["in"]


def taught(count: int, settings: Settings = SETTINGS):
    for index in range(count):
        yield from lessons(scene(0, index, IN, settings), image="i.png", split="base", settings=settings)


def test_a_share_of_the_answers_breaks_the_format_and_nothing_else():
    questions = [lesson for lesson in taught(500) if lesson.row.kind is not Kind.CHAT]
    scores = score_completions(
        [lesson.row for lesson in questions], [[Completion(lesson.answer)] for lesson in questions]
    )
    assert abs(scores.parts["format"].mean() - 0.7) < 0.03
    # Where the layout is right the answer is; a wrong one may hide it.
    assert (scores.parts["accuracy"] >= scores.parts["format"]).all()
    assert 0.78 < scores.parts["accuracy"].mean() < 0.92


@pytest.mark.parametrize("share", [0, 1])
def test_what_the_base_learns_has_its_own_share_of_rows_and_columns(share):
    settings = Settings(lines=1 - share, base_lines=share)
    asked = [it.row.problem for it in taught(60, settings) if it.row.task is Task.CLASSIFY]
    assert asked and {" in the " in question for question in asked} == {bool(share)}


@pytest.mark.parametrize("layout", BROKEN)
def test_no_broken_layout_earns_format(layout):
    lesson = next(lesson for lesson in taught(9) if lesson.row.kind is Kind.JUDGE)
    text = layout.format(thought="red blue", answer=lesson.row.solution)
    scores = score_completions([lesson.row], [[Completion(text)]])
    assert scores.parts["format"][0, 0] == 0.0


def test_the_mix_is_that_of_the_settings():
    rows = [lesson.row for lesson in taught(1000)]
    kinds, tasks = Counter(row.kind for row in rows), Counter(row.task for row in rows)
    questions = len(rows) - kinds[Kind.CHAT]
    assert abs(kinds[Kind.CHAT] / len(rows) - SETTINGS.captions) < 0.02
    assert all(abs(kinds[kind] / questions - share) < 0.03 for kind, share in SETTINGS.kinds.items())
    assert all(abs(tasks[task] / questions - share) < 0.03 for task, share in SETTINGS.tasks.items())


def test_captions_name_and_place_the_objects_in_reading_order():
    shown = scene(0, 6, IN, SETTINGS)
    assert caption(shown, "names") == ", ".join(" ".join(thing.pair) for thing in shown.things)
    for thing in shown.things:
        assert f"{thing.colour} {thing.shape} {spell(thing.box)}" in caption(shown, "boxes")
        assert f"{thing.colour} {thing.shape} {place(thing.box)}" in caption(shown, "places")


def test_a_conversation_shows_the_image_once_and_answers_every_question():
    shown = scene(0, 0, IN, SETTINGS)
    given = (
        caption_lesson(shown, "names", image="i.png", split="base"),
        *lessons(shown, image="i.png", split="base", settings=SETTINGS),
    )
    row = conversation(given, "c")
    assert row.kind is Kind.CHAT and row.images == ("i.png",)
    assert [turn.role for turn in row.messages] == ["user", "assistant"] * len(given)
    assert [turn.text.count("<image>") for turn in row.messages] == [1] + [0] * (len(row.messages) - 1)
    assert row.messages[0].text == "<image>what is there?"
    assert [turn.text for turn in row.messages[1::2]] == [lesson.answer for lesson in given]


def test_reasoned_answers_look_like_this():
    assert reasoned("top left", "[1, 2, 30, 40]") == "<think> top left </think> <answer> [1, 2, 30, 40] </answer>"
    assert Random(0).random() == 0.8444218515250481  # the one promise that every draw rests on
