import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind
from currreft_jax.data.rows import row_to_json
from currreft_jax.world import write as module
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import AXES, domains, make_scene, render_array
from currreft_jax.world.settings import DIFFICULTIES, WorldSettings, WorldSizes
from currreft_jax.world.write import world_splits, write_world

SIZES = WorldSizes(captions=6, base=10, drills=12, composed=3, answers=5, train=8, test=8, axis=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, write_world(folder, row_to_json, sizes=SIZES)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_file_has_the_reported_number_of_rows(world):
    folder, counts = world
    question_files = {
        f"{split}_{kind.value}.jsonl" for split in ("train", "test", *(f"test_{a}" for a in AXES)) for kind in KINDS
    }
    assert set(counts) == {
        "captions.jsonl",
        "base.jsonl",
        "drills.jsonl",
        "composed.jsonl",
        "answers.jsonl",
        *question_files,
    }
    assert counts["captions.jsonl"] == 18 and counts["base.jsonl"] == 40 and counts["drills.jsonl"] == 12
    assert counts["composed.jsonl"] == 12 and counts["answers.jsonl"] == 20
    hasty = {name: "<think> . " in (folder / f"{name}.jsonl").read_text() for name in ("base", "composed", "answers")}
    assert hasty == {"base": False, "composed": False, "answers": True}
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
    description = json.loads((folder / "world.json").read_text())
    assert (
        description["rows"] == counts and description["seed"] == 0 and description["settings"]["kinds"]["open"] == 0.25
    )


def test_progress_is_told_in_images(tmp_path, capsys):
    sizes = WorldSizes(captions=2, base=1, drills=0, composed=0, answers=0, train=1, test=1, axis=0)
    write_world(tmp_path, row_to_json, sizes=sizes)
    assert "drawing the world: 100%" in (told := capsys.readouterr().err) and "5/5" in told


def test_images_show_their_scenes(world):
    folder, _ = world
    scene = make_scene(0, 30_000_002, domains(WorldSettings())["straddle"], WorldSettings())
    with Image.open(folder / "images/test_straddle/000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), render_array(scene))


def test_rows_have_every_field_that_is_not_its_default(world):
    folder, _ = world
    scene = make_scene(0, 20_000_000, domains(WorldSettings())["in"], WorldSettings())
    for line, task in zip(lines(folder / "train_choice.jsonl"), TASKS, strict=False):
        row = make_question(
            scene, task, Kind.CHOICE, image="images/train/000000.png", split="train", settings=WorldSettings()
        ).row
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


def test_no_two_splits_share_an_image():
    """At a tenth of the default sizes; `write_world` itself checks every image."""
    domains_by_name = domains(WorldSettings())
    sizes = WorldSizes(captions=1000, base=2000, drills=0, composed=300, answers=300, train=300, test=100, axis=50)
    owners: dict[bytes, str] = {}
    for split in world_splits(sizes):
        for index in range(split.first_scene, split.first_scene + split.num_scenes):
            pixels = render_array(
                make_scene(0, index, domains_by_name[split.domain(0, index, WorldSettings())], WorldSettings())
            ).tobytes()
            assert owners.setdefault(pixels, split.name) == split.name
    assert len(owners) == 1000 + 2000 + 600 + 300 + 100 + 50 * len(AXES)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_difficulty_is_drawn_with_all_axes(difficulty, tmp_path):
    settings = DIFFICULTIES[difficulty]
    counts = write_world(tmp_path, row_to_json, sizes=replace(SIZES, train=30, test=30, axis=30), settings=settings)
    assert all(counts[f"test_{axis}_open.jsonl"] == 30 * len(TASKS) for axis in AXES)


def test_an_image_in_two_splits_is_refused(monkeypatch, tmp_path):
    train = world_splits(SIZES)[4]
    monkeypatch.setattr(module, "world_splits", lambda sizes: (train, replace(train, name="test")))
    with pytest.raises(ValueError, match="scene 20000000 of test is an image of train too"):
        write_world(tmp_path, row_to_json, sizes=SIZES)


def test_half_of_the_pretraining_scenes_are_of_the_domain_any():
    base = world_splits(SIZES)[1]
    names = [base.domain(0, base.first_scene + offset, WorldSettings()) for offset in range(2000)]
    assert abs(names.count("any") / 2000 - 0.5) < 0.03


def test_the_same_seed_writes_the_same_rows_and_another_seed_others(world, tmp_path):
    folder, counts = world
    write_world(tmp_path / "again", row_to_json, sizes=SIZES)
    write_world(tmp_path / "other", row_to_json, sizes=SIZES, seed=1)
    for name in counts:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_turns_of_a_conversation_share_an_image(tmp_path):
    write_world(tmp_path, row_to_json, sizes=replace(SIZES, base=3), settings=WorldSettings(questions=5, turns=2))
    turns = [len(row["messages"]) // 2 for row in lines(tmp_path / "base.jsonl")]
    assert turns == [2, 2, 1] * 3


def test_a_folder_with_images_is_refused(world):
    with pytest.raises(FileExistsError, match="has images already"):
        write_world(world[0], row_to_json, sizes=SIZES)
