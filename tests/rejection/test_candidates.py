"""Rows that are left out: nearly equal questions, and what evaluation suites share; images compared by eye."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Evaluation, QuotaSource, Source, Suite
from currreft_jax.data.image_sketches import SketchIndex, sketch_image
from currreft_jax.evaluation.suites import load_suites
from currreft_jax.rejection.candidates import SuiteContents, choose_candidates, question_words
from currreft_jax.structs import Row
from currreft_jax.world.scenes import domains, make_scene, render_image
from currreft_jax.world.settings import WorldSettings
from tests import tiny


def scene(index: int) -> Image.Image:
    return render_image(make_scene(0, index, domains(WorldSettings())["in"], WorldSettings()))


def near(one: Image.Image, other: Image.Image) -> bool:
    return bool(SketchIndex([sketch_image(one)]).near(sketch_image(other)))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth shapes at the size of a photograph."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)


def test_resized_compressed_and_brightened_copies_are_nearly_equal(photo):
    assert near(photo, photo.resize((320, 240), Image.Resampling.LANCZOS))
    assert near(photo, compressed(photo.resize((500, 380)), 30))
    assert near(photo, photo.point(lambda value: min(255, value + 8)))
    assert near(scene(3), compressed(scene(3).resize((168, 168), Image.Resampling.BICUBIC), 75))


def test_other_images_are_not_nearly_equal_however_plain(photo):
    assert not near(photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    scenes = [sketch_image(scene(index)) for index in range(80)]
    index = SketchIndex(scenes)
    assert [index.near(one) for one in scenes] == [[number] for number in range(80)]


def test_one_object_moved_is_another_image():
    image = Image.new("RGB", (84, 84), "grey")
    left, right = image.copy(), image.copy()
    left.paste("red", (10, 40, 20, 50))
    right.paste("red", (60, 40, 70, 50))
    assert not near(left, right)


def test_questions_that_differ_in_case_and_punctuation_are_equal_and_numbers_are_not():
    def words(problem: str, *options: str) -> str:
        return question_words(Row("a", None, None, problem, "", options=options))  # pyright: ignore[reportArgumentType]

    assert words("How many  dogs are there?") == words("how many dogs are there")
    assert words("What is 1.5 + 2?") != words("What is 15 + 2?")
    assert words("Is x > 3?") != words("Is x < 3?")
    assert words("Which?", "a cat", "Dogs.") == words("which", "A cat", "dogs") != words("Which?", "a cat", "birds")


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    keys = {"task": "math", "kind": "judge", "solution": "yes"}
    path.write_text(
        "".join(json.dumps({"id": f"{name}{index}", **keys, **row}) + "\n" for index, row in enumerate(rows))
    )
    return str(path)


def candidates(sources, tests, seed=0):
    quotas = [QuotaSource(source=Source(file)) for file in sources]
    suites, images = load_suites(Evaluation(suites=[Suite(sources=[quota.source]) for quota in quotas]))
    tested, tested_images = load_suites(Evaluation(suites=[Suite(sources=[Source(file)]) for file in tests]))
    contents = SuiteContents(tested, tested_images)
    chosen = choose_candidates(list(zip(quotas, suites, strict=True)), images, contents, seed)
    return [(list(one.places), one.dropped_counts()) for one in chosen]


@pytest.fixture
def folder(tmp_path):
    scene(1).save(tmp_path / "one.png")
    scene(1).resize((168, 168)).save(tmp_path / "one-large.png")
    scene(2).save(tmp_path / "two.png")
    tiny.picture(40, 30, seed=5).save(tmp_path / "five.png")
    return tmp_path


def test_a_nearly_equal_question_is_answered_once_over_all_sources(folder):
    ask = "How many dogs?"
    first = [{"problem": ask, "image": "one.png"}, {"problem": ask, "image": "two.png"}, {"problem": ask}]
    second = [
        {"problem": "how many dogs", "image": "one-large.png"},
        {"problem": "how many cats", "image": "one-large.png"},
        {"problem": "HOW many dogs?"},
        {"problem": ask, "images": ["one.png", "two.png"]},
        {"problem": ask, "images": ["one-large.png", "two.png"]},
        {"problem": ask, "images": ["two.png", "one.png"]},
    ]
    (kept, dropped), (others, others_dropped) = candidates([write(folder, "a", first), write(folder, "b", second)], [])
    assert sorted(kept) == ["a0", "a1", "a2"] and not dropped
    assert len(others) == 3 and {"b1", "b5"} < set(others) and others_dropped == {"duplicate_question": 3}


def test_rows_that_an_evaluation_suite_shares_are_left_out(folder):
    rows = [
        {"problem": "a", "image": "one.png"},
        {"problem": "b", "images": ["five.png", "one-large.png"]},
        {"problem": "c", "image": "two.png"},
        {"problem": "What is 1 + 1?"},
        {"problem": "d", "image": "five.png"},
    ]
    tests = [
        {"problem": "x", "image": "one.png"},
        {"problem": "what is  1 + 1?"},
        {"problem": "c", "image": "five.png"},
    ]
    ((kept, dropped),) = candidates([write(folder, "a", rows)], [write(folder, "t", tests[:2])])
    assert sorted(kept) == ["a2", "a4"]
    assert dropped == {"leaked_image of t": 1, "leaked_near_duplicate of t": 1, "leaked_question of t": 1}
    ((kept, _),) = candidates([write(folder, "a", rows)], [write(folder, "t", tests)])
    assert kept == ["a2"]


def test_the_order_of_rows_is_that_of_the_seed_alone(folder):
    file = write(folder, "a", [{"problem": f"question {index}"} for index in range(20)])
    orders = [candidates([file], [], seed)[0][0] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != sorted(orders[0])
