"""Metrics and records of scored rollouts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.evaluation.held_out import HeldOut
from currreft_jax.evaluation.scoring import ScoredRollout, report_failures
from currreft_jax.sampling.completions import Completions
from currreft_jax.structs import Completion, Reason, RewardFailure, Row, Scores
from currreft_jax.training import records
from currreft_jax.training.records import answer_records, rollout_metrics, rollout_values, write_records

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


def test_spreads_are_those_of_the_groups_and_means_those_of_all_completions():
    values = {
        "reward": np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
        "length": np.array([[3, 5], [4, 8], [2, 2]]),
        "finished": np.array([[True, False], [True, True], [True, True]]),
        "reason": np.full((3, 2), ""),
        "task": np.array([list(Task).index(task) for task in (Task.MATH, Task.DETECTION, Task.DETECTION)]),
    }
    metrics = rollout_metrics(values)
    assert metrics.pop("reward_std") == pytest.approx(0.5**0.5 / 3)  # of 2 and 1, over G - 1; the others have none
    assert metrics.pop("frac_reward_zero_std") == pytest.approx(2 / 3)
    assert metrics.pop("completions/clipped_ratio") == pytest.approx(1 / 6)
    assert metrics == pytest.approx(
        {
            **{"reward": 5 / 6, "reward/math": 1.5, "reward/detection": 0.5},
            **{"completions/mean_length": 4.0, "completions/min_length": 2.0, "completions/max_length": 8.0},
        }
    )


def test_answers_to_64_rows_over_all_hosts_are_recorded_once_and_spread_evenly(monkeypatch):
    """Two hosts answer 201 rows in batches of 50, the first 101 of them, the second 100 and the last one again."""
    monkeypatch.setattr(records, "row_record", lambda config, example: {"id": example})
    monkeypatch.setattr(records.jax, "process_count", lambda: 2)

    def answers_of(host: int) -> list[dict]:
        monkeypatch.setattr(records.jax, "process_index", lambda: host)
        examples = tuple(min(2 * turn + host, 200) for turn in range(101))
        held_out, recorded = HeldOut("one", 0, examples, rows=201), []
        for first in (0, 50, 100):
            answered = examples[first : first + 50]
            texts = [[Completion(f"answer {row}", 2)] for row in answered] + [[Completion("padding", 1)]] * 5
            total = np.array([[row / 100] for row in answered])
            reasons = {"accuracy": np.array([["not_equal" if row < 100 else None] for row in answered], object)}
            scores = Scores(total, {"accuracy": total, "mine": np.full_like(total, np.nan)}, reasons)
            completions = Completions(texts, np.zeros(0), np.zeros(0))
            recorded += answer_records(None, held_out, first, ScoredRollout(completions, scores))
        return recorded

    found = sorted(answers_of(0) + answers_of(1), key=lambda answer: answer["index"])
    indices = [answer["index"] for answer in found]
    assert indices == [answer["row"]["id"] for answer in found] == np.linspace(0, 200, 64).astype(int).tolist()
    assert found[0]["answer"] == {
        "text": "answer 0",
        "finished": True,
        "reward": 0.0,
        "parts": {"accuracy": 0.0},
        "reasons": {"accuracy": "not_equal"},
    }
    assert (found[-1]["held_out"], found[-1]["answer"]["text"]) == ("one", "answer 200")
    assert found[-1]["answer"]["reasons"] == {}


def test_records_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_records(tmp_path / "held_out" / "3.jsonl", [{"id": "é"}])
    assert path.read_text("utf-8") == '{"id": "é"}\n'

    def interrupted(self, text, encoding):
        self.write_bytes(text.encode()[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(OSError, match="no space"):
        write_records(path, [{"id": "b"}])
    assert path.read_text("utf-8") == '{"id": "é"}\n'
