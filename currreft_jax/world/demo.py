"""The scene and the question of `generate --demo`."""

from __future__ import annotations

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import make_question
from currreft_jax.world.scenes import Scene, domains, make_scene
from currreft_jax.world.settings import WorldSettings

_SCENE = 3


def demo_scene() -> Scene:
    """Draws the scene."""
    return make_scene(0, _SCENE, domains(WorldSettings())["in"], WorldSettings())


def demo_question() -> str:
    """Asks for the boxes of an object of the scene."""
    return user_text(_demo_row())


def demo_answer() -> str:
    """Returns the right answer."""
    return _demo_row().solution


def _demo_row() -> Row:
    settings = WorldSettings()
    return make_question(demo_scene(), Task.DETECTION, Kind.OPEN, image="", split="", settings=settings).row
