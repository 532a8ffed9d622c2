import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind
from currreft_jax.data.rows import row_to_json
from currreft_jax.world import write as module
from currreft_jax.world.questions import KINDS, TASKS, ask
from currreft_jax.world.scenes import AXES, domains, pixels, scene
from currreft_jax.world.settings import Settings, Sizes
from currreft_jax.world.write import parts, write

SIZES = Sizes(captions=6, base=10, drills=12, train=8, test=8, axis=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, write(folder, row_to_json, sizes=SIZES)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_all_files_are_there_with_as_many_rows_as_told(world):
    folder, counts = world
    kinds = {f"{part}_{kind.value}.jsonl" for part in ("train", "test", *(f"test_{a}" for a in AXES)) for kind in KINDS}
    assert set(counts) == {"captions.jsonl", "base.jsonl", "drills.jsonl", *kinds}
    assert counts["captions.jsonl"] == 18 and counts["base.jsonl"] == 40 and counts["drills.jsonl"] == 12
    assert counts["train_open.jsonl"] == 24 and counts["test_dark_judge.jsonl"] == 12
    for name, count in counts.items():
        rows = lines(folder / name)
        assert len(rows) == count
        for row in rows:
            if name == "drills.jsonl":
                assert "image" not in row
                continue
            with Image.open(folder / row["image"]) as image:
                assert image.size == (84, 84)
    assert len({row["id"] for name in counts for row in lines(folder / name)}) == sum(counts.values())
    told = json.loads((folder / "world.json").read_text())
    assert told["rows"] == counts and told["seed"] == 0 and told["settings"]["kinds"]["open"] == 0.25


def test_images_are_the_scenes(world):
    folder, _ = world
    shown = scene(0, 30_000_002, domains(Settings())["straddle"], Settings())
    with Image.open(folder / "images/test_straddle/000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels(shown))


def test_rows_are_written_with_every_field_that_is_not_its_default(world):
    folder, _ = world
    shown = scene(0, 20_000_000, domains(Settings())["in"], Settings())
    for line, task in zip(lines(folder / "train_choice.jsonl"), TASKS, strict=False):
        row = ask(shown, task, Kind.CHOICE, image="images/train/000000.png", split="train", settings=Settings()).row
        assert (
            line
            == row_to_json(row)
            == {
                "id": row.id,
                "task": task.value,
                "kind": "choice",
                "problem": row.problem,
                "solution": row.solution,
                "image": "images/train/000000.png",
                "options": list(row.options),
                **({"multiple": True} if row.multiple else {}),
                "frame": [84, 84],
                **({"boxes": [list(box) for box in row.boxes]} if row.boxes else {}),
                "source": "world",
                "split": "train",
                "origin": row.origin,
            }
        )
    chat = lines(folder / "base.jsonl")[0]
    assert set(chat) == {"id", "task", "kind", "image", "messages", "source", "split", "origin"}
    assert [turn["role"] for turn in chat["messages"]] == ["user", "assistant"]


def test_no_image_stands_in_two_sets():
    """At a tenth of the shipped sizes; `write` itself looks at every image."""
    known = domains(Settings())
    sizes = Sizes(captions=1000, base=2000, drills=0, train=300, test=100, axis=50)
    owners: dict[bytes, str] = {}
    for part in parts(sizes):
        for index in range(part.first, part.first + part.scenes):
            drawn = pixels(scene(0, index, known[part.domain(0, index, Settings())], Settings())).tobytes()
            assert owners.setdefault(drawn, part.name) == part.name
    assert len(owners) == 1000 + 2000 + 300 + 100 + 50 * len(AXES)


def test_an_image_in_two_sets_is_refused(monkeypatch, tmp_path):
    train = parts(SIZES)[2]
    monkeypatch.setattr(module, "parts", lambda sizes: (train, replace(train, name="test")))
    with pytest.raises(ValueError, match="scene 20000000 of test is an image of train too"):
        write(tmp_path, row_to_json, sizes=SIZES)


def test_half_of_the_bases_scenes_are_odd():
    base = parts(SIZES)[1]
    names = [base.domain(0, base.first + number, Settings()) for number in range(2000)]
    assert abs(names.count("any") / 2000 - 0.5) < 0.03


def test_the_same_seed_writes_the_same_rows_and_another_seed_others(world, tmp_path):
    folder, counts = world
    write(tmp_path / "again", row_to_json, sizes=SIZES)
    write(tmp_path / "other", row_to_json, sizes=SIZES, seed=1)
    for name in counts:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_turns_share_an_image(tmp_path):
    write(tmp_path, row_to_json, sizes=replace(SIZES, base=3), settings=Settings(questions=5, turns=2))
    turns = [len(row["messages"]) // 2 for row in lines(tmp_path / "base.jsonl")]
    assert turns == [2, 2, 1] * 3


def test_two_worlds_are_not_mixed(world):
    with pytest.raises(FileExistsError, match="has images already"):
        write(world[0], row_to_json, sizes=SIZES)
