"""Two processes of four devices each learn what one process learns: the same completions, rewards, losses and looks."""

import json

import numpy as np

from currreft_jax.config import Config, Source
from currreft_jax.training import trainer
from currreft_jax.training.curriculum import ForgettingMatrix
from tests.test_grpo import config_of, rows, told
from tests.test_processes import START, together

__all__ = ["rows"]

PROGRAM = (
    START
    + """
from currreft_jax.training import trainer
from tests.test_grpo_processes import looking

print(json.dumps([trainer.run(looking(Path(source), Path("ROWS")), Path(out)) is not None]))
"""
)


def looking(checkpoint, rows) -> Config:
    config = config_of(checkpoint, rows, steps=2)
    config.stages[0].held_out = [Source(str(rows), sample="first:7")]  # which two hosts cannot share evenly
    return config


def test_two_processes_learn_what_one_does(checkpoint, rows, tmp_path):
    assert trainer.run(looking(checkpoint, rows), tmp_path / "one")
    assert together(checkpoint, tmp_path / "two", PROGRAM.replace("ROWS", str(rows))).all()
    for ours, theirs in zip(told(tmp_path / "two"), told(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("reward", "reward_std", "completions/mean_length", "num_tokens", "learnt_tokens"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, err_msg=name)
        for name in ("loss", "kl", "entropy", "grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)
    seen = [ForgettingMatrix(tmp_path / name / trainer.MATRIX, writes=False).history for name in ("two", "one")]
    assert [(it.rows, it.reward, it.greedy) for it in seen[0]] == [(it.rows, it.reward, it.greedy) for it in seen[1]]

    def drawn(folder, names):
        rows = [json.loads(line) for name in names for line in (folder / "rollouts" / name).read_text().splitlines()]
        return {row["id"]: [it["text"] for it in row["completions"]] for row in rows}

    assert drawn(tmp_path / "two", ["1-0.jsonl", "1-1.jsonl"]) == drawn(tmp_path / "one", ["1.jsonl"])
