"""Writes the world to disk: images, and rows as JSON lines, in splits that share no image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from currreft_jax.structs import Row
from currreft_jax.world.drills import drill_row
from currreft_jax.world.pretraining import (
    CAPTION_PROMPTS,
    PretrainingExample,
    answering_examples,
    caption_example,
    chat_row,
    pretraining_examples,
)
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.rng import hashed_rng
from currreft_jax.world.scenes import AXES, Scene, domains, make_scene, render_array
from currreft_jax.world.settings import WorldSettings, WorldSizes

DESCRIPTION = "world.json"
VERSION = 2  # of the questions: a folder of another version has other rows
ToKeys = Callable[[Row], dict[str, Any]]
SceneRows = Callable[[Scene, str, str, WorldSettings], Iterator[tuple[str, Row]]]


@dataclass(frozen=True, slots=True)
class WorldSplit:
    """A split of the world.

    Attributes:
        name: the `split` of its rows.
        first_scene: index of its first scene.
        num_scenes: number of its scenes.
        domain: (seed, scene index, settings) -> name of the scene's domain.
        rows: (scene, image, split, settings) -> file name and row of each of the scene's rows.
    """

    name: str
    first_scene: int
    num_scenes: int
    domain: Callable[[int, int, WorldSettings], str]
    rows: SceneRows


def world_splits(sizes: WorldSizes) -> tuple[WorldSplit, ...]:
    """Returns the splits of a world.

    No two share a scene, but the axes share the test's scene indices: a scene of an axis is the test scene of the same
    index with that axis changed.
    """
    return (
        WorldSplit("captions", 0, sizes.captions, _pretraining_domain, _caption_rows),
        WorldSplit("base", 10_000_000, sizes.base, _pretraining_domain, _pretraining_rows),
        WorldSplit("composed", 12_000_000, sizes.composed, _pretraining_domain, _careful_rows),
        WorldSplit("answers", 15_000_000, sizes.answers, _pretraining_domain, _answering_rows),
        WorldSplit("train", 20_000_000, sizes.train, lambda *_: "in", _question_rows),
        WorldSplit("test", 30_000_000, sizes.test, lambda *_: "in", _question_rows),
        *(
            WorldSplit(f"test_{axis}", 30_000_000, sizes.axis, lambda *_, axis=axis: axis, _question_rows)
            for axis in AXES
        ),
    )


def write_world(
    folder: Path,
    row_to_json: ToKeys,
    *,
    seed: int = 0,
    sizes: WorldSizes | None = None,
    settings: WorldSettings | None = None,
) -> dict[str, int]:
    """Writes a world: images and rows.

    The base learns from `captions.jsonl`, `base.jsonl`, `drills.jsonl`, `composed.jsonl` and `answers.jsonl`. Judge,
    choice and open rows are in `train_KIND.jsonl`, `test_KIND.jsonl` and, for each axis out of domain,
    `test_AXIS_KIND.jsonl`. Image paths are relative to the folder. `world.json`, written last, holds version, seed,
    sizes, settings and counts.

    Args:
        folder: created if it does not exist.
        row_to_json: row -> JSON object.
        seed: seed of all scenes and questions.
        sizes: defaults where None.
        settings: defaults where None.

    Returns:
        File name -> number of rows.

    Raises:
        FileExistsError: the folder has images already.
        ValueError: two splits share an image.
    """
    sizes, settings = sizes or WorldSizes(), settings or WorldSettings()
    if (folder / "images").exists():
        raise FileExistsError(f"{folder} has images already: remove it, or write the world to another folder")
    counts: dict[str, int] = {}
    owners: dict[bytes, str] = {}
    splits = world_splits(sizes)
    total = sum(split.num_scenes for split in splits)
    with tqdm(total=total, desc="drawing the world", unit=" images", mininterval=1) as bar:
        for split in splits:
            counts |= _write_split(folder, row_to_json, split, seed, settings, owners, bar.update)
    if sizes.drills:
        with (folder / "drills.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row_to_json(drill_row(seed, index))) + "\n" for index in range(sizes.drills))
        counts["drills.jsonl"] = sizes.drills
    description = {
        "version": VERSION,
        "seed": seed,
        "sizes": asdict(sizes),
        "settings": _json_value(asdict(settings)),
        "rows": counts,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return counts


def _write_split(
    folder: Path,
    row_to_json: ToKeys,
    split: WorldSplit,
    seed: int,
    settings: WorldSettings,
    owners: dict[bytes, str],
    on_image: Callable[[], object],
) -> dict[str, int]:
    """Writes the images and rows of a split.

    Args:
        folder: folder of the world.
        row_to_json: row -> JSON object.
        split: split.
        seed: seed of all scenes and questions.
        settings: settings of the world.
        owners: digest of every image so far -> its split.
        on_image: called after each image.

    Returns:
        File name -> number of rows.
    """
    images = Path("images") / split.name
    (folder / images).mkdir(parents=True)
    counts: dict[str, int] = {}
    known_domains = domains(settings)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for offset in range(split.num_scenes):
            index = split.first_scene + offset
            scene = make_scene(seed, index, known_domains[split.domain(seed, index, settings)], settings)
            pixels = render_array(scene)
            owner = owners.setdefault(blake2b(pixels.tobytes(), digest_size=16).digest(), split.name)
            if owner != split.name:
                raise ValueError(f"scene {index} of {split.name} is an image of {owner} too: choose another seed")
            image = images / f"{offset:06d}.png"
            Image.fromarray(pixels).save(folder / image, compress_level=1)
            for name, row in split.rows(scene, image.as_posix(), split.name, settings):
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("w", encoding="utf-8"))
                files[name].write(json.dumps(row_to_json(row)) + "\n")
                counts[name] = counts.get(name, 0) + 1
            on_image()
    return counts


def _pretraining_domain(seed: int, index: int, settings: WorldSettings) -> str:
    return "any" if hashed_rng("domain", seed, index).random() < settings.odd_scenes else "in"


def _caption_rows(scene: Scene, image: str, split: str, settings: WorldSettings) -> Iterator[tuple[str, Row]]:
    for form in CAPTION_PROMPTS:
        example = caption_example(scene, form, image=image, split=split)
        yield f"{split}.jsonl", chat_row((example,), example.row.id)


def _pretraining_rows(scene: Scene, image: str, split: str, settings: WorldSettings) -> Iterator[tuple[str, Row]]:
    examples = pretraining_examples(scene, image=image, split=split, settings=settings)
    yield from _conversations(examples, scene, split, settings)


def _careful_rows(scene: Scene, image: str, split: str, settings: WorldSettings) -> Iterator[tuple[str, Row]]:
    return _answering_rows(scene, image, split, replace(settings, hasty=0.0))


def _answering_rows(scene: Scene, image: str, split: str, settings: WorldSettings) -> Iterator[tuple[str, Row]]:
    examples = answering_examples(scene, image=image, split=split, settings=settings)
    yield from _conversations(examples, scene, split, settings)


def _conversations(
    examples: Sequence[PretrainingExample], scene: Scene, split: str, settings: WorldSettings
) -> Iterator[tuple[str, Row]]:
    for start in range(0, len(examples), settings.turns):
        row_id = f"world-{split}-{scene.seed}-{scene.index}-{start}"
        yield f"{split}.jsonl", chat_row(examples[start : start + settings.turns], row_id)


def _question_rows(scene: Scene, image: str, split: str, settings: WorldSettings) -> Iterator[tuple[str, Row]]:
    for kind in KINDS:
        for task in TASKS:
            row = make_question(scene, task, kind, image=image, split=split, settings=settings).row
            yield f"{split}_{kind.value}.jsonl", row


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_json_value(key)): _json_value(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
