"""A run started by one process, continued by two and finished by one: the same rows, losses and weights."""

import os
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from currreft_jax.runtime.metrics import Metrics
from currreft_jax.training import trainer
from tests.test_processes import START, run_two_processes
from tests.test_train import config_of, finished_run, logged_metrics, rows

__all__ = ["finished_run", "rows"]

PROGRAM = (
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
    assert not run_two_processes(checkpoint, tmp_path, PROGRAM.replace("ROWS", str(rows))).any()
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
