"""The reward and the rows of the gauge task: `pytest examples/gauge`."""

import random

import pytest

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.data.row_files import RowFile
from currreft_jax.rewards import check_rows, score_completions
from currreft_jax.structs import Completion, Row
from examples.gauge.config import get_config
from examples.gauge.make_rows import write_rows

GAUGE = Row("g", Task.OTHER, Kind.OPEN, "What does it show?", "7.0", extra={"tolerance": 0.5})


@pytest.mark.parametrize(
    ("text", "total", "reason"),
    [
        ("<think>near 7</think> <answer>7.4</answer>", 2, None),
        ("<answer>6.5</answer>", 1, None),  # right, in the wrong layout
        ("<think>near 8</think> <answer>8</answer>", 1, "out of tolerance"),
        ("<think>near 7</think> <answer>about 7</answer>", 1, "not a number"),
        ("<think>near 7</think> <answer>nan</answer>", 1, "out of tolerance"),
        ("7", 0, "no_answer_tag"),
    ],
)
def test_the_reward(text, total, reason):
    weights = {"format": 1.0, "examples.gauge.reward:within_tolerance": 1.0}
    scores = score_completions([GAUGE], [[Completion(text)]], Rewards(weights=weights))
    assert scores.total.tolist() == [[total]]
    assert scores.reasons["examples.gauge.reward:within_tolerance"].tolist() == [[reason]]


def test_the_config_scores_the_rows(tmp_path):
    write_rows(tmp_path, "train", 20, random.Random(0))
    with RowFile(tmp_path / "train.jsonl") as file:
        rows = [file[index] for index in range(len(file))]
    assert check_rows(rows, get_config("tiny").rewards) == []
    assert {row.extra["tolerance"] for row in rows} == {1.0, 2.0}
