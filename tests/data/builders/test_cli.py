"""The command line of `dataset build`."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from currreft_jax.data import builders
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.builders.image_split import shared_keys
from currreft_jax.data.prompts import PAPER
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.show import find_row, show_row
from currreft_jax.data.validate import InputFile, validate_files
from currreft_jax.structs import Frame
from tests.data.builders.dataset_files import (
    read_rows,
    voc_object,
    write_coco_set,
    write_image,
    write_json_lines,
    write_voc_image,
)

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def run_build(*arguments) -> None:
    parser = argparse.ArgumentParser()
    builders.add_arguments(parser)
    builders.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def source(tmp_path):
    write_coco_set(tmp_path / "coco", 30)
    return tmp_path / "coco"


def test_row_files_of_an_earlier_build_are_named(source, tmp_path, capsys):
    out = tmp_path / "out"
    run_build("coco", "--source", source, "--out", out, "--tasks", "detection", "--fractions", "train=0.5,test=0.5")
    assert "not of this build" not in capsys.readouterr().out
    run_build("coco", "--source", source, "--out", out, "--tasks", "detection")
    files = f"{out}/test/open-detection.jsonl, {out}/train/open-detection.jsonl"
    assert f"note: {files}: not of this build" in capsys.readouterr().out


def test_build_writes_rows_of_all_kinds_with_summary_and_material(source, tmp_path, capsys):
    out = tmp_path / "out"
    run_build("coco", "--source", source, "--out", out, "--generate", "judge,choice", "--name", "mine")
    printed = capsys.readouterr().out
    summary = json.loads((out / "build.json").read_text())
    assert set(summary["files"]) == {
        f"{kind}-{task}.jsonl" for kind in ("open", "judge", "choice") for task in ("detection", "classify")
    }
    for name, count in summary["files"].items():
        rows = read_rows(out / name)
        assert len(rows) == count
        assert {row.source for row in rows} == {"mine"}
        assert all("CC BY 4.0" in row.origin for row in rows)
        assert f"{count:>8}  {out / name}" in printed
    assert len((out / "material" / "scenes.jsonl").read_text().splitlines()) == 30


def test_generating_from_built_rows_gives_the_same_rows(source, tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    run_build("coco", "--source", source, "--out", one, "--generate", "judge,choice")
    run_build("coco", "--source", source, "--out", two)
    run_build("stages", "--source", two, "--out", three, "--generate", "judge,choice")
    names = {path.name for path in three.glob("*.jsonl")}
    assert names == {f"{kind}-{task}.jsonl" for kind in ("judge", "choice") for task in ("detection", "classify")}
    for name in names:
        assert (one / name).read_bytes() == (three / name).read_bytes()


def test_rows_of_ones_own_photographs_do_not_claim_the_licence_of_coco(source, tmp_path):
    out = tmp_path / "out"
    run_build(
        "coco", "--source", source, "--out", out, "--generate", "judge,choice", "--origin", "our own, CC BY-SA 4.0"
    )
    rows = [row for path in out.glob("*.jsonl") for row in read_rows(path)]
    assert {row.origin for row in rows} == {"our own, CC BY-SA 4.0"}


def test_rows_with_nothing_to_find_are_built_checked_and_shown(source, tmp_path):
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    absent = ["--tasks", "detection", "--absent", 0.25]
    run_build("coco", "--source", source, "--out", one, *absent, "--generate", "judge,choice")
    rows = read_rows(one / "open-detection.jsonl")
    nothing = [row for row in rows if row.solution == "[]"]
    assert len(nothing) == round(0.25 * len(rows))
    files = [InputFile(str(one / f"{kind}-detection.jsonl"), "train") for kind in ("open", "judge", "choice")]
    assert validate_files(files, PromptBudget()).errors == []
    run_build("coco", "--source", source, "--out", two, *absent)
    run_build("stages", "--source", two, "--out", again, "--generate", "judge,choice")
    for name in ("judge-detection.jsonl", "choice-detection.jsonl"):
        assert (one / name).read_bytes() == (again / name).read_bytes()
    with RowFile(one / "open-detection.jsonl") as file:
        index = find_row(file, nothing[0].id)
        text = "\n".join(show_row(file, index, tmp_path / "row.png", PromptBudget(), PAPER, None))
    assert "gold       []" in text and "learnt     <answer>[]</answer>" in text
    with Image.open(tmp_path / "row.png") as drawn:
        assert len(drawn.getcolors()) < 30  # no box is drawn on the plain image


def test_rows_are_split_before_generation(source, tmp_path):
    out = tmp_path / "out"
    fractions = "train=0.6,test=0.4"
    run_build("coco", "--source", source, "--out", out, "--generate", "judge", "--fractions", fractions)
    train, test = (
        [row for path in (out / name).glob("*.jsonl") for row in read_rows(path)] for name in ("train", "test")
    )
    assert len(train) > 60
    assert len(test) > 30
    assert not shared_keys(train, test)
    with pytest.raises(SystemExit, match=r"build the stages of each of .*test, .*train"):
        run_build("stages", "--source", out, "--out", tmp_path / "more", "--generate", "judge")
    run_build("stages", "--source", out / "train", "--out", tmp_path / "more", "--generate", "judge")
    for name in ("judge-detection.jsonl", "judge-classify.jsonl"):
        assert [row.id for row in read_rows(tmp_path / "more" / name)] == [
            row.id for row in read_rows(out / "train" / name)
        ]


def test_the_seed_determines_the_sampled_rows(source, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("two", 1)):
        run_build("coco", "--source", source, "--out", tmp_path / name, "--rows", 5, "--seed", seed)
    texts = [(tmp_path / name / "open-detection.jsonl").read_text() for name in ("one", "again", "two")]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0].splitlines()) == 5


def test_unreadable_golds_are_dropped_and_counted(tmp_path, capsys):
    records = [{"problem": f"q{n}", "solution": gold} for n, gold in enumerate(["3", "\\frac{1}{", "1 or maybe 2"])]
    write_json_lines(tmp_path / "t" / "t.jsonl", records)
    run_build("table", "--source", tmp_path / "t", "--out", tmp_path / "out")
    assert "2  the gold answer of math cannot be read" in capsys.readouterr().out
    assert [row.solution for row in read_rows(tmp_path / "out" / "open-math.jsonl")] == ["3"]


def test_rows_of_a_task_without_a_rule_are_kept_and_split(tmp_path, capsys):
    for number in range(3):
        write_image(tmp_path / "t" / f"{number}.png", 30, 30, shade=number)
    (tmp_path / "t" / "t.csv").write_text("image,reading,tolerance\n0.png,70,5\n1.png,about 3,2\n2.png,4,1\n", "utf-8")
    table = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out", "--task", "other"]
    run_build(*table, "--question", "What does it show?", "--column", "solution=reading", "--fractions", "a=0.9,b=0.1")
    printed = capsys.readouterr().out
    rows = [row for path in (tmp_path / "out").glob("*/open-other.jsonl") for row in read_rows(path)]
    assert sorted((row.solution, row.extra["tolerance"]) for row in rows) == [("4", "1"), ("70", "5"), ("about 3", "2")]
    assert "note: columns kept as extra, for rewards of your own: tolerance" in printed
    assert "note: images: a 3, b 0\nnote: b has no rows: none of the 3 images fell into its 0.1" in printed


def test_an_unreadable_label_affects_no_other_row(tmp_path, capsys):
    golds = ["cat", "dog", "bus", "car", "cup", " , "]
    records = [{"problem": "What?", "solution": gold, "image": f"{n}.png"} for n, gold in enumerate(golds)]
    for record in records:
        write_image(tmp_path / "t" / record["image"], 30, 30)
    write_json_lines(tmp_path / "t" / "t.jsonl", records)
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out", "--task", "classify"]
    run_build(*arguments, "--generate", "judge,choice", "--rows", 3)
    assert "1  the gold answer of classify cannot be read" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "out" / "choice-classify.jsonl")) == 3


def test_bad_records_stop_the_build_or_are_skipped(tmp_path, capsys):
    write_json_lines(tmp_path / "t" / "t.jsonl", [{"problem": "q", "solution": "3"}, {"problem": "q"}])
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"t\.jsonl:2: no column for the answer: give --column solution"):
        run_build(*arguments)
    assert not (tmp_path / "out").exists()
    run_build(*arguments, "--on-bad-row", "skip")
    assert f"bad records skipped: 1; {tmp_path}/out/build.json lists all" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "build.json").read_text())["bad"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out takes"),
        (["--out", "o"], "give a FORMAT"),
        (["nothing", "--source", ".", "--out", "o"], "no format 'nothing'; there are refcoco"),
        (["coco", "--source", "gone", "--out", "o"], "gone does not exist"),
        (["table", "--source", ".", "--out", "o", "--images", "gone"], "--images: there is no folder gone in "),
        (["coco", "--source", ".", "--out", "o", "--generate", "open"], "--generate names 'open'"),
        (["coco", "--source", ".", "--out", "o", "--fractions", "a=x"], "the fraction is a number"),
        (["coco", "--source", ".", "--out", "o", "--fractions", "../a=1"], "a split is the name of a folder"),
        (["coco", "--source", ".", "--out", "o", "--frame", "12"], "as 1920x1080"),
        (["vlm-r1", "--source", ".", "--out", "o", "--frame", "annotated"], "vlm-r1 states no sizes"),
        (["table", "--source", ".", "--out", "o", "--column", "a"], "write KEY=VALUE"),
        (["coco", "--source", ".", "--out", "o", "--question", "?"], "--question: of `build table` alone, not of coco"),
        (["coco", "--source", ".", "--out", "o", "--absent", "1"], "--absent 1: it takes a share from 0 to below 1"),
        (["stages", "--source", ".", "--out", "o", "--absent", "0.1"], "it goes with coco and voc"),
        (["stages", "--source", ".", "--out", "o", "--origin", "mine"], "--origin: the rows .* have theirs"),
        (["--recipe", "paper", "--out", "o", "--root", ".", "--absent", "0.1"], "it goes with coco and voc"),
        (["--recipe", "paper", "--out", "o"], "--root takes"),
        (["--recipe", "paper", "--out", "o", "--root", "gone"], "lacks sources of the recipe"),
        (["--recipe", "paper", "--out", "o", "--root", ".", "--shrink", "0"], "--shrink 0"),
    ],
)
def test_invalid_options_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_build(*arguments)


def test_list_shows_every_format_and_its_required_files(capsys):
    run_build("--list")
    printed = capsys.readouterr().out
    for name, dataset_format in builders.FORMATS.items():
        assert f"{name}: {dataset_format.output}" in printed
        assert dataset_format.required_files in printed


def test_boxes_keep_the_frame_option(tmp_path):
    write_image(tmp_path / "t" / "a.png", 100, 50)
    write_json_lines(
        tmp_path / "t" / "t.jsonl", [{"problem": "q", "solution": "[200, 20, 900, 300]", "image": "a.png"}]
    )
    arguments = ["table", "--source", tmp_path / "t", "--out", tmp_path / "out", "--task", "detection"]
    run_build(*arguments, "--frame", "1000x500", "--box-form", "xyxy", "--generate", "choice")
    (row,) = read_rows(tmp_path / "out" / "choice-detection.jsonl")
    assert row.frame == Frame(1000, 500)


@pytest.mark.parametrize("frame", ["200x160", "annotated"])
def test_the_frame_option_takes_a_size_or_those_of_the_annotations(tmp_path, frame):
    write_voc_image(tmp_path / "voc", "1", 200, 160, [voc_object("dog", (20, 30, 180, 140))])
    write_image(tmp_path / "voc" / "JPEGImages" / "1.png", 100, 80)
    run_build("voc", "--source", tmp_path / "voc", "--out", tmp_path / "out", "--frame", frame)
    (row,) = read_rows(tmp_path / "out" / "open-detection.jsonl")
    assert (row.solution, row.frame) == ("[20, 30, 180, 140]", Frame(200, 160))


def test_no_rows_names_the_split(tmp_path):
    write_json_lines(tmp_path / "t" / "train.jsonl", [{"problem": "q", "solution": "<answer>3</answer>"}])
    arguments = ["open-r1-8k", "--source", tmp_path / "t", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match="no rows of --split=test"):
        run_build(*arguments, "--split", "test")
    run_build(*arguments, "--split", "train")


def test_docs_list_the_same_formats():
    text = PAGE.read_text("utf-8")
    for name, dataset_format in builders.FORMATS.items():
        columns = (
            f"`{name}`",
            dataset_format.output,
            dataset_format.homepage,
            dataset_format.required_files,
            dataset_format.licence or "-",
        )
        assert f"| {' | '.join(columns)} |" in text


def test_the_tables_of_the_page_become_rows_without_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text("utf-8").partition("### Tables of your own")[2].partition("\n### ")[0]
    for number in (1, 2):
        write_image(tmp_path / "photos" / f"000{number}.jpg", 640, 480, (9, 9, 99, 99 * number))
    for name, table in re.findall(r"cat > (\S+) <<'END'\n(.*?)END\n", section, re.S):
        Path(name).write_text(table, "utf-8")
    for command in re.findall(r"^python -m currreft_jax\.dataset build (.*)$", section.replace("\\\n", " "), re.M):
        run_build(*shlex.split(command))
    files = sorted(Path("rows").glob("*/*.jsonl"))
    rows = {str(file.relative_to("rows")): read_rows(file) for file in files}
    assert {name: len(rows[name]) for name in rows} == {
        "boxes/open-detection.jsonl": 3,
        "choices/choice-classify.jsonl": 2,
        "questions/open-detection.jsonl": 2,
        "several/choice-classify.jsonl": 2,
        "yes-no/judge-classify.jsonl": 2,
    }
    assert [row.options for row in rows["choices/choice-classify.jsonl"]] == [("cat", "dog", "horse"), ("dog", "horse")]
    assert all(row.multiple for row in rows["several/choice-classify.jsonl"])
    assert not validate_files([InputFile(str(file)) for file in files], PromptBudget(4096)).errors


def test_import_loads_no_optional_packages():
    code = "import currreft_jax.data.builders, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"jax", "flax", "torch", "pyarrow", "math_verify"}
