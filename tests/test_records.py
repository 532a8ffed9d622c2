"""Metrics and records of scored rollouts."""

from types import SimpleNamespace

import numpy as np

from currreft_jax.config import Kind, Task
from currreft_jax.evaluation.scoring import report_failures
from currreft_jax.structs import Reason, RewardFailure, Row, Scores
from currreft_jax.training.records import rollout_metrics, rollout_values

OWN = "my_rewards:within"


def test_a_failure_is_printed_once_for_each_line_of_a_rewards_code(capsys):
    failures = [
        RewardFailure("my:within", f"printed_once.py:{line}", "", f"row {row}") for row, line in enumerate([3, 3, 7])
    ]
    report_failures(failures)
    report_failures(failures)
    assert capsys.readouterr().err.splitlines() == [
        f"rewards: counts as 0, as will more of its kind: row {row}" for row in (0, 2)
    ]


def test_rewards_that_do_not_apply_are_left_out_of_means_and_failures_are_counted():
    examples = [SimpleNamespace(row=Row(task.value, task, Kind.OPEN, "?", "1")) for task in (Task.MATH, Task.OTHER)]
    parts = {
        "accuracy": np.array([[1.0, 0.0], [np.nan, np.nan]]),
        OWN: np.array([[np.nan, np.nan], [0.0, 0.0]]),
        "overlong": np.full((2, 2), np.nan),
    }
    reasons = {name: np.full((2, 2), None, object) for name in parts}
    reasons["accuracy"][0, 1] = Reason.NOT_EQUAL
    reasons[OWN][1] = [Reason.REWARD_FAILED, "off the mark"]
    scores = Scores(np.array([[1.0, 0.0], [0.0, 0.0]]), parts, reasons)
    completions = SimpleNamespace(lengths=np.full((2, 2), 3), finished=np.full((2, 2), True))
    values = rollout_values(examples, SimpleNamespace(scores=scores, completions=completions))
    metrics = rollout_metrics(values)
    assert metrics["rewards/accuracy/mean"] == 0.5
    assert metrics[f"rewards/{OWN}/mean"] == 0
    assert "rewards/overlong/mean" not in metrics
    assert metrics[f"rewards/{OWN}/failed"] == 0.25
    parsed = {name: value for name, value in metrics.items() if name.startswith("parse/")}
    assert parsed == {"parse/not_equal": 0.25, "parse/reward_failed": 0.25, "parse/off the mark": 0.25}
    other = Scores(scores.total, parts, {name: np.full((2, 2), None, object) for name in parts})
    of_another_host = rollout_values(examples, SimpleNamespace(scores=other, completions=completions))
    assert {name: x.dtype for name, x in of_another_host.items()} == {name: x.dtype for name, x in values.items()}
