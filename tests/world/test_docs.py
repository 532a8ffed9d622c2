"""docs/world.md against the code."""

from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.world import tokenizer
from currreft_jax.world.pretraining import BAD_LAYOUTS, careful_text, completion_text, hasty_text
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import domains, make_scene
from currreft_jax.world.settings import DIFFICULTIES, WorldSettings
from tests.world.contact_sheet import contact_sheet

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "world.md").read_text("utf-8")
DOMAINS = domains(WorldSettings())


def test_the_page_of_scenes_is_up_to_date():
    scenes = [make_scene(0, index, domain, WorldSettings()) for index in range(5) for domain in DOMAINS.values()]
    with Image.open(DOCS / "world.png") as page:
        np.testing.assert_array_equal(np.asarray(page), np.asarray(contact_sheet(scenes, len(DOMAINS))))
    positions = [TEXT.index(f"*{'in domain' if name == 'in' else name}*") for name in DOMAINS]
    assert positions == sorted(positions)


def test_the_example_questions_are_up_to_date():
    scene = make_scene(0, 2, DOMAINS["in"], WorldSettings())
    for task in TASKS:
        for kind in KINDS:
            question = make_question(scene, task, kind, image="", split="", settings=WorldSettings())
            answer = completion_text(question.thought, question.row.solution)
            assert f"[{task.value}, {kind.value}]\n{user_text(question.row)}\n=> {answer}\n" in TEXT


def test_the_figures_match_the_settings():
    assert f"has {tokenizer.build_tokenizer().get_vocab_size()} tokens" in TEXT
    assert len(BAD_LAYOUTS) == 7 and "one of seven ways" in TEXT
    assert f"{WorldSettings().hasty:.0%} of\nthe answers are hasty" in TEXT
    assert f"\n=> {hasty_text('yes')}\n=> {careful_text('yellow square 1, 1', 'yes')}\n" in TEXT
    for name, settings in DIFFICULTIES.items():
        low, high = settings.objects
        (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {name}") and "%" in line)
        simple = [f" {share:.0%} " if settings.composed < 1 else " - " for share in (settings.lines, settings.sums)]
        assert line.split("|")[2:6] == [
            f" {low} {'or' if high - low == 1 else 'to'} {high} ",
            f" {settings.composed:.0%} ",
            *simple,
        ]
    shares = WorldSettings().kinds
    assert ", ".join(f"{round(100 * share)}% {kind.value}" for kind, share in shares.items()) in TEXT
