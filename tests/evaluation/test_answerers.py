"""Evaluations with a small model: nothing compiles after the warm-up, and a restart changes no byte."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from currreft_jax.config import (
    CacheType,
    EvaluatedModel,
    Evaluation,
    ImageCondition,
    Precision,
    Sampling,
    Source,
    Suite,
)
from currreft_jax.evaluation import answerers, runner
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.suites import SuiteError
from tests import tiny
from tests.evaluation.suites import write_rows
from tests.marks import quick
from tests.test_processes import START, run_two_processes


def evaluation_of(checkpoint, folder, *, images: int = 2, segment: int = 4) -> Evaluation:
    """Eleven rows in eight slots; the last four have `images` images among them."""
    files = [write_rows(folder, "seen", 7), write_rows(folder, "unseen", 4, images=images)]
    return Evaluation(
        models=[EvaluatedModel(str(checkpoint), "tied")],
        suites=[Suite("both", [Source(str(file)) for file in files])],
        template="world",
        batch_size=6,
        sampling=Sampling(
            group_size=2,
            max_new_tokens=4,
            segment=segment,
            ladder=() if segment == 4 else (0.5,),
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
            prompt_lengths=(96,),
        ),
    )


def evaluate(evaluation, out):
    lines = []
    (file, *_) = runner.evaluate(evaluation, out, lines.append)
    return file.path, lines


@pytest.mark.parametrize(("images", "segment"), quick([(2, 4), (0, 2)]))
def test_nothing_compiles_after_the_warm_up_and_a_restart_changes_no_byte(checkpoint, tmp_path, images, segment):
    """With all rows of one shape, and with two shapes and two segments."""
    evaluation = evaluation_of(checkpoint, tmp_path / "rows", images=images, segment=segment)
    path, lines = evaluate(evaluation, tmp_path / "whole")
    assert not any("after the warm-up" in line for line in lines), lines
    assert any(re.search(r"^tied: compiled \d+ programs in \d+ s; no answer compiles more$", line) for line in lines), (
        lines
    )
    assert "tied/both: 11/11 rows" in lines[-1]
    answers = list(read_answers(path))
    assert [answer.row for answer in answers] == [f"seen-{i}" for i in range(7)] + [f"unseen-{i}" for i in range(4)]
    assert all(len(answer.completions) == 2 for answer in answers)
    assert len({text for answer in answers for text in answer.completions}) > 11
    part = tmp_path / "part" / "tied" / "both.jsonl"
    part.parent.mkdir(parents=True)
    manifest_path(part).write_bytes(manifest_path(path).read_bytes())
    whole = path.read_bytes()
    part.write_bytes(whole[: whole.index(b'{"row": "unseen-2"') + 20])
    evaluate(evaluation, tmp_path / "part")
    assert part.read_bytes() == whole
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["decoding"]["samples"] == 2 and manifest["model"]["hash"] != "missing"


def test_another_model_has_another_hash(checkpoint, tmp_path):
    tiny.write_checkpoint(tmp_path / "other", seed=1)
    evaluation = evaluation_of(checkpoint, tmp_path / "rows")
    hashes = [
        answerers.ModelAnswerer(EvaluatedModel(str(path)), evaluation).facts["model"]["hash"]
        for path in (checkpoint, tmp_path / "other", checkpoint)
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_blank_images_change_what_the_model_sees_and_not_the_shape(checkpoint, tmp_path):
    (suite,), _ = runner.load_suites(evaluation := evaluation_of(checkpoint, tmp_path / "rows"))
    suite.conditions(list(ImageCondition))
    answerer = answerers.ModelAnswerer(evaluation.models[0], evaluation)
    own, blank, other = (answerer._prompt(suite.question(0, images)) for images in ImageCondition)
    assert (own.tokens == blank.tokens).all() and (own.tokens == other.tokens).all() and own.key == other.key
    assert own.images[0].grid == blank.images[0].grid == other.images[0].grid
    assert (own.images[0].patches != blank.images[0].patches).any()
    assert (own.images[0].patches != other.images[0].patches).any()


def test_prompts_beyond_the_largest_bucket_are_all_told_before_the_first_answer(checkpoint, tmp_path):
    """Of all suites, also of those that come last."""
    evaluation = evaluation_of(checkpoint, tmp_path / "rows")
    long = write_rows(tmp_path / "rows", "long", 3, problem="how many? " * 9)
    evaluation.suites.append(Suite("long", [Source(str(long))]))
    evaluation.sampling.prompt_lengths = (96, 128)
    remedy = r"set --config\.sampling\.prompt_lengths=96,128,\d+, or shrink images"
    with pytest.raises(SuiteError, match=rf"3 prompts longer than 128 tokens, up to \d+: {remedy}") as error:
        evaluate(evaluation, tmp_path / "out")
    lines = str(error.value).splitlines()[1:]
    assert all(f"long.jsonl:{number}:" in line and line.endswith(" tokens") for number, line in enumerate(lines, 1))
    assert len(lines) == 3 and not list((tmp_path / "out").rglob("*.jsonl"))


PROGRAM = (
    START
    + """
from currreft_jax.evaluation import runner
from tests.evaluation.test_answerers import evaluation_of

folder = Path(out).parent
files = runner.evaluate(evaluation_of(source, folder / f"rows-{process}"), folder / "out", lambda line: None)
if process == 0:
    print(json.dumps(files[0].path.read_text()))
"""
)


@pytest.mark.slow
def test_two_processes_answer_as_one(checkpoint, tmp_path):
    path, _ = evaluate(evaluation_of(checkpoint, tmp_path / "rows"), tmp_path / "one")
    assert run_two_processes(checkpoint, tmp_path / "two" / "out", PROGRAM) == path.read_text()


@pytest.mark.slow
def test_a_file_that_the_first_process_lacks_ends_both_with_its_name(checkpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "currreft_jax.evaluate", f"--model={checkpoint}", "--rows=seen.jsonl", "--out=out"]
    processes = []
    for index in range(2):
        folder = tmp_path / str(index)
        folder.mkdir()
        if index:
            write_rows(folder, "seen", 2)
        place = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
        arguments = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *place], **arguments))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert all("seen.jsonl" in error for error in errors)
    assert "evaluate: host 0 (" in errors[1] and "did not come to the barrier" not in "".join(errors)
