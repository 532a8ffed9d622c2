"""The completions of a step on any number of devices: layouts, refusals, and every command that the docs print."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.config import (
    ELSEWHERE,
    Config,
    Data,
    Grpo,
    MeshShape,
    Method,
    Sampling,
    batch_layout,
    stage_settings,
    validate,
)
from currreft_jax.config.files import load_config
from currreft_jax.models.config import PUBLISHED
from currreft_jax.planning.spec import model_spec
from currreft_jax.runtime.sharding import data_shards, make_mesh
from currreft_jax.session.meshes import choose_meshes
from currreft_jax.session.session import make_model
from currreft_jax.training.batches import layout_on, refuse_uneven_sampling
from currreft_jax.training.programs import stage_programs
from tests.documented import commands

ROOT = Path(__file__).parent.parent


def settings(prompts: int, group: int, method: Method = Method.GRPO, minibatches: int = 1, **changes) -> Config:
    return Config(
        method=method,
        data=Data(batch_size=prompts),
        sampling=Sampling(group_size=group),
        grpo=Grpo(minibatches=minibatches),
        **changes,
    )


@dataclass(frozen=True)
class Device:
    """Stands for a device of another machine."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "a device"

    def memory_stats(self) -> None:
        """Reports nothing."""


def devices(count: int, per_host: int = 8) -> list[Device]:
    return [Device(index, index // per_host) for index in range(count)]


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("config", "shards", "hosts", "expected"),
    [
        # microbatches, parts of a group, completions of a part, rows of a shard
        (settings(8, 4), 1, 1, (1, 1, 4, 8)),
        (settings(8, 4), 8, 1, (1, 1, 4, 1)),
        (settings(8, 4), 16, 2, (1, 2, 2, 1)),  # the paper's 7B on 2 x 8
        (settings(8, 4), 32, 4, (1, 4, 1, 1)),
        (settings(8, 6), 12, 1, (1, 3, 2, 2)),
        (settings(8, 4, microbatches=2), 8, 1, (2, 2, 2, 1)),
        (settings(8, 4, microbatches=4), 32, 1, (1, 4, 1, 1)),
        (settings(8, 4, microbatches=8), 8, 8, (1, 1, 4, 1)),  # hosts hold whole groups
        (settings(16, 4, minibatches=2), 16, 2, (1, 2, 2, 1)),
        (settings(32, 8, Method.SFT, microbatches=4), 4, 1, (4, 1, 1, 2)),
        (settings(32, 8, Method.SFT, microbatches=4), 16, 2, (2, 1, 1, 1)),
        (settings(32, 8, Method.SFT, microbatches=4), 32, 4, (1, 1, 1, 1)),
    ],
)
def test_groups_are_split_into_the_fewest_parts_that_spread_evenly(config, shards, hosts, expected):
    layout = batch_layout(config, shards, hosts)
    assert layout[1:5] == expected
    assert (
        layout.num_rows * layout.completions_per_row
        == config.data.batch_size * {Method.GRPO: config.sampling.group_size, Method.SFT: 1}[config.method]
    )


@pytest.mark.parametrize(
    ("config", "shards", "hosts", "message"),
    [
        (
            settings(8, 4),
            64,
            8,
            "32 completions (data.batch_size 8 x sampling.group_size 4) of a step do not spread evenly over 64 data"
            " shards (mesh.data x mesh.fsdp) of 8 hosts, which hold whole groups each; data.batch_size=16,"
            " sampling.group_size=8 or mesh.tensor=2 would",
        ),
        (
            settings(8, 4),
            12,
            1,
            "over 12 data shards (mesh.data x mesh.fsdp); data.batch_size=6, data.batch_size=9, sampling.group_size=6"
            " or mesh.tensor=3 would",
        ),
        (settings(8, 4), 16, 16, "of 16 hosts, which hold whole groups each; data.batch_size=16 would"),
        (settings(12, 4, minibatches=2), 16, 1, "of a step in 2 minibatches do not spread"),
        (
            settings(32, 8, Method.SFT, microbatches=4),
            64,
            1,
            "32 rows (data.batch_size) of a step do not spread evenly over 64 data shards (mesh.data x mesh.fsdp);"
            " data.batch_size=64 or mesh.tensor=2 would",
        ),
        (settings(8, 4, mesh=MeshShape(1, 1, 16)), 1, 2, "keep the tensor axis within a host"),
    ],
)
def test_what_does_not_spread_is_refused_with_the_numbers_that_would_do(config, shards, hosts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        batch_layout(config, shards, hosts)


@given(
    st.integers(1, 40),
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(Method),
)
def test_every_offered_setting_spreads(prompts, group, minibatches, microbatches, shards, hosts, method):
    config = settings(prompts * minibatches * microbatches, group, method, minibatches, microbatches=microbatches)
    try:
        layout = batch_layout(config, shards * hosts, hosts)
    except ValueError as error:
        offers = re.findall(r"(\w+)\.(\w+)=(\d+)", str(error))
        assert offers
        for part, name, value in offers:
            changed = replace(config, **{part: replace(getattr(config, part), **{name: int(value)})})
            validate(replace(changed, stages=load_config("configs/sft.py:tiny").stages))
            fewer = int(value) if name == "tensor" else 1
            batch_layout(changed, shards * hosts // fewer, hosts)
    else:
        completions = prompts * minibatches * microbatches * (group if method is Method.GRPO else 1)
        assert layout.num_rows * layout.completions_per_row == completions
        assert layout.rows_per_shard * shards * hosts % layout.group_parts == 0


# ----------------------------------------------------------------------------------- configs and commands on devices


def starts(config: Config, count: int, per_host: int = 8) -> None:
    """Does what `train` and `plan` do with the settings before anything is read or compiled.

    Raises:
        ValueError: they refuse the settings.
    """
    validate(config)
    is_grpo, listed = config.method is Method.GRPO, devices(count, per_host)
    config = choose_meshes(config, model_spec(config).config if is_grpo else PUBLISHED["3b"], listed)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, listed)
    layout = layout_on(config, mesh)
    assert layout.num_rows % data_shards(mesh) == 0
    if is_grpo:
        spec = model_spec(config)
        refuse_uneven_sampling(config, layout, make_model(config.model, spec.config, mesh, spec.tokenizer_size))


TRAIN_NOTHING = {"common.py", "eval.py", "reject.py"}
CONFIGS = sorted({path.name for path in (ROOT / "configs").glob("[!_]*.py")} - TRAIN_NOTHING)


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_starts_on_any_number_of_devices(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(ELSEWHERE, "1")
    for variant in ["0"] if path == "world_base.py" else ["tiny", "3b", "7b"]:
        config = load_config(f"configs/{path}:{variant}")
        if path.startswith(("stage", "self_improve")):
            config.grpo.reference_path = load_config(f"configs/rl.py:{variant}").model.path  # of the same shape
        # The world's base is a model for CPUs: its last stages have 16 rows a step.
        for count in (1, 2, 4, 8, 16) if path == "world_base.py" else (1, 2, 4, 8, 16, 32):
            for per_host in {count, min(count, 8), min(count, 4)}:
                for index in {0, len(config.stages) - 1}:
                    starts(stage_settings(config, index), count, per_host)


def test_the_papers_7b_has_programs_for_its_two_hosts(monkeypatch):
    monkeypatch.setenv(ELSEWHERE, "1")
    config = load_config(str(ROOT / "configs/curriculum.py:7b"))
    stage = stage_programs(config, 0, model_spec(config), devices(16))
    assert stage.model.mesh.shape == {"data": 2, "fsdp": 8, "tensor": 1} and stage.config.sampling.mesh == (-1, 4)
    programs = {program.name: program for program in stage.step(stage.buckets()[-1])}
    batch = programs["gradient"].arguments[2]
    assert batch.tokens.shape == (16, 2, 512) and batch.prompts.tokens.shape == (16, 2048)
    assert programs["decode"].shape == "16 x 2 x 512 tokens after 2048"
    assert programs["held-out decode"].shape == "32 x 1 x 512 tokens after 2048"


def test_a_stage_with_a_method_of_its_own_has_that_methods_programs(monkeypatch):
    monkeypatch.setenv(ELSEWHERE, "1")
    config = load_config(str(ROOT / "configs/curriculum.py:7b"))
    stage = stage_programs(config, 3, model_spec(config), devices(16))
    programs = {program.name: program for program in stage.step(stage.buckets()[-1])}
    assert not programs.keys() & {"prefix", "decode", "reference", "load reference"}
    assert programs["gradient"].arguments[2].tokens.shape == (16, 1, 1024)  # 32 rows in 2 microbatches
    assert programs["held-out decode"].shape == "32 x 1 x 512 tokens after 2048"  # as in the stages of GRPO


# Parses each command line of a JSON list in a process of its own, and writes the configs.
PARSE = """
import json, os, pickle, sys
from absl import flags
from currreft_jax import train  # defines its flags
from currreft_jax.config.flags import flags_parser
flags.DEFINE_string("topology", None, "of a plan")
flags.DEFINE_bool("search", False, "")
flags.DEFINE_integer("stage", 0, "")
for index, arguments in enumerate(json.load(sys.stdin)):
    if not os.fork():
        flags_parser("train")(["train", *arguments])
        with open(f"{sys.argv[1]}/{index}", "wb") as file:
            pickle.dump((flags.FLAGS.config, flags.FLAGS.topology), file)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"refused: {arguments}")
"""
# Devices of a machine, and of a slice or job: (count, on each host). A plan names its topology.
DEVICES_OF = {
    "launch/run.sh": [(1, 1), (2, 2), (4, 4), (8, 8)],
    "launch/slurm.sbatch": [(16, 8)],
    "launch/jobset.yaml": [(16, 8)],
    "launch/tpu_vm.sh": [(8, 4), (16, 4), (32, 4)],
    "launch/processes.sh 2": [(8, 4)],
    "currreft-jax:": [(1, 1), (8, 8)],  # a container
    "currreft_jax.train": [(1, 1), (2, 2), (4, 4), (8, 8)],
}


def printed_commands() -> Iterator[tuple[str, list[str]]]:
    """Yields (file and command, flags) of every command with a training config: pages, configs, launch files."""
    printed = [(command.page, command.text) for command in commands() if "--config=configs/" in command.text]
    files = [*(ROOT / "configs").glob("*.py"), *(ROOT / "launch").iterdir()]
    for path in [*files, ROOT / "currreft_jax/train.py", ROOT / "currreft_jax/plan.py"]:
        text = re.sub(r"\\\n#?", " ", path.read_text())
        for found in re.finditer(r"^.*--config=configs/(?!.*\$).*$", text, re.M):
            line = re.sub(r"\s+#.*", "", found[0].lstrip("# "))
            spans = re.findall(r"`([^`]*--config=[^`]*)`", line) or [line]
            printed += [(str(path.relative_to(ROOT)), span.strip()) for span in spans]
    for file, command in printed:
        if not re.search(r"currreft_jax\.(evaluate|reject)", command):
            words = [word for word in shlex.split(command) if re.match("--.*=|--search$", word)]
            first = next(i for i, word in enumerate(words) if word.startswith("--config="))
            yield f"{file}: {command}", words[first:]


def test_every_printed_command_starts_on_the_devices_that_it_names(tmp_path):
    commands = list(printed_commands())
    assert len(commands) > 25
    env = {**os.environ, "PYTHONPATH": str(ROOT), ELSEWHERE: "1"}
    lines = json.dumps([flags for _, flags in commands])
    done = subprocess.run(
        [sys.executable, "-c", PARSE, tmp_path], input=lines, capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    for index, (name, _) in enumerate(commands):
        config, topology = pickle.loads((tmp_path / str(index)).read_bytes())
        if topology:
            sizes = [int(size) for size in re.findall(r"\d+", topology.partition(":")[2])]
            counts = [(prod(sizes), sizes[1] if topology.startswith(("a", "h")) else 4)]
        else:
            counts = next((found for launcher, found in DEVICES_OF.items() if launcher in name), None)
            assert counts, f"{name}: on which devices does it run?"
        for count, per_host in counts:
            try:
                starts(config, count, per_host)
            except ValueError as error:
                pytest.fail(f"{name} on {count} devices: {error}")
