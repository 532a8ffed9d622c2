"""The training program: a run trains, stops, resumes exactly, and refuses invalid settings."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import (
    common,
    curr_rl,
    curriculum,
    filtered_sft,
    rl,
    self_improve,
    sft,
    stage1,
    stage2,
    stage3,
    world_base,
)
from currreft_jax.config import (
    Config,
    Data,
    Init,
    Logging,
    MeshShape,
    Optimizer,
    Pretrained,
    Remat,
    Schedule,
    Shapes,
    Source,
    Stage,
    validate,
)
from currreft_jax.data import world_rows
from currreft_jax.evaluation.held_out import HeldOut
from currreft_jax.evaluation.measurement import Measurement
from currreft_jax.models import hf
from currreft_jax.runtime.checkpoint import restore_item
from currreft_jax.runtime.metrics import Metrics, read_metrics
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.workdir import saved_steps
from currreft_jax.session import session
from currreft_jax.training import evaluator, start, trainer
from currreft_jax.training.console import say
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.forgetting_gate import GateDecision
from currreft_jax.training.limits import NonFiniteError
from tests import tiny
from tests.marks import quick
from tests.test_checkpoints import flip_a_bit
from tests.test_processes import START, run_two_processes

CONFIGS = {
    "curr_rl": curr_rl,
    "curriculum": curriculum,
    "filtered_sft": filtered_sft,
    "rl": rl,
    "self_improve": self_improve,
    "sft": sft,
    "stage1": stage1,
    "stage2": stage2,
    "stage3": stage3,
    "world_base": world_base,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(32):
        row = {"id": f"r{number}", "task": "math", "kind": "open", "problem": f"{number}?", "solution": str(number % 7)}
        if number % 2:
            tiny.picture(56, 56, number).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        if number % 4 == 0:
            turns = [("user", f"{number}"), ("assistant", f"{number % 5}"), ("user", "so?"), ("assistant", "yes")]
            row = {"id": f"r{number}", "messages": [{"role": role, "content": text} for role, text in turns]}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def config_of(checkpoint: Path, rows: Path, steps: int = 6, **changes) -> Config:
    config = Config(
        model=Pretrained(path=str(checkpoint), dtype="float32", remat=Remat.NONE, max_pixels=0),
        mesh=MeshShape(data=4, fsdp=2),
        stages=[Stage("one", [Source(str(rows))], steps=steps)],
        data=Data(8, shapes=Shapes.BUCKETS, prompt_lengths=(224,), completion_lengths=(48,), slots=(1,), threads=2),
        optimizer=Optimizer(learning_rate=1e-3),
        logging=Logging(log_every=1, save_every=2, tensorboard=False),
    )
    return replace(config, **changes)


COSTS = ("step_time", "time/", "tokens_per_second", "compiles", "memory/", "mfu")  # differ from run to run


def logged_metrics(workdir: Path) -> list[dict]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(COSTS)} for line in lines]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name], err_msg=name)


@pytest.fixture(scope="module")
def finished_run(checkpoint, rows, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("finished")
    assert trainer.run(config_of(checkpoint, rows), workdir) == workdir / "model"
    return workdir


def test_a_run_writes_settings_metrics_checkpoints_and_a_model(finished_run, checkpoint):
    assert sorted(path.name for path in finished_run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model",
    ]
    assert json.loads((finished_run / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3
    lines = logged_metrics(finished_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == ["4", "6"]
    assert (finished_run / "model" / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def interrupt(monkeypatch, step: int) -> None:
    """Sends SIGTERM in the given step, counted from now."""
    advance, steps = Metrics.advance, []

    def interrupting(self):
        steps.append(None)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self)

    monkeypatch.setattr(Metrics, "advance", interrupting)


@pytest.mark.parametrize("stop_at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_sigterm_saves_and_the_run_resumes_bit_for_bit(finished_run, checkpoint, rows, tmp_path, monkeypatch, stop_at):
    interrupt(monkeypatch, stop_at)
    config = config_of(checkpoint, rows)
    assert trainer.run(config, tmp_path) is None
    assert (tmp_path / "checkpoints" / str(stop_at)).exists()
    assert trainer.run(config, tmp_path) == tmp_path / "model"
    assert_same_weights(tmp_path / "model", finished_run / "model")
    assert logged_metrics(tmp_path) == logged_metrics(finished_run)


CONTINUE = (
    START
    + """
from currreft_jax.training import trainer
from currreft_jax.runtime.checkpoint import Checkpoints
from tests.test_train import config_of

Checkpoints.preempted = lambda self, call: call == 2  # after step 4, as if the scheduler preempted the machines
finished = trainer.run(config_of(Path(source), Path("ROWS")), Path(out))
print(json.dumps([finished is not None]))
"""
)


@pytest.mark.slow
def test_a_run_continues_with_one_then_two_then_one_process(finished_run, checkpoint, rows, tmp_path, monkeypatch):
    config = config_of(checkpoint, rows)
    advance = Metrics.advance

    def interrupting(self):
        advance(self)
        if len(logged_metrics(tmp_path)) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "advance", interrupting)
        assert trainer.run(config, tmp_path) is None
    assert [line["step"] for line in logged_metrics(tmp_path)] == [1, 2]
    assert not run_two_processes(checkpoint, tmp_path, CONTINUE.replace("ROWS", str(rows))).any()
    assert [line["step"] for line in logged_metrics(tmp_path)] == [1, 2, 3, 4]
    assert trainer.run(config, tmp_path) == tmp_path / "model"

    for ours, theirs in zip(logged_metrics(tmp_path), logged_metrics(finished_run), strict=True):
        assert (
            ours["num_loss_tokens"] == theirs["num_loss_tokens"]
            and ours["num_step_tokens"] == theirs["num_step_tokens"]
        )
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, finished_run))
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_crash_loses_unsaved_steps_only(finished_run, checkpoint, rows, tmp_path, monkeypatch):
    advance, steps = Metrics.advance, []

    def crashing(self):
        steps.append(None)
        if len(steps) == 4:
            raise RuntimeError("a crash")
        advance(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        patch.setattr(Metrics, "advance", crashing)
        trainer.run(config_of(checkpoint, rows), tmp_path)
    trainer.run(config_of(checkpoint, rows), tmp_path)
    assert_same_weights(tmp_path / "model", finished_run / "model")
    assert logged_metrics(tmp_path) == logged_metrics(finished_run)


def test_an_evaluated_step_is_saved_if_it_is_the_best_and_none_is_lost_or_repeated(
    finished_run, checkpoint, rows, tmp_path, monkeypatch
):
    """Evaluated after every step, and stopped by an error two steps after the latest best one."""
    rewards = {1: 0.4, 2: 0.3, 3: 0.6, 4: 0.5, 5: 0.6, 6: 0.2}
    at_step = Measurement("one", 0, "one", 4, 0.0, 0.1, None, None, None)
    monkeypatch.setattr(trainer, "held_out_rows", lambda _: [HeldOut("one", 0, (), 4)])

    def measure(context, policy, sets, stage, step, **_):
        return [replace(at_step, stage=stage, step=step, reward=rewards.get(step, 0.0))]

    monkeypatch.setattr(evaluator, "measure", measure)
    logging = Logging(log_every=1, save_every=9, keep_last=9, evaluate_every=1, tensorboard=False)
    config = config_of(checkpoint, rows, logging=logging)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        patch.setattr(trainer.distributed, "reached", lambda step: crash() if step == 6 else None)
        trainer.run(config, tmp_path)
    assert saved_steps(tmp_path) == [1, 3]
    assert [entry.step for entry in matrix_of(tmp_path).history] == [0, 1, 2, 3, 4, 5]

    begin = evaluator.Evaluator.begin
    (tmp_path / "held_out").mkdir()
    for step in (0, 6):
        (tmp_path / "held_out" / f"{step}.jsonl").touch()

    def beginning(self, policy, step):
        assert [path.name for path in (tmp_path / "held_out").iterdir()] == ["0.jsonl"]  # step 6 is taken again
        begin(self, policy, step)
        assert [entry.step for entry in matrix_of(tmp_path).history] == [0, 1, 2, 3]  # also in the file

    monkeypatch.setattr(evaluator.Evaluator, "begin", beginning)
    assert trainer.run(config, tmp_path) == tmp_path / "model"
    assert saved_steps(tmp_path) == [1, 3, 6]  # 5 is as good as 3, and 6 the last
    assert [entry.step for entry in matrix_of(tmp_path).history] == [0, 1, 2, 3, 4, 5, 6]
    lines = logged_metrics(tmp_path)
    assert [line.pop("held_out/one/reward") for line in lines] == list(rewards.values())
    assert lines == logged_metrics(finished_run)
    assert_same_weights(tmp_path / "model", finished_run / "model")


@pytest.mark.slow
def test_a_stage_that_forgets_keeps_the_model_of_a_better_step(checkpoint, rows, tmp_path, monkeypatch):
    """The loss is that of the rows which are trained on; 40 held-out rows fall in the last step."""
    right = {0: 28, 1: 30, 2: 34, 3: 32, 4: 31, 5: 30, 6: 8}

    def measure(context, policy, sets, stage, step, **_):
        rewards = tuple([1.0] * right[step] + [0.0] * (40 - right[step]))
        return [Measurement(stage, step, "one", 40, right[step] / 40, 0.1, None, None, None, rewards=rewards)]

    monkeypatch.setattr(trainer, "held_out_rows", lambda _: [HeldOut("one", 0, (), 40)])
    monkeypatch.setattr(evaluator, "measure", measure)
    monkeypatch.setattr(session, "MathsPool", lambda *_: nullcontext())
    logging = Logging(log_every=1, save_every=9, keep_last=1, evaluate_every=1, tensorboard=False)
    config = config_of(checkpoint, rows, logging=logging)
    batch = [Source(str(rows), sample="first:8")]
    config.stages = [Stage("one", batch, 6, held_out=batch, held_out_loss=batch, forgetting_margin=0.1)]
    trainer.run(config, tmp_path)

    lines, matrix = logged_metrics(tmp_path), matrix_of(tmp_path)
    assert [one.step for one in matrix.losses] == list(right)
    losses = [one.loss for one in matrix.losses]
    np.testing.assert_allclose(losses[:-1], [line["loss"] for line in lines], rtol=1e-5)
    assert [line["held_out/one/loss"] for line in lines] == losses[1:]

    (decision,) = matrix.decisions
    assert (decision.last_step, decision.kept_step, saved_steps(tmp_path)) == (6, 2, [2, 6])  # the best and the last
    model = tiny.model_of(mesh=make_mesh(data=4, fsdp=2))
    params = restore_item(tmp_path / "checkpoints" / "2", "params", model.abstract(np.float32))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in hf.hub_tensors(params):
        np.testing.assert_array_equal(np.asarray(tensor), exported[name], err_msg=name)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "model")  # as if the run had been killed before
    monkeypatch.setattr(trainer, "take_step", lambda *_: crash())
    trainer.run(config, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert matrix_of(tmp_path).decisions == [decision]


def test_a_stage_that_never_was_better_keeps_the_model_that_it_started_from(monkeypatch):
    monkeypatch.setattr(trainer, "saved_steps", lambda _: [4])
    monkeypatch.setattr(trainer, "start_params", lambda *of_stage: of_stage)
    for kept, params in ((0, ("config", 3, "model", Path("before"))), (4, "the end")):
        decision = GateDecision("one", 4, kept, 0.1, ())
        context = SimpleNamespace(config="config", stage_index=3, model="model")
        stage = SimpleNamespace(context=context, folder=None, evaluator=SimpleNamespace(decide=lambda _, d=decision: d))
        assert trainer.kept_params(stage, SimpleNamespace(params="the end"), Path("before")) == params


def crash() -> None:
    raise RuntimeError("a crash")


def matrix_of(workdir: Path) -> ForgettingMatrix:
    return ForgettingMatrix(workdir / trainer.MATRIX, writes=False)


def test_a_finished_run_is_left_alone(finished_run, checkpoint, rows, capsys):
    before = (finished_run / "metrics.jsonl").read_bytes()
    trainer.run(config_of(checkpoint, rows), finished_run)
    assert "is finished" in capsys.readouterr().err
    assert (finished_run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_rows(checkpoint, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.hf, "export", lambda *_: None)  # as if the run had stopped before the end
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(line for line in rows.read_text().splitlines(keepends=True) if "image" not in line))
    trainer.run(config_of(checkpoint, file, steps=1), tmp_path / "run")
    file.write_text(file.read_text().replace('"r2"', '"another"'))
    with pytest.raises(ValueError, match="another fingerprint of the data"):
        trainer.run(config_of(checkpoint, file, steps=1), tmp_path / "run")


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_does_not_resume_with_other_settings(checkpoint, rows, finished_run, tmp_path, finished):
    (tmp_path / "config.json").write_bytes((finished_run / "config.json").read_bytes())
    if finished:
        (tmp_path / "model").mkdir()
    config = config_of(checkpoint, rows, steps=7, optimizer=Optimizer(learning_rate=0.1))
    config.logging.log_every = 9  # does not affect training
    message = r"learning_rate was 0\.001, and is 0\.1; stages\[0\]\.steps was 6, and is 7: put it back"
    with pytest.raises(ValueError, match=message):
        trainer.run(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3


def test_damaged_settings_are_named(checkpoint, rows, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "cut off')
    with pytest.raises(ValueError, match=r"config\.json holds no settings of this version"):
        trainer.run(config_of(checkpoint, rows), tmp_path)


def test_a_second_run_in_a_workdir_is_refused(checkpoint, rows, tmp_path):
    with trainer.only_run(tmp_path), pytest.raises(ValueError, match="another run is writing"):
        trainer.run(config_of(checkpoint, rows), tmp_path)


def test_a_stage_starts_from_the_masters_of_the_previous_one(checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows)
    config.model.dtype = "bfloat16"  # rounds the exported model, but not the masters that the next stage starts from
    one = config.stages[0]
    config.stages = [replace(one, steps=3), replace(one, name="two", steps=1, replay=0.5)]
    assert trainer.run(config, tmp_path) == tmp_path / "two" / "model"
    stages = [line["stage"] for name in ("one", "two") for line in logged_metrics(tmp_path / name)]
    assert stages == ["one"] * 3 + ["two"]
    # Every second step is saved, and the last step of a stage.
    saved = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("one", "two")]
    assert saved == [["2", "3"], ["1"]]

    model = tiny.model_of(mesh=make_mesh(data=4, fsdp=2))
    masters = start.start_params(config, 1, model, tmp_path / "one")
    exported = load_file(tmp_path / "one" / "model" / "model.safetensors")
    rounded = 0
    for name, tensor in hf.hub_tensors(masters):
        np.testing.assert_array_equal(np.asarray(tensor).astype(exported[name].dtype), exported[name], err_msg=name)
        rounded += int((np.asarray(tensor) != exported[name].astype(np.float32)).sum())
    assert rounded > 1000

    flip_a_bit(tmp_path / "one" / "checkpoints" / "3" / "params")
    with pytest.raises(ValueError, match=r"does not hold step 3, which stage two starts from: remove .*one/model"):
        start.start_params(config, 1, model, tmp_path / "one")


@pytest.mark.slow
def test_microbatches_and_meshes_agree_within_rounding(finished_run, checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows, steps=6, microbatches=2, mesh=MeshShape(data=1, fsdp=4, tensor=2))
    config.data.slots = (2,)
    trainer.run(config, tmp_path)
    losses = [[line["loss"] for line in logged_metrics(folder)] for folder in (tmp_path, finished_run)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_a_few_rows_are_memorized(checkpoint, rows, tmp_path):
    optimizer = Optimizer(learning_rate=1e-2, schedule=Schedule.COSINE, warmup=0.05)
    config = config_of(checkpoint, rows, steps=60, optimizer=optimizer, logging=Logging(20, 60, tensorboard=False))
    config.stages[0].sources[0].sample = "first:8"  # a batch
    trainer.run(config, tmp_path)
    assert logged_metrics(tmp_path)[-1]["loss"] < 0.03


@pytest.mark.slow
def test_a_nonfinite_loss_ends_the_run(checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows, optimizer=Optimizer(learning_rate=1e30, schedule=Schedule.CONSTANT))
    with pytest.raises(NonFiniteError, match=r"step \d: loss"):
        trainer.run(config, tmp_path)
    assert not (tmp_path / "model").exists()


def test_an_indivisible_batch_is_refused(checkpoint, rows, tmp_path):
    with pytest.raises(ValueError, match="microbatches is 3; it takes a divisor"):
        trainer.run(config_of(checkpoint, rows, microbatches=3), tmp_path)


@pytest.mark.slow
def test_random_weights_need_only_a_shape_and_a_tokenizer(checkpoint, rows, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    config = config_of(tmp_path, rows, steps=1)
    config.model.init = Init.RANDOM
    assert trainer.run(config, tmp_path / "run") == tmp_path / "run" / "model"


# ------------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid(name):
    validate(CONFIGS[name].get_config("0" if name == "world_base" else "tiny"))
    assert sorted(path.stem for path in Path("configs").glob("*.py")) == sorted(
        ["__init__", "common", "eval", "reject", *CONFIGS]
    )


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "world_base"])
def test_a_tiny_config_names_the_same_files_in_every_folder(name, tmp_path, monkeypatch):
    here = CONFIGS[name].get_config("tiny")
    monkeypatch.chdir(tmp_path)
    assert CONFIGS[name].get_config("tiny") == here
    assert Path(here.grpo.reference_path or here.model.path, "config.json").is_file()
    assert world_rows.is_used(here) == (name != "sft")
    assert here.data.world in ("", common.WORLD) and Path(common.WORLD).is_absolute()
    assert not list(tmp_path.iterdir())


def test_the_world_is_below_the_users_cache(tmp_path, monkeypatch):
    path = common.__file__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runpy.run_path(path)["WORLD"] == str(tmp_path / "currreft_jax/world")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runpy.run_path(path)["WORLD"] == str(tmp_path / ".cache/currreft_jax/world")


@pytest.mark.parametrize("own", [False, True])
def test_the_world_is_drawn_for_runs_that_read_it_alone(tmp_path, monkeypatch, own):
    drawn = []
    monkeypatch.setattr(world_rows, "ensure_world", lambda folder, log: drawn.append(folder))
    monkeypatch.setattr(trainer, "refuse_missing_rows", lambda _: None)
    monkeypatch.setattr(trainer, "refuse_differing_files", lambda _: crash())
    config = stage1.get_config("tiny")
    if own:
        (tmp_path / "own.jsonl").touch()
        config.stages[0].sources = config.stages[0].held_out = [Source(str(tmp_path / "own.jsonl"))]
    with pytest.raises(RuntimeError, match="a crash"):
        trainer.run(config, tmp_path / "run")
    assert drawn == ([] if own else [Path(common.WORLD)])


def test_ctrl_c_ends_a_run_that_draws_the_world_at_once(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    monkeypatch.setattr(world_rows, "ensure_world", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(trainer, "refuse_missing_rows", lambda _: crash())
    with pytest.raises(KeyboardInterrupt):
        trainer.run(stage1.get_config("tiny"), tmp_path / "run")
    signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run").exists()


def test_only_a_folder_that_was_made_for_a_run_and_is_empty_is_removed(tmp_path):
    (tmp_path / "there").mkdir()
    for name, is_removed in (("new", True), ("used", False), ("there", False)):
        with pytest.raises(RuntimeError, match="a crash"), trainer.only_run(tmp_path / name):
            if name == "used":
                (tmp_path / name / "shapes.json").touch()
            crash()
        assert (tmp_path / name).exists() != is_removed


def test_a_machine_without_accelerator_gets_the_tiny_variant(monkeypatch, capsys):
    monkeypatch.setattr(common, "_ACCELERATORS", ())
    assert sft.get_config(None).name == "sft-tiny"
    assert "variant tiny" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"variant 3b needs an accelerator.*cuda12.*_jax\.plan` checks"):
        sft.get_config("3b")
    with pytest.raises(ValueError, match="no variant '13b'; nearest: 3b"):
        sft.get_config("13b")


def test_a_machine_with_an_accelerator_gets_the_papers_settings(monkeypatch):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    config = sft.get_config(None)
    validate(config)
    assert (config.name, config.model.max_pixels, config.optimizer.learning_rate) == ("sft-3b", 401_408, 1e-6)
    assert sft.get_config("7b").model.path.endswith("7B-Instruct")


def test_the_curriculum_reads_the_files_of_the_recipe(monkeypatch):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    config = curriculum.get_config("3b")
    validate(config)
    page = Path("docs/data.md").read_text()
    assert f"--out {common.ROWS}" in page
    assert "`train/{judge,choice,open}-{detection,classify,math}.jsonl`" in page and "`test/in-{detection," in page
    files = [[source.file for source in stage.sources] for stage in config.stages]
    assert files[0] == [f"rows/paper/train/judge-{task}.jsonl" for task in ("detection", "classify", "math")]
    assert "`test/in-{judge,choice}-{detection," in page
    held_out = [stage.held_out[0].file for stage in config.stages[:3]]
    assert held_out == [f"rows/paper/test/in-{kind}detection.jsonl" for kind in ("judge-", "choice-", "")]
    assert [stage.steps for stage in config.stages] == [600, 500, 2500, 2000]
    assert (config.data.batch_size, config.sampling.group_size, config.optimizer.learning_rate) == (8, 4, 2e-5)
    assert config.model.max_pixels == 401_408
    assert rl.get_config("3b").stages[0].steps == 2500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "stages", []), r"config\.stages is \[\]; it takes at least one stage"),
        (lambda c: setattr(c.stages[0], "steps", 0), r"config\.stages\[0\]\.steps is 0; it takes 1 or more"),
        (lambda c: setattr(c.stages[0], "replay", 0.5), r"stages\[0\]\.replay is 0\.5; it takes 0 in the first stage"),
        (lambda c: setattr(c.stages[0].sources[0], "weight", 0), r"sources\[0\]\.weight is 0; it takes a positive"),
        (lambda c: setattr(c.data, "prompt_lengths", (64, 32)), r"data\.prompt_lengths .* it takes rising lengths"),
        (lambda c: setattr(c.model, "dtype", "float16"), r"model\.dtype is float16; it takes bfloat16 or float32"),
        (lambda c: setattr(c.optimizer, "warmup", 1.0), r"optimizer\.warmup is 1\.0; it takes a share"),
        (lambda c: setattr(c, "microbatches", 0), r"microbatches is 0; it takes 1 or more"),
        (lambda c: setattr(c, "seed", -1), r"config\.seed is -1; it takes 0 to 2147483647"),
        (lambda c: setattr(c.stages[0], "kinds", ("open",)), r"kinds\[0\] is 'open'; it takes one of judge, "),
        (lambda c: setattr(c.data, "keep_pass_rates", (0.5,)), r"keep_pass_rates is \(0\.5,\); it takes two rising"),
        (lambda c: setattr(c, "microbatches", 5), r"microbatches is 5; it takes a divisor of data\.batch_size"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    config = sft.get_config("tiny")
    change(config)
    with pytest.raises(ValueError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    quick(
        [
            ([], "--config is missing"),
            (["--config=configs/sft.py:tiny", "extra"], "extra is no flag"),
            (["--config=configs/sft.py:tiny", "--config.data.batch_size=0"], "data.batch_size is 0"),
            (
                ["--config=configs/sft.py:tiny", "--rows=README.md", "--config.model.path=nowhere"],
                "nowhere is neither a folder nor",
            ),
            (["--config=configs/sft.py:tiny", "--config.data.bach_size=8"], "bach_size"),
            (
                ["--config=configs/sft.py:tiny", "--workdir=gs://bucket/run"],
                "train: gs://bucket/run is not a local path",
            ),
        ],
    ),
)
def test_command_line_errors_are_named(arguments, message, tmp_path):
    command = [sys.executable, "-m", "currreft_jax.train", f"--workdir={tmp_path}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode != 0
    assert message in done.stderr


def test_truncated_lines_and_later_steps_are_dropped(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 4')
    with Metrics(tmp_path, Logging(), name="run", step=2, steps=4, writes=True) as metrics:
        metrics.write({"step": 3, "stage": "one", "loss": 0.5})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 1), (3, 0.5)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_time_left_is_not_that_of_the_first_step_and_lines_stand_above_the_bar(tmp_path, capsys):
    with Metrics(tmp_path, Logging(tensorboard=False), name="run", step=2, steps=9, writes=True) as metrics:
        time.sleep(0.05)
        metrics.advance()
        say("a line")
        metrics.advance()
    shown = capsys.readouterr().err.split("\r")
    assert any("3/9 [00:00<?, ?step/s]" in part for part in shown)
    assert "train: a line\n" in shown and "4/9" in shown[-1]


def test_the_rate_on_the_bar_is_that_of_steps_alone(tmp_path):
    settings = Logging(tensorboard=False)
    with Metrics(tmp_path, settings, name="run", step=0, steps=9, writes=True) as metrics:
        metrics.advance()
        begun = metrics._bar.start_t
        with metrics.paused_bar():
            time.sleep(0.2)
        assert metrics._bar.start_t - begun >= 0.2
        assert metrics._bar.last_print_t >= metrics._bar.start_t
    with Metrics(tmp_path, settings, name="run", step=0, steps=9, writes=False) as metrics, metrics.paused_bar():
        pass


def test_reasons_beyond_the_most_that_a_stage_counts_apart_are_counted_together(tmp_path):
    first = {f"parse/off by {n}": 0.02 if n < 20 else 0.01 for n in range(29, -1, -1)}
    first |= {"parse/truncated": 0.1, "parse/other": 0.2}
    second = {f"parse/off by {n}": 0.01 for n in (0, 29, 40)} | {"parse/bad_json": 0.3, "reward": 1.0}
    for step, line in enumerate((first, second)):  # a resumed run counts the same ones apart
        with Metrics(tmp_path, Logging(tensorboard=False), name="run", step=step, steps=4, writes=True) as metrics:
            metrics.write({"step": step + 1, "stage": "one", **line})
    one, two = read_metrics(tmp_path / "metrics.jsonl")
    most_frequent = {f"parse/off by {n}" for n in range(20)}
    assert one.keys() == most_frequent | {"step", "stage", "parse/truncated", "parse/other"}
    assert one["parse/other"] == pytest.approx(0.2 + 10 * 0.01)
    others = {"step": 2, "stage": "one", "parse/bad_json": 0.3, "reward": 1.0}
    assert two == others | {"parse/off by 0": 0.01, "parse/other": 0.02}


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"stp": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: no line of metrics"):
        Metrics(tmp_path, Logging(), name="run", step=2, steps=4, writes=True)
