"""How difficult the world is: every number that decides it, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from currreft_jax.config import Kind, Task


def _subjects() -> dict[str, float]:
    return {"shapes": 0.3, "colours": 0.25, "objects": 0.45}


def _kinds() -> dict[Kind, float]:
    return {Kind.OPEN: 0.25, Kind.JUDGE: 0.35, Kind.CHOICE: 0.4}


def _tasks() -> dict[Task, float]:
    return {Task.DETECTION: 0.4, Task.CLASSIFY: 0.3, Task.MATH: 0.3}


@dataclass(frozen=True, slots=True)
class Settings:
    """The difficulty of scenes and questions, and what the base learns from. Shares are between 0 and 1.

    Attributes:
        objects: least and greatest number of objects in a scene.
        many_objects: the same for the axis `counts`.
        sides: least and greatest side of an object, in pixels: at least 14, below which a star's points are lost, and
            at most a cell's 28. At 15 or more an object of the axis `straddle` always lies on a cell's border.
        shade: how far each channel of an object's colour may be from the colour's own value.
        near_boxes: share of wrong boxes that lie beside the right one and overlap it, rather than on another object.
        empty_boxes: share of wrong boxes of judge rows that lie on nothing although another object could be shown.
        subjects: weights of what classify rows are about: shapes, colours, or whole objects.
        lines: share of classify rows about one row or column of the grid, rather than the whole image.
        base_lines: the same for what the base learns, which therefore knows the easier questions better.
        mixed_pairs: share of absent objects whose colour and whose shape are both in the image, where there are such.
        sums: share of maths rows that add two counts.
        zeros: share of counted names that are not in the image.
        near_numbers: share of wrong numbers of judge rows that miss by one.
        odd_scenes: share of the base's scenes drawn from the domain `any`; the others are in domain.
        captions: share of captions in what the base learns.
        kinds: weights of the kinds of its questions.
        tasks: weights of their tasks.
        broken: share of its answers that break the format.
        questions: questions and captions about each of its images.
        turns: how many of them follow each other in one conversation.
    """

    objects: tuple[int, int] = (1, 4)
    many_objects: tuple[int, int] = (5, 6)
    sides: tuple[int, int] = (15, 27)
    shade: int = 12
    near_boxes: float = 0.0
    empty_boxes: float = 0.3
    subjects: Mapping[str, float] = field(default_factory=_subjects)
    lines: float = 0.8
    base_lines: float = 0.5
    mixed_pairs: float = 0.3
    sums: float = 0.5
    zeros: float = 0.15
    near_numbers: float = 0.6
    odd_scenes: float = 0.5
    captions: float = 0.15
    kinds: Mapping[Kind, float] = field(default_factory=_kinds)
    tasks: Mapping[Task, float] = field(default_factory=_tasks)
    broken: float = 0.3
    questions: int = 4
    turns: int = 1

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn or asked."""
        for name, (low, high), least, most in (
            ("objects", self.objects, 1, 6),
            ("many_objects", self.many_objects, 1, 6),
            ("sides", self.sides, 14, 28),
        ):
            if not least <= low <= high <= most:
                raise ValueError(f"{name} = {(low, high)}: {least} to {most}, the lower first")
        values: dict[str, Any] = asdict(self)
        for name in ("subjects", "kinds", "tasks"):
            weights = values[name].values()
            if min(weights, default=0) < 0 or sum(weights) <= 0:
                raise ValueError(f"{name} = {values[name]}: at least one weight above 0, and none below")
        shares = ("near_boxes", "empty_boxes", "lines", "base_lines", "mixed_pairs", "sums", "zeros", "near_numbers")
        for name in (*shares, "odd_scenes", "captions", "broken"):
            if not 0 <= values[name] <= 1:
                raise ValueError(f"{name} = {values[name]}: a share between 0 and 1")
        for name in ("questions", "turns"):
            if values[name] < 1:
                raise ValueError(f"{name} = {values[name]}: 1 or more")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many scenes each part of the world has.

    Attributes:
        captions: of the captions that the base learns first; each is described in every form of `lessons.CAPTIONS`.
        base: of the questions that it learns next; see `Settings.questions`.
        drills: exercises in words alone, which have no scene.
        train: of the curriculum's training rows; each gives one row of every task and kind.
        test: likewise of the test in domain.
        axis: likewise of the test of each axis out of domain.
    """

    captions: int = 10_000
    base: int = 40_000
    drills: int = 20_000
    train: int = 3_000
    test: int = 1_000
    axis: int = 500
