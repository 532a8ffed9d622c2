"""No image in two parts, and the paper's sets from small folders."""

import json
import re
from pathlib import Path

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders import recipe
from currreft_jax.data.builders.items import BuildError
from currreft_jax.data.builders.split import identities, shared, split_by_image
from currreft_jax.data.row_files import RowFile, parse_rows
from currreft_jax.structs import Row
from tests.data.builders import published as pub

SHARES = {"train": 0.7, "test": 0.3}


def rows_on(images):
    return [Row(str(n), Task.MATH, Kind.OPEN, f"q{n}", "1", tuple(its)) for n, its in enumerate(images)]


def test_no_image_stands_in_two_parts(tmp_path):
    paths = [str(pub.picture(tmp_path / f"{n}.png", 30, 20, shade=n)) for n in range(60)]
    copies = []
    for number in range(20, 40):
        copies.append(tmp_path / f"copy{number}.png")
        copies[-1].write_bytes((tmp_path / f"{number}.png").read_bytes())
    images = [[path] for path in paths] * 2 + [[str(path)] for path in copies]
    images += [[paths[n], paths[n + 1]] for n in range(0, 20, 2)]
    parts = split_by_image(rows_on(images), SHARES, 0)
    assert sum(map(len, parts.values())) == len(images)
    assert min(map(len, parts.values())) > 20
    train, test = ({Path(path).read_bytes() for row in rows for path in row.images} for rows in parts.values())
    assert not train & test


def test_a_split_depends_on_seed_and_images_alone():
    rows = rows_on([[f"{n // 2}.png"] for n in range(200)])
    parts = split_by_image(rows, SHARES, 3)
    again = split_by_image(rows[::-1][:150], SHARES, 3)
    chosen = {row.id for row in parts["train"]}
    assert {row.id for row in again["train"]} == chosen & {row.id for row in rows[50:]}
    assert {row.id for row in split_by_image(rows, SHARES, 4)["train"]} != chosen
    assert 0.6 < len(chosen) / 200 < 0.8


def test_rows_without_images_go_by_their_question():
    rows = [Row(str(n), Task.MATH, Kind.OPEN, f"q{n // 3}", "1") for n in range(90)]
    parts = split_by_image(rows, SHARES, 0)
    assert not shared(parts["train"], parts["test"])
    assert identities(rows[0]) == identities(rows[1])


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_sum_to_one(shares):
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_image([], shares, 0)


SMALL = recipe.Recipe(
    train=tuple(part for part in recipe.shrunk(recipe.PAPER, 250).train),
    tests=6,
    outside=recipe.shrunk(recipe.PAPER, 250).outside,
    improve=tuple(part for part in recipe.shrunk(recipe.PAPER, 100).improve if part.folder in ("s1k", "llava-cot")),
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    pub.scene_set(folder / "refcoco", 40)
    pub.scene_set(folder / "coco", 60, split="other")
    pub.scene_set(folder / "refgta", 20, split="gta")
    # A photograph of the detection set again, under another name: it may stand in one part only.
    for number in range(10):
        source = folder / "refcoco" / "images" / f"train{number:05d}.png"
        (folder / "coco" / "images" / f"other{number:05d}.png").write_bytes(source.read_bytes())
    for number in range(4):
        objects = [pub.voc_object(("dog", "cat", "bird", "car", "bus")[number % 5], (5, 5, 40, 40))]
        pub.write_voc(folder / "voc", f"{number:06d}", 90, 70 + number, objects)
    records = []
    for number in range(60):
        pub.picture(folder / "math" / "images" / f"m{number}.png", 40, 30, shade=number)
        asked = f"<image>\nQuestion: Find x{number}.\nChoices:\n(A) {number}\n(B) {number + 1}\n(C) 90\n(D) 91"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "The answer is A"}]
        records.append({"image": f"m{number}.png", "conversations": turns})
    pub.write(folder / "math" / "train_samples_all_tuning.json", records)
    counts = []
    for number in range(4):
        pub.picture(folder / "clevr-70k" / "images" / f"c{number}.png", 50, 30)
        counts.append({"image_path": f"c{number}.png", "question": "How many?", "ground_truth": number})
    pub.write_lines(folder / "clevr-70k" / "superclevr.jsonl", counts)
    thoughts = [
        {"question": f"{kind}{n}?", "solution": str(n), "cot_type": kind}
        for kind in ("math", "science")
        for n in range(5)
    ]
    pub.write_lines(folder / "s1k" / "s1k.jsonl", thoughts)
    chats = []
    for number in range(6):
        # Half of them show photographs of the tests out of domain.
        path = folder / "llava-cot" / "images" / f"l{number}.png"
        pub.picture(path, 45, 35)
        if number < 3:
            path.write_bytes((folder / "voc" / "JPEGImages" / f"{number:06d}.png").read_bytes())
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
        chats.append({"image": path.name, "conversations": turns})
    pub.write_lines(folder / "llava-cot" / "train.jsonl", chats)
    return folder


def read(path):
    with RowFile(path) as file:
        found = parse_rows(file)
    assert not found.errors
    return found.rows


def test_the_papers_sizes():
    assert [part.rows for part in recipe.PAPER.train] == [3000] * 3
    assert recipe.PAPER.tests == 1000
    assert [part.rows for part in recipe.PAPER.outside] == [1000, 1000, 500]
    assert sum(part.rows for part in recipe.PAPER.improve) == 1520


def test_a_recipe_writes_every_set_and_shares_no_image(root, tmp_path):
    out = tmp_path / "out"
    report = recipe.assemble(root, out, SMALL, recipe.Policy())
    for task in ("detection", "classify", "math"):
        for kind in ("judge", "choice", "open"):
            assert len(read(out / "train" / f"{kind}-{task}.jsonl")) == 12, report
        open_rows = read(out / "test" / f"in-{task}.jsonl")
        assert len(open_rows) == 6
        for kind in ("judge", "choice"):
            held_out = read(out / "test" / f"in-{kind}-{task}.jsonl")
            assert held_out and {row.kind.value for row in held_out} == {kind}
            assert {image for row in held_out for image in row.images} <= {it for row in open_rows for it in row.images}
    outside = {"detection": 4, "classify": 4, "math": 2}
    for task, count in outside.items():
        assert len(read(out / "test" / f"out-{task}.jsonl")) == count
    improve = read(out / "improve" / "chat.jsonl")
    assert len(improve) == 3 + 4 + 1
    train = [row for path in (out / "train").glob("*.jsonl") for row in read(path)]
    tests = [row for path in (out / "test").glob("*.jsonl") for row in read(path)]
    assert len(train) == 108
    assert not shared(train, tests)
    assert not shared(improve, tests)
    assert all(row.source and row.origin for row in (*train, *tests, *improve))
    assert json.loads((out / "recipe.json").read_text())["formats"]["math"] == "mathv360k"


def test_a_recipe_is_the_same_twice(root, tmp_path):
    for name in ("one", "two"):
        recipe.assemble(root, tmp_path / name, SMALL, recipe.Policy())
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jsonl"))
    assert len(files) == 22
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_published_test_split_is_the_test(root, tmp_path):
    refs = json.loads((root / "refcoco" / "refs(unc).json").read_text())
    for ref in refs[:10]:
        ref["split"] = "testA"
    pub.write(root / "refcoco" / "refs(unc).json", refs)
    recipe.assemble(root, tmp_path / "out", SMALL, recipe.Policy())
    assert {row.split for row in read(tmp_path / "out/test/in-detection.jsonl")} == {"testA"}
    assert {row.split for row in read(tmp_path / "out/train/open-detection.jsonl")} == {"train"}


def test_what_is_missing_is_said_with_where_to_get_it(root, tmp_path):
    (root / "voc").rename(root / "elsewhere")
    with pytest.raises(BuildError, match=r"(?s)lacks parts.*voc/ takes one of:.*VOCdevkit.*pascal/VOC"):
        recipe.assemble(root, tmp_path / "out", SMALL, recipe.Policy())
    assert not (tmp_path / "out" / "train").exists()
    report = recipe.assemble(root, tmp_path / "out", SMALL, recipe.Policy(partial=True))
    assert re.search(r"short: .*voc: missing", report)
    assert not (tmp_path / "out" / "test" / "out-classify.jsonl").exists()


def test_parts_that_are_too_small_are_said_and_nothing_is_written(root, tmp_path):
    with pytest.raises(BuildError, match=r"(?s)too small.*refcoco open rows: \d+ of 3000"):
        recipe.assemble(root, tmp_path / "out", recipe.PAPER.__class__(recipe.PAPER.train, 6, (), ()), recipe.Policy())
    assert not (tmp_path / "out" / "train").exists()
