"""The scenes and questions of `generate --demo`: those of the test rows, on which no model here is trained."""

from __future__ import annotations

from currreft_jax.config import Kind, Task
from currreft_jax.rewards import score_completions
from currreft_jax.structs import Completion, Frame, Row
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import make_question
from currreft_jax.world.scenes import Scene, domains, make_scene
from currreft_jax.world.settings import WorldSettings, WorldSizes
from currreft_jax.world.write import world_splits

EASY_SCENE = 9  # two shapes, and the one in question fills its cell


def demo_scene(number: int = EASY_SCENE) -> Scene:
    """Draws a scene.

    Raises:
        ValueError: the number is negative.
    """
    if number < 0:
        raise ValueError(f"--demo={number}: scenes are numbered from 0")
    settings = WorldSettings()
    (test,) = [split for split in world_splits(WorldSizes()) if split.name == "test"]
    return make_scene(0, test.first_scene + number, domains(settings)["in"], settings)


def demo_row(number: int = EASY_SCENE) -> Row:
    """Returns the question for the box of an object of a scene, with its right answer."""
    scene = demo_scene(number)
    return make_question(scene, Task.DETECTION, Kind.OPEN, image="", split="test", settings=WorldSettings()).row


def demo_question(number: int = EASY_SCENE) -> str:
    """Returns the text of the question."""
    return user_text(demo_row(number))


def demo_verdict(row: Row, text: str, frame: Frame) -> str:
    """Says whether the reward finds an answer right, and why not; `frame` is the one that the model saw."""
    scores = score_completions([row], [[Completion(text)]], frames=[frame])
    reason = scores.reasons["accuracy"][0][0]
    return "right" if scores.parts["accuracy"][0, 0] == 1 else f"wrong ({reason})"
