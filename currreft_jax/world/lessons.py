"""What the base learns from: questions with reasoned answers, a share of them in the wrong layout, and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row, Turn
from currreft_jax.world.chance import pick, stream, weighted
from currreft_jax.world.prompts import spell, user_text
from currreft_jax.world.questions import ORIGIN, ask, place
from currreft_jax.world.scenes import Scene, Thing
from currreft_jax.world.settings import Settings

IMAGE = "<image>"
# What a caption tells of every object, and how it is asked for.
CAPTIONS = {
    "names": "what is there?",
    "places": "what is in which row and column?",
    "boxes": "what is where?",
}

# Layouts that a format reward has to unteach, and how often each stands for a broken one. The first four can still earn
# accuracy: their answer is tagged and closed.
BROKEN = {
    "<answer> {answer} </answer>": 3.0,
    "{thought} <answer> {answer} </answer>": 1.0,
    "<think> {thought} <answer> {answer} </answer>": 1.0,
    "<answer> {answer} </answer> <think> {thought} </think>": 0.5,
    "{answer}": 2.0,
    "<think> {thought} </think> {answer}": 2.0,
    "<think> {thought} </think> <answer> {answer}": 0.5,
}


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question and what the base learns to say.

    Attributes:
        row: a question with a rule of its own, or a chat row with the user's turn alone.
        answer: the whole text of the assistant.
    """

    row: Row
    answer: str


def reasoned(thought: str, answer: str) -> str:
    """An answer in the layout that rewards ask for."""
    return f"<think> {thought} </think> <answer> {answer} </answer>"


def broken(rng: Random, thought: str, answer: str) -> str:
    """An answer in a layout that earns no format reward."""
    return weighted(rng, BROKEN).format(thought=thought, answer=answer)


def caption(scene: Scene, form: str) -> str:
    """The objects in reading order, in one of the forms of `CAPTIONS`."""
    tell: dict[str, Callable[[Thing], str]] = {
        "names": lambda _: "",
        "places": lambda thing: f" {place(thing.box)}",
        "boxes": lambda thing: f" {spell(thing.box)}",
    }
    return ", ".join(" ".join(thing.pair) + tell[form](thing) for thing in scene.things)


def caption_lesson(scene: Scene, form: str, *, image: str, split: str) -> Lesson:
    """To name all objects, or to name and place them."""
    asked = Turn("user", CAPTIONS[form])
    identity = f"world-{split}-{scene.seed}-{scene.index}-{form}"
    row = Row(identity, Task.OTHER, Kind.CHAT, "", "", images=(image,), messages=(asked,), source="world", split=split)
    return Lesson(row, caption(scene, form))


def lessons(scene: Scene, *, image: str, split: str, settings: Settings) -> tuple[Lesson, ...]:
    """The lessons of one scene: `settings.questions` of them, captions and questions mixed."""
    settings = replace(settings, lines=settings.base_lines)
    return tuple(
        _lesson(scene, number, image=image, split=split, settings=settings) for number in range(settings.questions)
    )


def _lesson(scene: Scene, number: int, *, image: str, split: str, settings: Settings) -> Lesson:
    rng = stream("lesson", scene.seed, scene.index, number)
    if rng.random() < settings.captions:
        return caption_lesson(scene, pick(rng, tuple(CAPTIONS)), image=image, split=split)
    task, kind = weighted(rng, settings.tasks), weighted(rng, settings.kinds)
    question = ask(scene, task, kind, image=image, split=split, settings=settings, number=number)
    thought, answer = question.thought, question.row.solution
    breaks = rng.random() < settings.broken
    return Lesson(question.row, broken(rng, thought, answer) if breaks else reasoned(thought, answer))


def conversation(taught: Sequence[Lesson], identity: str) -> Row:
    """Lessons about one image as the turns of one chat row."""
    turns = []
    for number, lesson in enumerate(taught):
        turns += [
            Turn("user", (IMAGE if number == 0 else "") + user_text(lesson.row)),
            Turn("assistant", lesson.answer),
        ]
    first = taught[0].row
    return Row(
        identity,
        Task.OTHER,
        Kind.CHAT,
        "",
        "",
        images=first.images,
        messages=tuple(turns),
        source="world",
        split=first.split,
        origin=ORIGIN,
    )
