"""The programs of a run: few, the same in all stages, and compiled before its first step."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from currreft_jax.config import (
    CacheType,
    Config,
    Data,
    Grpo,
    Logging,
    Method,
    Optimizer,
    Precision,
    Pretrained,
    Remat,
    Rewards,
    Sampling,
    Source,
    Stage,
)
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.session import session
from currreft_jax.training import trainer
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.update import UpdatePrograms, gradient_function, update_programs
from tests import tiny


def programs_of(config: Config, stage_index: int) -> UpdatePrograms:
    optimizer = stage_optimizer(config, stage_index)
    return update_programs(tiny.model_of(), optimizer.transform, optimizer.settings, gradient_function(config))


@pytest.mark.parametrize("method", Method)
def test_all_stages_have_the_same_gradient_program(method):
    stages = [Stage("one", steps=3), Stage("two", steps=5), Stage("three", steps=2, learning_rate=0.5)]
    config = Config(method=method, stages=stages)
    one, two, three = (programs_of(config, stage_index) for stage_index in range(3))
    assert one.add_gradient is two.add_gradient is three.add_gradient
    assert one.zero_gradient is two.zero_gradient is three.zero_gradient
    assert one.apply_gradients is not two.apply_gradients  # the schedules differ
    changes = [{"optimizer": Optimizer(freeze_vision=True)}]
    if method is Method.GRPO:
        changes += [{"grpo": Grpo(kl_coef=0.5)}, {"sampling": Sampling(temperature=0.5)}]
    for change in changes:
        assert programs_of(replace(config, **change), 0).add_gradient is not one.add_gradient, change


@pytest.mark.slow
def test_a_curriculum_of_mixed_sizes_compiles_its_few_programs_before_its_first_step(tmp_path, monkeypatch, capsys):
    """Three stages of rows with long and short prompts, without an image and with small and large ones."""
    small = replace(
        tiny.CONFIG,
        num_hidden_layers=1,
        max_window_layers=1,
        vision=replace(tiny.CONFIG.vision, depth=1, fullatt_block_indexes=(0,)),
    )
    tiny.write_checkpoint(tmp_path / "model", small)
    monkeypatch.setattr(session, "make_mesh", lambda *sizes: make_mesh(*sizes, devices=jax.devices()[:1]))
    sources = {name: write_rows(tmp_path, name) for name in ("one", "two", "three")}
    config = Config(
        method=Method.GRPO,
        model=Pretrained(path=str(tmp_path / "model"), dtype="float32", remat=Remat.NONE, max_pixels=0),
        stages=[Stage(name, [Source(file)], steps=2) for name, file in sources.items()],
        data=Data(batch_size=2),
        grpo=Grpo(kl_coef=0.1),
        microbatches=2,
        sampling=Sampling(2, 4, precision=Precision.FLOAT32, cache=CacheType.FLOAT32),
        rewards=Rewards(weights={"accuracy": 0.0, "format": 0.0, "tests.reward_functions:text_hash": 1.0}),
        logging=Logging(log_every=1, rollouts_every=1, tensorboard=False),
    )
    added = []
    monkeypatch.setattr(trainer, "update_programs", lambda *args: added.append(update_programs(*args)) or added[-1])
    trainer.run(config, tmp_path / "run")
    lines = [read_metrics(tmp_path / "run" / name / "metrics.jsonl") for name in sources]
    # The first step of the run compiles what joins the metrics; after it, no step compiles or loads anything.
    assert [line["compiles"] for stage in lines for line in stage] == [1, 0, 0, 0, 0, 0]
    assert len({line["padding/prompt_waste"] for stage in lines for line in stage}) > 1
    shapes = json.loads((tmp_path / "run" / "shapes.json").read_text())
    assert len(shapes["shapes"]) == 2 and shapes["completion_lengths"] == [4]
    assert added[0].add_gradient is added[2].add_gradient and added[0].add_gradient._cache_size() == 2
    told = capsys.readouterr().err
    (total,) = set(re.findall(r"train: compiling \d+ of (\d+): ", told))
    assert re.search(
        rf"train: compiling 1 of {total}: gradient \d+ \+ 4 tokens, \d slots, \d per image … [\d.]+ s\n", told
    )
    assert f"compiled {total} programs in" in told


def write_rows(folder: Path, name: str) -> str:
    """Writes rows of two sizes, a batch of each by turns in the order of the file."""
    rows = []
    for number in range(8):
        row = {"task": "math", "kind": "open", "id": f"{name}{number}", "solution": "1", "problem": "?"}
        if number % 4 == 0:
            image = f"{name}{number}.png"
            tiny.picture(112, 56, number).save(folder / image)
            row |= {"image": image, "problem": "?" * 90}
        rows.append(json.dumps(row) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(rows))
    return str(folder / f"{name}.jsonl")
