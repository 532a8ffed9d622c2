"""The chain of three stages of GRPO, rejected sampling and fine-tuning, killed in each of the five."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from currreft_jax.config import (
    Config,
    Logging,
    MeshShape,
    Method,
    Optimizer,
    QuotaSource,
    Rejection,
    Sampling,
    Source,
    Stage,
    validate,
)
from currreft_jax.training.curriculum import ForgettingMatrix
from tests.test_grpo import config_of, logged_metrics, rows

__all__ = ["rows"]

STAGES = ("one", "two", "three", "self_improve")
FILES = ("curriculum.json", "reject/kept.jsonl", "reject/held_out.jsonl", "self_improve/model/model.safetensors")
FILES += ("one/held_out/0.jsonl", *(f"{stage}/held_out/2.jsonl" for stage in STAGES))
# Forks a run of the whole chain, then for each named phase one that kills itself within it, then one that ends.
PROGRAM = """
import os, signal, sys
from functools import partial
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from currreft_jax.rejection.runner import reject
from currreft_jax.training import rejected_samples, trainer
from tests.rejection.fakes import FakeAnswerer, FakeJudge
from tests.test_self_improvement import chain_of

checkpoint, rows, folder = map(Path, sys.argv[1:4])
take_step = trainer.take_step

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def step_of(phase, stage, state, examples, step):
    if (stage.context.stage.name, step) == (phase, 2):
        die()
    return take_step(stage, state, examples, step)

def score_of(phase, row, sample):
    if (phase, row) == ("reject", "r12"):
        die()
    return 90.0 if row != "r3" else 10.0

def open_answerer(settings, *_):
    assert settings.path.endswith("three/model"), settings
    return FakeAnswerer(group_size=2)

def run(workdir, phase):
    child = os.fork()
    if not child:
        trainer.take_step = partial(step_of, phase)
        judge = FakeJudge(partial(score_of, phase))
        rejected_samples.reject = partial(reject, open_answerer=open_answerer, open_judge=lambda *_, **__: judge)
        os._exit(0 if trainer.run(chain_of(checkpoint, rows), workdir) else 1)
    status = os.waitpid(child, 0)[1]
    wanted = -signal.SIGKILL if phase else 0
    assert os.waitstatus_to_exitcode(status) == wanted, (phase, status)

run(folder / "whole", None)
for phase in (*sys.argv[5:], None):
    run(folder / "killed", phase)
"""


def chain_of(checkpoint: Path, rows: Path) -> Config:
    """Two steps a stage, saved at every step, and rejected sampling of all rows."""
    logging = Logging(log_every=1, save_every=1, keep_last=1, rollouts_every=1, tensorboard=False, evaluate_rows=4)
    config = config_of(checkpoint, rows, 2, mesh=MeshShape(data=1, fsdp=1), logging=logging)
    config.data.slots, config.data.completion_lengths = (8,), (48,)  # one device holds all rows
    rejection = Rejection(
        sources=[QuotaSource("rows", Source(str(rows)))],
        require_rules=False,
        max_samples=2,
        calibration_rows=0,
        held_out=0.2,
        max_pixels=0,
        sampling=Sampling(group_size=2, temperature=1.0),
    )
    grpo = [Stage(name, [Source(str(rows))], 2) for name in STAGES[:3]]
    grpo[0].held_out = [Source(str(rows), sample="first:4")]
    last = Stage(
        "self_improve",
        steps=2,
        method=Method.SFT,
        batch_size=4,
        optimizer=Optimizer(learning_rate=1e-3),
        rejection=rejection,
        forgetting_margin=0.0,
    )
    config.stages = [*grpo, last]
    return config


def test_the_chain_is_valid(checkpoint, rows):
    validate(chain_of(checkpoint, rows))


@pytest.mark.slow
def test_a_chain_killed_in_each_of_its_five_parts_ends_as_one_that_was_not(checkpoint, rows, tmp_path):
    arguments = [checkpoint, rows, tmp_path, jax.config.jax_compilation_cache_dir, *STAGES[:3], "reject", STAGES[3]]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    for stage in STAGES:
        lines = logged_metrics(killed / stage)
        assert [line["step"] for line in lines] == [1, 2] and lines == logged_metrics(whole / stage)
    assert '"id": "rows/r3"' not in (whole / "reject" / "kept.jsonl").read_text()
    matrix = ForgettingMatrix(whole / "curriculum.json", writes=False)
    assert [(one.stage, one.step) for one in matrix.losses] == [("self_improve", 0), ("self_improve", 2)]
    assert matrix.losses[1].loss < matrix.losses[0].loss
    assert [(one.stage, one.last_step) for one in matrix.decisions] == [("self_improve", 2)]
    measured = [(one.stage, one.step) for one in matrix.history]  # the start of the last stage is the end of the third
    assert measured == [("", 0), *((stage, 2) for stage in STAGES)]
    assert (whole / "self_improve" / "config.json").exists() and not list(whole.glob("self_improve/rollouts/*"))
