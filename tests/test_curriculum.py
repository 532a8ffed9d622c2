"""The decisions of the curriculum, by hand."""

import dataclasses

import pytest

from currreft_jax.evaluation.measurement import Measurement, pass_interval, regressed_from
from currreft_jax.training.curriculum import ForgettingMatrix, is_promoted

SEEN = Measurement("stage1", 10, "stage1", 100, 1.5, 0.05, 0.8, 0.9, 80)


def test_wilsons_interval():
    # Agresti & Coull's example of 0 and 10 of 10, and R's prop.test(80, 100, correct=FALSE)
    assert pass_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert pass_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-4)
    assert pass_interval(80, 100) == pytest.approx((0.7111708, 0.8666331), abs=1e-4)


def test_promotion_wants_confidence():
    assert is_promoted(SEEN, 0.7)
    assert not is_promoted(SEEN, 0.75)
    assert not is_promoted(SEEN, 1.0)
    assert not is_promoted(dataclasses.replace(SEEN, passed=None), 0.0)


def test_a_stage_falls_only_beyond_chance_and_against_its_own_best():
    worse = dataclasses.replace(SEEN, stage="stage2", reward=1.3)
    assert regressed_from([SEEN, dataclasses.replace(SEEN, reward=1.4)], worse) == SEEN
    assert regressed_from([SEEN], dataclasses.replace(worse, reward=1.37)) is None
    assert regressed_from([dataclasses.replace(SEEN, held_out="other")], worse) is None
    assert regressed_from([], worse) is None


def test_the_matrix_is_kept_in_a_file_and_goes_back(tmp_path):
    path = tmp_path / "curriculum.json"
    matrix = ForgettingMatrix(path, writes=True)
    base = dataclasses.replace(SEEN, stage="", step=0, reward=1.0, greedy=1.2)
    matrix.add([base])
    matrix.add([SEEN])
    matrix.add([dataclasses.replace(SEEN, step=20)])
    again = ForgettingMatrix(path, writes=True)
    assert again.history == matrix.history and again.has("stage1", 20) and len(again) == 3
    again.resume_from("stage1", 10)
    assert again.has("", 0) and again.has("stage1", 10) and not again.has("stage1", 20)
    lines = again.table().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["base", "stage1"]
    assert "1.000 ± 0.098 (1.200), 0.90" in lines[1]
    path.write_text('{"measured": [{"stage": "x"}]}')
    with pytest.raises(ValueError, match=r"curriculum\.json is damaged"):
        ForgettingMatrix(path, writes=True)
