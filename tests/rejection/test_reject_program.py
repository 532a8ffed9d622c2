"""The program's flags, its config, and one small job from the command line."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from configs import common
from configs import eval as evaluation
from configs import reject as reject_config
from currreft_jax.config import JudgeKind, QuotaSource, Rejection, validate_rejection
from currreft_jax.config.checks import field_types
from currreft_jax.data.builders.recipe import PAPER

ROOT = Path(__file__).parent.parent.parent

# Parses each command line of a JSON list in a process of its own, and prints what came of it.
PARSE_ALL = """
import json, os, sys
from absl import flags
from currreft_jax import reject
from currreft_jax.rejection import command_line
from currreft_jax.config.flags import refuse_command_line
command_line.define_flags()
for arguments in json.load(sys.stdin):
    print("===", flush=True)
    if not os.fork():
        os.dup2(1, 2)
        reject.parse_flags(["reject", *arguments])
        try:
            config = command_line.settings_of_flags(flags.FLAGS.config)
        except ValueError as error:
            refuse_command_line("reject", str(error))
        print(config.model.path, bool(config.model.endpoint), [source.name for source in config.sources],
              [source.quota for source in config.sources][:1], [suite.name for suite in config.suites],
              config.judge.kind.value, config.judge.model, config.threshold, config.budget,
              command_line.job_folder(config), "jax" in sys.modules, flush=True)
        os._exit(0)
    print("code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
SUITES = [suite.name for suite in evaluation.get_config("tiny").suites]
GIVEN = ["--model=runs/demo/stage3", "--rows=rows/a.jsonl,b.jsonl"]
PARSED = [
    (GIVEN, "runs/demo/stage3 False ['a', 'b'] [0] [] rules  85.0 None runs/reject False"),
    (
        [*GIVEN, "--endpoint=http://localhost:1/v1", "--threshold=70", "--suites=t.jsonl", "--out=x", "--budget=9"],
        "runs/demo/stage3 True ['a', 'b'] [0] ['t'] rules  70.0 9 x False",
    ),
    (
        ["--config=configs/reject.py:tiny", "--model=m", "--judge=q", "--judge_endpoint=http://localhost:1/v1"],
        f"m False ['judge', 'choice', 'open'] [40] {SUITES} endpoint q 85.0 None runs/reject-tiny False",
    ),
    (
        ["--config=configs/reject.py:tiny", "--config.sources[0].quota=3", "--config.suites=[]"],
        "runs/demo/stage3 False ['judge', 'choice', 'open'] [3] [] rules  85.0 None runs/reject-tiny False",
    ),
]
REFUSED = [
    ([], "config.model.path is ''; it takes a model (--model=PATH)"),
    (["--model=x"], "config.sources is []; it takes at least one source (--rows=FILE)"),
    (["--endpoint=http://localhost:1/v1", "--rows=a.jsonl"], "--endpoint needs --model"),
    ([*GIVEN, "--judge_endpoint=http://localhost:1/v1"], "--judge_endpoint needs --judge"),
    ([*GIVEN, "--judge=q"], "judge.url is empty; it takes the base URL of a server"),
    (
        ["--model=x", "--config.sources=a/a.jsonl,b/a.jsonl"],
        "config.sources is a, a; it takes another name for each source",
    ),
    ([*GIVEN, "--threshold=100"], "config.threshold is 100.0; it takes a score in [0, 100)"),
    ([*GIVEN, "--config.max_samples=6"], "max_samples is 6; it takes a multiple of sampling.group_size (4)"),
    ([*GIVEN, "--config.held_out=1"], "config.held_out is 1.0; it takes a share in [0, 1)"),
    ([*GIVEN, "--config.sampling.temperature=0"], "sampling.temperature is 0.0; it takes a positive number"),
    (
        [*GIVEN, "--config.rewards.weights=examples.gauge.reward:within_tolerence=1"],
        "examples.gauge.reward defines no 'within_tolerence'; nearest: within_tolerance",
    ),
    ([*GIVEN, "--config.treshold=3"], "config has no setting treshold; nearest: threshold (--help"),
    ([*GIVEN, "--replay=x"], "replay"),
    (
        ["--config=configs/reject.py:tiny", *GIVEN, "--config.sources[0].quota=3"],
        "--config.sources[0].quota=3: --rows replaces config.sources; give one of them",
    ),
    (["--config=configs/eval.py:tiny"], "get_config returned a Evaluation, not the Rejection of this program"),
]


def test_command_lines_are_parsed_or_refused_in_one_line():
    lines, env = [arguments for arguments, _ in [*PARSED, *REFUSED]], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PARSE_ALL], input=json.dumps(lines), capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    _, *blocks = done.stdout.split("===\n")
    results = [block.rpartition("code ") for block in blocks]
    for (arguments, expected), (text, _, code) in zip([*PARSED, *REFUSED], results, strict=True):
        refused = (arguments, expected) in REFUSED
        assert int(code) == 2 * refused, text
        if refused:
            assert text.startswith("reject: ") and text.count("\n") == 1 and expected in text, text
        else:
            assert text.strip() == expected


@pytest.mark.parametrize("variant", ["tiny", "3b", "7b"])
def test_the_config_is_valid(variant, monkeypatch):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    config = reject_config.get_config(variant)
    validate_rejection(config)
    assert config.threshold == 85.0 and config.require_rules
    compared = {source.file: source.sample for suite in config.suites for source in suite.sources}
    assert compared == {
        source.file: "all" for suite in evaluation.get_config(variant).suites for source in suite.sources
    }
    assert (config.judge.kind is JudgeKind.RULES) == (variant == "tiny")
    if variant != "tiny":
        quotas = Counter[str]()
        for source in config.sources:
            quotas[source.group] += source.quota
        assert quotas == {"maths": 700, "science": 320, "general": 500} and quotas.total() == 1520
        text = sum(source.quota for source in config.sources if source.name.startswith("s1k"))
        assert text == 500 and config.sources[3].quota == 400
        assert {source.name for source in config.sources if not source.name.startswith("s1k")} == {
            source.folder for source in PAPER.improve if source.folder != "s1k"
        }


def test_every_setting_is_documented():
    for owner in (Rejection, QuotaSource):
        for name in field_types(owner):
            assert f"{name}: " in (owner.__doc__ or "")


def test_a_model_that_is_not_there_is_refused_before_the_world_is_drawn(tmp_path):
    command = [sys.executable, "-m", "currreft_jax.reject", "--config=configs/reject.py:tiny", "--model=nowhere"]
    command += [f"--config.world={tmp_path / 'world'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and done.stderr.startswith("reject: ") and "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_worlds_base_keeps_its_own_best_answers(tmp_path):
    command = [sys.executable, "-m", "currreft_jax.reject", "--config=configs/reject.py:tiny", f"--out={tmp_path}"]
    command += ["--model=currreft_jax/world/base", "--config.batch_size=16", "--config.calibration_rows=6"]
    for index, quota in enumerate((8, 0, 8)):
        command += [f"--config.sources[{index}].quota={quota}", f"--config.sources[{index}].source.sample=first:16"]
    command += ["--config.suites=[]"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kept"] >= 12 and summary["judge_against_rules"]["above_wrong"] == 0
    assert "kept" in first.stdout and "calibration by answers planted for 6 rows" in first.stdout
    kept = (tmp_path / "kept.jsonl").read_bytes()
    replay = subprocess.run([*command, "--replay", "--threshold=95"], capture_output=True, text=True, cwd=ROOT, env=env)
    assert replay.returncode == 0 and "kept" in replay.stdout, replay.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert again.returncode == 0 and (tmp_path / "kept.jsonl").read_bytes() == kept
