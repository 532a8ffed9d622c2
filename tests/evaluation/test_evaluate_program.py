"""The program's flags: with and without a config, each refused in one line; and its config."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from configs import eval as eval_config
from currreft_jax.config import (
    EndpointLimits,
    EvaluatedModel,
    Evaluation,
    ImageEncoding,
    SuiteDomain,
    validate_evaluation,
)
from currreft_jax.config.checks import field_types
from currreft_jax.evaluation.compare import read_model_answers
from tests.evaluation.suites import evaluation_of, write_rows
from tests.evaluation.test_runner import evaluate

ROOT = Path(__file__).parent.parent.parent

# Parses each command line of a JSON list in a process of its own, and prints what came of it.
PARSE_ALL = """
import json, os, sys
from absl import flags
from currreft_jax import evaluate
from currreft_jax.evaluation import command_line
from currreft_jax.config import Evaluation
from currreft_jax.config.flags import refuse_command_line
command_line.define_flags()
for arguments in json.load(sys.stdin):
    print("===", flush=True)
    if not os.fork():
        os.dup2(1, 2)
        evaluate.parse_flags(["evaluate", *arguments])
        try:
            config = command_line.settings_of_flags(flags.FLAGS.config)
        except ValueError as error:
            refuse_command_line("evaluate", str(error))
        print([model.name for model in config.models], [suite.name for suite in config.suites],
              [images.value for images in config.images], config.scorer.value, config.sampling.group_size,
              config.sampling.temperature, config.template, "jax" in sys.modules, flush=True)
        os._exit(0)
    print("code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
GIVEN = ["--model=runs/demo/stage1/checkpoints/50,Qwen/Qwen2.5-VL-3B-Instruct", "--rows=rows/a.jsonl,b.jsonl"]
PARSED = [
    (
        [*GIVEN, "--endpoint=http://localhost:1/v1", "--config.endpoint.max_calls=7"],
        "['stage1-50', 'Qwen-Qwen2.5-VL-3B-Instruct'] ['a', 'b'] ['original'] rules 1 0.0 paper False",
    ),
    (
        GIVEN,
        "['stage1-50', 'Qwen-Qwen2.5-VL-3B-Instruct'] ['a', 'b'] ['original'] rules 1 0.0 paper False",
    ),
    (
        [*GIVEN, "--samples=4", "--images=blank,original", "--scorer=official", "--config.template=world"],
        "['stage1-50', 'Qwen-Qwen2.5-VL-3B-Instruct'] ['a', 'b'] ['blank', 'original'] official 4 1.0 world False",
    ),
    (
        ["--config=configs/eval.py:tiny", "--model=x", "--config.suites=a.jsonl,b.jsonl", "--config.images=shuffled"],
        "['x'] ['a', 'b'] ['shuffled'] rules 1 0.0 world False",
    ),
    (
        ["--model=x", "--benchmarks=ai2d=A.tsv,math=test.jsonl", "--judge=j", "--judge_url=http://localhost:1/v1"],
        "['x'] ['ai2d', 'math'] ['original'] rules 1 0.0 paper False",
    ),
]
REFUSED = [
    (["--endpoint=http://localhost:1/v1", "--rows=a.jsonl"], "--endpoint needs --model"),
    ([*GIVEN, "--csv=x.csv"], "--csv needs --compare"),
    ([*GIVEN, "--config.endpoint.attempts=no"], "config.endpoint.attempts"),
    ([], "config.models is []; it takes at least one model (--model=PATH)"),
    (["--model=x"], "config.suites is []; it takes at least one suite (--rows=FILE)"),
    (["--model=x,x", "--rows=a.jsonl"], "config.models is x; it takes another name for each"),
    ([*GIVEN, "--images=grey"], "--images=grey: it takes original, blank, shuffled"),
    ([*GIVEN, "--images=blank,blank"], "it takes different ones, at least one"),
    ([*GIVEN, "--samples=0"], "sampling.group_size is 0; it takes 1 or more"),
    ([*GIVEN, "--config.sampling.group_size=2"], "config.sampling.temperature is 0.0; it takes a positive number"),
    ([*GIVEN, "--config.batch_siz=3"], "config has no setting batch_siz; nearest: batch_size (--help"),
    ([*GIVEN, "--modl=x"], "there is no flag --modl; nearest: --model"),
    ([*GIVEN, "--scorer=mine"], "rules|official"),
    (
        ["--model=x", "--benchmarks=ai2=A.tsv"],
        "--benchmarks=ai2=A.tsv: it takes NAME=FILE, with a name of mathvista, math",
    ),
    (["--model=x", "--benchmarks=ai2d=A.tsv", "--samples=2"], "config.sampling.group_size is 2; it takes 1 with a"),
    ([*GIVEN, "--judge=j"], "--judge and --judge_url need each other"),
    ([*GIVEN, "--extraction=G4"], "readable|G1|G2|G3"),
    (["--config=configs/sft.py:tiny"], "get_config returned a Config, not the Evaluation of this program"),
    ([*GIVEN, "--config.mesh.fsdp=0"], "config.mesh is (0, 0, 1)"),
    (
        ["--config=configs/eval.py:tiny", *GIVEN, "--config.suites[0].domain=out"],
        "--config.suites[0].domain=out: --rows replaces config.suites; give one of them",
    ),
    (
        [*GIVEN, "--images=blank", "--config.images=shuffled"],
        "--config.images=shuffled: --images replaces config.images",
    ),
]


def test_command_lines_are_parsed_or_refused_in_one_line():
    lines, env = [arguments for arguments, _ in [*PARSED, *REFUSED]], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PARSE_ALL], input=json.dumps(lines), capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    results = [block.rpartition("code ") for block in done.stdout.split("===\n")[1:]]
    for (arguments, expected), (text, _, code) in zip([*PARSED, *REFUSED], results, strict=True):
        refused = (arguments, expected) in REFUSED
        assert int(code) == 2 * refused, text
        if refused:
            assert text.startswith("evaluate: ") and text.count("\n") == 1 and expected in text, text
        else:
            assert text.strip() == expected


@pytest.mark.parametrize("variant", ["tiny", "3b", "7b"])
def test_the_config_is_valid_and_evaluates_the_base_and_every_stage(variant, monkeypatch):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    config = eval_config.get_config(variant)
    validate_evaluation(config)
    assert [model.name for model in config.models] == ["base", "stage1", "stage2", "stage3", "self_improve"]
    assert {suite.domain for suite in config.suites} == set(SuiteDomain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_pixels": 78_400, "max_pixels": 0}, r"min_pixels is 78400; it takes 0 with max_pixels=0 and a server"),
        (
            {"endpoint": EndpointLimits(image_encoding=ImageEncoding.ORIGINAL)},
            r"endpoint\.image_encoding is original; it takes png or jpeg for images that are resized",
        ),
    ],
)
def test_images_that_a_server_would_not_get_are_refused(changes, message):
    config = dataclasses.replace(eval_config.get_config("tiny"), **{"max_pixels": 401_408, **changes})
    validate_evaluation(config)
    config.models = [EvaluatedModel("m", endpoint="http://localhost:1/v1")]
    with pytest.raises(ValueError, match=rf"^config\.{message}"):
        validate_evaluation(config)


def test_every_setting_is_documented():
    for owner in (Evaluation, *(type(one) for one in (eval_config.get_config("tiny").suites[0],))):
        for name in field_types(owner):
            assert f"{name}: " in (owner.__doc__ or "")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "currreft_jax.evaluate", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_help_lists_the_flags():
    shown = run("--help").stdout
    listed = set(re.findall(r"^  --([\w-]+)", shown, re.M))
    assert {"model", "rows", "endpoint", "images", "samples", "out", "config"} <= listed


def test_models_are_compared_and_a_table_is_checked_from_the_command_line(tmp_path):
    evaluate(evaluation_of([write_rows(tmp_path / "rows", "one", 40, images=0)]), tmp_path)
    done = run(f"--compare={tmp_path / 'models-a'},{tmp_path / 'models-b'}", f"--csv={tmp_path / 'out.csv'}")
    assert done.returncode == 0, done.stderr
    assert "does not hold" in done.stdout and (tmp_path / "out.csv").read_text().startswith("section,model")
    table = tmp_path / "table.csv"
    table.write_text("table,model,metric,value,unit,rows\nTable 2,m,maths,30.3,percent,500\n")
    done = run(f"--check-table={table}")
    assert done.returncode == 1 and "30.3" in done.stdout and done.stdout.endswith("figures 1, faults 1\n")
    done = run("--compare=runs/e/nowhere")
    assert done.returncode == 1 and done.stderr == (
        "evaluate: runs/e/nowhere holds no answers; evaluate its model first: python -m currreft_jax.evaluate"
        " --model=MODEL --rows=FILE --out=runs/e\n"
    )
    with pytest.raises(
        ValueError, match=rf"holds no answers; those of models are in {tmp_path}/models-a, .*/models-b$"
    ):
        read_model_answers(tmp_path)


def test_a_model_that_is_not_there_is_refused_before_the_world_is_drawn(tmp_path):
    done = run("--config=configs/eval.py:tiny", "--model=nowhere", f"--config.world={tmp_path / 'world'}")
    assert done.returncode == 1 and done.stderr.startswith("evaluate: ") and "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
