"""Held-out measurements and the decisions of the curriculum, against values by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from currreft_jax.config import Config, Data, Rewards, Sampling, Source, Stage, SuiteDomain
from currreft_jax.evaluation import held_out
from currreft_jax.evaluation.held_out import HeldOut
from currreft_jax.evaluation.measurement import Measurement, regressed_from
from currreft_jax.evaluation.scoring import ScoredRollout
from currreft_jax.structs import Scores
from currreft_jax.training import evaluator
from currreft_jax.training.batches import StageContext
from currreft_jax.training.curriculum import ForgettingMatrix, is_promoted
from currreft_jax.training.held_out_loss import LossRows

BEST = Measurement("stage1", 10, "stage1", 100, 1.5, 0.05, 0.8, 0.9, 80)


def test_promotion_requires_confidence():
    assert is_promoted(BEST, 0.7)
    assert not is_promoted(BEST, 0.75)
    assert not is_promoted(BEST, 1.0)
    assert not is_promoted(dataclasses.replace(BEST, passed=None), 0.0)


def test_regressions_are_significant_drops_from_the_best_measurement():
    worse = dataclasses.replace(BEST, stage="stage2", reward=1.3)
    assert regressed_from([BEST, dataclasses.replace(BEST, reward=1.4)], worse) == BEST
    assert regressed_from([BEST], dataclasses.replace(worse, reward=1.37)) is None
    # Beyond 1.96 times the root of the summed squares, 0.139, and within 1.96 times the summed errors, 0.196.
    assert regressed_from([BEST], dataclasses.replace(worse, reward=1.34)) == BEST
    assert regressed_from([dataclasses.replace(BEST, held_out="other")], worse) is None
    assert regressed_from([], worse) is None


def test_the_matrix_is_saved_and_resumed(tmp_path):
    path = tmp_path / "curriculum.json"
    matrix = ForgettingMatrix(path, writes=True)
    base = dataclasses.replace(BEST, stage="", step=0, reward=1.0, greedy=1.2)
    matrix.add([base])
    matrix.add([BEST])
    matrix.add([dataclasses.replace(BEST, step=20, own={"my:own": 0.25})])
    assert matrix.table().splitlines()[-1] == "my:own of the held-out rows of stage1: 0.250 after stage1 20"
    resumed = ForgettingMatrix(path, writes=True)
    assert resumed.history == matrix.history and resumed.has("stage1", 20) and len(resumed) == 3
    resumed.resume_from("stage1", 10)
    assert resumed.has("", 0) and resumed.has("stage1", 10) and not resumed.has("stage1", 20)
    lines = resumed.table().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["base", "stage1"]
    assert "1.000 ± 0.098 (1.200), 0.90" in lines[1]
    path.write_text('{"measured": [{"stage": "x"}]}')
    with pytest.raises(ValueError, match=r"curriculum\.json is damaged"):
        ForgettingMatrix(path, writes=True)


# ------------------------------------------------------------------------------------------------- held-out rows


def context_of(stage_index: int = 0, **settings) -> StageContext:
    """Makes the context of one of two stages, without a model."""
    stages = [Stage(name, [Source(f"{name}.jsonl")], steps=9) for name in ("one", "two")]
    config = Config(stages=stages, **settings)
    return StageContext(config=config, processor=None, model=None, stage_index=stage_index, buckets=None)


def test_every_held_out_row_is_answered_once(monkeypatch):
    batches, stages = [], set()

    def sample(model, params, processor, prompts, settings, *, stage, **_):
        stages.add(stage)
        batches.append((prompts, settings.temperature, settings.group_size))
        return [(prompt, settings.temperature) for prompt in prompts]

    def score(session, examples, rollout):
        """Sampled answers get their row's number as reward, greedy ones 3."""
        texts = rollout[: len(examples)]
        assert [row for row, _ in texts] == [example.prompt for example in examples]
        total = np.array([[row if temperature else 3.0] for row, temperature in texts])
        parts = {"accuracy": np.minimum(total, 1.0), "my:own": np.where(total < 2, np.nan, total)}
        return ScoredRollout(None, Scores(total, {**parts, "my:unused": np.full_like(total, np.nan)}, {}))

    monkeypatch.setattr(held_out, "decode_params", lambda *_: {})
    monkeypatch.setattr(held_out, "sample", sample)
    monkeypatch.setattr(held_out, "score_rollout", score)
    context = context_of(
        data=Data(batch_size=1),
        sampling=Sampling(group_size=2, temperature=0.7),
        rewards=Rewards(weights={"accuracy": 1.0, "my:own": 1.0, "my:unused": 1.0}),
    )
    examples = tuple(SimpleNamespace(prompt=float(row)) for row in range(5))
    rows = HeldOut("one", 0, examples, rows=5)

    answered = []
    (measured,) = held_out.measure(context, {}, [rows], "two", 4, greedy=True, on_answers=answered.append)
    assert answered == [2, 2, 1] * 2
    row_batches = [[0, 1], [2, 3], [4, 4]]
    assert batches == [(rows, temperature, 1) for temperature in (0.7, 0.0) for rows in row_batches]
    assert (measured.stage, measured.step, measured.held_out, measured.rows) == ("two", 4, "one", 5)
    assert (measured.reward, measured.greedy) == (2.0, 3.0)  # of 0, 1, 2, 3, 4; of five times 3
    assert measured.error == pytest.approx(2.5**0.5 / 5**0.5)  # the sample variance of 0 to 4 is 2.5
    assert (measured.accuracy, measured.passed, measured.format) == (0.8, 4, None)
    assert measured.own == {"my:own": 3.0}  # of 2, 3 and 4

    batches.clear()
    scored = []
    held_out.measure(context, {}, [rows], "two", 4, greedy=True, on_greedy=lambda *answers: scored.append(answers))
    assert [(name, first) for name, first, _ in scored] == [(rows, 0), (rows, 2), (rows, 4)]
    assert [answers.scores.total.tolist() for *_, answers in scored] == [[[3.0], [3.0]], [[3.0], [3.0]], [[3.0]]]

    batches.clear()
    (measured,) = held_out.measure(context, {}, [rows], "two", 4, greedy=False)
    assert len(stages) == 1 and min(stages) > 1000  # the keys of no stage that is trained, and always the same
    assert measured.greedy is None and [temperature for _, temperature, _ in batches] == [0.7] * 3


def test_the_row_that_a_host_repeats_counts_once(monkeypatch):
    """Two hosts answer rows 0, 2, 4, 6 and 1, 3, 5, 6."""

    def score(session, examples, rollout):
        return ScoredRollout(None, Scores(np.array([[one.prompt] for one in examples]), {}, {}))

    def allgather(of_first_host):
        of_second_host = {"reward": np.array([1.0, 3.0, 5.0, 6.0])}
        return {name: np.concatenate([x, of_second_host[name]]) for name, x in of_first_host.items()}

    monkeypatch.setattr(held_out, "decode_params", lambda *_: {})
    monkeypatch.setattr(held_out, "sample", lambda *_, **__: None)
    monkeypatch.setattr(held_out, "score_rollout", score)
    monkeypatch.setattr(held_out, "allgather", allgather)
    monkeypatch.setattr(held_out.jax, "process_count", lambda: 2)
    context = context_of(data=Data(batch_size=1), sampling=Sampling(group_size=4))
    examples = tuple(SimpleNamespace(prompt=row) for row in (0.0, 2.0, 4.0, 6.0))
    rows, answered = HeldOut("one", 0, examples, rows=7), []
    (measured,) = held_out.measure(context, {}, [rows], "one", 1, greedy=False, on_answers=answered.append)
    assert answered == [4, 3]
    assert (measured.rows, measured.reward) == (7, 3.0)
    assert measured.error == pytest.approx(np.std(range(7), ddof=1) / 7**0.5)


def test_answers_are_written_before_the_first_step_and_at_the_end_of_a_stage(monkeypatch, tmp_path):
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=True)
    folder, at_add = tmp_path / "one" / "held_out", []

    def measure(context, policy, sets, stage, step, *, greedy, on_answers, on_greedy):
        if greedy:
            on_greedy(sets[0], 0, step)
        return [dataclasses.replace(BEST, stage=stage, step=step, held_out="one")]

    monkeypatch.setattr(evaluator, "measure", measure)
    monkeypatch.setattr(evaluator, "answer_records", lambda config, held_out, first, scored: [{"step": scored}])
    context = context_of()
    context.stage.promote_above = 0.75  # 80 of 100 are right: greedy answers at every step, and no promotion
    evaluating = evaluator.Evaluator(context, [HeldOut("one", 0, (), 100)], matrix, folder.parent)
    with monkeypatch.context() as patch:  # the evaluation of a run that is killed here counts as not done
        patch.setattr(ForgettingMatrix, "_write", lambda self: at_add.append([path.name for path in folder.iterdir()]))
        evaluating.begin({}, 0)
    assert at_add == [["0.jsonl"]]
    evaluating.evaluate({}, 7)
    assert [path.name for path in folder.iterdir()] == ["0.jsonl"]
    context.stage.promote_above = 0.7
    evaluating.evaluate({}, 8)
    context.stage.promote_above = 1.0
    evaluating.evaluate({}, 9)  # the last step
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert texts == {f"{step}.jsonl": f'{{"step": {step}}}\n' for step in (0, 8, 9)}


@pytest.mark.parametrize(("stage_index", "regressions"), [(0, {}), (1, {"held_out/one/regression": 0.5})])
def test_regressions_are_reported_for_earlier_stages_only(monkeypatch, tmp_path, capsys, stage_index, regressions):
    names = ("one", "two")
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=False)
    matrix.add([dataclasses.replace(BEST, held_out=name) for name in names])
    current = [dataclasses.replace(BEST, stage=names[stage_index], held_out=name, reward=1.0) for name in names]
    monkeypatch.setattr(evaluator, "measure", lambda *_, **__: current)
    sets = [HeldOut(name, of_stage, (), rows=100) for of_stage, name in enumerate(names)]
    current[0] = dataclasses.replace(current[0], own={"my:own": 0.25})
    evaluating = evaluator.Evaluator(context_of(stage_index), sets, matrix, tmp_path)
    metrics, ended, _ = evaluating.evaluate({}, 5)
    assert metrics.pop("held_out/one/rewards/my:own") == 0.25
    expected = {f"held_out/{name}/{key}": value for name in names for key, value in (("reward", 1.0), ("pass", 0.8))}
    assert metrics.pop("time/evaluate") >= 0
    assert metrics == expected | regressions
    said = capsys.readouterr().err
    assert ("one fell from 1.500 to 1.000" in said) == bool(regressions)
    assert "train: answering 200 held-out rows; missing programs are compiled along the way\n" in said
    assert not ended and matrix.history[2:] == tuple(current)
    evaluating.evaluate({}, 6)
    assert "compiled along the way" not in capsys.readouterr().err


def test_a_resumed_stage_says_that_it_compiles_for_the_loss_the_first_time(monkeypatch, tmp_path, capsys):
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=False)
    monkeypatch.setattr(evaluator, "measure_loss", lambda *_: 1.5)
    evaluating = evaluator.Evaluator(context_of(), [], matrix, tmp_path, LossRows([], 3))
    evaluating.begin({}, 4)
    for compiles in (True, False):
        assert evaluating.evaluate({}, 5).metrics["held_out/one/loss"] == 1.5
        said = capsys.readouterr().err
        assert ("compiling for the loss of 3 held-out rows" in said) == compiles and "answering" not in said


@pytest.mark.parametrize("margin", [None, 0.05])
def test_rows_out_of_domain_are_measured_and_decide_nothing(monkeypatch, tmp_path, capsys, margin):
    """They have fallen from 1.5 to 0; score, gates and warnings are those of the held-out rows, which are all right."""
    in_domain = dataclasses.replace(BEST, stage="", step=0, held_out="one", rows=40, rewards=(1.0,) * 40)
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=True)
    sets = [HeldOut("one", 0, (), 40, domain=domain) for domain in SuiteDomain]
    assert [one.name for one in sets] == ["one", "one/out_of_domain"]
    matrix.add([dataclasses.replace(in_domain, held_out=one.name, domain=one.domain.value) for one in sets])
    now = [
        dataclasses.replace(measured, stage="one", step=5, reward=reward, rewards=(reward,) * 40, passed=passed)
        for measured, reward, passed in zip(matrix.history, (1.5, 0.0), (40, 0), strict=True)
    ]
    monkeypatch.setattr(evaluator, "measure", lambda *_, **__: now)
    context = context_of()
    context.stage.forgetting_margin, context.stage.promote_above = margin, 0.9
    evaluating = evaluator.Evaluator(context, sets, matrix, tmp_path)
    metrics, ended, score = evaluating.evaluate({}, 5)
    assert metrics["held_out/one/out_of_domain/reward"] == 0.0 and not any("regression" in name for name in metrics)
    assert (ended, score) == (True, 1.5) and "brick wall" not in capsys.readouterr().err
    decision = evaluating.decide([5])
    assert decision is None or [change.held_out for change in decision.changes] == ["one"]
    assert ForgettingMatrix(tmp_path / "curriculum.json", writes=False).history == matrix.history
