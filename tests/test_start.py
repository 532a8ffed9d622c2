"""The start of a stage: which rows it trains on, and what it says of the others."""

import dataclasses
import json

import jax
import pytest

from currreft_jax.config import Config, Data, Method, OnBadRow, Pretrained, Shapes, Source, Stage
from currreft_jax.data.buckets import BatchDims
from currreft_jax.data.mixture import MixtureError
from currreft_jax.data.packing import BudgetError
from currreft_jax.data.processor import load
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.session.session import Session, make_model
from currreft_jax.training import shapes
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
