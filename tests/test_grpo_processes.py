"""Two processes with four devices each train as one process does: completions, rewards, losses and evaluations."""

import json

import numpy as np
import pytest

from currreft_jax.config import Config, Source
from currreft_jax.training import trainer
from currreft_jax.training.curriculum import ForgettingMatrix
from tests.test_grpo import config_of, logged_metrics, rows
from tests.test_processes import START, run_two_processes

__all__ = ["rows"]

PROGRAM = (
    START
    + """
from currreft_jax.training import trainer
from tests.test_grpo_processes import evaluating_config

print(json.dumps([trainer.run(evaluating_config(Path(source), Path("ROWS")), Path(out)) is not None]))
"""
)


def evaluating_config(checkpoint, rows) -> Config:
    config = config_of(checkpoint, rows, steps=2)
    config.data.batch_size = 4  # two data shards a group
    config.stages[0].held_out = [Source(str(rows), sample="first:7")]  # two hosts cannot share 7 rows evenly
    return config


@pytest.mark.slow
def test_two_processes_train_as_one(checkpoint, rows, tmp_path):
    assert trainer.run(evaluating_config(checkpoint, rows), tmp_path / "one")
    assert run_two_processes(checkpoint, tmp_path / "two", PROGRAM.replace("ROWS", str(rows))).all()
    for ours, theirs in zip(logged_metrics(tmp_path / "two"), logged_metrics(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("reward", "reward_std", "completions/mean_length", "num_step_tokens", "num_loss_tokens"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, err_msg=name)
        for name in ("loss", "kl", "entropy", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)
    histories = [ForgettingMatrix(tmp_path / name / trainer.MATRIX, writes=False).history for name in ("two", "one")]
    two, one = ([(entry.rows, entry.reward, entry.greedy) for entry in history] for history in histories)
    assert two == one

    def completion_texts(folder, names):
        rows = [json.loads(line) for name in names for line in (folder / "rollouts" / name).read_text().splitlines()]
        return {row["id"]: [completion["text"] for completion in row["completions"]] for row in rows}

    two, one = tmp_path / "two", tmp_path / "one"
    assert completion_texts(two, ["1-0.jsonl", "1-1.jsonl"]) == completion_texts(one, ["1.jsonl"])
