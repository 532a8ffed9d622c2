"""Pretraining tasks of the base: captions, and questions with reasoned answers, some of them in a wrong layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from currreft_jax.config import Kind, Task
from currreft_jax.rewards.boxes import format_box
from currreft_jax.structs import Row, Turn
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import ORIGIN, cell_name, make_question
from currreft_jax.world.rng import hashed_rng, pick, weighted_pick
from currreft_jax.world.scenes import Scene, SceneObject
from currreft_jax.world.settings import WorldSettings

IMAGE = "<image>"
# The two ways to answer that the last stage teaches: at once, or after a thought with this opening.
HASTY_THOUGHT = "."
CAREFUL_OPENING = ":"
# Form of caption, by what it says about each object -> prompt.
CAPTION_PROMPTS = {
    "names": "what is there?",
    "places": "what is in which row and column?",
    "boxes": "what is where?",
}

# Layouts that earn no format reward -> weight. The first four have a closed answer tag and can still earn accuracy.
BAD_LAYOUTS = {
    "<answer> {answer} </answer>": 3.0,
    "{thought} <answer> {answer} </answer>": 1.0,
    "<think> {thought} <answer> {answer} </answer>": 1.0,
    "<answer> {answer} </answer> <think> {thought} </think>": 0.5,
    "{answer}": 2.0,
    "<think> {thought} </think> {answer}": 2.0,
    "<think> {thought} </think> <answer> {answer}": 0.5,
}


@dataclass(frozen=True, slots=True)
class PretrainingExample:
    """A question and the completion that the base learns.

    Attributes:
        row: a judge, choice or open row, or a chat row with the user's turn alone.
        completion: the assistant's whole text.
    """

    row: Row
    completion: str


def completion_text(thought: str, answer: str) -> str:
    """Returns thought and answer in the layout that earns the format reward."""
    return f"<think> {thought} </think> <answer> {answer} </answer>"


def careful_text(thought: str, answer: str) -> str:
    """Returns a careful answer: it opens with `CAREFUL_OPENING`, and thinks."""
    return completion_text(f"{CAREFUL_OPENING} {thought}", answer)


def hasty_text(answer: str) -> str:
    """Returns a hasty answer, without a thought."""
    return completion_text(HASTY_THOUGHT, answer)


def bad_layout_text(rng: Random, thought: str, answer: str) -> str:
    """Returns thought and answer in a random layout that earns no format reward."""
    return weighted_pick(rng, BAD_LAYOUTS).format(thought=thought, answer=answer)


def caption_text(scene: Scene, form: str) -> str:
    """Describes the objects in reading order, in one of the forms of `CAPTION_PROMPTS`."""
    details: dict[str, Callable[[SceneObject], str]] = {
        "names": lambda _: "",
        "places": lambda obj: f" {cell_name(obj.box)}",
        "boxes": lambda obj: f" {format_box(obj.box)}",
    }
    return ", ".join(" ".join(obj.pair) + details[form](obj) for obj in scene.objects)


def caption_example(scene: Scene, form: str, *, image: str, split: str) -> PretrainingExample:
    """Returns a caption of the scene in one of the forms of `CAPTION_PROMPTS`."""
    prompt = Turn("user", CAPTION_PROMPTS[form])
    row_id = f"world-{split}-{scene.seed}-{scene.index}-{form}"
    row = Row(row_id, Task.OTHER, Kind.CHAT, "", "", images=(image,), messages=(prompt,), source="world", split=split)
    return PretrainingExample(row, caption_text(scene, form))


def pretraining_examples(
    scene: Scene, *, image: str, split: str, settings: WorldSettings
) -> tuple[PretrainingExample, ...]:
    """Returns `settings.questions` examples of one scene for the base's second stage, captions and questions mixed.

    Every question is a simple one, and every answer has a thought.
    """
    settings = replace(settings, lines=settings.base_lines, composed=0.0)
    return tuple(
        _random_example(scene, index, _same_thought, image=image, split=split, settings=settings)
        for index in range(settings.questions)
    )


def answering_examples(
    scene: Scene, *, image: str, split: str, settings: WorldSettings
) -> tuple[PretrainingExample, ...]:
    """Returns `settings.questions` examples of one scene for the base's last two stages, in two ways of answering.

    A share of `settings.hasty` of the answers has no thought, the others open with `CAREFUL_OPENING`. The third stage
    has none without a thought.
    """

    def hasty_or_careful(rng: Random, thought: str) -> str:
        return HASTY_THOUGHT if rng.random() < settings.hasty else f"{CAREFUL_OPENING} {thought}"

    return tuple(
        _random_example(scene, index, hasty_or_careful, image=image, split=split, settings=settings)
        for index in range(settings.questions)
    )


def _same_thought(_: Random, thought: str) -> str:
    return thought


def _random_example(
    scene: Scene,
    index: int,
    change_thought: Callable[[Random, str], str],
    *,
    image: str,
    split: str,
    settings: WorldSettings,
) -> PretrainingExample:
    rng = hashed_rng("lesson", scene.seed, scene.index, index)
    if rng.random() < settings.captions:
        return caption_example(scene, pick(rng, tuple(CAPTION_PROMPTS)), image=image, split=split)
    task, kind = weighted_pick(rng, settings.tasks), weighted_pick(rng, settings.kinds)
    question = make_question(scene, task, kind, image=image, split=split, settings=settings, question_index=index)
    thought, answer = change_thought(rng, question.thought), question.row.solution
    is_broken = rng.random() < settings.broken
    text = bad_layout_text(rng, thought, answer) if is_broken else completion_text(thought, answer)
    return PretrainingExample(question.row, text)


def chat_row(examples: Sequence[PretrainingExample], row_id: str) -> Row:
    """Joins examples about one image as the turns of one chat row."""
    turns = []
    for index, example in enumerate(examples):
        turns += [
            Turn("user", (IMAGE if index == 0 else "") + user_text(example.row)),
            Turn("assistant", example.completion),
        ]
    first = examples[0].row
    return Row(
        row_id,
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
