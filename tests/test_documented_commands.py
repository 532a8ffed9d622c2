"""Printed commands: their programs take them, and a test runs them or the page says what they need."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data, gpu, grpo_step, learning, refill, rollout, world_base
from currreft_jax import dataset, score, serve
from currreft_jax.config import ELSEWHERE
from currreft_jax.report import __main__ as report
from currreft_jax.sampling.command_line import make_parser
from tests.documented import PAGES, ROOT, Command, commands
from tests.report.workdirs import write_run
from tools import report_picture
from tools.convert_weights import __main__ as convert_weights

COMMANDS = list(commands())
# Programs by argparse, with their parsers.
PARSERS: dict[str, Callable[[], Any]] = {
    "currreft_jax.dataset": dataset._parser,
    "currreft_jax.generate": partial(make_parser, ""),
    "currreft_jax.report": report._parser,
    "currreft_jax.score": score._parser,
    "currreft_jax.serve": serve._parser,
    "tools.convert_weights": convert_weights.parser,
    "tools.report_picture": report_picture._parser,
    **{module.__name__: module._parser for module in (data, gpu, grpo_step, learning, refill, rollout, world_base)},
}
# By absl: those of training and planning are parsed in test_batch_layout.py, for the devices that they name.
WITH_CONFIG = ("currreft_jax.train", "currreft_jax.plan", "launch/run.sh", "launch/processes.sh")
OTHERS_BY_ABSL = ("evaluate", "reject")
PARSE = """
import json, os, sys
from currreft_jax.{program} import define_flags, parse_flags
define_flags()
for words in json.load(sys.stdin):
    if not os.fork():
        parse_flags(["program", *words])
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"refused: {{words}}")
"""
# The test that runs a program, for its commands that need nothing.
RUN_BY = {
    "benchmarks.gpu": ("test_gpu.py", "test_the_command_measures_parts_in_processes_of_their_own"),
    "currreft_jax.dataset": ("test_documented_commands.py", "test_quick_commands_run_as_printed"),
    "currreft_jax.evaluate": (
        "evaluation/test_evaluate_program.py",
        "test_models_are_compared_and_a_table_is_checked_from_the_command_line",
    ),
    "currreft_jax.generate": ("test_documented_commands.py", "test_quick_commands_run_as_printed"),
    "currreft_jax.reject": ("rejection/test_reject_program.py", "test_the_worlds_base_keeps_its_own_best_answers"),
    "currreft_jax.report": ("test_documented_commands.py", "test_quick_commands_run_as_printed"),
    "currreft_jax.score": ("test_documented_commands.py", "test_quick_commands_run_as_printed"),
    "currreft_jax.serve": (
        "serving/test_serve_program.py",
        "test_answers_are_those_of_the_sampler_and_survive_a_kill",
    ),
    "currreft_jax.train": (
        "test_launch.py",
        "test_a_slurm_job_saves_on_notice_is_requeued_and_resumes",
    ),
    "launch/processes.sh": ("test_launch.py", "test_a_killed_process_is_named_and_ends_the_others"),
    "make help": ("test_documented_commands.py", "test_quick_commands_run_as_printed"),
}
SHELL = ("for", "done", "cat", "curl", "python3", "hf", "rm", ".", "cd", "cp", "mkdir", "export", "kubectl", "tar")
# Commands that are run as they are printed, with their exit codes; files of these names are there.
QUICK = {
    "make help": 0,
    "python -m currreft_jax.dataset build --list": 0,
    "python -m currreft_jax.dataset check --train frames.jsonl": 1,
    "python -m currreft_jax.dataset show world 3": 0,
    "python -m currreft_jax.generate --demo": 0,
    "python -m currreft_jax.report runs/demo": 0,
    "python -m currreft_jax.score answers.jsonl --out verdicts.jsonl": 0,
}


def program_of(command: Command) -> str:
    """The module or the script that a command starts."""
    if module := re.search(r"python -m (\S+)", command.text):
        return module[1]
    if command.text.startswith("--config"):
        return "currreft_jax.plan" if "--topology" in command.text else "currreft_jax.train"
    script = re.search(r"launch/\S+|examples/\S+\.py", command.text)
    return script[0] if script else " ".join(command.words[:2] if command.words[0] == "make" else command.words[:1])


def arguments_of(command: Command) -> list[str]:
    """Arguments of a program; the words of a shell script that are flags."""
    words = command.words
    if "-m" in words:
        return words[words.index("-m") + 2 :]
    return [word for word in words if word.startswith("--")]


def test_there_are_commands_on_many_pages():
    assert len(COMMANDS) > 100 and len({command.page for command in COMMANDS}) > 12


@pytest.mark.parametrize("program", OTHERS_BY_ABSL)
def test_a_program_takes_its_commands(program):
    lines = [arguments_of(command) for command in COMMANDS if program_of(command) == f"currreft_jax.{program}"]
    assert lines
    done = subprocess.run(
        [sys.executable, "-c", PARSE.format(program=program)],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), ELSEWHERE: "1"},
    )
    assert done.returncode == 0, done.stderr


def test_every_other_command_names_what_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in COMMANDS:
        program, where = program_of(command), f"{command.page}: {command.text}"
        if program in PARSERS:
            try:
                PARSERS[program]().parse_args(arguments_of(command))
            except SystemExit as error:
                pytest.fail(f"{where}: exit code {error.code}")
        elif program in WITH_CONFIG:
            assert "--config=configs/" in command.text or "--config=examples/" in command.text, where
        elif program.startswith("currreft_jax."):
            assert program.removeprefix("currreft_jax.") in OTHERS_BY_ABSL, where
        elif program.startswith("make"):
            assert command.words[1] in targets, where
        elif program == "pip":
            assert set(re.findall(r"\[(\w+)", command.text)) <= extras.keys(), where
        elif program.startswith(("launch/", "examples/")):
            assert (ROOT / program).exists(), where
        elif program.startswith("benchmarks."):
            path = ROOT / program.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), where
        else:
            assert program in SHELL, where


def test_weights_are_downloaded_by_a_command_of_the_hubs_package():
    installed = {script.name for script in distribution("huggingface_hub").entry_points}
    named = {name for page in PAGES for name in re.findall(r"`(\S+) download \S", page.read_text("utf-8"))}
    assert named and named <= installed


def test_every_command_is_run_by_a_test_or_says_what_it_needs():
    for command in COMMANDS:
        program = program_of(command)
        if program.startswith("examples/"):
            tests = (ROOT / program).parent.glob("test_*.py")
            assert any(Path(program).stem in test.read_text() for test in tests), f"{command.page}: {command.text}"
        elif not command.needs and program not in SHELL:
            assert program in RUN_BY, f"{command.page}: {command.text}: no test runs it, and it needs nothing"
    for file, name in RUN_BY.values():
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}: {name}"


@pytest.mark.slow
def test_quick_commands_run_as_printed(tmp_path):
    printed = {command.text for command in COMMANDS}
    assert printed >= QUICK.keys(), QUICK.keys() - printed
    write_run(tmp_path / "runs" / "demo")
    write_files(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for text, code in QUICK.items():
        folder = ROOT if text.startswith("make") else tmp_path
        command = re.sub(r"^python ", f"{sys.executable} ", text)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == code, f"{text}: {done.stdout[-500:]}{done.stderr[-500:]}"


def write_files(folder: Path) -> None:
    """Writes the rows and the answers that troubleshooting.md speaks of."""
    from PIL import Image

    Image.effect_noise((640, 480), 50).convert("RGB").save(folder / "b.jpg")
    row = {"task": "detection", "kind": "open", "image": "b.jpg"}
    rows = [
        {**row, "id": "a", "problem": "Where is the dog?", "solution": "[10, 20, 900, 400]"},
        {**row, "id": "b", "problem": "Where is the cat?", "solution": "[10, 20, 300, 400]", "frame": [480, 640]},
    ]
    answers = [{"kind": "judge", "task": "math", "solution": "yes", "completion": "Yes, it is."}]
    for name, lines in (("frames", rows), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
