"""The difficulty of the world and the number of its scenes."""

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
class WorldSettings:
    """Difficulty of scenes and questions, and the mix that the base learns from. Shares are in [0, 1].

    Attributes:
        objects: least and greatest number of objects in a scene.
        many_objects: the same for the axis `counts`, above those.
        sides: least and greatest side of an object in pixels: at least 14, below which a star loses its points, and at
            most 28, the side of a cell. From 15 on, every object of the axis `straddle` lies on a cell's border.
        shade: largest distance of an object's RGB channels from those of its colour.
        near_boxes: share of wrong boxes that overlap the right one a little, rather than show another object.
        empty_boxes: share of wrong boxes of judge rows that show no object although another one could be shown.
        subjects: weights of the subjects of classify rows: shapes, colours, or whole objects.
        lines: share of classify rows about one row or column of the grid, rather than the whole image.
        base_lines: the same for the base's first questions, which are to make the base better at the easier ones.
        composed: share of classify and math rows that take more than one glance: labels under either of two conditions,
            sums of three counts, differences, counts under either of two conditions, counts in one row or column. The
            base's first questions have none.
        mixed_pairs: share of absent objects whose colour and shape are both in the image, where there are such.
        sums: share of math rows that add two counts.
        zeros: share of counts that are 0, where such names exist.
        near_numbers: share of wrong numbers of judge rows that differ by 1 from the right one.
        odd_scenes: share of pretraining scenes from the domain `any`; the others are in domain.
        captions: share of captions among the pretraining examples of the split `base`.
        kinds: weights of the kinds of pretraining questions.
        tasks: weights of the tasks of pretraining questions.
        broken: share of pretraining answers in a layout that earns no format reward.
        hasty: share of answers without a thought in the last stage of pretraining, the fourth.
        questions: pretraining examples of each scene.
        turns: pretraining examples of each conversation.
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
    composed: float = 0.6
    mixed_pairs: float = 0.3
    sums: float = 0.5
    zeros: float = 0.15
    near_numbers: float = 0.6
    odd_scenes: float = 0.5
    captions: float = 0.15
    kinds: Mapping[Kind, float] = field(default_factory=_kinds)
    tasks: Mapping[Task, float] = field(default_factory=_tasks)
    broken: float = 0.3
    hasty: float = 0.65
    questions: int = 4
    turns: int = 1

    def __post_init__(self) -> None:
        """Validates the settings.

        Raises:
            ValueError: naming the setting, its value and the values it takes.
        """
        for name, (low, high), smallest, largest in (
            ("objects", self.objects, 1, 6),
            ("many_objects", self.many_objects, 1, 6),
            ("sides", self.sides, 14, 28),
        ):
            if not smallest <= low <= high <= largest:
                raise ValueError(f"{name} = {(low, high)}: {smallest} to {largest}, the lower first")
        if self.many_objects[0] <= self.objects[1]:
            raise ValueError(
                f"many_objects = {self.many_objects}: more than objects = {self.objects}, since counts is out of domain"
            )
        values: dict[str, Any] = asdict(self)
        for name in ("subjects", "kinds", "tasks"):
            weights = values[name].values()
            if min(weights, default=0) < 0 or sum(weights) <= 0:
                raise ValueError(f"{name} = {values[name]}: at least one weight above 0, and none below")
        shares = (
            "near_boxes",
            "empty_boxes",
            "lines",
            "base_lines",
            "composed",
            "mixed_pairs",
            "sums",
            "zeros",
            "near_numbers",
        )
        for name in (*shares, "odd_scenes", "captions", "broken", "hasty"):
            if not 0 <= values[name] <= 1:
                raise ValueError(f"{name} = {values[name]}: a share between 0 and 1")
        for name in ("questions", "turns"):
            if values[name] < 1:
                raise ValueError(f"{name} = {values[name]}: 1 or more")


# From easy to hard, images show more objects and questions take more glances.
DIFFICULTIES: Mapping[str, WorldSettings] = {
    "easy": WorldSettings(objects=(1, 2), lines=0.0, sums=0.0, composed=0.0),
    "middle": WorldSettings(),
    "hard": WorldSettings(objects=(4, 5), many_objects=(6, 6), composed=1.0),
}


@dataclass(frozen=True, slots=True)
class WorldSizes:
    """Number of scenes in each split of the world.

    Attributes:
        captions: scenes of the base's first stage; each makes one row for every form of `pretraining.CAPTION_PROMPTS`.
        base: scenes of the base's second stage; each makes `WorldSettings.questions` examples.
        drills: rows of text-only drills, which have no scene.
        composed: scenes of the base's third stage; each makes `WorldSettings.questions` examples.
        answers: the same for its fourth stage.
        train: training scenes of the curriculum; each makes one row of every task and kind.
        test: test scenes in domain; each makes one row of every task and kind.
        axis: test scenes of each axis out of domain; each makes one row of every task and kind.
    """

    captions: int = 10_000
    base: int = 40_000
    drills: int = 20_000
    composed: int = 5_000
    answers: int = 3_000
    train: int = 3_000
    test: int = 1_000
    axis: int = 500
