import hashlib
from collections import Counter
from random import Random

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import score_completions
from currreft_jax.rewards.boxes import format_box
from currreft_jax.structs import Completion
from currreft_jax.world.pretraining import (
    BAD_LAYOUTS,
    answering_examples,
    caption_example,
    caption_text,
    careful_text,
    chat_row,
    completion_text,
    hasty_text,
    pretraining_examples,
)
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import cell_name
from currreft_jax.world.scenes import domains, make_scene
from currreft_jax.world.settings import WorldSettings

SETTINGS = WorldSettings()
IN = domains(SETTINGS)["in"]


def examples_of(count: int, settings: WorldSettings = SETTINGS):
    for index in range(count):
        yield from pretraining_examples(
            make_scene(0, index, IN, settings), image="i.png", split="base", settings=settings
        )


def test_broken_answers_lose_the_format_reward_only():
    questions = [example for example in examples_of(500) if example.row.kind is not Kind.CHAT]
    scores = score_completions(
        [example.row for example in questions], [[Completion(example.completion)] for example in questions]
    )
    assert abs(scores.parts["format"].mean() - 0.7) < 0.03
    # A well-formed completion has the right answer; a malformed one may hide it.
    assert (scores.parts["accuracy"] >= scores.parts["format"]).all()
    assert 0.78 < scores.parts["accuracy"].mean() < 0.92


def test_the_last_stage_has_hasty_and_careful_answers():
    examples = [
        example
        for index in range(500)
        for example in answering_examples(
            make_scene(0, index, IN, SETTINGS), image="i.png", split="answers", settings=SETTINGS
        )
        if example.row.kind is not Kind.CHAT
    ]
    scores = score_completions(
        [example.row for example in examples], [[Completion(example.completion)] for example in examples]
    )
    well_formed = [
        example.completion
        for example, score in zip(examples, scores.parts["format"][:, 0], strict=True)
        if score and example.completion.startswith("<think> ")
    ]
    assert abs(len(well_formed) / len(examples) - 0.7) < 0.03
    hasty = [text.startswith("<think> . </think>") for text in well_formed]
    careful = [text.startswith("<think> : ") for text in well_formed]
    assert abs(sum(hasty) / len(well_formed) - SETTINGS.hasty) < 0.04
    assert sum(hasty) + sum(careful) == len(well_formed)
    assert hasty_text("yes") == "<think> . </think> <answer> yes </answer>"
    assert careful_text("red 2", "yes") == "<think> : red 2 </think> <answer> yes </answer>"


def test_composed_questions_come_with_the_last_stages():
    settings = WorldSettings(composed=1.0)
    problems = [
        [
            example.row.problem
            for scene in range(20)
            for example in examples(make_scene(0, scene, IN, settings), image="i.png", split="base", settings=settings)
            if example.row.task is Task.CLASSIFY
        ]
        for examples in (pretraining_examples, answering_examples)
    ]
    assert [{" or " in problem for problem in of_stage} for of_stage in problems] == [{False}, {True}]


def test_rows_of_the_first_two_stages_stay_as_they_were():
    """A new setting or a new kind of question must not change them: the base's first stages are trained on them."""
    settings = WorldSettings()
    texts = []
    for index in range(300):
        domain = domains(settings)["any" if index % 2 else "in"]
        scene = make_scene(0, 10_000_000 + index, domain, settings)
        for example in pretraining_examples(scene, image="i.png", split="base", settings=settings):
            texts += [user_text(example.row), example.completion]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "7cc8df79ef3251efc185c0977a85b1c459fd7ef311fd1dc517352cf017af645d"


@pytest.mark.parametrize("share", [0, 1])
def test_pretraining_has_its_own_share_of_questions_about_lines(share):
    settings = WorldSettings(lines=1 - share, base_lines=share)
    problems = [example.row.problem for example in examples_of(60, settings) if example.row.task is Task.CLASSIFY]
    assert problems and {" in the " in problem for problem in problems} == {bool(share)}


@pytest.mark.parametrize("layout", BAD_LAYOUTS)
def test_no_bad_layout_earns_the_format_reward(layout):
    example = next(example for example in examples_of(9) if example.row.kind is Kind.JUDGE)
    text = layout.format(thought="red blue", answer=example.row.solution)
    scores = score_completions([example.row], [[Completion(text)]])
    assert scores.parts["format"][0, 0] == 0.0


def test_the_mix_follows_the_settings():
    rows = [example.row for example in examples_of(1000)]
    kinds, tasks = Counter(row.kind for row in rows), Counter(row.task for row in rows)
    questions = len(rows) - kinds[Kind.CHAT]
    assert abs(kinds[Kind.CHAT] / len(rows) - SETTINGS.captions) < 0.02
    assert all(abs(kinds[kind] / questions - share) < 0.03 for kind, share in SETTINGS.kinds.items())
    assert all(abs(tasks[task] / questions - share) < 0.03 for task, share in SETTINGS.tasks.items())


def test_captions_list_the_objects_in_reading_order():
    scene = make_scene(0, 6, IN, SETTINGS)
    assert caption_text(scene, "names") == ", ".join(" ".join(obj.pair) for obj in scene.objects)
    for obj in scene.objects:
        assert f"{obj.colour} {obj.shape} {format_box(obj.box)}" in caption_text(scene, "boxes")
        assert f"{obj.colour} {obj.shape} {cell_name(obj.box)}" in caption_text(scene, "places")


def test_a_chat_row_has_one_image_and_answers_every_question():
    scene = make_scene(0, 0, IN, SETTINGS)
    examples = (
        caption_example(scene, "names", image="i.png", split="base"),
        *pretraining_examples(scene, image="i.png", split="base", settings=SETTINGS),
    )
    row = chat_row(examples, "c")
    assert row.kind is Kind.CHAT and row.images == ("i.png",)
    assert [turn.role for turn in row.messages] == ["user", "assistant"] * len(examples)
    assert [turn.text.count("<image>") for turn in row.messages] == [1] + [0] * (len(row.messages) - 1)
    assert row.messages[0].text == "<image>what is there?"
    assert [turn.text for turn in row.messages[1::2]] == [example.completion for example in examples]


def test_completion_text():
    assert (
        completion_text("top left", "[1, 2, 30, 40]") == "<think> top left </think> <answer> [1, 2, 30, 40] </answer>"
    )
    assert Random(0).random() == 0.8444218515250481  # Python's promise, on which every draw depends
