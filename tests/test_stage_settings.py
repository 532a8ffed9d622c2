"""A stage with settings of its own: what it is trained with, what is refused, and which shapes it has."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from currreft_jax.config import (
    Config,
    Data,
    Handover,
    Logging,
    LossAverage,
    Method,
    Optimizer,
    Rule,
    Sampling,
    Source,
    Stage,
    evaluation_batch_size,
    stage_settings,
    validate,
)
from currreft_jax.planning.budget import alike_stages, evaluation_batches, stages_to_plan
from currreft_jax.runtime.workdir import read_config, refuse_changed_settings, refuse_other_run, write_config
from currreft_jax.training import shapes, trainer
from currreft_jax.training.batches import StageContext
from currreft_jax.training.shapes import fit_run_buckets


def config_of() -> Config:
    """A run of GRPO whose last stage is fine-tuned."""
    one = Stage("one", [Source("one.jsonl")], 100, held_out=[Source("held.jsonl")])
    two = Stage(
        "two",
        [Source("two.jsonl")],
        20,
        held_out_loss=[Source("gold.jsonl")],
        forgetting_margin=0.05,
        method=Method.SFT,
        loss_average=LossAverage.TOKEN,
        microbatches=2,
        batch_size=6,
        optimizer=Optimizer(learning_rate=2e-7, warmup=0.05),
        evaluate_every=5,
    )
    return Config(
        method=Method.GRPO,
        loss_average=LossAverage.SEQUENCE,
        stages=[one, two],
        data=Data(batch_size=8),
        sampling=Sampling(group_size=4),
    )


def test_the_settings_of_a_stage_are_the_runs_with_its_own_in_their_place():
    config = config_of()
    assert stage_settings(config, 0) == config
    settings = stage_settings(config, 1)
    assert (settings.method, settings.loss_average, settings.microbatches) == (Method.SFT, LossAverage.TOKEN, 2)
    assert (settings.data.batch_size, settings.optimizer.learning_rate) == (6, 2e-7)
    assert settings.logging == Logging(evaluate_every=5)
    assert settings.stages[0] == config.stages[0] and settings.sampling is config.sampling
    plain = settings.stages[1]  # what its settings override is None there: they may be changed, as the search does
    assert plain == dataclasses.replace(
        config.stages[1],
        **dict.fromkeys(("method", "loss_average", "microbatches", "batch_size", "optimizer", "evaluate_every")),
    )
    assert stage_settings(settings, 1) == settings
    assert config == config_of()
    config.stages[1].evaluate_every, config.logging.evaluate_every = 0, 7
    assert stage_settings(config, 1).logging.evaluate_every == 0  # never within the stage
    config.stages[1].evaluate_every = None
    assert stage_settings(config, 1).logging.evaluate_every == 7
    assert evaluation_batch_size(config) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, r"stages\[1\]\.microbatches is 2; it takes a divisor of data\.batch_size \(5\)"),
        ({"loss_average": LossAverage.CONSTANT}, r"stages\[1\]\.loss_average is constant; it takes token or sequence"),
        ({"optimizer": Optimizer(warmup=1.0)}, r"stages\[1\]\.optimizer\.warmup is 1\.0; it takes a share"),
        ({"moments": Handover.KEEP}, r"stages\[1\]\.moments is keep; it takes reset in a stage whose optimizer"),
        ({"method": Method.GRPO}, r"stages\[1\]\.held_out_loss is .*; it takes no rows in GRPO"),
        (
            {"method": Method.GRPO, "held_out_loss": [], "batch_size": 7},
            r"stages\[1\]\.microbatches is 2; it takes a div",
        ),
        ({"held_out_loss": [Source()]}, r"stages\[1\]\.held_out_loss\[0\]\.file is ; it takes a path"),
        ({"sources": []}, r"stages\[1\]\.sources is \[\]; it takes at least one source"),
        ({"name": "reject"}, r"stages\[1\]\.name is reject; it takes another name"),
    ],
)
def test_impossible_settings_of_a_stage_name_the_stage(change, message):
    config = config_of()
    validate(config)
    for name, value in change.items():
        setattr(config.stages[1], name, value)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_a_forgetting_gate_is_the_last_stages_and_needs_held_out_rows():
    config = config_of()
    config.stages[0].forgetting_margin = 0.0
    with pytest.raises(ValueError, match=r"stages\[0\]\.forgetting_margin is 0\.0; it takes none in a stage that"):
        validate(config)
    config.stages[0].forgetting_margin, config.stages[0].held_out = None, []
    with pytest.raises(ValueError, match=r"stages\[1\]\.forgetting_margin is 0\.05; it takes none without held_out"):
        validate(config)


def test_a_run_of_an_earlier_version_resumes_and_one_with_another_override_does_not(tmp_path):
    config = config_of()
    config.stages = config.stages[:1]
    write_config(config, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for name in set(content["stages"][0]) - {"name", "sources", "steps", "kinds", "tasks", "replay", "held_out"}:
        if name not in ("moments", "learning_rate", "promote_above"):
            del content["stages"][0][name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    refuse_changed_settings(config, 0, tmp_path)
    assert read_config(tmp_path).stages[0].rejection is None

    config = config_of()
    write_config(config, tmp_path)
    config.stages[1].optimizer.learning_rate = 1e-6
    refuse_changed_settings(config, 0, tmp_path)
    with pytest.raises(ValueError, match=r"stages\[1\]\.optimizer\.learning_rate was 2e-07, and is 1e-06"):
        refuse_changed_settings(config, 1, tmp_path)


def test_a_run_of_other_stages_is_refused_in_the_workdir_of_a_run(tmp_path):
    both, alone = config_of(), config_of()
    alone.stages = alone.stages[:1]
    refuse_other_run(both, tmp_path / "new")
    for stage in both.stages:
        (tmp_path / "both" / stage.name / "checkpoints").mkdir(parents=True)
        write_config(both, tmp_path / "both" / stage.name)
    (tmp_path / "alone" / "checkpoints").mkdir(parents=True)
    write_config(alone, tmp_path / "alone")
    (tmp_path / "alone" / "model").mkdir()
    (tmp_path / "alone" / "model" / "config.json").write_text("{}")  # the exported model's
    refuse_other_run(both, tmp_path / "both")
    refuse_other_run(alone, tmp_path / "alone")
    with pytest.raises(ValueError, match=r"both holds another run, of one, two, and this one has one: take another"):
        refuse_other_run(alone, tmp_path / "both")
    with pytest.raises(ValueError, match=r"alone holds another run, of a single stage, and this one has one, two"):
        refuse_other_run(both, tmp_path / "alone")
    both.stages[0].name = "three"
    with pytest.raises(ValueError, match=r"both holds another run, of one, two, and this one has three, two: take"):
        refuse_other_run(both, tmp_path / "both")
    with pytest.raises(ValueError, match="holds another run"):  # before anything of this run is read or written
        trainer.run(both, tmp_path / "both")
    assert not (tmp_path / "both" / "three").exists()


def test_a_stage_with_batches_of_its_own_has_shapes_of_its_own(monkeypatch, tmp_path):
    fitted = []
    monkeypatch.setattr(shapes, "run_buckets", lambda session, folder, stages: fitted.append((folder, list(stages))))
    config = config_of()
    config.stages.insert(1, dataclasses.replace(config.stages[0], name="another"))
    for index in range(3):
        fit_run_buckets(None, config, index, tmp_path, tmp_path / "stage")  # pyright: ignore[reportArgumentType]
    assert fitted == [(tmp_path, [0, 1]), (tmp_path, [0, 1]), (tmp_path / "stage", [2])]
    for name in ("method", "microbatches", "batch_size"):  # each is enough
        alone = Stage("two", **{name: getattr(config.stages[2], name)})
        fitted.clear()
        fit_run_buckets(None, Config(stages=[Stage("one"), alone]), 1, tmp_path, Path("own"))  # pyright: ignore[reportArgumentType]
        assert fitted == [(Path("own"), [1])]


def test_held_out_rows_are_answered_in_the_batches_of_the_run_and_by_merged_parameters():
    config, model = config_of(), SimpleNamespace(merged="merged")
    context = StageContext(config=stage_settings(config, 1), processor=None, model=model, stage_index=1, buckets=None)  # pyright: ignore[reportArgumentType]
    evaluated = trainer.evaluated_context(context, config)
    assert (evaluation_batch_size(context.config), evaluation_batch_size(evaluated.config)) == (6 * 4, 8 * 4)
    assert (evaluated.config.method, evaluated.model) == (Method.SFT, "merged")


def test_a_budget_counts_the_stages_that_are_batched_alike():
    config = config_of()
    # 200 rows in 7 batches of 32: twice at the start and after stage one; once at 5, 10 and 15 and twice at 20 of two.
    assert evaluation_batches(config, [0]) == 4 * 7
    assert evaluation_batches(config, [1]) == 5 * 7
    assert alike_stages(config, 0) == [0] and alike_stages(config, 1) == [1] and stages_to_plan(config) == [0, 1]


def test_a_stage_that_stores_another_optimizer_state_is_planned_too():
    large, small = Optimizer(), Optimizer(rule=Rule.ADAFACTOR)
    config = Config(
        stages=[Stage("a", optimizer=small), Stage("b"), Stage("c", optimizer=Optimizer(learning_rate=1.0))]
    )
    assert stages_to_plan(config) == [0, 1] and alike_stages(config, 1) == [1, 2]  # rates take no memory
    for name in ("moments", "freeze_vision", "freeze_merger"):
        value = "bfloat16" if name == "moments" else True
        config.stages[0].optimizer = dataclasses.replace(large, **{name: value})
        assert stages_to_plan(config) == [0, 1]
