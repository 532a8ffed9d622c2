"""The recipe of the paper's sets: which data sets they come from, and how many rows they take.

The paper publishes the sizes and sources of its sets, not their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from currreft_jax.config import Task


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """A data set of a recipe.

    Attributes:
        folder: its name under the root.
        formats: formats that it may have.
        task: task of its rows.
        num_rows: number of training rows of each kind, of test rows out of domain, or of conversations.
        split: takes only this published split.
    """

    folder: str
    formats: tuple[str, ...]
    task: Task
    num_rows: int
    split: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sources and sizes of the sets.

    Attributes:
        train: one source for each task, for training and for the tests in domain.
        num_tests: number of test rows in domain, for each task.
        out_of_domain: sources of the tests out of domain.
        improve: sources of conversations for the self-improvement phase.
    """

    train: tuple[RecipeSource, ...]
    num_tests: int
    out_of_domain: tuple[RecipeSource, ...]
    improve: tuple[RecipeSource, ...]

    @property
    def sources(self) -> tuple[RecipeSource, ...]:
        """All sources."""
        return (*self.train, *self.out_of_domain, *self.improve)


PAPER = Recipe(
    train=(
        RecipeSource("refcoco", ("refcoco", "refcoco-jxu124", "vlm-r1"), Task.DETECTION, 3000),
        RecipeSource("coco", ("coco",), Task.CLASSIFY, 3000),
        RecipeSource("math", ("open-r1-8k", "mathv360k"), Task.MATH, 3000),
    ),
    num_tests=1000,
    out_of_domain=(
        RecipeSource("refgta", ("refgta", "vlm-r1"), Task.DETECTION, 1000),
        RecipeSource("voc", ("voc",), Task.CLASSIFY, 1000),
        RecipeSource("clevr-70k", ("clevr-70k", "clevr", "superclevr-r1v"), Task.MATH, 500),
    ),
    improve=(
        RecipeSource("geometry3k", ("chat",), Task.OTHER, 100),
        RecipeSource("geo170k", ("chat",), Task.OTHER, 100),
        RecipeSource("geomverse", ("geomverse", "chat", "cauldron"), Task.OTHER, 100),
        RecipeSource("s1k", ("text",), Task.OTHER, 400, "math"),
        RecipeSource("scienceqa-cauldron", ("chat", "cauldron", "scienceqa"), Task.OTHER, 100),
        RecipeSource("scienceqa-nona", ("chat", "scienceqa"), Task.OTHER, 120),
        RecipeSource("s1k", ("text",), Task.OTHER, 100, "science"),
        RecipeSource("llava-cot", ("chat",), Task.OTHER, 300),
        RecipeSource("visual7w", ("visual7w", "chat", "cauldron"), Task.OTHER, 100),
        RecipeSource("vsr", ("vsr", "chat", "cauldron"), Task.OTHER, 100),
    ),
)


def shrink_recipe(recipe: Recipe, divisor: int) -> Recipe:
    """Divides all sizes of a recipe, rounding up.

    Raises:
        ValueError: the divisor is below 1.
    """
    if divisor < 1:
        raise ValueError(f"--shrink {divisor}: it takes a whole number of at least 1")

    def shrink(sources: Sequence[RecipeSource]) -> tuple[RecipeSource, ...]:
        return tuple(replace(source, num_rows=-(-source.num_rows // divisor)) for source in sources)

    return Recipe(
        shrink(recipe.train), -(-recipe.num_tests // divisor), shrink(recipe.out_of_domain), shrink(recipe.improve)
    )
