"""The benchmark of a machine with one GPU, with its tiny size on CPUs: parts, resuming, failures, settings that fit."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import gpu, gpu_parts, numerics
from benchmarks.numerics import Outputs
from benchmarks.workload import hashed_reward
from currreft_jax.config import AttentionKernel, Kind, Method, Task
from currreft_jax.planning.compiled import CompiledProgram
from currreft_jax.planning.devices import DEVICES, Topology, attached_topology
from currreft_jax.planning.hlo import Traffic
from currreft_jax.structs import Completion, Rollout, Row


def in_this_process(name: str, options: argparse.Namespace, left: float) -> None:
    gpu.measure_part(name, options)


def run(out: Path, *parts: str, run=in_this_process, **options: object) -> int:
    flags = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    return gpu.main(["--size", "tiny", "--out", str(out), *flags, "--only", *parts], run)


def parts_of(out: Path) -> dict:
    return json.loads(out.read_text())["parts"]


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.slow
def test_the_tiny_size_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu_parts, "attached_topology", h100)
    assert run(out, "device", "numerics", "attention", "sampling", "step") == 0
    parts, printed = parts_of(out), capsys.readouterr().out

    assert parts["device"]["data_sheet"] == {"peak_flops": 989e12, "bandwidth": 3350e9}
    assert parts["device"]["matmul_flops"] > 0 and parts["device"]["copy_bandwidth"] > 0
    assert parts["numerics"]["differences"].keys() == numerics.BOUNDS.keys() and not parts["numerics"]["failures"]

    assert parts["attention"]["skipped"] == "cpu has neither cuDNN's nor splash attention"

    sampled = parts["sampling"]["B=8"]
    assert parts["sampling"].keys() >= {"B=4", "B=8"}
    moved, seconds = sampled["decode_bytes_per_step"], sampled["decode_step_seconds"]
    assert sampled["bandwidth_share"] == pytest.approx(moved / seconds / 3350e9)
    assert sampled["compiled_after_warm_up"] == 0

    step = parts["step"]
    assert {"step", "prefix", "sample", "reference", "gradient", "apply"} <= step["seconds"].keys()
    planned, update = step["planned"]["programs"], step["seconds"]["gradient"] + step["seconds"]["apply"]
    assert step["utilisation"]["mfu_update"] == pytest.approx(3 * planned["reference"]["flops"] / update / 989e12)
    assert step["utilisation"]["hfu_update"] == pytest.approx(planned["gradient"]["flops"] / update / 989e12)
    assert planned["gradient"]["flops"] > 3 * planned["reference"]["flops"]  # blocks are computed twice
    assert step["planned"]["peak_bytes"] == max(program["peak_bytes"] for program in planned.values())
    assert step["planned"]["seconds"] > 0 and step["optimizer"] == "adamw" and step["compiled_after_warm_up"] == 0
    for line in ("B=8 ", "mfu update", "peak memory", "largest differences"):
        assert line in printed


@pytest.mark.slow
def test_the_command_measures_parts_in_processes_of_their_own(tmp_path, capfd):
    out, only = tmp_path / "gpu.json", ["device", "generate"]
    assert gpu.main(["--size", "tiny", "--out", str(out), "--hf-python", sys.executable, "--only", *only]) == 0
    parts = parts_of(out)
    assert list(parts) == only and all(part["finished"] for part in parts.values())
    assert "skipped" in parts["generate"] or parts["generate"]["tokens_per_second"] > 0
    assert "not measured" not in capfd.readouterr().out


def test_rewards_of_noise_differ_and_give_gradients():
    row = Row("r", Task.MATH, Kind.OPEN, "?", "7")
    values = [hashed_reward(row, Completion(text)).value for text in ("a", "b", "a")]
    assert values[0] == values[2] != values[1] and all(0 <= value < 1 for value in values)


def test_an_update_counts_three_forward_passes():
    counts = {"mfu_update": (3e12, 2.0)}
    shares = gpu_parts._utilisation(replace(DEVICES["h100"], peak_flops=6e12), counts)["utilisation"]
    assert shares == {"mfu_update": 0.25}
    assert gpu_parts._utilisation(None, counts)["utilisation"] == {"mfu_update": None}


# ------------------------------------------------------------------------------------------------------------- numerics


def outputs() -> Outputs:
    rng = np.random.default_rng(0)
    tokens, shape = rng.integers(0, 9, (2, 3, 4)), (2, 3, 4)
    mask, lengths, finished = np.ones(shape, bool), np.full((2, 3), 4), np.zeros((2, 3), bool)
    rollout = Rollout(tokens, mask, rng.random(shape), rng.random(shape), lengths, finished)
    return Outputs(
        logits=rng.normal(size=(2, 5, 9)),
        sampled=rollout,
        greedy=replace(rollout, tokens=tokens + 1),
        own_logprobs=rollout.logprobs,
        logprobs=rng.random(shape),
        gradient={"kernel": rng.normal(size=(3, 3)), "bias": rng.normal(size=3)},
    )


FAULTS = {
    "logits": lambda out: replace(out, logits=out.logits + 1e-3),
    "logprobs": lambda out: replace(out, logprobs=out.logprobs - 1e-3),
    "gradient": lambda out: replace(out, gradient={**out.gradient, "bias": 1.01 * out.gradient["bias"]}),
    "greedy": lambda out: replace(out, greedy=replace(out.greedy, tokens=out.sampled.tokens)),
    "sampled": lambda out: replace(out, sampled=replace(out.sampled, tokens=out.greedy.tokens)),
    "sampler_against_trainer": lambda out: replace(out, own_logprobs=out.own_logprobs + 1e-3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_difference_beyond_rounding_fails_by_its_name(name):
    sound = outputs()
    assert numerics.compare(sound, sound, [5, 4])["failures"] == []
    (failure,) = numerics.compare(sound, FAULTS[name](sound), [5, 4])["failures"]
    assert failure.startswith(f"{name}: differs by")


def test_padding_is_not_compared_and_nan_fails():
    sound = outputs()
    padded = sound.logits.copy()
    padded[1, 4] = 1e6
    assert not numerics.compare(sound, replace(sound, logits=padded), [5, 4])["failures"]
    padded[1, 3] = np.nan
    assert numerics.compare(sound, replace(sound, logits=padded), [5, 4])["failures"]


def test_a_kernel_further_from_fp32_than_einsum_fails_by_its_name():
    exact = {"logits": np.ones(8), "gradient": {"kernel": np.ones(4), "bias": np.ones(4)}}

    def off(size: float) -> dict:
        return jax.tree.map(lambda x: x + size * np.tile([1, -1], len(x) // 2), exact)

    def failures_of(fused: dict) -> list[str]:
        return numerics.compare_kernel(AttentionKernel.CUDNN, exact, off(0.01), fused)["failures"]

    sound = off(0.015)
    errors = numerics.compare_kernel(AttentionKernel.CUDNN, exact, off(0.01), sound)["errors"]
    assert errors["gradient"] == {"einsum": pytest.approx(0.01), "cudnn": pytest.approx(0.015)}
    assert not failures_of(sound)
    (failure,) = failures_of({**sound, "gradient": off(0.03)["gradient"]})
    assert failure.startswith("gradient: cudnn is 3.0e-02 from fp32")
    assert failures_of({**sound, "logits": exact["logits"] + np.nan})
    (failure,) = failures_of(off(0.01))
    assert failure == "logits: cudnn gives einsum's bits, so it did not run"


def test_a_kernel_is_compared_and_timed_where_the_platform_has_one(tmp_path, monkeypatch, capsys):
    errors, seconds = {"logits": {"einsum": 0.01, "cudnn": 0.015}}, {"einsum": 1.5, "cudnn": 1.25}
    compared = {"kernel": "cudnn", "errors": errors, "failures": []}
    monkeypatch.setattr(gpu_parts, "choose_kernel", lambda *_: AttentionKernel.CUDNN)
    monkeypatch.setattr(numerics, "measure_kernel", lambda device, kernel, say, **load: compared)
    monkeypatch.setattr(gpu_parts, "_gradient_seconds", lambda bench, kernel, *_: seconds[kernel.value])
    out = tmp_path / "gpu.json"
    assert run(out, "attention") == 0
    assert parts_of(out)["attention"]["gradient_seconds"] == seconds
    printed = capsys.readouterr().out
    assert "distances from fp32 in bf16: logits einsum 1.0e-02, cudnn 1.5e-02" in printed
    assert "seconds of an update's gradient: einsum 1.500, cudnn 1.250" in printed
    compared["failures"] = ["logits: cudnn is far from fp32"]
    out.unlink()
    assert run(out, "attention") == gpu.FAILED


@pytest.mark.slow
def test_the_gradient_of_an_update_is_timed(tmp_path):
    bench = gpu_parts.Bench("tiny", tmp_path, sys.executable, print, print)
    assert gpu_parts._gradient_seconds(bench, AttentionKernel.EINSUM, *gpu_parts._open_model(bench)) > 0


@pytest.mark.slow
def test_a_wrong_weight_on_the_device_fails_loudly(tmp_path, monkeypatch, capsys):
    load, loaded = numerics.load, []

    def load_wrong_the_second_time(device):
        model, params = load(device)
        loaded.append(device)
        if len(loaded) == 2:
            params["norm"]["scale"] = params["norm"]["scale"].at[0].multiply(1.1)
        return model, params

    monkeypatch.setattr(numerics, "load", load_wrong_the_second_time)
    out = tmp_path / "gpu.json"
    assert run(out, "numerics") == gpu.FAILED
    assert any(failure.startswith("logits: differs by") for failure in parts_of(out)["numerics"]["failures"])
    assert "numerics: FAILED" in capsys.readouterr().out
    monkeypatch.setattr(numerics, "load", load)
    assert run(out, "numerics") == 0  # a part that failed runs again
    assert not parts_of(out)["numerics"]["failures"]


# ---------------------------------------------------------------------------------------------- resuming and the budget


def finish(name: str, options: argparse.Namespace, left: float) -> None:
    """Stands for a part."""
    ran.append(name)
    figures = {"skipped": "nothing", "finished": True}
    gpu.write_part(options.out, options.size, name, figures)


ran: list[str] = []


def test_a_finished_part_is_not_run_again(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    ran.clear()
    assert run(out, "generate", run=finish) == 0
    assert run(out, "generate", run=finish) == 0
    assert ran == ["generate"] and f"generate: measured before; remove {out}" in capsys.readouterr().out


def test_a_part_that_does_not_fit_the_budget_is_left_out_and_named(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    ran.clear()
    assert run(out, "step", "sft", run=finish, budget=2) == gpu.LEFT
    printed = capsys.readouterr().out
    assert not ran and "step: left out: it needs 5 s or more" in printed
    assert "not measured: step, sft; run the same command again" in printed


@pytest.mark.parametrize(
    ("environment", "left", "code", "told"),
    [("exit 3", 60, gpu.FAILED, "its process ended with exit code 3"), ("sleep 60", 0.2, gpu.LEFT, "ended at the end")],
)
def test_a_part_whose_process_ends_early_is_told(tmp_path, monkeypatch, capsys, environment, left, code, told):
    script = tmp_path / "environment.sh"
    script.write_text(environment)
    monkeypatch.setattr(gpu, "ENVIRONMENT", script)
    ended = run(tmp_path / "gpu.json", "device", run=lambda name, options, _: gpu.run_in_process(name, options, left))
    assert ended == code and told in capsys.readouterr().out


def test_figures_of_another_size_or_device_are_not_mixed(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.refuse_other_device(out, "tiny", "NVIDIA H100 80GB HBM3")
    with pytest.raises(SystemExit, match="is of NVIDIA H100 80GB HBM3, not of cpu: give another --out"):
        run(out, "device")
    with pytest.raises(SystemExit, match="is of --size tiny, not 3b"):
        gpu.main(["--out", str(out)])


def test_the_3b_is_refused_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_parts.PARTS, "step", lambda bench: pytest.fail("it would take all memory"))
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main(["--out", str(tmp_path / "gpu.json"), "--part", "step"])


# --------------------------------------------------------------------------------------------------- settings that fit


def h100(devices, usable_bytes: float | None = None) -> Topology:
    """The first simulated device, with an H100's figures."""
    return replace(attached_topology(devices), spec=DEVICES["h100"], usable_bytes=usable_bytes)


def choose(tmp_path: Path, monkeypatch, usable_bytes: float | None):
    """Chooses the settings of a step; a program is taken to need the bytes before it and a tenth."""

    def compile_programs(programs, topology):
        for program in programs:
            sizes = (program.bytes_before, program.bytes_before // 10)
            yield CompiledProgram(program, 0.0, sizes[0], 0, sizes[1], {}, 1.0, Traffic())

    reported: dict = {}
    monkeypatch.setattr(gpu_parts, "attached_topology", lambda devices: h100(devices, usable_bytes))
    monkeypatch.setattr(gpu_parts, "compile_programs", compile_programs)
    folder = tmp_path / str(usable_bytes)
    folder.mkdir()
    bench = gpu_parts.Bench("tiny", folder, sys.executable, print, lambda **figures: reported.update(figures))
    return gpu_parts._choose(bench, Method.GRPO), reported


def test_a_step_that_does_not_fit_takes_less_and_says_so(tmp_path, monkeypatch):
    chosen, roomy = choose(tmp_path, monkeypatch, None)
    assert (roomy["optimizer"], roomy["prompts"], roomy["refused"]) == ("adamw", 4, [])
    gradient = next(result.program for result in chosen.compiled if result.program.name == "gradient")
    needed = gradient.bytes_before + gradient.bytes_before // 10

    # AdamW's programs, of which each needs this much, have a second gradient on top.
    _, reported = choose(tmp_path, monkeypatch, needed * gpu_parts.MARGIN)
    assert (reported["optimizer"], reported["prompts"]) == ("adafactor", 4)
    assert len(reported["refused"]) == 1 and "adamw, 4 prompts: gradient takes" in reported["refused"][0]
    with pytest.raises(SystemExit, match=r"no setting fits: adamw, 4 prompts: .*; adafactor, 1 prompts: "):
        choose(tmp_path, monkeypatch, 1000)


def test_a_step_keeps_a_margin_to_the_plan(tmp_path, monkeypatch):
    chosen, _ = choose(tmp_path, monkeypatch, None)
    (gradient,) = [result.program for result in chosen.compiled if result.program.name == "gradient"]
    least = gradient.bytes_before + gpu_parts.device_bytes(gradient.arguments[1])
    for usable, rule in ((1.11 * least, "adamw"), (1.09 * least, "adafactor")):
        assert choose(tmp_path, monkeypatch, usable)[1]["optimizer"] == rule


def test_fewer_prompts_are_taken_where_the_plan_needs_more(tmp_path, monkeypatch):
    compiled = gpu_parts._compile

    def refuse_more_than_two_prompts(bench, programs, topology):
        prefix = next(program for program in programs if program.name == "prefix")
        found, reason = compiled(bench, programs, topology)
        return found, reason or ("prefix takes 9 GiB" if prefix.arguments[2].tokens.shape[0] > 2 else None)

    monkeypatch.setattr(gpu_parts, "_compile", refuse_more_than_two_prompts)
    _, reported = choose(tmp_path, monkeypatch, None)
    assert (reported["optimizer"], reported["prompts"], len(reported["refused"])) == ("adafactor", 2, 2)
