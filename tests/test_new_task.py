"""The page about tasks of one's own: its code is the example's, and its commands run."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from currreft_jax.config import OnRewardError
from currreft_jax.data.budget import PromptBudget
from currreft_jax.data.validate import InputFile, validate_files
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.runtime.workdir import refuse_changed_settings, write_config
from examples.gauge.config import get_config
from examples.gauge.make_rows import write_rows

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "gauge"
PAGE = (ROOT / "docs" / "new_task.md").read_text("utf-8")
OWN = "examples.gauge.reward:within_tolerance"


def commands() -> str:
    """The page's commands, but for those that it marks, with few rows and two steps."""
    text = "\n".join(re.findall(r"(?<!-->\n)```bash\n(.*?)```", PAGE, re.S))
    rows, config = "make_rows.py --out rows/gauge", "--config=examples/gauge/config.py"
    assert text.count(rows) == text.count(config) == 1
    steps = "--config.data.batch_size=8 --config.sampling.group_size=2 '--config.stages[0].steps=2'"
    return text.replace(rows, f"{rows} --train 16 --test 4").replace(config, f"{config} {steps}")


def test_the_pages_code_is_the_examples():
    code = "\n".join((EXAMPLE / f"{name}.py").read_text("utf-8") for name in ("reward", "template", "config"))
    blocks = re.findall(r"```py\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()]
        assert "\n".join(lines) in "\n".join(line.strip() for line in code.splitlines())
    rewards = (EXAMPLE / "reward.py").read_text("utf-8")
    assert len(rewards[rewards.index("def ") :].splitlines()) <= 15


def test_the_page_explains_every_note_about_the_rows(tmp_path):
    rng = random.Random(0)
    for name in ("train", "test"):
        write_rows(tmp_path, name, 3, rng)
    files = [InputFile(str(tmp_path / f"{name}.jsonl"), name) for name in ("train", "test")]
    report = validate_files(files, PromptBudget())
    assert not report.errors
    explained = re.findall(r"^- \*(.+?)\*: ", PAGE.partition("## Rows")[2].partition("\n## ")[0], re.M)
    assert {finding.problem.value for finding in report.findings} == set(explained)


def test_a_run_that_a_reward_has_ended_may_resume_with_another_response_to_failures(tmp_path):
    config = get_config("tiny")
    write_config(config, tmp_path)
    config.rewards.on_error = OnRewardError.ZERO
    refuse_changed_settings(config, 0, tmp_path)
    config.rewards.weights[OWN] = 0.5
    with pytest.raises(
        ValueError, match=rf"{OWN} was 1.0, and is 0.5: .*; or remove {tmp_path}, where no step is saved"
    ):
        refuse_changed_settings(config, 0, tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"or take another workdir$"):
        refuse_changed_settings(config, 0, tmp_path)


@pytest.mark.slow
def test_the_pages_commands_run_and_the_task_trains(tmp_path):
    for name in ("configs", "currreft_jax", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    command = ["bash", "-exc", commands()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "errors 0" in printed
    assert "open    other            2       1.500           -       1.000" in printed
    lines = read_metrics(tmp_path / "runs" / "gauge-tiny" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for name in (f"rewards/{OWN}/mean", "rewards/format/mean", "reward/other", "held_out/gauge/reward"):
        assert name in lines[-1]
    assert "rewards/accuracy/mean" not in lines[-1]
    rollouts = (tmp_path / "runs" / "gauge-tiny" / "rollouts" / "1.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["tolerance"] for line in rollouts} <= {1.0, 2.0}
    assert (tmp_path / "runs" / "gauge-tiny" / "report.html").exists()
