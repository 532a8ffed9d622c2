"""`dataset build` from its command line."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from currreft_jax.data import builders
from currreft_jax.data.builders.split import shared
from currreft_jax.data.row_files import RowFile, parse_rows
from currreft_jax.structs import Frame
from tests.data.builders import published as pub


def build(*arguments) -> None:
    parser = argparse.ArgumentParser()
    builders.add_arguments(parser)
    builders.run(parser.parse_args([str(argument) for argument in arguments]))


def read(path):
    with RowFile(path) as file:
        found = parse_rows(file)
    assert not found.errors
    return found.rows


@pytest.fixture
def source(tmp_path):
    pub.scene_set(tmp_path / "coco", 30)
    return tmp_path / "coco"


def test_rows_of_all_kinds_and_the_files_beside_them(source, tmp_path, capsys):
    out = tmp_path / "out"
    build("coco", "--source", source, "--out", out, "--generate", "judge,choice", "--name", "mine")
    printed = capsys.readouterr().out
    summary = json.loads((out / "build.json").read_text())
    assert set(summary["files"]) == {
        f"{kind}-{task}.jsonl" for kind in ("open", "judge", "choice") for task in ("detection", "classify")
    }
    for name, count in summary["files"].items():
        rows = read(out / name)
        assert len(rows) == count
        assert {row.source for row in rows} == {"mine"}
        assert all("CC BY 4.0" in row.origin for row in rows)
        assert f"{count:>8}  {out / name}" in printed
    assert len((out / "material" / "scenes.jsonl").read_text().splitlines()) == 30


def test_stages_of_rows_that_are_built_already_are_the_same(source, tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    build("coco", "--source", source, "--out", one, "--generate", "judge,choice")
    build("coco", "--source", source, "--out", two)
    build("stages", "--source", two, "--out", three, "--generate", "judge,choice")
    names = {path.name for path in three.glob("*.jsonl")}
    assert names == {f"{kind}-{task}.jsonl" for kind in ("judge", "choice") for task in ("detection", "classify")}
    for name in names:
        assert (one / name).read_bytes() == (three / name).read_bytes()


def test_parts_are_split_before_anything_is_generated(source, tmp_path):
    out = tmp_path / "out"
    fractions = "train=0.6,test=0.4"
    build("coco", "--source", source, "--out", out, "--generate", "judge", "--fractions", fractions)
    train, test = ([row for path in (out / part).glob("*.jsonl") for row in read(path)] for part in ("train", "test"))
    assert len(train) > 60
    assert len(test) > 30
    assert not shared(train, test)
    with pytest.raises(SystemExit, match=r"make the stages of each of .*test, .*train"):
        build("stages", "--source", out, "--out", tmp_path / "more", "--generate", "judge")
    build("stages", "--source", out / "train", "--out", tmp_path / "more", "--generate", "judge")
    for name in ("judge-detection.jsonl", "judge-classify.jsonl"):
        assert [row.id for row in read(tmp_path / "more" / name)] == [row.id for row in read(out / "train" / name)]


def test_a_sample_is_drawn_by_the_seed(source, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("two", 1)):
        build("coco", "--source", source, "--out", tmp_path / name, "--rows", 5, "--seed", seed)
    texts = [(tmp_path / name / "open-detection.jsonl").read_text() for name in ("one", "again", "two")]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0].splitlines()) == 5


def test_golds_that_cannot_be_read_are_dropped_and_counted(tmp_path, capsys):
    records = [{"problem": f"q{n}", "solution": gold} for n, gold in enumerate(["3", "\\frac{1}{", "1 or maybe 2"])]
    pub.write_lines(tmp_path / "t" / "t.jsonl", records)
    build("table", "--source", tmp_path / "t", "--out", tmp_path / "out")
    assert "2  the gold answer of math cannot be read" in capsys.readouterr().out
    assert [row.solution for row in read(tmp_path / "out" / "open-math.jsonl")] == ["3"]


def test_a_label_that_cannot_be_read_spoils_no_other_row(tmp_path, capsys):
    golds = ["cat", "dog", "bus", "car", "cup", " , "]
    records = [{"problem": "What?", "solution": gold, "image": f"{n}.png"} for n, gold in enumerate(golds)]
    for record in records:
        pub.picture(tmp_path / "t" / record["image"], 30, 30)
    pub.write_lines(tmp_path / "t" / "t.jsonl", records)
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out", "--task", "classify"]
    build(*arguments, "--generate", "judge,choice", "--rows", 3)
    assert "1  the gold answer of classify cannot be read" in capsys.readouterr().out
    assert len(read(tmp_path / "out" / "choice-classify.jsonl")) == 3


def test_bad_records_end_the_build_or_are_skipped(tmp_path, capsys):
    pub.write_lines(tmp_path / "t" / "t.jsonl", [{"problem": "q", "solution": "3"}, {"problem": "q"}])
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"t\.jsonl:2: problem or solution is empty"):
        build(*arguments)
    assert not (tmp_path / "out").exists()
    build(*arguments, "--on-bad-row", "skip")
    assert "bad records left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out takes"),
        (["--out", "o"], "give a FORMAT"),
        (["nothing", "--source", ".", "--out", "o"], "no format 'nothing'; there are refcoco"),
        (["coco", "--source", "gone", "--out", "o"], "gone does not exist"),
        (["coco", "--source", ".", "--out", "o", "--generate", "open"], "--generate names 'open'"),
        (["coco", "--source", ".", "--out", "o", "--fractions", "a=x"], "the share is a number"),
        (["coco", "--source", ".", "--out", "o", "--fractions", "../a=1"], "a part is the name of a folder"),
        (["coco", "--source", ".", "--out", "o", "--frame", "12"], "as 1920x1080"),
        (["table", "--source", ".", "--out", "o", "--column", "a"], "write KEY=VALUE"),
        (["--recipe", "paper", "--out", "o"], "--root takes"),
        (["--recipe", "paper", "--out", "o", "--root", "gone"], "lacks parts of the recipe"),
        (["--recipe", "paper", "--out", "o", "--root", ".", "--shrink", "0"], "--shrink 0"),
    ],
)
def test_options_that_cannot_be_meant(arguments, message):
    with pytest.raises(SystemExit, match=message):
        build(*arguments)


def test_the_list_names_every_format_and_what_it_needs(capsys):
    build("--list")
    printed = capsys.readouterr().out
    for name, its in builders.FORMATS.items():
        assert f"{name}: {its.makes}" in printed
        assert its.needs in printed


def test_boxes_of_another_frame_are_written_with_it(tmp_path):
    pub.picture(tmp_path / "t" / "a.png", 100, 50)
    pub.write_lines(tmp_path / "t" / "t.jsonl", [{"problem": "q", "solution": "[200, 20, 900, 300]", "image": "a.png"}])
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out", "--task", "detection"]
    build(*arguments, "--frame", "1000x500", "--generate", "choice")
    (row,) = read(tmp_path / "out" / "choice-detection.jsonl")
    assert row.frame == Frame(1000, 500)


def test_the_documented_table_is_the_table():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
    for name, its in builders.FORMATS.items():
        assert f"| `{name}` | {its.makes} | {its.published} | {its.needs} | {its.licence or '-'} |" in text


def test_the_builders_load_neither_jax_nor_pyarrow_before_they_need_it():
    code = "import currreft_jax.data.builders, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"jax", "flax", "torch", "pyarrow", "math_verify"}
