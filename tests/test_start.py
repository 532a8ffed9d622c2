"""The start of a stage: which rows it trains on, and what it says of the others."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from currreft_jax.config import (
    Config,
    Data,
    Grpo,
    Kind,
    Method,
    OnBadRow,
    OnRewardError,
    Pretrained,
    Reference,
    Rewards,
    Shapes,
    Source,
    Stage,
    Task,
)
from currreft_jax.data.buckets import BatchDims
from currreft_jax.data.mixture import MixtureError
from currreft_jax.data.packing import BudgetError
from currreft_jax.data.processor import load
from currreft_jax.evaluation import scoring
from currreft_jax.rewards import RewardError
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.session.session import Session, make_model
from currreft_jax.structs import Completion, Row
from currreft_jax.training import reward_trial, shapes, start, trainer
from currreft_jax.training.reward_trial import try_on, try_rewards
from currreft_jax.training.shapes import run_buckets
from currreft_jax.training.start import read_rows
from tests import tiny

ROWS = [
    {"id": f"r{n}", "task": "classify", "kind": kind, "problem": "?", "solution": solution}
    for n, (kind, solution) in enumerate([("judge", "yes"), ("judge", "maybe"), ("open", "dog"), ("choice", "a, b?")])
]


def session_of(checkpoint, folder, data: Data) -> Session:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = Config(
        method=Method.GRPO,
        model=Pretrained(path=str(checkpoint)),
        data=data,
        stages=[Stage("one", [Source(str(folder / "rows.jsonl"))], steps=3)],
    )
    processor = load(checkpoint, max_pixels=100 * 28 * 28)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    model = make_model(config.model, processor.config, mesh, processor.tokenizer_size)
    return Session(config=config, processor=processor, model=model)


def test_rows_with_an_unreadable_gold_end_the_run_or_are_left_out_and_counted(checkpoint, tmp_path, capsys):
    session = session_of(checkpoint, tmp_path, Data(batch_size=2))
    with pytest.raises(MixtureError, match=r"2 rows cannot be used .*\n  .*rows\.jsonl:2: solution 'maybe' is no gold"):
        read_rows(session, 0, run_buckets(session, tmp_path))
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, on_bad_row=OnBadRow.SKIP))
    rows = read_rows(session, 0, run_buckets(session, tmp_path))
    assert [source.ids for source in rows.sources] == [("r0", "r2")]
    assert rows.excluded == {"gold answer unreadable": 2}
    said = capsys.readouterr()
    assert "2 rows left out: gold answer unreadable" in (text := said.out + said.err)
    assert "rows.jsonl:4: solution 'a, b?' is no gold answer" in text
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, on_bad_row=OnBadRow.SKIP, max_bad_rows=1))
    with pytest.raises(MixtureError, match=r"more than data\.max_bad_rows \(1\)"):
        read_rows(session, 0, run_buckets(session, tmp_path))


@pytest.mark.parametrize(
    ("reference", "path", "wanted"),
    [
        (Reference.BASE, "", (0, None)),
        (Reference.STAGE, "", (1, Path("one"))),
        (Reference.BASE, "another", "another"),
    ],
)
def test_the_reference_of_a_later_stage_is_the_base_its_start_or_another_model(monkeypatch, reference, path, wanted):
    monkeypatch.setattr(start, "start_params", lambda config, stage_index, model, previous: (stage_index, previous))
    monkeypatch.setattr(start, "load_masters", lambda path, model, seed: path)
    config = Config(stages=[Stage("one"), Stage("two")], grpo=Grpo(reference=reference, reference_path=path))
    assert start.reference_params(config, 1, None, Path("one")) == wanted  # pyright: ignore[reportArgumentType]


def test_fitted_shapes_are_kept_and_fitted_again_for_other_settings(checkpoint, tmp_path, monkeypatch, capsys):
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, on_bad_row=OnBadRow.SKIP))
    fitted = run_buckets(session, tmp_path)
    path = tmp_path / "shapes.json"
    assert fitted.file == str(path)
    content = json.loads(path.read_text())
    assert content["shapes"] == [dataclasses.asdict(shape) for shape in fitted.shapes]
    longest = fitted.shapes[-1].length
    assert content["completion_lengths"] == [256, 384, 512]
    with pytest.raises(BudgetError, match=rf"{longest + 1} needed, but the shapes in .*json hold {longest}: the rows"):
        fitted.check(BatchDims(longest + 1, 0, 0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(shapes.pipeline, "measure_rows", lambda *_, **__: pytest.fail("measured again"))
        assert run_buckets(session, tmp_path) == fitted
    capsys.readouterr()
    session.config.data.batch_size = 4
    run_buckets(session, tmp_path)
    assert "were fitted with another data.batch_size" in capsys.readouterr().err
    path.write_text("{")
    with pytest.raises(ValueError, match=r"shapes\.json is damaged .*: remove it"):
        run_buckets(session, tmp_path)
    session.config.data.shapes = Shapes.BUCKETS
    assert len(run_buckets(session, tmp_path).shapes) > 100


def test_a_run_of_more_steps_than_are_drawn_holds_the_fullest_shard(checkpoint, tmp_path, monkeypatch):
    """Two rows with an image among many without: they meet in one of 40 steps, but perhaps not in the first two."""
    picture = tmp_path / "image.png"
    tiny.picture(56, 56).save(picture)
    session = session_of(checkpoint, tmp_path, Data(batch_size=2))
    rows = [{**ROWS[0], "id": f"r{n}", **({"image": "image.png"} if n > 17 else {})} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    session.config.stages[0].steps = 40
    slots = run_buckets(session, tmp_path / "exact").shapes[-1].slots
    monkeypatch.setattr(shapes, "MAX_STEPS", 2)
    assert run_buckets(session, tmp_path / "bound").shapes[-1].slots == 2 >= slots


def test_rows_of_all_stages_that_are_too_long_are_told_at_once(checkpoint, tmp_path, capsys):
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, prompt_lengths=(400,)))
    (tmp_path / "more.jsonl").write_text(json.dumps({**ROWS[0], "id": "long", "problem": "?" * 400}) + "\n")
    rows = [{**ROWS[0], "problem": "?" * 300}, *ROWS[1:]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = session.config.stages[0]
    two = dataclasses.replace(one, name="two", sources=[Source(str(tmp_path / "more.jsonl"))], replay=0.5)
    session.config.stages = [one, two]
    with pytest.raises(MixtureError, match=r"^too long: 2 rows, the first .*rows\.jsonl:1; the longest .*=400,\d+ \("):
        run_buckets(session, tmp_path)
    said = capsys.readouterr().err
    assert said.count("train: measuring 9 rows of 2 stages: shapes are fitted") == 1  # four of them twice
    assert said.count("measuring rows:   0%") == 1


FAILING = "tests.reward_functions:misspelt_key"
KEY_ERROR = (
    r"reward_functions\.py:\d+: reward '.*', row r2, completion '<think> </think> <answer>dog</.*KeyError: 'tolerence'"
)


def test_a_reward_is_tried_on_the_first_row_that_it_applies_to_of_each_source(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reward_trial, "_remarked", set())
    session = session_of(checkpoint, tmp_path, Data(batch_size=2))
    one = session.config.stages[0]
    (tmp_path / "judge.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    judge = dataclasses.replace(one, sources=[Source(str(tmp_path / "judge.jsonl"))])
    session.config.stages = [judge, dataclasses.replace(one, name="two")]
    try_rewards(session, session.config, 0)
    session.config.rewards.weights[FAILING] = 1.0
    with pytest.raises(RewardError, match=KEY_ERROR):
        try_rewards(session, session.config, 0)
    assert not capsys.readouterr().err
    session.config.stages[1].method = Method.SFT
    for _ in range(2):  # said once
        try_rewards(session, session.config, 0)
    assert capsys.readouterr().err == (
        f"train: reward {FAILING!r} returned None for the first rows of each source, 100 at most, and counts for none"
        " of them; does it lack a return?\n"
    )
    session.config.rewards.weights = {"tests.reward_functions:lowercase_share": 1.0, "tests.no_such:reward": 0.0}
    session.config.stages[1].method = None
    try_rewards(session, session.config, 0)
    assert not capsys.readouterr().err


def test_a_reward_of_a_held_out_row_is_tried_and_fails_in_a_line_where_the_settings_say_so(capsys):
    config = Config(rewards=Rewards(weights={FAILING: 1.0}))
    session = Session(config=config, processor=None, model=None)
    examples = [SimpleNamespace(row=Row(f"h{n}", Task.OTHER, Kind.OPEN, "?", "1"), frame=None) for n in range(2)]
    with pytest.raises(RewardError, match=r"row h0, completion .*KeyError"):
        try_on(session, examples)
    config.rewards = Rewards(weights={"tests.reward_functions:needs_answer": 1.0})
    with pytest.raises(RewardError, match="row h0, completion '': AssertionError"):
        try_on(session, examples)
    config.rewards = Rewards(weights={FAILING: 1.0}, on_error=OnRewardError.ZERO)
    try_on(session, examples)
    assert re.fullmatch(r"rewards: counts as 0, .* row h0, .*KeyError: 'tolerence'\n", capsys.readouterr().err)


def test_a_reward_that_pays_nothing_for_a_gold_answer_is_told(capsys, monkeypatch):
    monkeypatch.setattr(reward_trial, "_remarked", set())
    name = "examples.gauge.reward:within_tolerance"
    session = Session(config=Config(rewards=Rewards(weights={name: 1.0})), processor=None, model=None)
    rows = [
        Row(f"g{n}", Task.OTHER, Kind.OPEN, "?", "1", extra={"tolerance": tolerance})
        for n, tolerance in ((0, 1), (1, -1))
    ]
    try_on(session, [SimpleNamespace(row=rows[0], frame=None)])
    assert not capsys.readouterr().err
    for _ in range(2):  # said once
        assert try_on(session, [SimpleNamespace(row=rows[1], frame=None)]) == []
    said = (
        f"train: reward {name!r} pays 0 (out of tolerance) for the gold answer '1' of row g1; for rows that it is not"
    )
    assert capsys.readouterr().err == f"{said} meant for, return None\n"


def test_a_mistake_in_a_reward_ends_a_run_before_it_compiles_and_leaves_no_folder(checkpoint, tmp_path, monkeypatch):
    config = session_of(checkpoint, tmp_path, Data(batch_size=2)).config
    config.mesh.data = 1
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.setattr(trainer, "prepare_programs", lambda *_: pytest.fail("compiled"))
    config.rewards.weights[FAILING] = 1.0
    with pytest.raises(RewardError, match=KEY_ERROR):
        trainer.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for name, row in (("judge", ROWS[0]), ("test", ROWS[2])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    config.stages[0].sources = [Source(str(tmp_path / "judge.jsonl"))]
    config.stages[0].held_out = [Source(str(tmp_path / "test.jsonl"))]
    with pytest.raises(RewardError, match=KEY_ERROR):
        trainer.run(config, tmp_path / "run")


def test_the_failures_of_a_stage_are_summed_up_in_a_line(capsys, monkeypatch):
    config = Config(rewards=Rewards(weights={FAILING: 1.0}, on_error=OnRewardError.ZERO), stages=[Stage("one")])
    session = Session(config=config, processor=None, model=None)
    context = trainer.stage_context(session, 0, None, None)
    examples = [SimpleNamespace(row=Row("r", Task.OTHER, Kind.OPEN, "?", "1"), frame=None)]
    texts = [[Completion("<answer>1</answer>"), Completion("1")]]
    monkeypatch.setattr(scoring, "decode_completions", lambda *_: SimpleNamespace(texts=texts))
    scoring.score_rollout(context, examples, None)
    capsys.readouterr()
    trainer.say_failures(session)
    said = capsys.readouterr().err
    place = r"1 time at \S*reward_functions\.py:\d+, first with KeyError: 'tolerence'\n"
    assert re.fullmatch(rf"train: reward '{FAILING}' failed and counts as 0 for 1 of 2 completions: {place}", said)
