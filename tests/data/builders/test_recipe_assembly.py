"""The sets of the paper's recipe, assembled from small folders."""

import json
import re

import pytest

from currreft_jax.data.builders.converter import BuildError
from currreft_jax.data.builders.image_split import shared_keys
from currreft_jax.data.builders.recipe import PAPER, Recipe, shrink_recipe
from currreft_jax.data.builders.recipe_assembly import AssemblyOptions, assemble
from tests.data.builders.dataset_files import (
    read_rows,
    voc_object,
    write_coco_set,
    write_image,
    write_json,
    write_json_lines,
    write_voc_image,
)

SMALL = Recipe(
    train=shrink_recipe(PAPER, 250).train,
    num_tests=6,
    out_of_domain=shrink_recipe(PAPER, 250).out_of_domain,
    improve=tuple(source for source in shrink_recipe(PAPER, 100).improve if source.folder in ("s1k", "llava-cot")),
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    write_coco_set(folder / "refcoco", 40)
    write_coco_set(folder / "coco", 60, split="other")
    write_coco_set(folder / "refgta", 20, split="gta")
    # Copies of photographs of the detection set under other names: each may be in one set only.
    for index in range(10):
        source = folder / "refcoco" / "images" / f"train{index:05d}.png"
        (folder / "coco" / "images" / f"other{index:05d}.png").write_bytes(source.read_bytes())
    for index in range(4):
        objects = [voc_object(("dog", "cat", "bird", "car", "bus")[index % 5], (5, 5, 40, 40))]
        write_voc_image(folder / "voc", f"{index:06d}", 90, 70 + index, objects)
    records = []
    for index in range(60):
        write_image(folder / "math" / "images" / f"m{index}.png", 40, 30, shade=index)
        question = f"<image>\nQuestion: Find x{index}.\nChoices:\n(A) {index}\n(B) {index + 1}\n(C) 90\n(D) 91"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "The answer is A"}]
        records.append({"image": f"m{index}.png", "conversations": turns})
    write_json(folder / "math" / "train_samples_all_tuning.json", records)
    counts = []
    for index in range(4):
        write_image(folder / "clevr-70k" / "images" / f"c{index}.png", 50, 30)
        counts.append({"image_path": f"c{index}.png", "question": "How many?", "ground_truth": index})
    write_json_lines(folder / "clevr-70k" / "superclevr.jsonl", counts)
    texts = [
        {"question": f"{kind}{n}?", "solution": str(n), "cot_type": kind}
        for kind in ("math", "science")
        for n in range(5)
    ]
    write_json_lines(folder / "s1k" / "s1k.jsonl", texts)
    chats = []
    for index in range(6):
        # Half of them show photographs of the tests out of domain.
        path = folder / "llava-cot" / "images" / f"l{index}.png"
        write_image(path, 45, 35)
        if index < 3:
            path.write_bytes((folder / "voc" / "JPEGImages" / f"{index:06d}.png").read_bytes())
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
        chats.append({"image": path.name, "conversations": turns})
    write_json_lines(folder / "llava-cot" / "train.jsonl", chats)
    return folder


def test_the_sizes_of_the_paper():
    assert [source.num_rows for source in PAPER.train] == [3000] * 3
    assert PAPER.num_tests == 1000
    assert [source.num_rows for source in PAPER.out_of_domain] == [1000, 1000, 500]
    assert sum(source.num_rows for source in PAPER.improve) == 1520


def test_assembly_writes_every_set_without_shared_images(root, tmp_path):
    out = tmp_path / "out"
    report = assemble(root, out, SMALL, AssemblyOptions())
    for task in ("detection", "classify", "math"):
        for kind in ("judge", "choice", "open"):
            assert len(read_rows(out / "train" / f"{kind}-{task}.jsonl")) == 12, report
        open_rows = read_rows(out / "test" / f"in-{task}.jsonl")
        assert len(open_rows) == 6
        for kind in ("judge", "choice"):
            held_out = read_rows(out / "test" / f"in-{kind}-{task}.jsonl")
            assert held_out and {row.kind.value for row in held_out} == {kind}
            open_images = {image for row in open_rows for image in row.images}
            assert {image for row in held_out for image in row.images} <= open_images
    out_of_domain = {"detection": 4, "classify": 4, "math": 2}
    for task, count in out_of_domain.items():
        assert len(read_rows(out / "test" / f"out-{task}.jsonl")) == count
    improve = read_rows(out / "improve" / "chat.jsonl")
    assert len(improve) == 3 + 4 + 1
    train = [row for path in (out / "train").glob("*.jsonl") for row in read_rows(path)]
    tests = [row for path in (out / "test").glob("*.jsonl") for row in read_rows(path)]
    assert len(train) == 108
    assert not shared_keys(train, tests)
    assert not shared_keys(improve, tests)
    assert all(row.source and row.origin for row in (*train, *tests, *improve))
    assert json.loads((out / "recipe.json").read_text())["formats"]["math"] == "mathv360k"


def test_assembly_is_deterministic(root, tmp_path):
    for name in ("one", "two"):
        assemble(root, tmp_path / name, SMALL, AssemblyOptions())
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jsonl"))
    assert len(files) == 22
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_published_test_split_becomes_the_test(root, tmp_path):
    refs = json.loads((root / "refcoco" / "refs(unc).json").read_text())
    for ref in refs[:10]:
        ref["split"] = "testA"
    write_json(root / "refcoco" / "refs(unc).json", refs)
    assemble(root, tmp_path / "out", SMALL, AssemblyOptions())
    assert {row.split for row in read_rows(tmp_path / "out/test/in-detection.jsonl")} == {"testA"}
    assert {row.split for row in read_rows(tmp_path / "out/train/open-detection.jsonl")} == {"train"}


def test_missing_sources_are_listed_with_their_address(root, tmp_path):
    (root / "voc").rename(root / "elsewhere")
    with pytest.raises(BuildError, match=r"(?s)lacks sources.*voc/ takes one of:.*VOCdevkit.*pascal/VOC"):
        assemble(root, tmp_path / "out", SMALL, AssemblyOptions())
    assert not (tmp_path / "out" / "train").exists()
    report = assemble(root, tmp_path / "out", SMALL, AssemblyOptions(partial=True))
    assert re.search(r"short: .*voc: missing", report)
    assert not (tmp_path / "out" / "test" / "out-classify.jsonl").exists()


def test_too_small_sources_are_listed_and_nothing_is_written(root, tmp_path):
    with pytest.raises(BuildError, match=r"(?s)too small.*refcoco open rows: \d+ of 3000"):
        assemble(root, tmp_path / "out", Recipe(PAPER.train, 6, (), ()), AssemblyOptions())
    assert not (tmp_path / "out" / "train").exists()
