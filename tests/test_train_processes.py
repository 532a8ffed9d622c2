"""A run that one process began is continued by two, and ended by one: the same rows, losses and weights."""

import os
import signal

import numpy as np
from safetensors.numpy import load_file

from currreft_jax.runtime.metrics import Metrics
from currreft_jax.training import trainer
from tests.test_processes import START, together
from tests.test_train import config_of, rows, told, whole

__all__ = ["rows", "whole"]

PROGRAM = (
    START
    + """
from currreft_jax.training import trainer
from currreft_jax.runtime.checkpoint import Checkpoints
from tests.test_train import config_of

Checkpoints.preempted = lambda self, call: call == 2  # after step 4, as when the scheduler takes the machines back
finished = trainer.run(config_of(Path(source), Path("ROWS")), Path(out))
print(json.dumps([finished is not None]))
"""
)


def test_one_process_then_two_then_one(whole, checkpoint, rows, tmp_path, monkeypatch):
    config = config_of(checkpoint, rows)
    advance = Metrics.advance

    def interrupting(self):
        advance(self)
        if len(told(tmp_path)) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "advance", interrupting)
        assert trainer.run(config, tmp_path) is None
    assert [line["step"] for line in told(tmp_path)] == [1, 2]
    assert not together(checkpoint, tmp_path, PROGRAM.replace("ROWS", str(rows))).any()
    assert [line["step"] for line in told(tmp_path)] == [1, 2, 3, 4]
    assert trainer.run(config, tmp_path) == tmp_path / "model"

    for ours, theirs in zip(told(tmp_path), told(whole), strict=True):
        assert ours["learnt_tokens"] == theirs["learnt_tokens"] and ours["num_tokens"] == theirs["num_tokens"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, whole))
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], atol=1e-4, err_msg=name)
