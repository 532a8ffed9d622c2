"""Exercises in words alone, which make comparing a habit: is it the same name, and under which letter does it stand?

A question about an image asks for two or three such comparisons, which is too few to learn them from.
"""

from __future__ import annotations

from random import Random
from string import ascii_uppercase

from currreft_jax.config import Kind, Task
from currreft_jax.structs import Row, Turn
from currreft_jax.world.chance import pick, shuffled, stream, whole
from currreft_jax.world.prompts import user_text
from currreft_jax.world.questions import OPTIONS, ORIGIN, lettered, looked_for
from currreft_jax.world.scenes import ALL_PAIRS, COLOURS, SHAPES

_SUBJECTS = {"shapes": SHAPES, "colours": tuple(COLOURS), "objects": tuple(map(" ".join, ALL_PAIRS))}


def drill(seed: int, index: int) -> Row:
    """One exercise, as a chat row without an image; even indices look for names, odd ones for letters."""
    rng = stream("drill", seed, index)
    subject = pick(rng, tuple(_SUBJECTS))
    names = shuffled(rng, _SUBJECTS[subject])
    asked, answer = (_letters if index % 2 else _names)(rng, subject, names)
    turns = Turn("user", asked), Turn("assistant", answer)
    return Row(
        f"world-drills-{seed}-{index}",
        Task.OTHER,
        Kind.CHAT,
        "",
        "",
        messages=turns,
        source="world",
        split="drills",
        origin=ORIGIN,
    )


def _names(rng: Random, subject: str, names: list[str]) -> tuple[str, str]:
    """Whether each of three names is among some others, as judge rows think it out."""
    targets, others = names[:3], names[3:]
    if subject == "objects":  # mostly such as share a word with one that is looked for
        near = [name for name in others if any(word in targets[0].split() for word in name.split())]
        others = [*near[:4], *others[:2]]
    runs = []
    for target in targets:
        seen = shuffled(rng, others)[: whole(rng, 0, 2)]
        found = [*seen, target] if not seen or rng.random() < 0.6 else seen
        runs.append(f"{target}, {looked_for(target, found)}")
    return f"is there any {', '.join(targets)}?", "; ".join(runs)


def _letters(rng: Random, subject: str, names: list[str]) -> tuple[str, str]:
    """The letters of some names among the options, as choice rows think it out."""
    options = tuple(names[:OPTIONS])
    row = Row("", Task.CLASSIFY, Kind.CHOICE, f"which {subject} are there?", "", options=options, multiple=True)
    return user_text(row), lettered(
        shuffled(rng, names[: OPTIONS + 1]), dict(zip(options, ascii_uppercase, strict=False))
    )
