"""The start of a stage: which rows it trains on, and what it says of the others."""

import json

import jax
import pytest

from currreft_jax.config import Config, Data, Method, OnBadRow, Pretrained, Source, Stage
from currreft_jax.data.mixture import MixtureError
from currreft_jax.data.processor import load
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.session.session import Session, make_model
from currreft_jax.training.start import read_rows

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
        stages=[Stage("one", [Source(str(folder / "rows.jsonl"))])],
    )
    processor = load(checkpoint, max_pixels=100 * 28 * 28)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    model = make_model(config.model, processor.config, mesh, processor.tokenizer_size)
    return Session(config=config, processor=processor, model=model)


def test_rows_with_an_unreadable_gold_end_the_run_or_are_left_out_and_counted(checkpoint, tmp_path, capsys):
    session = session_of(checkpoint, tmp_path, Data(batch_size=2))
    with pytest.raises(MixtureError, match=r"2 rows cannot be used .*\n  .*rows\.jsonl:2: solution 'maybe' is no gold"):
        read_rows(session, 0)
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, on_bad_row=OnBadRow.SKIP))
    rows, _ = read_rows(session, 0)
    assert [source.ids for source in rows.sources] == [("r0", "r2")]
    assert rows.excluded == {"gold answer unreadable": 2}
    said = capsys.readouterr()
    assert "2 rows left out: gold answer unreadable" in (text := said.out + said.err)
    assert "rows.jsonl:4: solution 'a, b?' is no gold answer" in text
    session = session_of(checkpoint, tmp_path, Data(batch_size=2, on_bad_row=OnBadRow.SKIP, max_bad_rows=1))
    with pytest.raises(MixtureError, match=r"more than data\.max_bad_rows \(1\)"):
        read_rows(session, 0)
