"""Settings: every field refuses what it cannot mean, and every program refuses a misspelt one in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest

from configs import curriculum, stage1
from currreft_jax import dataset, generate, score
from currreft_jax.config import (
    CacheType,
    Config,
    Evaluation,
    Method,
    Rejection,
    Sampling,
    Source,
    Stage,
    validate,
    validate_sampling,
)
from currreft_jax.config.checks import field_types
from currreft_jax.config.files import load_config
from currreft_jax.config.names import setting_type
from currreft_jax.config.reference import setting_groups
from currreft_jax.report import __main__ as report
from tests.marks import quick
from tools.convert_weights import __main__ as convert_weights
from tools.settings_page import PAGE, settings_page

ROOT = Path(__file__).parent.parent


def config_of() -> Config:
    """A valid config with every kind of settings."""
    stage = Stage("one", [Source("rows.jsonl")], held_out=[Source("held.jsonl")])
    return Config(method=Method.GRPO, stages=[stage], loss_average=stage1.get_config("tiny").loss_average)


def fields_of(settings: Any, place: str = "config") -> Iterator[tuple[str, Any, str, Any]]:
    """Lists (path, owner, field, type) of all fields of a config that are not settings themselves."""
    for name, kind in field_types(type(settings)).items():
        value, path = getattr(settings, name), f"{place}.{name}"
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, path)
            continue
        yield path, settings, name, kind
        if get_origin(kind) is list:
            for index, item in enumerate(value):
                yield from fields_of(item, f"{path}[{index}]")


def wrong_values(kind: Any) -> list[Any]:
    """Values that no setting of a type takes."""
    if isinstance(kind, UnionType) and get_args(kind)[0] in (int, float):  # or None
        return [wrong for wrong in wrong_values(get_args(kind)[0]) if wrong is not None]
    if kind is float:
        return [math.nan, math.inf, -math.inf, "1", True, None]
    if kind is int:
        return [1.5, 2.0, "1", True, None]
    if kind is bool:
        return [1, "true", None]
    if kind is str:
        return [3, None]
    if get_origin(kind) is tuple:
        return ["1", [1], (None,), *((wrong,) for wrong in wrong_values(get_args(kind)[0]))]
    if get_origin(kind) is list:
        return ["rows.jsonl", [None], ("rows.jsonl",)]
    if get_origin(kind) is dict:
        return [{1: 1.0}, *({"accuracy": wrong} for wrong in wrong_values(get_args(kind)[1]))]
    return ["no member", 3]  # an enum, or an enum or None


ALL_FIELDS = {path: (name, kind) for path, _, name, kind in fields_of(config_of())}


@pytest.mark.parametrize("path", ALL_FIELDS)
def test_every_setting_refuses_values_of_another_type_and_numbers_that_are_not_finite(path):
    config = config_of()
    validate(config)
    owner, name, kind = next((owner, name, kind) for other, owner, name, kind in fields_of(config) if other == path)
    for wrong in wrong_values(kind):
        setattr(owner, name, wrong)
        with pytest.raises(ValueError, match=r" is .*; it takes ") as refused:
            validate(config)
        assert path in str(refused.value) and "\n" not in str(refused.value)


# The values that the range of each number excludes; a number that is not here takes every finite value.
OUT_OF_RANGE: dict[str, list[Any]] = {
    "name": ["", "a/b", "..", "a\nb"],
    "seed": [-1, 2**31, 2**32 + 5],
    "microbatches": [0, -1],
    "model.path": [""],
    "model.dtype": ["float16"],
    "model.min_pixels": [-1, 500_000],
    "model.max_pixels": [-1],
    "model.lora.rank": [-1],
    "model.lora.alpha": [0.0, -1.0],
    "mesh.data": [-2, -1],  # fsdp is -1 already
    "mesh.fsdp": [0, -2],
    "mesh.tensor": [0, -2, -1],
    "stages[0].name": ["", "a/b", "."],
    "stages[0].steps": [0, -1],
    "stages[0].replay": [-0.1, 0.1, 1.0],
    "stages[0].learning_rate": [-1e-6],
    "stages[0].promote_above": [0.0, 1.1, -0.5],
    "stages[0].forgetting_margin": [-0.1],
    "stages[0].microbatches": [0, 3],
    "stages[0].batch_size": [0, -8],
    "stages[0].evaluate_every": [-1],
    "stages[0].sources[0].weight": [0.0, -1.0],
    "stages[0].sources[0].file": [""],
    "stages[0].held_out[0].weight": [0.0, -1.0],
    "stages[0].held_out[0].file": [""],
    "data.batch_size": [0, -8],
    "data.prompt_lengths": [(), (0,), (64, 32)],
    "data.completion_lengths": [(), (0,), (64, 64)],
    "data.slots": [(0,), (4, 2)],
    "data.max_bad_rows": [-1],
    "data.keep_pass_rates": [(0.5,), (-0.1, 1.0), (0.0, 1.1), (0.6, 0.4), (0.2, 0.8)],  # no pass_rates
    "data.threads": [0],
    "data.prefetch": [0],
    "optimizer.moments": ["float16"],
    "optimizer.learning_rate": [0.0, -1e-6],
    "optimizer.warmup": [-0.1, 1.0],
    "optimizer.weight_decay": [-0.1],
    "optimizer.b1": [-0.1, 1.0, 1.5],
    "optimizer.b2": [-0.1, 1.0, 1.5],
    "optimizer.eps": [0.0, -1e-8],
    "optimizer.max_grad_norm": [0.0, -1.0],
    "grpo.kl_coef": [-0.1],
    "grpo.clip_epsilon_low": [0.0, -0.1, 1.1],
    "grpo.clip_epsilon_high": [0.0, -0.1],
    "grpo.num_updates": [0],
    "grpo.minibatches": [0, 3],
    "grpo.importance_cap": [-0.1],
    "grpo.max_kl": [-0.1],
    "grpo.min_entropy": [-0.1],
    "grpo.max_truncated": [-0.1, 1.1],
    "sampling.group_size": [0, 1],
    "sampling.max_new_tokens": [0],
    "sampling.temperature": [-1.0, 0.0],
    "sampling.top_k": [-1, 5],
    "sampling.top_p": [0.0, 1.1, 0.9],
    "sampling.mesh": [(1,), (0, 1), (8, 0), (-1, -1), (1, 1, 1)],
    "sampling.segment": [0],
    "sampling.ladder": [(0.5, 0.5), (1.0,), (0.0,)],
    "sampling.prompt_lengths": [(), (0,), (64, 32)],
    "rewards.weights": [{"accuracy": 0.0}, {}],
    "rewards.partial_value": [-0.1, 1.0],
    "rewards.tau": [0.0, 1.1],
    "rewards.accept_iou": [0.4, 1.0],
    "rewards.aliases": [{"Sofa": "couch"}],
    "rewards.maths.workers": [-1],
    "rewards.maths.cpu_seconds": [0.0, -1.0],
    "rewards.maths.wall_seconds": [0.0, 1.0],
    "rewards.maths.memory_mb": [0, 100],
    "rewards.maths.max_characters": [0, 5000],
    "rewards.maths.max_nesting": [0, 101],
    "rewards.length.max_tokens": [0],
    "rewards.repetition.ngram": [0],
    "rewards.overlong.max_tokens": [0, 100],
    "rewards.overlong.buffer_tokens": [0, 600],
    "logging.log_every": [0],
    "logging.save_every": [0],
    "logging.keep_last": [0],
    "logging.rollouts_every": [-1],
    "logging.evaluate_every": [-1],
    "logging.evaluate_rows": [1, 0],
}


@pytest.mark.parametrize("path", OUT_OF_RANGE)
def test_every_number_refuses_what_is_out_of_its_range(path):
    for value in OUT_OF_RANGE[path]:
        config = config_of()
        owner, name = next((owner, name) for other, owner, name, _ in fields_of(config) if other == f"config.{path}")
        setattr(owner, name, value)
        with pytest.raises(ValueError, match=r"; it takes "):
            validate(config)


def test_every_number_of_the_config_has_a_range():
    kinds = (int, float, int | None, float | None)
    numbers = {path.removeprefix("config.") for path, (_, kind) in ALL_FIELDS.items() if kind in kinds}
    assert numbers <= OUT_OF_RANGE.keys(), numbers - OUT_OF_RANGE.keys()


@pytest.mark.parametrize("method", Method)
def test_settings_of_grpo_are_refused_under_either_method(method):
    config = config_of()
    config.method, config.grpo.kl_coef = method, -1.0
    with pytest.raises(ValueError, match=r"grpo\.kl_coef is -1\.0; it takes 0 or more"):
        validate(config)


def test_a_limit_of_the_kl_is_refused_without_a_reference():
    config = config_of()
    config.grpo.max_kl = 0.5
    validate(config)
    config.grpo.kl_coef = 0.0
    with pytest.raises(ValueError, match=r"grpo\.max_kl is 0\.5; it takes 0 without grpo\.kl_coef"):
        validate(config)


def test_an_int8_cache_is_refused_in_training_unless_it_is_corrected():
    config = config_of()
    config.sampling.cache = CacheType.INT8
    with pytest.raises(ValueError, match=r"sampling\.cache is int8; it takes .*importance_cap above 0"):
        validate(config)
    config.grpo.importance_cap = 2.0
    validate(config)
    config.grpo.importance_cap, config.grpo.num_updates = 0.0, 2  # ratios to the sampler's probabilities correct it
    validate(config)
    config.grpo.importance_cap = 2.0
    with pytest.raises(ValueError, match=r"grpo\.importance_cap is 2\.0; it takes 0 with several updates"):
        validate(config)
    config.method = Method.SFT  # samples held-out rows alone
    validate(config)


def test_the_sampler_refuses_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match=r"sampling\.temperature is nan; it takes a finite number"):
        validate_sampling(Sampling(temperature=math.nan))


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("num_steps", "config has no setting num_steps; nearest: config.stages[0].steps"),
        ("steps", "config has no setting steps; nearest: config.stages[0].steps (--help"),  # not its own `stages`
        (
            "optimizer.learning_rat",
            "config.optimizer has no setting learning_rat; nearest: learning_rate (--help",
        ),
        ("stages[0].step", "config.stages[0] has no setting step; nearest: steps (--help"),
        ("stages[-1].step", "config.stages[-1] has no setting step; nearest: steps"),
        ("qqqq", "config has no setting qqqq; it has name, seed, method"),
        ("stages[0].sources[1].file", "config.stages[0].sources has only [0]; to change their number, write --config."),
        ("stages[1].steps", "config.stages has only [0]; their number is set in the config's file"),
        (
            "stages.steps",
            "there is no config.stages.steps: config.stages takes a list of Stage, such as config.stages[0]",
        ),
        ("seed.x", "there is no config.seed.x: config.seed takes a whole number"),
        ("rewards.weights.acuracy", "config.rewards.weights has no acuracy; nearest: accuracy; to add it, write"),
        (
            "rewards.weights.my_gauge:within5",
            "it has accuracy, format, length, repetition, overlong; to add it, write --config.rewards.weights="
            'accuracy=1.0,format=1.0,my_gauge:within5=1, or config.rewards.weights["my_gauge:within5"] = 1 in the',
        ),
        ("rewards.aliases.sofa", "has none yet; to add it, write --config.rewards.aliases=sofa=LABEL, or config."),
    ],
)
def test_a_misspelt_setting_names_its_place_and_the_nearest(path, message):
    with pytest.raises(ValueError) as refused:
        setting_type(config_of(), path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_every_setting_has_its_type():
    for path, (_, kind) in ALL_FIELDS.items():
        assert setting_type(config_of(), path.removeprefix("config.")) == kind
    assert setting_type(config_of(), "rewards.weights.format") is float
    assert setting_type(config_of(), 'rewards.weights["format"]') is float


def test_every_setting_of_every_program_has_a_meaning():
    for config in (config_of(), Evaluation(), Rejection()):
        for group in setting_groups(config):
            assert group.summary, group.place
            for setting in group.settings:
                assert setting.meaning and setting.type_text, setting.path


def test_the_page_of_settings_is_current():
    assert settings_page() == PAGE.read_text("utf-8"), "run python -m tools.settings_page"


def test_values_are_listed_as_flags_take_them():
    (config,) = (group for group in setting_groups(curriculum.get_config("tiny")) if group.place == "config.stages[N]")
    settings = {setting.path.rpartition(".")[2]: setting for setting in config.settings}
    assert settings["steps"].values == ("80", "80", "80", "20") and settings["steps"].default == "1000"
    assert settings["kinds"].values == ("judge", "choice", "open", "()")
    assert settings["replay"].values == ("0.0",) and settings["forgetting_margin"].default == "None"


# ------------------------------------------------------------------------------------------------------------- flags

# Parses each command line of a JSON list in a process of its own, and prints what came of it.
PARSE_ALL = """
import json, os, sys
from absl import flags
from currreft_jax.config.flags import define_config, flags_parser
define_config()
for arguments in json.load(sys.stdin):
    print("===", flush=True)
    sys.stderr.flush()
    if not os.fork():
        os.dup2(1, 2)
        flags_parser("train")(["train", *arguments])
        config = flags.FLAGS.config
        print([source.file for source in config.stages[0].sources], len(config.stages[0].held_out),
              [kind.value for kind in config.stages[0].kinds], config.rewards.weights, config.plan_first,
              config.data.prompt_lengths, config.optimizer.learning_rate, flush=True)
        os._exit(0)
    print("code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def parse_all(command_lines: list[list[str]], cwd: Path = ROOT) -> list[tuple[str, int]]:
    """Returns what each command line prints, and its exit code."""
    command, env = [sys.executable, "-c", PARSE_ALL], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=json.dumps(command_lines), capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    results = [block.rpartition("code ") for block in done.stdout.split("===\n")[1:]]
    return [(text, int(code)) for text, _, code in results]


TINY, CHAIN = "--config=configs/stage1.py:tiny", "--config=configs/curriculum.py:tiny"
REFUSED = [
    ([], "--config is missing"),
    (["--config.data.batch_size=8"], "--config is missing"),
    ([TINY, "extra"], "extra is no flag; a setting is written --config.NAME=VALUE"),
    (
        [TINY, "--config.num_steps=3"],
        "--config.num_steps=3: config has no setting num_steps; nearest: config.stages[0]",
    ),
    ([TINY, "--config.optimizer.learning_rat=3e-5"], "nearest: learning_rate (--help"),
    ([TINY, "--config.stages[0].step=14"], "nearest: steps (--help"),
    (["--config=configs/stage1.py:4b"], "--config=configs/stage1.py:4b: no variant '4b'; there are tiny, 3b, 7b"),
    (["--config=configs/stage1.py:tny"], "no variant 'tny'; nearest: tiny"),
    (["--config=stage1"], "nearest: configs/stage1.py"),
    (["--config=config/stage1.py"], "nearest: configs/stage1.py"),
    (["--config=configs/eval.py:tiny"], "not the Config of this program; it is a config of evaluate"),
    (["--config=configs/nosuch.py"], "there is no file configs/nosuch.py in "),
    (["--config=configs/stage7.py"], "nearest: configs/stage"),
    ([TINY, "--config.stages[0].sources[1].file=b.jsonl"], "has only [0]; to change their number, write --config."),
    ([TINY, "--config.rewards.weights.my_gauge:within5=1"], "my_gauge:within5=1, or config.rewards.weights["),
    ([TINY, "--config.rewards.weights=accuracy"], "it takes a dictionary"),
    ([TINY, "--config.data.batch_size=abc"], "--config.data.batch_size=abc: it takes a whole number"),
    ([TINY, "--config.data.prompt_lengths=abc"], "data.prompt_lengths[0] is 'abc'; it takes a whole number"),
    ([TINY, "--config.method=grop"], "--config.method=grop: it takes one of sft, grpo"),
    ([TINY, "--config.optimizer=3"], "--config.optimizer=3: it takes Optimizer, whose settings are rule, moments"),
    ([TINY, "--config.stages=3"], "--config.stages=3: it takes a list of Stage"),
    ([TINY, "--config.stages[x].steps=3"], "config.stages takes a list of Stage"),
    ([TINY, "--config.stages[0].kinds=opne"], "each one of judge, choice, open, chat"),
    ([TINY, "--config.optimizer.learning_rate=inf"], "config.optimizer.learning_rate is inf; it takes a finite number"),
    ([TINY, "--config.optimizer.b2=1.5"], "config.optimizer.b2 is 1.5; it takes a decay in [0, 1)"),
    ([TINY, "--config.stages[0].sources[0]=a.jsonl"], "it takes Source, whose settings are file, weight"),
    ([TINY, "--config.stages[0]=3"], "it takes Stage, whose settings are name, sources"),
    ([TINY, "--config.stages[0=3"], "there is no config.stages[0: config.stages takes a list of Stage"),
    ([TINY, "--config.stages[0]steps=3"], "there is no config.stages[0]steps: config.stages[0] takes Stage"),
    ([TINY, "--config..seed=3"], "there is no config..seed: config takes Config, whose settings are name, seed"),
    ([TINY, "--config.=3"], "there is no config.: config takes Config"),
    ([TINY, "--config.optimizer.=3"], "there is no config.optimizer.: config.optimizer takes Optimizer"),
    ([TINY, "--config.stages[0].sources[0].kind=none"], "it takes one of judge, choice, open, chat"),
    (
        [TINY, "--config.stages[0].optimizer.learning_rate=1"],
        "config.stages[0].optimizer takes Optimizer, whose settings",
    ),
    ([CHAIN, "--config.stages[3].rejection.treshold=90"], "nearest: threshold (--help"),
    ([CHAIN, "--config.stages[3].rejection.threshold=100"], "config.stages[3].rejection.threshold is 100.0; it takes"),
    ([CHAIN, "--config.stages[3].method=grop"], "--config.stages[3].method=grop: it takes one of sft, grpo"),
    ([TINY, "--config.sampling.mesh=1"], "sampling.mesh is (1,); it takes (data, tensor)"),
    (["--config=README.md"], "README.md is no Python file"),
    (["--config=configs"], "there is no file configs in "),
    ([TINY, "--learning_rate=3"], "there is no flag --learning_rate; nearest: --config."),
    ([TINY, "--cofnig=x"], "there is no flag --cofnig; nearest: --config"),
    (["--config.seed=3", TINY], "before a value for --config was specified"),
    (["--config"], "Missing value for flag --config"),
]


def test_a_refused_command_line_ends_in_one_line():
    results = parse_all([arguments for arguments, _ in REFUSED])
    for (_, message), (text, code) in zip(REFUSED, results, strict=True):
        assert code == 2 and text.startswith("train: ") and text.count("\n") == 1, text
        assert message in text


def test_flags_set_lists_rewards_and_booleans():
    stage = "--config.stages[0]"
    flags = [f"{stage}.sources=a.jsonl,b.jsonl", f"{stage}.held_out=[]", f"{stage}.kinds=judge,open"]
    flags += ["--config.rewards.weights=accuracy=1,my_gauge:within5=0.5", "--noconfig.plan_first"]
    flags += ["--config.data.prompt_lengths=(64,96)", "--config.optimizer.learning_rate", "3e-5"]
    own = ["stages[0].method=sft", "stages[0].batch_size=64", "stages[3].rejection.threshold=90.5"]
    own += ["stages[3].optimizer.learning_rate=1e-6", "stages[3].rejection.sources[1].quota=7"]
    ((text, code), (_, code_of_own)) = parse_all([[TINY, *flags], [CHAIN, *(f"--config.{flag}" for flag in own)]])
    assert code_of_own == 0
    weights = {"accuracy": 1.0, "my_gauge:within5": 0.5}
    expected = (["a.jsonl", "b.jsonl"], 0, ["judge", "open"], weights, False, (64, 96), 3e-5)
    assert code == 0 and text.strip() == " ".join(map(str, expected))


def test_help_lists_every_setting_with_its_value_and_the_variants():
    (text, code), (defaults, _), (other_machine, _) = parse_all(
        [[CHAIN, "--help"], ["--help"], ["--config=configs/stage1.py:3b", "--help"]]
    )
    assert code == 0
    for group in setting_groups(curriculum.get_config("tiny")):
        for setting in group.settings:
            path = setting.path.replace(group.place, group.members[0]) if len(group.members) == 1 else setting.path
            assert f"\n  --{path}=" in text, path
    order = "A | B: the values of config.stages[0], config.stages[1], config.stages[2], config.stages[3], in this order"
    assert order in " ".join(text.split())
    assert "\n  --config.stages[N].steps=80 | 80 | 80 | 20  (default 1000)\n" in text
    assert "\n  --config.stages[3].optimizer.learning_rate=" in text
    assert "\n  --config.data.batch_size=16  (default 8)\n        prompts per step, over all hosts. Takes a" in text
    assert "\n  tiny  the small model" in text and "\n  --rows FILES\n" in text
    assert "\n  configs/sft.py " in defaults and "configs/eval.py" not in defaults
    assert "\n  --config.stages[N].steps=1000\n" in defaults
    assert "\n  --config.name=stage1-3b  (default run)" in other_machine


@pytest.mark.parametrize("program", quick([["plan", "--topology=here"], ["train"]]))
def test_the_programs_refuse_a_misspelt_setting_in_one_line(program):
    command = [sys.executable, "-m", f"currreft_jax.{program[0]}", *program[1:], TINY, "--config.data.bach_size=8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    place = "--config.data.bach_size=8: config.data has no setting bach_size; nearest: batch_size"
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"{program[0]}: {place} (--help lists all)\n"


# ------------------------------------------------------------------------------------------------------ config files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def get_config():\n    c = Config()\n    c.sed = 3\n    return c",
            ":4: Config has no setting sed; nearest: seed (--help",
        ),
        (
            "def get_config():\n    return Config(\n        sed=3)",
            ":3: Config has no setting sed; nearest: seed (--help",
        ),
        ("def get_config():\n    return Confg()", ":3: NameError: name 'Confg' is not defined"),
        ("def get_config(:", ":2: invalid syntax"),
        ("x = 1", "mine.py has no function get_config"),
        ("def get_config():\n    return {}", "mine.py: get_config returned a dict, not the Config of this program"),
        ("def get_config():\n    open('/nowhere/at/all')", ":3: FileNotFoundError: "),
        ("import nowhere", ":2: ModuleNotFoundError: No module named 'nowhere': add the folder"),
        ("def get_config():\n    list(zip([1], [], strict=True))", ":3: ValueError: zip() argument 2 is shorter"),
        ("import neighbour_of_mine", "neighbour_of_mine.py:1: NameError: name 'Sorce' is not defined"),
        ("from configs import sft\nget_config = lambda: sft.get_config('13b')", "no variant '13b'; nearest: 3b"),
    ],
)
def test_a_mistake_in_a_config_file_names_its_line(text, message, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("Sorce()\n")
    path = tmp_path / "mine.py"
    path.write_text(f"from currreft_jax.config import Config\n{text}\n")
    with pytest.raises(ValueError) as refused:
        load_config(str(path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_config_of_a_package_imports_it_from_any_folder(tmp_path):
    """As `configs/stage1.py` imports `configs.common`, also where the current folder is not the repository's root."""
    package = tmp_path / "package_of_configs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "common.py").write_text("NAME = 'shared'\n")
    imports = "from package_of_configs import common\nfrom currreft_jax.config import Config\n"
    (package / "mine.py").write_text(f"{imports}def get_config(): return Config(name=common.NAME)\n")
    assert load_config(str(package / "mine.py")).name == "shared"


def test_a_variant_reaches_the_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from currreft_jax.config import Config\ndef get_config(variant='none'): return Config(name=variant)\n"
    )
    assert [load_config(f"{tmp_path}/mine.py{variant}").name for variant in ("", ":a:b")] == ["none", "a:b"]
    with (tmp_path / "mine.py").open("a") as file:
        file.write("VARIANTS = {'small': 'a small one', 'large': 'a large one'}\n")
    assert load_config(f"{tmp_path}/mine.py:large").name == "large"
    with pytest.raises(ValueError, match=r"^no variant 'lrge'; nearest: large$"):
        load_config(f"{tmp_path}/mine.py:lrge")
    with pytest.raises(ValueError, match=r"^no variant 'x'; there are small, large$"):
        load_config(f"{tmp_path}/mine.py:x")


# ------------------------------------------------------------------------------------ programs without a config


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (
            dataset.main,
            ["check", "--modle=x", "rows.jsonl"],
            "dataset check: there is no option --modle; nearest: --model",
        ),
        (
            dataset.main,
            ["build", "voc", "--sorce", "x"],
            "dataset build: there is no option --sorce; nearest: --source",
        ),
        (dataset.main, ["shwo", "x", "1"], "dataset: argument COMMAND: invalid choice: 'shwo'"),
        (score.main, ["rows.jsonl", "--wieght", "a=1"], "score: there is no option --wieght; nearest: --weight"),
        (generate.main, ["--promt=x"], "generate: there is no option --promt; nearest: --prompt"),
        (generate.main, ["street.jpg"], "generate: 'street.jpg' is one argument too many; see --help"),
        (report.main, ["runs", "--comprae", "x"], "report: there is no option --comprae; nearest: --compare"),
        (convert_weights.main, ["a", "b", "--to_hf"], "convert_weights: there is no option --to_hf; nearest: --to-hf"),
        (convert_weights.main, ["a", "b", "--qq"], "convert_weights: there is no option --qq; see --help"),
    ],
)
def test_a_misspelt_option_names_the_nearest(main: Callable[..., Any], arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith(message)
