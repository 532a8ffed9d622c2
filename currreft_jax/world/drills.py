"""Text-only exercises in comparing names and finding their option letters.

A question about an image needs two or three such comparisons, which is too few to learn them from.
"""

from __future__ import annotations

from random import Random
from string import ascii_uppercase

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row, Turn
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import NUM_OPTIONS, ORIGIN, letters_thought, search_thought
from currreft_jax.world.rng import hashed_rng, pick, randint, shuffled
from currreft_jax.world.scenes import ALL_PAIRS, COLOURS, SHAPES

_SUBJECTS = {"shapes": SHAPES, "colours": tuple(COLOURS), "objects": tuple(map(" ".join, ALL_PAIRS))}


def drill_row(seed: int, index: int) -> Row:
    """Returns a chat row without an image: about names for an even index, about letters for an odd one."""
    rng = hashed_rng("drill", seed, index)
    subject = pick(rng, tuple(_SUBJECTS))
    names = shuffled(rng, _SUBJECTS[subject])
    prompt, answer = (_letters_drill if index % 2 else _names_drill)(rng, subject, names)
    return Row(
        f"world-drills-{seed}-{index}",
        Task.OTHER,
        Kind.CHAT,
        "",
        "",
        messages=(Turn("user", prompt), Turn("assistant", answer)),
        source="world",
        split="drills",
        origin=ORIGIN,
    )


def _names_drill(rng: Random, subject: str, names: list[str]) -> tuple[str, str]:
    """Searches for each of three names among others, as the thoughts of judge rows do."""
    targets, others = names[:3], names[3:]
    if subject == "objects":  # prefer names that share a word with a target
        near = [name for name in others if any(word in targets[0].split() for word in name.split())]
        others = [*near[:4], *others[:2]]
    searches = []
    for target in targets:
        listed = shuffled(rng, others)[: randint(rng, 0, 2)]
        listed = [*listed, target] if not listed or rng.random() < 0.6 else listed
        searches.append(f"{target}, {search_thought(target, listed)}")
    return f"is there any {', '.join(targets)}?", "; ".join(searches)


def _letters_drill(rng: Random, subject: str, names: list[str]) -> tuple[str, str]:
    """Names the option letters of some names, as the thoughts of choice rows do."""
    options = tuple(names[:NUM_OPTIONS])
    row = Row("", Task.CLASSIFY, Kind.CHOICE, f"which {subject} are there?", "", options=options, multiple=True)
    letters = dict(zip(options, ascii_uppercase, strict=False))
    return user_text(row), letters_thought(shuffled(rng, names[: NUM_OPTIONS + 1]), letters)
