"""Rows of one's own by flag, and configs of one's own: docs/own_config.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import curriculum, self_improve, sft, stage1
from currreft_jax.config import (
    Config,
    Evaluation,
    Kind,
    Rejection,
    Source,
    validate,
    validate_evaluation,
    validate_rejection,
)
from currreft_jax.config.file_flags import expand_files, name_files
from currreft_jax.config.files import load_config
from currreft_jax.config.own_rows import use_rows
from currreft_jax.data.buckets import BatchDims, ShapeBuckets
from currreft_jax.data.packing import BatchShape, BudgetError
from currreft_jax.training.rejected_samples import refuse_missing_rows

ROOT = Path(__file__).parent.parent
DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *filter(Path.is_file, (ROOT / "launch").iterdir())])
PAGE = (ROOT / "docs" / "own_config.md").read_text("utf-8")

# Parses each command line of a JSON list in a process of its own, and prints the files of the stages.
PARSE_ALL = """
import json, os, sys
from absl import flags
from currreft_jax.config.flags import define_config, flags_parser
define_config()
flags.DEFINE_string("workdir", None, "")
for arguments in json.load(sys.stdin):
    sys.stdout.flush()
    if not os.fork():
        os.dup2(1, 2)
        flags_parser("train")(["train", *arguments])
        files = lambda sources: [source.file for source in sources]
        print(json.dumps([[files(stage.sources), files(stage.held_out)] for stage in flags.FLAGS.config.stages]))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def parse_all(command_lines: list[list[str]], cwd: Path) -> list[str]:
    """Returns what each command line prints: its stages' files as JSON, or a refusal."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CURRREFT_JAX_ELSEWHERE": "1"}
    command = [sys.executable, "-c", PARSE_ALL]
    done = subprocess.run(command, input=json.dumps(command_lines), capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("config: variant")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name in ("train/a.jsonl", "train/b.jsonl", "test/a.jsonl", "with,comma.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def test_rows_by_flag_replace_those_of_the_config_whatever_expands_the_pattern(folder):
    sft_config, stage = f"--config={ROOT}/configs/sft.py:tiny", f"--config={ROOT}/configs/stage1.py:tiny"
    both, held_out = ["train/a.jsonl", "train/b.jsonl"], ["test/a.jsonl"]
    lines = [
        [sft_config, "--rows", "train/*.jsonl", "--held-out", "test/*.jsonl"],
        [sft_config, "--rows", *both, "--held_out=test/a.jsonl"],
        ["--rows=train/a.jsonl,train/b.jsonl", "--held-out=test/*.jsonl", sft_config],
        [sft_config, "--rows=train/a.jsonl", "--rows=train/b.jsonl", "--held-out", *held_out, "--workdir=x"],
        [stage, "--rows", *both, "--config.stages[0].sources[1].weight=2"],
        [stage, "--held-out", *held_out, "--config.stages[0].sources=train/a.jsonl"],
        [stage, "--config.stages[0].sources=train/a.jsonl", "--config.stages[0].held_out=test/a.jsonl"],
        [stage, "--rows", "with,comma.jsonl"],
    ]
    results = [json.loads(line) for line in parse_all(lines, folder)]
    assert results[:4] == [[[both, held_out]]] * 4
    assert results[4] == [[both, []]] and results[5] == results[6] == [[["train/a.jsonl"], held_out]]
    assert results[7] == [[["with,comma.jsonl"], []]]


def test_rows_that_cannot_be_meant_are_refused_in_one_line(folder):
    stage = f"--config={ROOT}/configs/stage1.py:tiny"
    refused = {
        f"no file matches tran/*.jsonl in {folder}; nearest: train/*.jsonl": [stage, "--rows", "tran/*.jsonl"],
        "--held-out names no files": [stage, "--rows", "train/a.jsonl", "--held-out"],
        "train/a.jsonl is in --rows and in --held-out": [stage, "--rows=train/*.jsonl", "--held-out=./train/a.jsonl"],
        "the held-out rows would be those of": [stage, "--config.stages[0].sources=train/a.jsonl"],
        "add --held-out FILES, or --config.stages[0].held_out=[]": [
            stage,
            "--config.stages[0].sources[0].file=a.jsonl",
        ],
    }
    lines = parse_all(list(refused.values()), folder)
    assert len(lines) == len(refused)
    for message, line in zip(refused, lines, strict=True):
        assert message in line


def test_every_stage_of_the_curriculum_takes_the_files_and_no_held_out_row_is_of_another_set():
    rows, held_out = ["a/x.jsonl", "b/x.jsonl", "y.jsonl"], ["z.jsonl"]
    config = use_rows(curriculum.get_config("tiny"), rows, held_out)
    validate(config)
    for stage in config.stages:
        assert [source.file for source in stage.held_out] == held_out and not stage.held_out_loss
    *curriculum_stages, last = config.stages
    assert all([source.file for source in stage.sources] == rows for stage in curriculum_stages)
    assert [stage.kinds for stage in curriculum_stages] == [(Kind.JUDGE,), (Kind.CHOICE,), (Kind.OPEN,)]
    assert last.rejection and [source.name for source in last.rejection.sources] == ["a-x", "b-x", "y"]
    assert [source.quota for source in last.rejection.sources] == [40, 40, 40]  # of 120
    assert [suite.sources[0].file for suite in last.rejection.suites] == held_out
    assert last.rejection.sampling.prompt_lengths[:3] == (64, 80, 128)  # the world's 80, and those of longer rows
    without = use_rows(curriculum.get_config("tiny"), rows, [])
    validate(without)  # the forgetting gate is gone with the held-out rows
    assert not any(stage.held_out for stage in without.stages) and not without.stages[-1].rejection.suites  # pyright: ignore[reportOptionalMemberAccess]
    alone = use_rows(self_improve.get_config("tiny"), rows, [])
    validate(alone)
    assert not alone.stages[0].held_out and not alone.stages[0].held_out_loss
    base = stage1.get_config("tiny")
    base.stages[0].out_of_domain = [Source("out.jsonl")]
    measured, own = use_rows(base, [], held_out).stages[0], use_rows(base, rows, held_out).stages[0]
    assert measured.sources == base.stages[0].sources and measured.out_of_domain == base.stages[0].out_of_domain
    assert not own.out_of_domain


def test_files_are_named_by_their_stems_unless_two_have_the_same(folder, monkeypatch):
    assert name_files(["train/a.jsonl", "/test/a.jsonl", "b.jsonl"]) == ["train-a", "test-a", "b"]
    monkeypatch.chdir(folder)
    assert expand_files(["train/*.jsonl", "train/a.jsonl"]) == ["train/a.jsonl", "train/b.jsonl"]


def test_missing_files_of_any_stage_are_named_before_the_run_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rows\.jsonl of config\.stages\[0\]\.sources\[0\] does not .* --rows"):
        refuse_missing_rows(sft.get_config("tiny"))
    (tmp_path / "a.jsonl").touch()
    config = use_rows(sft.get_config("tiny"), [str(tmp_path / "a.jsonl")], [])
    refuse_missing_rows(config)
    config.stages[0].held_out = [Source("nowhere.jsonl")]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl of config\.stages\[0\]\.held_out\[0\]"):
        refuse_missing_rows(config)


def test_rows_too_long_for_the_config_are_refused_with_the_flag_that_takes_them():
    shape = BatchShape(80, 4, 4)
    flag = r"263 needed, but the largest bucket is 80; add a larger one, such as --config\.data\.prompt_lengths=80,320$"
    with pytest.raises(BudgetError, match=flag):
        ShapeBuckets((shape,), (shape,), (8,)).check(BatchDims(263, 1, 1, 4))


def test_the_configs_of_the_page_load_from_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour.py").write_text("NAME = 'shared'\n")
    validators = {Config: validate, Evaluation: validate_evaluation, Rejection: validate_rejection}
    loaded = []
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", PAGE, re.S)):
        named = re.search(r"--config=(\w+\.py)(:\w+)?", example)
        name = named[1] if named else f"own{number}.py"
        (tmp_path / name).write_text(f"import neighbour\n{example}")
        variant = ":tiny" if "VARIANTS" in example else ""
        kind = next(kind for kind in validators if f"-> {kind.__name__}:" in example)
        config = load_config(f"{name}{variant}", kind)
        validators[kind](config)
        loaded.append(config)
    boxes, stages, evaluation, rejection, reft = loaded
    assert boxes.stages[0].sources and stages.stages[0].sources
    with pytest.raises(ValueError, match="no variant 'tinny'; nearest: tiny"):
        load_config("boxes.py:tinny")
    assert boxes.stages[2].held_out[0].file == str(tmp_path / "rows/test/open-detection.jsonl")
    assert [suite.domain.value for suite in evaluation.suites] == ["in", "in", "out"]
    assert rejection.suites == evaluation.suites and [source.quota for source in rejection.sources] == [300, 100]
    assert rejection.sources[0].source.file == boxes.stages[2].sources[0].file
    assert [stage.name for stage in reft.stages] == ["stage1", "stage2", "stage3", "self_improve"]
    assert reft.stages[3].rejection.sources == rejection.sources and not reft.stages[3].rejection.model.path


def documented_commands() -> dict[str, list[str]]:
    """Returns the arguments of each documented training command with rows of one's own, by page and command."""
    commands = {}
    for page in DOCS:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for command in re.findall(r"--config=configs/(?!eval|reject)[^`|#\n]* --rows[^`|#\n]*", text):
            commands[f"{page.name}: {command}"] = shlex.split(command.replace("=configs/", f"={ROOT}/configs/"))
    return commands


def test_documented_commands_with_rows_parse(tmp_path):
    commands = documented_commands()
    assert {name.partition(":")[0] for name in commands} >= {"own_config.md", "launch.md", "run.sh", "slurm.sbatch"}
    local = [[argument.removeprefix("/") for argument in arguments] for arguments in commands.values()]
    for argument in {argument for arguments in local for argument in arguments if argument.endswith(".jsonl")}:
        file = tmp_path / argument.replace("*", "any")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name, line in zip(commands, parse_all(local, tmp_path), strict=True):
        sources, held_out = json.loads(line)[0]
        assert sources and bool(held_out) == ("--held-out" in name), name


def test_examples_of_launch_files_run_the_curriculum_on_named_rows():
    for page in (ROOT / "launch").iterdir():
        for line in page.read_text("utf-8").splitlines():
            if "--config=" in line:
                assert "configs/curr" in line, f"{page.name}: {line}"
                assert page.name == "jobset.yaml" or ":tiny" in line or "--rows" in line, f"{page.name}: {line}"
    arguments = re.findall(r"- (--\S+=\S+)", (ROOT / "launch" / "jobset.yaml").read_text("utf-8"))
    assert {argument.partition("=")[0] for argument in arguments} == {"--config", "--rows", "--held-out", "--workdir"}


def test_the_pages_say_how_a_variant_is_named_and_how_a_cluster_takes_a_config_from_elsewhere():
    for name in ("own_config.md", "launch.md"):
        page = (ROOT / "docs" / name).read_text("utf-8")
        assert "`configs/curriculum.py:7b` is the curriculum of the 7B" in page, name
        assert re.search(r"^sbatch launch/slurm\.sbatch --config=/\S+\.py:7b ", page, re.M), name
    lengths = [f"`data.{name}_lengths`" for name in ("prompt", "completion")]
    assert all(length in PAGE for length in lengths)
