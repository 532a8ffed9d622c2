"""The world on disk: images, and rows in JSON lines, split by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from currreft_jax.structs import Row
from currreft_jax.world.chance import stream
from currreft_jax.world.drills import drill
from currreft_jax.world.lessons import CAPTIONS, caption_lesson, conversation, lessons
from currreft_jax.world.questions import KINDS, TASKS, ask
from currreft_jax.world.scenes import AXES, Scene, domains, pixels, scene
from currreft_jax.world.settings import Settings, Sizes

DESCRIPTION = "world.json"
Keys = Callable[[Row], dict[str, Any]]
Rows = Callable[[Scene, str, str, Settings], Iterator[tuple[str, Row]]]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the sets that a world is split into.

    Attributes:
        name: of the set, its rows' `split`.
        first: index of its first scene.
        scenes: how many it has.
        domain: (seed, index, settings) -> the domain of a scene, by its name.
        rows: (scene, image, split, settings) -> file name and row of each of its rows.
    """

    name: str
    first: int
    scenes: int
    domain: Callable[[int, int, Settings], str]
    rows: Rows


def parts(sizes: Sizes) -> tuple[Part, ...]:
    """The sets of a world. No two have a scene in common.

    The axes share the indices of the test: a scene of an axis is one of the test with that axis changed.
    """
    return (
        Part("captions", 0, sizes.captions, _mixed, _captions),
        Part("base", 10_000_000, sizes.base, _mixed, _lessons),
        Part("train", 20_000_000, sizes.train, lambda *_: "in", _questions),
        Part("test", 30_000_000, sizes.test, lambda *_: "in", _questions),
        *(Part(f"test_{axis}", 30_000_000, sizes.axis, lambda *_, axis=axis: axis, _questions) for axis in AXES),
    )


def write(
    folder: Path,
    to_keys: Callable[[Row], dict[str, Any]],
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    settings: Settings | None = None,
) -> dict[str, int]:
    """Writes a world: images and rows.

    `captions.jsonl`, `base.jsonl` and `drills.jsonl` are what the base learns from. Judge, choice and open rows are in
    `train_KIND.jsonl`, `test_KIND.jsonl` and, for each axis out of domain, `test_AXIS_KIND.jsonl`. Image paths are
    relative to the folder. `world.json`, written last, tells seed, sizes and settings.

    Args:
        folder: made if it is not there.
        to_keys: the JSON object of a row.
        seed: of every scene and question.
        sizes: the defaults where None.
        settings: likewise.

    Returns:
        File name -> number of rows.

    Raises:
        FileExistsError: the folder has images already.
        ValueError: an image would stand in two sets.
    """
    sizes, settings = sizes or Sizes(), settings or Settings()
    if (folder / "images").exists():
        raise FileExistsError(f"{folder} has images already: remove it, or write the world to another folder")
    counts: dict[str, int] = {}
    owners: dict[bytes, str] = {}
    for part in parts(sizes):
        counts |= _write_part(folder, to_keys, part, seed, settings, owners)
    if sizes.drills:
        with (folder / "drills.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(to_keys(drill(seed, index))) + "\n" for index in range(sizes.drills))
        counts["drills.jsonl"] = sizes.drills
    described = {"seed": seed, "sizes": asdict(sizes), "settings": _plain(asdict(settings)), "rows": counts}
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return counts


def _write_part(
    folder: Path,
    to_keys: Callable[[Row], dict[str, Any]],
    part: Part,
    seed: int,
    settings: Settings,
    owners: dict[bytes, str],
) -> dict[str, int]:
    images = Path("images") / part.name
    (folder / images).mkdir(parents=True)
    counts: dict[str, int] = {}
    known = domains(settings)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for number in range(part.scenes):
            index = part.first + number
            shown = scene(seed, index, known[part.domain(seed, index, settings)], settings)
            canvas = pixels(shown)
            owner = owners.setdefault(blake2b(canvas.tobytes(), digest_size=16).digest(), part.name)
            if owner != part.name:
                raise ValueError(f"scene {index} of {part.name} is an image of {owner} too: choose another seed")
            image = images / f"{number:06d}.png"
            Image.fromarray(canvas).save(folder / image, compress_level=1)
            for name, row in part.rows(shown, image.as_posix(), part.name, settings):
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("w", encoding="utf-8"))
                files[name].write(json.dumps(to_keys(row)) + "\n")
                counts[name] = counts.get(name, 0) + 1
    return counts


def _mixed(seed: int, index: int, settings: Settings) -> str:
    return "any" if stream("domain", seed, index).random() < settings.odd_scenes else "in"


def _captions(shown: Scene, image: str, split: str, settings: Settings) -> Iterator[tuple[str, Row]]:
    for form in CAPTIONS:
        lesson = caption_lesson(shown, form, image=image, split=split)
        yield f"{split}.jsonl", conversation((lesson,), lesson.row.id)


def _lessons(shown: Scene, image: str, split: str, settings: Settings) -> Iterator[tuple[str, Row]]:
    taught = lessons(shown, image=image, split=split, settings=settings)
    for start in range(0, len(taught), settings.turns):
        identity = f"world-{split}-{shown.seed}-{shown.index}-{start}"
        yield f"{split}.jsonl", conversation(taught[start : start + settings.turns], identity)


def _questions(shown: Scene, image: str, split: str, settings: Settings) -> Iterator[tuple[str, Row]]:
    for kind in KINDS:
        for task in TASKS:
            row = ask(shown, task, kind, image=image, split=split, settings=settings).row
            yield f"{split}_{kind.value}.jsonl", row


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(part) for key, part in value.items()}
    return value.value if isinstance(value, Enum) else value
