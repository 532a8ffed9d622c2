"""GRPO end to end: steps, stages, interruption and resumption."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from currreft_jax import generate
from currreft_jax.config import (
    CacheType,
    Config,
    Data,
    Grpo,
    Handover,
    Logging,
    LossAverage,
    MeshShape,
    Method,
    OnBadRow,
    Optimizer,
    Precision,
    Pretrained,
    Reference,
    Remat,
    Rewards,
    Sampling,
    Schedule,
    Shapes,
    Source,
    Stage,
)
from currreft_jax.data import world_rows
from currreft_jax.data.buckets import config_buckets
from currreft_jax.data.examples import make_example
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.processor import load as load_processor
from currreft_jax.data.prompts import load_template
from currreft_jax.runtime.checkpoint import Checkpoints
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.workdir import refuse_changed_settings, write_config
from currreft_jax.session.session import Session
from currreft_jax.training import batches, evaluator, records, start, trainer
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.limits import LimitReached, NonFiniteError, reached_limit
from currreft_jax.training.metrics_buffer import MetricsBuffer
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.replay import replay_completion
from currreft_jax.training.update import abstract_state
from currreft_jax.world.settings import WorldSizes
from tests import tiny
from tests.test_train import assert_same_weights, interrupt, logged_metrics


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(24):
        row = {"id": f"r{number}", "task": "math", "kind": "open", "problem": f"{number}?", "solution": str(number % 7)}
        if number % 2:
            tiny.picture(56, 56, number).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def config_of(checkpoint: Path, rows: Path, steps: int = 4, reward: str = "text_hash", **changes) -> Config:
    config = Config(
        method=Method.GRPO,
        loss_average=LossAverage.SEQUENCE,
        model=Pretrained(path=str(checkpoint), dtype="float32", remat=Remat.NONE, max_pixels=0),
        mesh=MeshShape(data=8, fsdp=1),
        stages=[Stage("one", [Source(str(rows))], steps=steps)],
        data=Data(8, shapes=Shapes.BUCKETS, prompt_lengths=(256,), completion_lengths=(8,), slots=(1,), threads=2),
        optimizer=Optimizer(learning_rate=1e-3, schedule=Schedule.CONSTANT),
        sampling=Sampling(
            group_size=4,
            max_new_tokens=8,
            temperature=0.7,
            segment=4,
            ladder=(),
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
        ),
        rewards=Rewards(weights={"accuracy": 0.0, "format": 0.0, f"tests.reward_functions:{reward}": 1.0}),
        logging=Logging(log_every=2, save_every=2, rollouts_every=2, tensorboard=False),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def finished_run(checkpoint, rows, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("finished")
    assert trainer.run(config_of(checkpoint, rows), workdir) == workdir / "model"
    return workdir


def test_a_run_writes_metrics_completions_and_a_model(finished_run, checkpoint, rows):
    lines = logged_metrics(finished_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    first = lines[0]
    # At first the policy equals the reference; sampler and trainer always agree.
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-5
    assert lines[-1]["kl"] > 1e-6
    assert first["clip_ratio/high_mean"] == first["clip_ratio/low_mean"] == 0
    assert 0 < first["entropy"] < np.log(270)
    assert first["reward"] == first["reward/math"] == first["rewards/tests.reward_functions:text_hash/mean"]
    assert sorted(path.name for path in (finished_run / "rollouts").iterdir()) == ["1.jsonl", "3.jsonl", "4.jsonl"]
    rollouts = [json.loads(line) for line in (finished_run / "rollouts" / "1.jsonl").read_text().splitlines()]
    assert len(rollouts) == 8 and all(len(row["completions"]) == 4 for row in rollouts)
    completions = [completion for row in rollouts for completion in row["completions"]]
    assert np.mean([completion["reward"] for completion in completions]) == pytest.approx(first["reward"])
    truncated = [not completion["finished"] for completion in completions]
    assert first["completions/clipped_ratio"] == np.mean(truncated) != 0.5
    for completion in completions:
        if completion["text"].isascii():
            assert "".join(completion["tokens"]).startswith(completion["text"])
        assert len({len(completion[key]) for key in ("tokens", "logprobs", "reference", "entropies")}) == 1
    for row in rollouts:
        rewards = np.array([completion["reward"] for completion in row["completions"]])
        wanted = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        np.testing.assert_allclose([completion["advantage"] for completion in row["completions"]], wanted, atol=1e-9)


@pytest.mark.parametrize("location", ["1.jsonl:2:3", "3.jsonl:8:1"])
def test_a_completion_is_replayed_by_its_policy(finished_run, location):
    result = replay_completion(f"{finished_run}/rollouts/{location}")
    assert result.replayed == result.recorded
    assert result.logp_difference < 1e-4  # the file has four decimals


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("4.jsonl:1:1", r"step 4 was sampled by the policy after step 3, and .* has \[2, 4\]"),
        ("1.jsonl:9:1", "has lines 1 to 8, not 9"),
        ("1.jsonl:1:5", r"1\.jsonl:1 has completions 1 to 4, not 5"),
        ("1.jsonl:1", "is no FILE:LINE:G"),
        ("best.jsonl:1:1", "is no FILE:LINE:G"),
    ],
)
def test_impossible_replays_are_refused(finished_run, location, message, capsys):
    assert generate.main([f"--replay={finished_run}/rollouts/{location}"]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("stop_at", [3])
def test_sigterm_saves_and_the_run_resumes_bit_for_bit(finished_run, checkpoint, rows, tmp_path, monkeypatch, stop_at):
    interrupt(monkeypatch, stop_at)
    assert trainer.run(config_of(checkpoint, rows), tmp_path) is None
    assert (tmp_path / "checkpoints" / str(stop_at)).exists()
    (tmp_path / "rollouts" / "4-1.jsonl").write_text("of a step taken by two hosts before they were killed\n")
    assert trainer.run(config_of(checkpoint, rows), tmp_path) == tmp_path / "model"
    assert_same_weights(tmp_path / "model", finished_run / "model")
    assert logged_metrics(tmp_path) == logged_metrics(finished_run)
    # Files of repeated steps are dropped, those of earlier steps are kept.
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["1.jsonl", "3.jsonl", "4.jsonl"]


def test_rollout_files_of_repeated_steps_are_dropped(tmp_path):
    for name in ("1.jsonl", "11.jsonl", "11-0.jsonl", "9-1.jsonl"):
        (tmp_path / name).touch()
    records.drop_records(tmp_path, after=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "9-1.jsonl"]


def test_a_resumed_run_may_change_its_layout_only(checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows)
    write_config(config, tmp_path)
    config.mesh, config.sampling.mesh, config.rewards.maths.workers = MeshShape(2, 2, 2), (2, 4), 7
    refuse_changed_settings(config, 0, tmp_path)
    config.sampling.temperature = 0.5
    with pytest.raises(ValueError, match=r"sampling\.temperature was 0\.7, and is 0\.5: put it back"):
        refuse_changed_settings(config, 0, tmp_path)


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh_and_drops_later_rollout_files(checkpoint, rows, tmp_path, monkeypatch):
    config = config_of(checkpoint, rows, steps=4, mesh=MeshShape(4, 1, 2), grpo=Grpo(mask_truncated=True))
    config.sampling.mesh, config.data.slots = (4, 2), (1, 2)
    config.logging.rollouts_every = 1
    interrupt(monkeypatch, 2)
    assert trainer.run(config, tmp_path) is None
    (tmp_path / "rollouts" / "3-1.jsonl").write_text("of a step taken by two hosts before they were killed\n")
    config.mesh, config.sampling.mesh, config.logging.rollouts_every = MeshShape(2, 2, 2), (2, 4), 0
    assert trainer.run(config, tmp_path) == tmp_path / "model"
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["1.jsonl", "2.jsonl"]
    lines = logged_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    loss_tokens = [line["num_loss_tokens"] for line in lines]  # of finished completions: none at first
    assert min(loss_tokens) == 0 < max(loss_tokens) < 8 * 4 * 8
    assert all(line["loss"] == line["grad_norm"] == 0 for line in lines if not line["num_loss_tokens"])


def test_limits_are_those_of_the_mean_over_the_steps_with_loss_tokens():
    kl = [{"num_loss_tokens": 9.0, "kl": value} for value in (0.5, 0.1)]
    config = Config(method=Method.GRPO, grpo=Grpo(max_kl=0.2))
    assert reached_limit(config, kl) == "KL 0.3 is above grpo.max_kl = 0.2" and not reached_limit(config, kl[1:])
    config = Config(method=Method.GRPO, grpo=Grpo(min_entropy=0.1, max_truncated=0.9))
    no_tokens = {"num_loss_tokens": 0.0, "entropy": 0.0, "completions/clipped_ratio": 0.5}
    assert not reached_limit(config, [no_tokens])
    assert "entropy" in reached_limit(config, [no_tokens, {**no_tokens, "num_loss_tokens": 9.0}])
    assert not reached_limit(config, [no_tokens, {**no_tokens, "num_loss_tokens": 9.0, "entropy": 0.15}])
    assert "cut off" in reached_limit(config, [{**no_tokens, "completions/clipped_ratio": 1.0}])


def test_a_limit_of_zero_is_off():
    """Also for an entropy that rounding has left below 0, in a run of before it was clamped."""
    line = {"num_loss_tokens": 9.0, "entropy": -1e-6, "kl": 5.0, "completions/clipped_ratio": 1.0}
    config = Config(method=Method.GRPO, grpo=Grpo(max_kl=0.0, min_entropy=0.0, max_truncated=0.0))
    assert not reached_limit(config, [line])
    for limit, value, message in (
        ("max_kl", 1.0, "KL"),
        ("min_entropy", 0.1, "entropy"),
        ("max_truncated", 0.5, "cut"),
    ):
        assert message in reached_limit(dataclasses.replace(config, grpo=Grpo(**{limit: value})), [line])


def test_a_reference_of_another_architecture_is_refused(checkpoint, rows, tmp_path):
    tiny.write_checkpoint(tmp_path / "other", dataclasses.replace(tiny.CONFIG, rope_theta=9e4))
    config = config_of(checkpoint, rows, grpo=Grpo(reference_path=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"other has another rope_theta than model\.path"):
        trainer.run(config, tmp_path / "run")


def test_damaged_held_out_rows_are_an_error_even_if_training_skips_bad_rows(checkpoint, rows, tmp_path):
    (tmp_path / "held.jsonl").write_text(rows.read_text().splitlines(keepends=True)[0] + "{\n")
    config = config_of(checkpoint, rows)
    config.data.on_bad_row, config.data.max_bad_rows = OnBadRow.SKIP, 5
    config.stages[0].held_out = [Source(str(tmp_path / "held.jsonl"))]
    with pytest.raises(ValueError, match=r"held\.jsonl:2"):
        trainer.run(config, tmp_path / "run")


@pytest.mark.slow
def test_microbatches_and_meshes_agree_within_rounding(finished_run, checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows, steps=4, microbatches=2, mesh=MeshShape(2, 2, 2))
    config.sampling.mesh = (2, 4)
    trainer.run(config, tmp_path)
    names = ("loss", "grad_norm", "reward", "kl", "entropy")
    one, other = (
        [[line[name] for name in names] for line in logged_metrics(folder)] for folder in (tmp_path, finished_run)
    )
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-7)


def test_microbatches_keep_completions_with_their_prompts(checkpoint, rows):
    mesh = make_mesh(2, 1, 4)
    processor = load_processor(checkpoint)
    config = config_of(checkpoint, rows, microbatches=2, grpo=Grpo(minibatches=2))
    config.data.batch_size, config.data.slots = 16, ()
    template = load_template("paper")
    mixture = load_mixture(config.stages, 0, config.data, 0)
    source_rows = [mixture.sources[0].file[i] for i in range(16)]
    examples = [make_example(row, processor, template, location=row.id) for row in source_rows]
    model = tiny.model_of(mesh=mesh)
    buckets = config_buckets(config, processor, batches.layout_on(config, mesh))
    context = batches.StageContext(config=config, processor=processor, model=model, stage_index=0, buckets=buckets)
    prompts, full_batch = batches.collate_prompts(context, examples)
    ordered, microbatches = prompts.examples, list(zip(prompts.microbatches, prompts.rows, strict=True))
    mixture.close()
    assert [example.row.id for example in ordered] != [example.row.id for example in examples]
    keys = np.asarray(full_batch.key)
    np.testing.assert_array_equal(keys[:, 1], [example.prompt.key & 0xFFFFFFFF for example in ordered])
    split = batches.microbatch_splitter(mesh, len(microbatches))(full_batch.tokens)
    for (microbatch, indices), tokens in zip(microbatches, split, strict=True):
        np.testing.assert_array_equal(microbatch.key, keys[indices])
        np.testing.assert_array_equal(microbatch.tokens, tokens)
    # Each minibatch is one half of the step's rows in their order, so that hosts agree on its rows.
    first = {ordered[i].row.id for _, indices in microbatches[:2] for i in indices}
    assert first == {row.id for row in source_rows[:8]}


@pytest.mark.slow
def test_several_updates_and_minibatches_per_rollout(checkpoint, rows, tmp_path):
    grpo = Grpo(num_updates=2, minibatches=2, kl_coef=0.0)
    config = config_of(checkpoint, rows, steps=2, grpo=grpo)
    config.data.batch_size = 16
    config.optimizer = Optimizer(learning_rate=1e-2, schedule=Schedule.LINEAR)
    trainer.run(config, tmp_path)
    lines = logged_metrics(tmp_path)
    assert "kl" not in lines[0]
    assert lines[0]["clip_ratio/high_mean"] + lines[0]["clip_ratio/low_mean"] > 0  # after an update the policies differ
    assert lines[0]["sampling/sampling_logp_difference/mean"] > 1e-3
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2, 5e-3])  # 8 updates, 4 a step


def test_token_sums_become_means_over_all_passes(tmp_path):
    values = {"loss": 0, "grad_norm": 1, "entropy": 12, "num_loss_tokens": 3, "passes": 2, "num_step_tokens": 9}
    with MetricsBuffer(tmp_path) as buffer:
        buffer.add(1, values, list)
        (line,), error = buffer.flush()
    assert error is None and line["entropy"] == 2.0 and "passes" not in line


def test_the_reward_rises(checkpoint, rows, tmp_path, monkeypatch):
    written, write_metrics = [], trainer.write_metrics

    def watched(stage, lines):
        written.append([line["step"] for line in lines])
        write_metrics(stage, lines)

    monkeypatch.setattr(trainer, "write_metrics", watched)
    config = config_of(checkpoint, rows, steps=8, reward="lowercase_share")
    config.grpo.kl_coef = 0.0
    config.optimizer.learning_rate = 1e-2
    config.logging = Logging(log_every=8, save_every=8, rollouts_every=0, tensorboard=False)
    trainer.run(config, tmp_path)
    assert written == [[1], [2, 3, 4, 5, 6, 7, 8]]  # the first step is shown at once
    rewards = [line["reward"] for line in logged_metrics(tmp_path)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.5
    assert not (tmp_path / "rollouts").exists()


def test_held_out_rows_of_all_stages_are_evaluated(checkpoint, rows, tmp_path, capsys, monkeypatch):
    scores, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *args, score=None: scores.append(score) or save(*args, score=score))
    config = config_of(checkpoint, rows)
    one = replace(config.stages[0], steps=2, learning_rate=1e-3, held_out=[Source(str(rows), sample="first:10")])
    two = replace(one, name="two", steps=1, moments=Handover.KEEP, learning_rate=1e-4, held_out=[])
    two.out_of_domain = one.held_out
    config.stages = [one, two]
    config.logging.evaluate_every = 1
    config.logging.evaluate_rows = 10
    config.grpo.reference = Reference.STAGE
    trainer.run(config, tmp_path)
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=False)
    measured = [(entry.stage, entry.step, entry.held_out) for entry in matrix.history]
    times = [("", 0), ("one", 1), ("one", 2), ("two", 1)]
    assert measured == [(*time, name) for time in times for name in ("one", "two/out_of_domain")]
    assert all(entry.rows == 10 for entry in matrix.history)
    # Accuracy and format have no weight here.
    assert all(entry.accuracy is entry.format is entry.passed is None for entry in matrix.history)
    assert "held_out/one/pass" not in logged_metrics(tmp_path / "one")[-1]
    assert [entry.greedy is None for entry in matrix.history[::2]] == [False, True, False, False]
    evaluated = [line["time/evaluate"] for line in read_metrics(tmp_path / "one" / "metrics.jsonl")]
    assert len(evaluated) == 2 and min(evaluated) > 0
    last = logged_metrics(tmp_path / "one")[-1]
    assert last["held_out/one/reward"] == matrix.history[4].reward
    assert last["held_out/one/rewards/tests.reward_functions:text_hash"] == matrix.history[4].reward
    assert logged_metrics(tmp_path / "two")[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the stage's start
    lines = [(name, line) for name in ("one", "two") for line in logged_metrics(tmp_path / name)]
    assert scores == [line.get(f"held_out/{name}/reward") for name, line in lines]  # none without held-out rows
    replayed = replay_completion(f"{tmp_path}/two/rollouts/1.jsonl:2:3")  # by the keys of the second stage
    assert replayed.replayed == replayed.recorded and replayed.logp_difference < 1e-4
    told = capsys.readouterr().err
    assert "95% intervals" in told and "programs are compiled as batches need them" in told
    assert re.search(r"answering held-out rows: +0%.* 0/40 \[.*\d+ programs? compiled", told, re.DOTALL)
    assert re.search(r"train: answered 20 held-out rows before the first step in \d+ s, compilation included\n", told)
    names = ("one/held_out/0.jsonl", "one/held_out/2.jsonl", "two/held_out/1.jsonl")
    assert sorted(map(str, tmp_path.glob("*/held_out/*"))) == [f"{tmp_path}/{name}" for name in names]
    for name, measured in zip(names, (matrix.history[:2], matrix.history[4:6], matrix.history[6:]), strict=True):
        answers = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        sets = [(entry.held_out, index) for entry in measured for index in range(10)]
        assert [(answer["held_out"], answer["index"]) for answer in answers] == sets
        for entry in measured:
            greedy = [one["answer"]["reward"] for one in answers if one["held_out"] == entry.held_out]
            assert np.mean(greedy) == pytest.approx(entry.greedy)
        for one in answers:
            assert (
                crc32((one["row"]["id"] + one["answer"]["text"]).encode()) % 5 / 4 == one["answer"]["reward"]
            )  # text_hash
    state = (tmp_path / "curriculum.json").read_text()
    trainer.run(config, tmp_path)
    assert (tmp_path / "curriculum.json").read_text() == state


def test_a_promoted_stage_ends_early_and_stays_finished(checkpoint, rows, tmp_path, monkeypatch):
    config = config_of(checkpoint, rows, steps=4)
    config.logging.evaluate_every = 1
    config.logging.evaluate_rows = 4
    config.stages[0].held_out = [Source(str(rows))]
    config.logging.save_every = 5  # the last step of a stage is saved all the same
    config.stages[0].promote_above = 0.5
    config.rewards.weights["accuracy"] = 0.1
    monkeypatch.setattr(evaluator, "is_promoted", lambda measurement, above: measurement.step == 2)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.hf, "export", lambda *_: None)
        trainer.run(config, tmp_path)
    assert [line["step"] for line in logged_metrics(tmp_path)] == [1, 2]
    assert (tmp_path / "checkpoints" / "2").exists()
    assert trainer.run(config, tmp_path) == tmp_path / "model"
    assert [line["step"] for line in logged_metrics(tmp_path)] == [1, 2]
    config.stages.append(replace(config.stages[0], name="two"))
    model = tiny.model_of(mesh=make_mesh(8, 1, 1))
    assert jax.tree.leaves(start.start_params(config, 1, model, tmp_path))  # the stage counts as finished


@pytest.mark.parametrize("moments", Handover)
def test_a_stage_inherits_moments_and_restarts_the_schedule(checkpoint, rows, tmp_path, moments):
    config = config_of(checkpoint, rows, steps=2)
    config.optimizer.schedule = Schedule.LINEAR
    config.stages.append(replace(config.stages[0], name="two", steps=1, moments=moments))
    model = tiny.model_of(mesh=make_mesh(8, 1, 1))
    optimizer = stage_optimizer(config, 1)
    last = jax.tree.map(
        lambda x: jnp.full(x.shape, 2, x.dtype, device=x.sharding), abstract_state(model, optimizer.transform)
    )
    with Checkpoints(tmp_path / "one" / "checkpoints", 1) as previous:
        previous.save(2, {"params": last.params, "optimizer": last.optimizer}, {"ended": False})
    with Checkpoints(tmp_path / "two" / "checkpoints", 1) as own:
        session = Session(config=config, processor=None, model=model)
        state, step, ended = start.start_state(session, 1, optimizer, tmp_path / "one", own, {})
    assert (step, ended) == (0, False)
    kept = 2 if moments is Handover.KEEP else 0
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 2), state.params)
    for name in ("mu", "nu"):
        (moment,) = (tree for _, tree in optax.tree_utils.tree_get_all_with_path(state.optimizer, name))
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, kept), moment)
    counts = {
        next(part.tuple_name for part in reversed(path) if hasattr(part, "tuple_name")): int(count)
        for path, count in optax.tree_utils.tree_get_all_with_path(state.optimizer, "count")
    }
    assert counts == {"ScaleByAdamState": kept, "ScaleByScheduleState": 0}


def test_a_stages_learning_rate_replaces_the_optimizers(checkpoint, rows):
    config = config_of(checkpoint, rows, steps=2)
    config.stages.append(replace(config.stages[0], name="two", learning_rate=0.25))
    rates = [float(stage_optimizer(config, index).schedule(0)) for index in range(2)]
    assert rates == pytest.approx([config.optimizer.learning_rate, 0.25])


@pytest.mark.slow
def test_a_reached_limit_pauses_and_saves(checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows, grpo=Grpo(max_kl=1e-9))
    with pytest.raises(LimitReached, match=r"is above grpo\.max_kl"):
        trainer.run(config, tmp_path)
    assert (tmp_path / "checkpoints" / "2").exists()
    config.grpo = Grpo(max_kl=0.0)
    assert trainer.run(config, tmp_path) == tmp_path / "model"


def test_completions_of_a_nonfinite_step_are_dumped(checkpoint, rows, tmp_path):
    config = config_of(checkpoint, rows)
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match=r"step \d: loss"):
        trainer.run(config, tmp_path)
    (dump,) = (tmp_path / "nonfinite").iterdir()
    assert len(dump.read_text().splitlines()) == 8


def test_rows_without_a_scorable_answer_are_refused_at_once(checkpoint, tmp_path):
    row = {"id": "x", "task": "classify", "kind": "judge", "problem": "?", "solution": "perhaps"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = config_of(checkpoint, tmp_path / "rows.jsonl")
    config.rewards.weights["accuracy"] = 1.0
    with pytest.raises(ValueError, match=r"rows\.jsonl:1.*perhaps"):
        trainer.run(config, tmp_path / "run")


def vars_of(config: Config, **values) -> None:
    for name, value in values.items():
        setattr(config, name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.sampling, "group_size", 1), "sampling.group_size is 1; it takes 2 or more"),
        (lambda c: setattr(c.sampling, "top_p", 0.9), "sampling.top_p is 0.9; it takes 1 in training"),
        (
            lambda c: setattr(c.sampling, "temperature", 0.0),
            "sampling.temperature is 0.0; it takes a positive number in training",
        ),
        (lambda c: setattr(c.grpo, "minibatches", 3), "grpo.minibatches is 3; it takes a number that"),
        (lambda c: setattr(c.grpo, "kl_coef", -1.0), r"grpo.kl_coef is -1\.0; it takes 0 or more"),
        (lambda c: setattr(c.stages[0], "promote_above", 0.5), "promote_above is 0.5; it takes 1, or a share with"),
        (
            lambda c: setattr(c, "method", Method.SFT) or setattr(c, "loss_average", LossAverage.CONSTANT),
            "loss_average",
        ),
        (lambda c: c.rewards.weights.update({"acuracy": 1.0}), "rewards.weights names 'acuracy'"),
    ],
)
def test_invalid_settings_are_refused(checkpoint, rows, tmp_path, change, message):
    config = config_of(checkpoint, rows)
    change(config)
    with pytest.raises(ValueError, match=message):
        trainer.run(config, tmp_path)


def test_sigterm_in_the_last_step_of_a_stage_stops_the_run_before_the_next(checkpoint, rows, tmp_path, monkeypatch):
    config = config_of(checkpoint, rows, steps=1)
    config.stages.append(replace(config.stages[0], name="two"))
    interrupt(monkeypatch, 1)
    assert trainer.run(config, tmp_path) is None
    assert (tmp_path / "one" / "model").exists() and not (tmp_path / "two").exists()


def test_the_world_is_generated_once_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        world_rows, "SIZES", WorldSizes(captions=0, base=0, drills=0, composed=0, answers=0, train=3, test=2, axis=1)
    )
    messages = []
    world_rows.ensure_world(tmp_path / "world", messages.append)
    world_rows.ensure_world(tmp_path / "world", messages.append)
    assert len(messages) == 1
    assert len((tmp_path / "world" / "train_judge.jsonl").read_text().splitlines()) == 9
    description = tmp_path / "world" / "world.json"
    description.write_text(description.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(FileExistsError, match="world of version 1, this is 2: remove it"):
        world_rows.ensure_world(tmp_path / "world", messages.append)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="other holds no whole world"):
        world_rows.ensure_world(tmp_path / "other", messages.append)
