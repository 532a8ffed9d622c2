"""docs/world.md shows the world as it is."""

from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.world import tokenizer
from currreft_jax.world.lessons import BROKEN, reasoned
from currreft_jax.world.prompts import user_text
from currreft_jax.world.questions import KINDS, TASKS, ask
from currreft_jax.world.scenes import contact_sheet, domains, scene
from currreft_jax.world.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "world.md").read_text("utf-8")
DOMAINS = domains(Settings())


def test_the_page_of_pictures_is_what_is_drawn():
    scenes = [scene(0, index, domain, Settings()) for index in range(5) for domain in DOMAINS.values()]
    with Image.open(DOCS / "world.png") as page:
        np.testing.assert_array_equal(np.asarray(page), np.asarray(contact_sheet(scenes, len(DOMAINS))))
    places = [TEXT.index(f"*{'in domain' if name == 'in' else name}*") for name in DOMAINS]
    assert places == sorted(places)


def test_the_examples_are_what_is_asked():
    shown = scene(0, 2, DOMAINS["in"], Settings())
    for task in TASKS:
        for kind in KINDS:
            question = ask(shown, task, kind, image="", split="", settings=Settings())
            answer = reasoned(question.thought, question.row.solution)
            assert f"[{task.value}, {kind.value}]\n{user_text(question.row)}\n=> {answer}\n" in TEXT


def test_the_figures_are_those_of_the_settings():
    assert f"has {tokenizer.build().get_vocab_size()} tokens" in TEXT
    assert len(BROKEN) == 7 and "one of seven ways" in TEXT
    shares = Settings().kinds
    assert ", ".join(f"{round(100 * share)}% {kind.value}" for kind, share in shares.items()) in TEXT
