"""Output goes to local paths: every program refuses an address in one line, before it does anything."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks import data, gpu, grpo_step, learning, rollout, world_base
from benchmarks.paper import __main__ as paper
from currreft_jax import dataset, score
from currreft_jax.config.output import local_path
from currreft_jax.data.world_rows import ensure_world
from currreft_jax.models import hf
from currreft_jax.report import __main__ as report
from currreft_jax.sampling.command_line import make_parser
from currreft_jax.training import trainer
from tests.test_train import config_of
from tools.convert_weights import __main__ as convert_weights

ADDRESS = "gs://bucket/run"
PARSERS = {
    "score": (score._parser, ["answers.jsonl", "--out"]),
    "generate": (partial(make_parser, ""), ["--boxes"]),
    "dataset check": (dataset._parser, ["check", "rows.jsonl", "--out"]),
    "dataset show": (dataset._parser, ["show", "rows.jsonl", "1", "--out"]),
    "dataset build": (dataset._parser, ["build", "world", "--out"]),
    "report": (report._parser, ["runs/demo", "--out"]),
    "report of a run": (report._parser, []),
    "convert_weights": (convert_weights.parser, ["model"]),
    **{module.__name__: (module._parser, ["--out"]) for module in (data, gpu, grpo_step, learning, rollout)},
    "benchmarks.world_base": (world_base._parser, ["--model", "model", "--out"]),
    "benchmarks.learning --runs": (learning._parser, ["--runs"]),
    "benchmarks.paper": (paper._parser, ["--out"]),
    "benchmarks.paper --runs": (paper._parser, ["--runs"]),
}


@pytest.mark.parametrize(("parser", "arguments"), PARSERS.values(), ids=PARSERS.keys())
def test_every_program_refuses_an_address(parser, arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        parser().parse_args([*arguments, ADDRESS])
    assert refused.value.code == 2
    assert f"{ADDRESS} is not a local path: write to a folder" in capsys.readouterr().err


def test_an_address_is_told_from_a_path():
    for address in (ADDRESS, "s3://bucket", "hdfs://host:9/x", Path(ADDRESS)):
        with pytest.raises(ValueError, match="is not a local path"):
            local_path(address)
    for path in ("runs/demo", "/mnt/gs/run", "C:/runs", "a:b/c", "-"):
        assert local_path(path) == Path(path)


def test_the_api_refuses_an_address(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{ADDRESS} is not a local path"):
        trainer.run(config_of(checkpoint, Path("rows.jsonl")), ADDRESS)
    with pytest.raises(ValueError, match="is not a local path"):
        hf.export(None, {}, None, ADDRESS)
    with pytest.raises(ValueError, match="is not a local path"):
        ensure_world(Path(ADDRESS), print)
    assert not list(tmp_path.iterdir())
