"""Hosts with other settings, code or files are refused before the first step, on every host."""

import dataclasses
import re
import subprocess
import sys
from contextlib import suppress

import jax
import pytest

from currreft_jax.config import Config, Data, Maths, MeshShape, Rewards, Source, Stage
from currreft_jax.runtime import agreement
from currreft_jax.training import trainer
from tests.test_launch import ROOT, environment, explicit_variables, settings
from tests.test_train import config_of

__all__ = ["environment", "settings"]


def compare(monkeypatch, refuse, *configs: Config) -> None:
    """Calls a comparison as the last of several hosts, of which each has a config."""
    contents: list[bytes] = []

    def gather(content: bytes) -> list[bytes]:
        contents.append(content.replace(b'"machine": "', f'"machine": "m{len(contents)}-'.encode()))
        return contents

    monkeypatch.setattr(agreement, "gather_bytes", gather)
    monkeypatch.setattr(agreement.socket, "gethostname", lambda: "x")
    monkeypatch.setattr(jax, "process_count", lambda: len(configs))
    for config in configs[:-1]:
        with suppress(ValueError):  # it sees only the hosts before it
            refuse(config)
    refuse(configs[-1])


def config_with(learning_rate: float = 1e-6, **changes) -> Config:
    config = Config(stages=[Stage("one", [Source("a.jsonl")])])
    config.optimizer.learning_rate = learning_rate
    return dataclasses.replace(config, **changes)


def test_equal_hosts_agree(monkeypatch):
    compare(monkeypatch, agreement.refuse_differing_settings, config_with(), config_with(), config_with())


def test_a_host_may_spend_other_processors_and_memory(monkeypatch):
    local = config_with(data=Data(threads=9, prefetch=7), rewards=Rewards(maths=Maths(workers=3)))
    compare(monkeypatch, agreement.refuse_differing_settings, config_with(), local)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 3e-5}, "optimizer.learning_rate is 1e-06 on host 0, 3e-05 on host 1 (m1-x)"),
        ({"seed": 7}, "seed is 0 on host 0, 7 on host 1 (m1-x)"),
        ({"mesh": MeshShape(tensor=2)}, "mesh.tensor is 1 on host 0, 2 on host 1 (m1-x)"),
        ({"stages": [Stage("one", [])]}, "stages[0].sources[0].file is 'a.jsonl' on host 0, not set on host 1"),
        ({"data": Data(template="")}, "data.template is 'paper' on host 0, '' on host 1"),
    ],
)
def test_another_setting_is_named_with_both_values(monkeypatch, changes, message):
    with pytest.raises(ValueError, match="the hosts differ: .*" + re.escape(message)):
        compare(monkeypatch, agreement.refuse_differing_settings, config_with(), config_with(**changes))


def test_each_other_value_is_named_with_its_hosts(monkeypatch):
    configs = [config_with(seed=seed) for seed in (0, 5, 0, 6, 5)]
    message = "seed is 0 on host 0, 5 on host 1 (m1-x), host 4 (m4-x), 6 on host 3 (m3-x): start all hosts"
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(monkeypatch, agreement.refuse_differing_settings, *configs)


def test_another_version_or_code_is_named(monkeypatch):
    versions = iter(["1", "2", "3", "4", "1", "2", "3", "5"])
    digests = iter(["one", "other"])
    monkeypatch.setattr(agreement, "version", lambda _: next(versions))
    monkeypatch.setattr(agreement, "hash_files", lambda *_: next(digests))
    with pytest.raises(
        ValueError, match=r"the version of flax is '4' on host 0, '5' on host 1 .* code of currreft_jax"
    ):
        compare(monkeypatch, agreement.refuse_differing_settings, config_with(), config_with())


def test_files_are_compared_by_content(monkeypatch, tmp_path):
    rows, held_out = tmp_path / "a.jsonl", tmp_path / "held_out.jsonl"
    config = config_with(stages=[Stage("one", [Source(str(rows))], held_out=[Source(str(held_out))])])
    rows.write_text("1")
    compare(monkeypatch, agreement.refuse_differing_files, config, config)

    digest, calls = agreement.hash_files, []

    def changing(*paths):
        calls.append(paths)
        if len(calls) == 3:  # the second host's first file
            rows.write_text("2")
            held_out.write_text("3")
        return digest(*paths)

    monkeypatch.setattr(agreement, "hash_files", changing)
    message = (
        rf"content of {rows} is '\w+' on host 0, '\w+' on host 1 .*{held_out} is 'missing' on host 0, '\w+' on host 1"
    )
    with pytest.raises(ValueError, match=message):
        compare(monkeypatch, agreement.refuse_differing_files, config, config)


def test_a_single_host_reads_no_file(monkeypatch):
    monkeypatch.setattr(agreement, "hash_files", lambda *_: pytest.fail("reads a file"))
    agreement.refuse_differing_settings(config_with())
    agreement.refuse_differing_files(config_with())


def test_a_run_compares_files_before_it_reads_rows(monkeypatch, checkpoint, tmp_path):
    def refuse(config: Config) -> None:
        raise ValueError(f"compared {config.stages[0].sources[0].file}")

    monkeypatch.setattr(trainer, "refuse_differing_files", refuse)
    (rows := tmp_path / "no_rows.jsonl").touch()
    with pytest.raises(ValueError, match=r"compared .*no_rows\.jsonl"):
        trainer.run(config_of(checkpoint, rows), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_host_with_another_learning_rate_ends_the_run_before_its_first_step(settings, environment, tmp_path):
    rates = ("1e-6", "3e-5")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "currreft_jax.train", f"--config={settings}", f"--workdir={tmp_path / 'run'}"),
                f"--config.optimizer.learning_rate={rate}",
            ],
            env=environment | {"JAX_NUM_CPU_DEVICES": "1"} | own,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rate, own in zip(rates, explicit_variables(), strict=True)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "train: the hosts differ: optimizer.learning_rate is 1e-06 on host 0, 3e-05 on host 1 (" in stderr
        assert "Traceback" not in stderr and "was ended after" not in stderr
    assert not (tmp_path / "run").exists()
