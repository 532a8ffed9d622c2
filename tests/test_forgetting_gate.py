"""The forgetting gate: when held-out rows have fallen, which model is kept, and that the file holds the decision."""

import dataclasses
import json

import numpy as np
import pytest

from currreft_jax.evaluation.measurement import LossMeasurement, Measurement
from currreft_jax.evaluation.statistics import newcombe_interval
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.forgetting_gate import GateDecision, decide, reward_change, start_measurements

ROWS = 40


def measured(stage: str, step: int, right: int, held_out: str = "one", scale: float = 2.0) -> Measurement:
    """Rows that earn a reward of `scale` or nothing, the first ones right."""
    rewards = tuple([scale] * right + [0.0] * (ROWS - right))
    mean = sum(rewards) / ROWS
    return Measurement(stage, step, held_out, ROWS, mean, 0.1, None, None, None, rewards=rewards)


def test_a_fall_is_beyond_the_margin_and_significant():
    before = measured("one", 9, 30)
    change = reward_change(before, measured("two", 5, 20), margin=0.1)
    interval = newcombe_interval(10, 0, 10, 20)  # both wrong, only the second right, only the first right, both right
    assert change.difference == pytest.approx(-0.5)  # 10 of 40 rows, of a reward of 2
    assert change.interval == pytest.approx((2 * interval.low, 2 * interval.high)) and interval.high < 0
    assert change.fallen
    assert not reward_change(before, measured("two", 5, 20), margin=0.5).fallen  # not beyond the margin
    slightly = reward_change(before, measured("two", 5, 29), margin=0.0)
    assert slightly.difference < 0 < slightly.interval.high and not slightly.fallen  # not significant
    assert not reward_change(before, measured("two", 5, 40), margin=0.0).fallen
    same = reward_change(before, before, margin=0.0)
    assert same.difference == 0 and not same.fallen
    constant = reward_change(measured("one", 9, ROWS), measured("two", 5, ROWS), margin=0.0)
    assert (constant.difference, constant.interval, constant.fallen) == (0.0, None, False)


def test_rows_are_paired_not_pooled():
    """Ten rows fall and nine rise: the same means with the same rows falling alone are significant."""
    before, now = measured("one", 9, 30), measured("two", 5, 0)
    swapped = dataclasses.replace(now, rewards=(*[0.0] * 10, *[2.0] * 20, *[2.0] * 9, 0.0))
    assert not reward_change(before, swapped, margin=0.0).fallen
    fallen = dataclasses.replace(now, rewards=(*[0.0] * 6, *[2.0] * 24, *[0.0] * 10))
    assert reward_change(before, fallen, margin=0.0).fallen


def test_graded_rewards_and_rows_of_one_image_are_compared_by_image():
    rng = np.random.default_rng(0)
    before = tuple(map(float, rng.uniform(-0.5, 2.0, ROWS)))  # a penalty may be below 0
    now = tuple(x - 0.3 + float(noise) for x, noise in zip(before, rng.normal(0, 0.2, ROWS), strict=True))
    first, second = (dataclasses.replace(measured("x", 1, 0), rewards=rewards) for rewards in (before, now))
    alone = reward_change(first, second, margin=0.1)
    assert alone.fallen and alone.difference == pytest.approx(np.mean(now) - np.mean(before))
    two_images = reward_change(first, second, 0.1, ["a"] * 20 + ["b"] * 20)
    assert two_images.interval is None and not two_images.fallen  # two clusters decide nothing


def test_the_start_is_the_last_measurement_before_the_stage_or_its_own():
    history = [measured("", 0, 10), measured("one", 5, 20), measured("one", 9, 30), measured("two", 4, 12)]
    assert start_measurements(history, "two") == [history[2]]
    own = measured("two", 0, 25)
    assert start_measurements([*history, own], "two") == [own]
    assert start_measurements([dataclasses.replace(history[0], rewards=None)], "two") == []  # of an earlier version
    assert start_measurements([], "two") == []


def decide_on(rewards: dict[int, tuple[int, int]], saved: tuple[int, ...] = (2, 4, 6)) -> GateDecision:
    """Decides on rows of two sets that are right at each step; step 0 is the end of stage one."""
    history = [
        measured("two" if step else "one", step or 9, right, name)
        for step, both in rewards.items()
        for name, right in zip(("one", "two"), both, strict=True)
    ]
    return decide(history, "two", 0.1, saved, {"one": (), "two": ()})


def test_the_end_is_kept_unless_a_set_has_fallen():
    assert decide_on({0: (30, 30), 2: (40, 40), 4: (10, 10), 6: (29, 31)}).kept_step == 6
    assert decide_on({0: (30, 30), 2: (31, 31), 6: (40, 15)}).kept_step == 2  # a rise elsewhere does not make up


def test_the_best_of_the_steps_that_have_not_fallen_is_kept():
    steps = {0: (30, 30), 2: (31, 31), 4: (33, 33), 6: (10, 30)}
    assert decide_on(steps).kept_step == 4
    assert decide_on(steps, saved=(2, 6)).kept_step == 2  # step 4 has no checkpoint
    assert decide_on({**steps, 4: (40, 23)}).kept_step == 2  # has the highest mean, but has fallen
    assert decide_on({**steps, 2: (29, 29), 4: (28, 28)}).kept_step == 0  # none is better than the start
    decision = decide_on(steps)
    assert [change.fallen for change in decision.changes] == [True, False]
    assert "step 6 against its start: one -1.000 (" in str(decision) and "fallen; two +0.000" in str(decision)
    assert str(decision).endswith(": the model is that of step 4")
    assert str(decide_on({**steps, 2: (29, 29), 4: (28, 28)})).endswith(": the model is that of its start")


def test_losses_and_decisions_are_saved_and_resumed(tmp_path):
    path = tmp_path / "curriculum.json"
    matrix = ForgettingMatrix(path, writes=True)
    matrix.add([measured("", 0, 30), measured("two", 6, 10)])
    for step, loss in ((0, 1.25), (4, 1.125), (6, 1.0)):
        matrix.add_loss(LossMeasurement("two", step, 7, loss))
    for right in (20, 10):
        decision = decide([measured("", 0, 30), measured("two", 6, right)], "two", 0.1, (), {"one": ()})
        matrix.decide(decision)
    resumed = ForgettingMatrix(path, writes=True)
    assert (resumed.history, resumed.losses, resumed.decisions) == (matrix.history, matrix.losses, [decision])
    lines = resumed.table().splitlines()
    assert "loss of the held-out rows of two: 1.2500 at step 0, 1.1250 at step 4, 1.0000 at step 6" in lines
    assert lines[-1] == str(decision)
    resumed.resume_from("two", 4)
    assert [loss.step for loss in resumed.losses] == [0, 4] and [one.step for one in resumed.history] == [0]
    content = json.loads(path.read_text())
    assert set(content["measured"][0]) == {field.name for field in dataclasses.fields(Measurement)}
    del content["losses"], content["decisions"], content["measured"][0]["rewards"]
    path.write_text(json.dumps(content))  # as an earlier version wrote it
    assert ForgettingMatrix(path, writes=False).history[0].rewards is None
