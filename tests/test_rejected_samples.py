"""Rejected sampling before a stage: when it runs, with which model, and how it is stopped and refused."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from configs import curriculum, reject
from currreft_jax.config import (
    Config,
    EndpointLimits,
    EvaluatedModel,
    Judge,
    JudgeKind,
    Method,
    Pretrained,
    QuotaSource,
    Rejection,
    Source,
    Stage,
    Suite,
    as_evaluation,
    validate,
)
from currreft_jax.evaluation.training_leaks import find_training_leaks
from currreft_jax.runtime.workdir import with_kept_rows, write_config
from currreft_jax.training import rejected_samples, trainer
from currreft_jax.training.interrupt import AFTER_STEP, AT_PROGRESS
from currreft_jax.training.rejected_samples import (
    announce_judges,
    keep_samples,
    refuse_missing_rows,
    rejection_settings,
)


def config_of() -> Config:
    rejection = Rejection(sources=[QuotaSource("rows", Source("rows.jsonl"))])
    stages = [Stage("one", [Source("rows.jsonl")], 5), Stage("two", [Source("more.jsonl")], 5, rejection=rejection)]
    return Config(model=Pretrained(path="base"), stages=stages)


@pytest.fixture
def jobs(monkeypatch) -> list:
    """The settings and folders with which rejected sampling was called; each logs two lines."""
    calls = []

    def run(settings, out, log):
        log("one line")
        log("another line")
        calls.append((settings, out))
        return SimpleNamespace(num_kept=9, num_held_out=1, kept=out / "kept.jsonl")

    monkeypatch.setattr(rejected_samples, "reject", run)
    return calls


def test_the_model_of_the_stage_before_answers_unless_the_settings_name_one(jobs, tmp_path, capsys):
    config, interrupt = config_of(), SimpleNamespace(requested=False)
    validate(config)
    assert keep_samples(config, 0, None, tmp_path / "one", tmp_path, interrupt) and not jobs
    assert keep_samples(config, 1, tmp_path / "one", tmp_path / "two", tmp_path, interrupt)
    ((settings, out),) = jobs
    assert settings.model == EvaluatedModel(str(tmp_path / "one" / "model")) and out == tmp_path / "reject"
    assert settings == dataclasses.replace(config.stages[1].rejection, model=settings.model, seed=config.seed)
    said = capsys.readouterr().err
    assert "train: reject: another line" in said and "train: 9 rows kept to train on, 1 held out: " in said
    assert rejection_settings(config, config.stages[1].rejection, None).model.path == "base"
    named = Rejection(model=EvaluatedModel("teacher", endpoint="http://localhost:1/v1"))
    assert rejection_settings(config, named, tmp_path).model is named.model


@pytest.mark.parametrize(("own", "seed"), [(None, 7), (0, 0), (3, 3)])
def test_the_seed_of_the_run_is_that_of_the_sampling_unless_it_is_set_apart(own, seed):
    config = config_of()
    config.seed, config.stages[1].rejection.seed = 7, own
    settings = rejection_settings(config, config.stages[1].rejection, None)
    assert settings.chosen_seed == seed and as_evaluation(settings, []).seed == seed
    assert Rejection().chosen_seed == 0


def test_a_stage_that_has_begun_keeps_its_rows(jobs, tmp_path):
    config, interrupt = config_of(), SimpleNamespace(requested=False)
    write_config(config, tmp_path / "two")
    assert keep_samples(config, 1, tmp_path / "one", tmp_path / "two", tmp_path, interrupt) and not jobs


def test_a_signal_stops_the_sampling_at_its_next_line(jobs, tmp_path):
    interrupt = SimpleNamespace(requested=True, response=AFTER_STEP)
    assert not keep_samples(config_of(), 1, tmp_path / "one", tmp_path / "two", tmp_path, interrupt)
    assert not jobs and interrupt.response == AT_PROGRESS
    interrupt.requested = False
    assert keep_samples(config_of(), 1, tmp_path / "one", tmp_path / "two", tmp_path, interrupt)
    assert interrupt.response == AFTER_STEP


def test_a_judge_at_a_server_is_announced_until_it_is_asked(tmp_path, capsys):
    config = config_of()
    announce_judges(config, tmp_path)
    assert not capsys.readouterr().err
    config.stages[1].rejection.judge = Judge(JudgeKind.ENDPOINT, model="judge", url="http://host:1/v1")
    announce_judges(config, tmp_path)
    said = capsys.readouterr().err
    assert "stage two: its answers are judged by judge at http://host:1/v1, which has to run by then;" in said
    assert "--config.stages[1].rejection.judge.kind=rules" in said
    (tmp_path / "reject").mkdir()
    announce_judges(config, tmp_path)
    assert not capsys.readouterr().err


def test_missing_rows_are_refused_before_the_first_stage(tmp_path):
    config = config_of()
    for stage in config.stages:
        stage.sources[0].file = str(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"rows\.jsonl of config\.stages\[1\]\.rejection\.sources\[0\] does not exist"
    ):
        refuse_missing_rows(config)
    config.stages[1].rejection.sources[0].source.file = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").touch()
    refuse_missing_rows(config)
    config.stages[1].rejection.suites = [Suite("tests", [Source(str(tmp_path / "tests.jsonl"))])]
    with pytest.raises(FileNotFoundError, match=r"config\.stages\[1\]\.rejection\.suites\[0\]\.sources\[0\] does not"):
        refuse_missing_rows(config)


def test_a_misspelt_reward_of_the_last_stage_is_refused_before_the_first(tmp_path):
    config = curriculum.get_config("tiny")
    config.stages[3].rejection.rewards.weights["lenght"] = 1.0
    with pytest.raises(ValueError, match=r"stages\[3\].rejection.rewards.weights: .*lenght.* length"):
        trainer.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": Judge(JudgeKind.ENDPOINT, model="judge")}, r"judge\.url is empty; it takes the base URL"),
        ({"judge": Judge(JudgeKind.ENDPOINT, "judge", "host:1/v1")}, r"judge\.url is 'host:1/v1'; it takes a base URL"),
        ({"second_judge": Judge(model="judge")}, r"judge\.model is 'judge'; it takes an empty text"),
        ({"template": "papier"}, "no prompt template 'papier'; .* nearest: paper"),
        (
            {"model": EvaluatedModel("m", endpoint="http://host:1/v1"), "endpoint": EndpointLimits(attempts=0)},
            r"endpoint\.attempts is 0; it takes 1 or more",
        ),
    ],
)
def test_servers_and_template_of_the_last_stage_are_refused_before_the_first(monkeypatch, settings, message):
    monkeypatch.setattr(trainer, "only_run", lambda _: pytest.fail("the run has begun"))
    config = curriculum.get_config("tiny")
    config.stages[3].rejection = dataclasses.replace(config.stages[3].rejection, **settings)
    with pytest.raises(ValueError, match=rf"^config\.stages\[3\]\.rejection: {message}"):
        trainer.run(config, "run")


def test_the_kept_rows_are_the_stages_and_leaks_into_suites_are_looked_for_in_them(tmp_path):
    config, folder = config_of(), tmp_path / "reject"
    folder.mkdir()
    row = {"id": "a/1", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    for name in ("kept", "held_out"):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    one, two = with_kept_rows(config, tmp_path).stages
    assert one == config.stages[0]
    assert [source.file for source in two.sources] == ["more.jsonl", str(folder / "kept.jsonl")]
    assert [source.file for source in two.held_out_loss] == [str(folder / "held_out.jsonl")]
    (folder / "held_out.jsonl").write_text("")
    assert with_kept_rows(config, tmp_path).stages[1].held_out_loss == []

    for stage in config.stages:
        stage.sources = []
    config.stages[0].sources = [Source(str(folder / "held_out.jsonl"))]
    (folder / "held_out.jsonl").write_text(json.dumps(row) + "\n")
    write_config(config, tmp_path / "two")
    (tmp_path / "two" / "checkpoints").mkdir()
    report = find_training_leaks(EvaluatedModel(str(tmp_path / "two")), [], {}, 1)
    assert report.unchecked == ""  # with no other rows of the stage, the kept ones are read
    (folder / "kept.jsonl").unlink()
    assert "kept.jsonl" in find_training_leaks(EvaluatedModel(str(tmp_path / "two")), [], {}, 1).unchecked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: setattr(c.stages[1], "method", Method.GRPO),
            r"stages\[1\]\.method is grpo; it takes sft with rejection",
        ),
        (
            lambda c: setattr(c.stages[1].rejection, "threshold", 100.0),
            r"config\.stages\[1\]\.rejection\.threshold is 100",
        ),
        (
            lambda c: setattr(c.model, "max_pixels", 200_704),
            r"stages\[1\]\.rejection\.max_pixels is 401408; it takes 200704, as model\.max_pixels, or 0: boxes",
        ),
        (
            lambda c: setattr(c.model, "min_pixels", 50_000) or setattr(c.stages[1].rejection.model, "endpoint", "URL"),
            r"stages\[1\]\.rejection\.min_pixels is 0; it takes 50000, as model\.min_pixels: boxes",
        ),
        (
            lambda c: setattr(c.stages[0], "rejection", c.stages[1].rejection),
            r"stages\[1\]\.rejection is that of a second",
        ),
    ],
)
def test_impossible_rejections_name_the_stage(change, message):
    config = config_of()
    change(config)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_the_curriculum_ends_with_the_settings_of_the_authors(monkeypatch):
    from configs import common

    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    config = curriculum.get_config("3b")
    validate(config)
    stage = config.stages[3]
    assert (stage.name, stage.method, stage.batch_size, stage.steps) == ("self_improve", Method.SFT, 32, 2000)
    assert (stage.optimizer.learning_rate, stage.optimizer.warmup, stage.optimizer.freeze_vision) == (2e-7, 0.05, False)
    quotas = sum(source.quota for source in stage.rejection.sources)
    assert round(stage.steps * stage.batch_size / quotas) == 42
    assert stage.rejection == dataclasses.replace(reject.get_config("3b"), model=EvaluatedModel())
