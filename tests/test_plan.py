"""Plans against XLA's own counts, against the arrays of a run, and against small programs counted by hand."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from currreft_jax import plan
from currreft_jax.config import (
    Config,
    Data,
    Logging,
    LossAverage,
    MeshShape,
    Method,
    Remat,
    Sampling,
    Source,
    Stage,
)
from currreft_jax.models.config import ModelConfig
from currreft_jax.planning import budget, compiled, devices, fit, flops, hlo, search
from currreft_jax.planning.compiled import CompiledProgram, Efficiency
from currreft_jax.planning.devices import DEVICES, GIB, MissingCompiler, Platform, Topology, topology_by_name
from currreft_jax.planning.fit import TooLarge
from currreft_jax.planning.hlo import Traffic, hlo_traffic
from currreft_jax.planning.spec import model_spec
from currreft_jax.runtime.programs import StepProgram, device_bytes
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.sampling import sampler
from currreft_jax.training import grpo, plans, programs, trainer
from currreft_jax.training.programs import StagePrograms, stage_programs
from tests import tiny
from tests.marks import quick
from tests.test_grpo import config_of, rows  # noqa: F401 (a fixture)

SPLIT = {"microbatches": 2, "mesh": MeshShape(1, 2, 4)}


def stage_of(config: Config, topology: Topology | None = None) -> StagePrograms:
    topology = topology or here()
    return stage_programs(config, 0, model_spec(config), topology.devices)


def largest_step(stage: StagePrograms) -> list[StepProgram]:
    return list(stage.step(stage.buckets()[-1]))


def here(usable_bytes: float | None = None) -> Topology:
    """The eight simulated devices, with an A100's figures."""
    return Topology("here", DEVICES["a100"], jax.devices(), 8, usable_bytes)


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_plausible_figures_with_sources(name):
    spec = DEVICES[name]
    assert all(source.startswith("https://") for source in spec.sources)
    assert 10 * GIB < spec.memory < 200 * GIB and 0.9 < spec.usable_fraction < 1
    # 100 to 600 FLOP per byte of bandwidth: a wrong power of ten falls outside.
    assert 100 < spec.peak_flops / spec.bandwidth < 600
    assert spec.link_bandwidth < spec.bandwidth
    if spec.platform is Platform.CUDA:
        text = devices.target_config(spec)
        assert f"device_memory_size: {spec.memory}" in text and text.count("{") == text.count("}")


@pytest.mark.parametrize(("name", "gigabytes", "terabytes_per_second"), [("h100", 80, 3.35), ("h200", 141, 4.8)])
def test_hoppers_have_the_figures_of_their_data_sheets(name, gigabytes, terabytes_per_second):
    spec = DEVICES[name]
    assert spec.peak_flops == 989e12 and spec.bandwidth == terabytes_per_second * 1e12
    assert spec.memory == pytest.approx(gigabytes * 1e9, rel=0.07)  # the driver counts HBM in GiB, less its own


def test_an_attached_device_is_known_by_its_kind():
    (device, *_) = jax.devices()
    kinds = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200", "a100": "NVIDIA A100-SXM4-80GB"}
    for name, kind in kinds.items():
        memory = {"memory_stats": lambda: {"bytes_limit": GIB}}
        attached = SimpleNamespace(device_kind=kind, platform="gpu", process_index=0, **memory)
        topology = devices.attached_topology([attached])
        assert topology.spec is DEVICES[name] and topology.usable_bytes == GIB
    assert devices.attached_topology([device]).spec is None


@pytest.mark.parametrize("name", ["a900:1x8", "a800", "a800:8", "a800:0x8", "v5e:2x", ""])
def test_an_unknown_topology_is_refused(name):
    with pytest.raises(ValueError, match="no topology"):
        topology_by_name(name)


@pytest.mark.parametrize(("name", "extra"), [("a800:1x8", "cuda12"), ("v5e:2x4", "tpu")])
def test_a_missing_compiler_names_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(devices, "find_spec", lambda module: None)
    with pytest.raises(MissingCompiler, match=rf"pip install -e '\.\[{extra}\]'"):
        topology_by_name(name)


@pytest.mark.parametrize("version", [12, 13])
def test_the_compiler_is_the_installed_one(monkeypatch, version):
    monkeypatch.setattr(devices, "find_spec", lambda module: module == f"jax_cuda{version}_plugin" or None)
    monkeypatch.setattr(devices, "_cuda_devices", lambda *_: [])
    assert topology_by_name("h200:1x1").compiler_package == f"jax-cuda{version}-plugin"


# ---------------------------------------------------------------------------------------------------------------- FLOPs


def wide(layers: int) -> ModelConfig:
    """A config wide enough that matmuls are nearly all FLOPs that XLA counts."""
    vision = replace(tiny.CONFIG.vision, depth=layers, hidden_size=256, intermediate_size=688, num_heads=4)
    return replace(
        tiny.CONFIG,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        mrope_section=(8, 12, 12),
        vision=replace(vision, out_hidden_size=256, fullatt_block_indexes=(layers - 1,)),
    )


def flops_and_unrolled(checkpoint: Path, monkeypatch, layers: int, remat: Remat):
    """Pairs our FLOPs of the two largest programs with the same programs lowered without scans."""
    config = config_of(checkpoint, checkpoint, mesh=MeshShape(1, 1, 1))
    config.model.remat, config.data.batch_size, config.data.slots = remat, 1, (4,)
    config.model.max_pixels = 4 * 112 * 112
    config.sampling.max_new_tokens = config.sampling.segment = 64
    spec = model_spec(config)._replace(config=wide(layers), tokenizer_size=None)

    def traced():
        stage = stage_programs(config, 0, spec, jax.devices()[:1])
        for program in largest_step(stage):
            if program.name in ("reference", "gradient"):
                yield program.function.trace(*program.arguments)

    ours = [flops.matmul_flops(program.jaxpr.jaxpr, cond_fraction=1 / layers) for program in traced()]
    scan = partial(jax.lax.scan, unroll=True)
    monkeypatch.setattr(jax.lax, "scan", scan)
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: scan(lambda _, x: (None, f(x)), None, xs)[1])
    jax.clear_caches()
    return zip(ours, [program.lower() for program in traced()], strict=True)


@pytest.mark.parametrize("layers", quick([2, 4]))
@pytest.mark.parametrize("remat", quick([Remat.BLOCK, Remat.DOTS, Remat.NONE]))
def test_flops_equal_xlas_of_the_unrolled_model(checkpoint, monkeypatch, layers, remat):
    for ours, lowered in flops_and_unrolled(checkpoint, monkeypatch, layers, remat):
        assert ours == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 4])
def test_flops_equal_xlas_of_the_compiled_unrolled_model(checkpoint, monkeypatch, layers):
    for ours, lowered in flops_and_unrolled(checkpoint, monkeypatch, layers, Remat.BLOCK):
        assert ours == pytest.approx(lowered.compile().cost_analysis()["flops"], rel=0.05)


def test_loop_bodies_and_branches_count_as_often_as_they_run():
    x = jnp.ones((8, 8))
    matmul = 2 * 8**3

    def count(f, **assumptions):
        return flops.matmul_flops(jax.jit(f).trace(x).jaxpr.jaxpr, **assumptions) / matmul

    assert count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]) == 5
    until = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)  # noqa: E731
    assert count(until, iterations=7) == 7
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    assert count(either, cond_fraction=0.25) == 1.25
    nested = lambda x: jax.lax.cond(x[0, 0] > 0, either, lambda x: x @ x, x)  # noqa: E731
    assert count(nested, cond_fraction=0.25) == 0.75 + 0.25 * 2
    assert count(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x))(x)))) == 4  # one is recomputed


# -------------------------------------------------------------------------------------------------------------- traffic

MODULE = """HloModule jit_f, num_partitions=8

%fused (param_0: f32[16,4], param_1: s32[]) -> f32[1,4] {
  %param_1 = s32[] parameter(1)
  %param_0 = f32[16,4]{1,0} parameter(0)
  %bitcast.1 = f32[16,4]{1,0} bitcast(%param_0)
  ROOT %slice.1 = f32[1,4]{1,0} dynamic-slice(%bitcast.1, %param_1, %param_1), dynamic_slice_sizes={1,4}
}

%body (p: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %p = (s32[], f32[16,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16,4]{1,0} get-tuple-element(%p), index=1
  %row = f32[1,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %all = f32[4,4]{1,0} all-gather(%row), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %sum-start = f32[4,4]{1,0} all-reduce-start(%all), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %sum-done = f32[4,4]{1,0} all-reduce-done(%sum-start)
  ROOT %t = (s32[], f32[16,4]{1,0}) tuple(%i, %x)
}

%condition (p: (s32[], f32[16,4])) -> pred[] {
  %p = (s32[], f32[16,4]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: f32[16,4], n: s32[]) -> f32[16,4] {
  %a = f32[16,4]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %t = (s32[], f32[16,4]{1,0}) tuple(%n, %a)
  %w = (s32[], f32[16,4]{1,0}) while(%t), condition=%condition, body=%body, TRIPS
  ROOT %r = f32[16,4]{1,0} get-tuple-element(%w), index=1
}
"""


def test_the_traffic_of_a_loop_counts_every_iteration():
    known = MODULE.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"3"}}')
    measured = hlo_traffic(known, devices_per_host=4)
    # Reads a row and its index, writes the row; the gather reads it and writes four; the sum is read and written.
    assert measured.memory == 3 * ((16 + 4 + 16) + (16 + 64) + 128)
    assert measured.links == {"all-gather": 3 * 64 * 3 / 4}
    assert measured.network == {"all-reduce": 3 * 2 * 64 / 2}
    assert measured.calls == {"all-gather": 3, "all-reduce": 3} and measured.network_calls == 3
    assert hlo_traffic(known, devices_per_host=8).network == {}
    unknown = MODULE.replace("TRIPS", "x={}")
    assert hlo_traffic(unknown, 4, iterations=5).calls["all-gather"] == 5
    i = "%i = s32[] get-tuple-element(%p), index=0"
    compare = f"%n = s32[] constant(7)\n  {i}\n  ROOT %c = pred[] compare(%i, %n), direction=LT"
    counted = unknown.replace("ROOT %c = pred[] constant(true)", compare)
    assert hlo_traffic(counted, 4, iterations=5).calls["all-gather"] == 7
    by_two = f"{i}\n  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)"
    counted = counted.replace(i, by_two, 1).replace("tuple(%i, %x)", "tuple(%next, %x)")
    assert hlo_traffic(counted, 4, iterations=5).calls["all-gather"] == 4
    # A TPU's on-chip memory is not main memory.
    on_chip = known.replace("%all = f32[4,4]{1,0}", "%all = f32[4,4]{1,0:T(8,128)S(1)}")
    assert hlo_traffic(on_chip, devices_per_host=4).memory == measured.memory - 3 * 64


def test_a_tpus_reduce_scatter_counts_as_one():
    """As libtpu 0.0.42 writes `psum_scatter` of a million fp32 numbers over eight devices, shortened."""
    text = """HloModule jit_scatter

%all-reduce-scatter.3 (input: f32[1024,1024]) -> f32[128,1024] {
  %input = f32[1024,1024]{1,0} parameter(0)
  %all-reduce.1 = f32[1024,1024]{1,0} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %start = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[128,1024]{1,0} dynamic-slice(%all-reduce.1, %start), dynamic_slice_sizes={128,1024}
}

ENTRY %main (x: f32[1024,1024]) -> f32[128,1024] {
  %x = f32[1024,1024]{1,0} parameter(0)
  ROOT %fusion = f32[128,1024]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
    traffic = hlo_traffic(text, devices_per_host=8)
    assert traffic.calls == {"reduce-scatter": 1} and traffic.sent == {"reduce-scatter": 7 * 4 * 2**20 / 8}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}, to_apply=%add", [[0, 1], [2, 3]]),
        ("[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=1,'b'=4] {'b':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=1,'b'=4] {'b':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x={}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
    ],
)
def test_replica_groups_parse_in_every_notation(text, groups):
    np.testing.assert_array_equal(hlo._parse_replica_groups(text), groups)


def test_a_compiled_all_gather_is_counted():
    mesh = make_mesh(1, 8, 1)
    sharded, replicated = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axis)) for axis in (("fsdp",), ())
    )
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharded)
    text = jax.jit(lambda x: x, out_shardings=replicated).lower(x).compile().as_text()
    measured = hlo_traffic(text, 8)
    assert measured.links == {"all-gather": 64 * 64 * 4 * 7 / 8}
    assert measured.memory >= 64 * 64 * 4


# ----------------------------------------------------------------------------------------------------- resident arrays


class MemoryProbe:
    """Bytes on the first device at each call of a program, without arrays from before the probe."""

    def __init__(self) -> None:
        self._before = jax.live_arrays()  # kept alive: a freed array would hide a new one
        self._ids_before = set(map(id, self._before))
        self.largest: dict[str, int] = {}

    def wrap(self, name: str, program):
        def call(*args, **kwargs):
            self.largest[name] = max(self.largest.get(name, 0), self._bytes())
            return program(*args, **kwargs)

        return call

    def _bytes(self) -> int:
        arrays = [x for x in jax.live_arrays() if id(x) not in self._ids_before]
        return device_bytes([x for x in arrays if jax.devices()[0] in x.sharding.device_set])


@pytest.mark.parametrize(
    "split", [pytest.param(False, marks=pytest.mark.plan), pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_plan_predicts_the_bytes_before_each_program_of_a_run(checkpoint, rows, tmp_path, monkeypatch, split):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1, **(SPLIT if split else {}))
    if split:
        config.sampling.mesh, config.model.lora.rank, config.data.slots = (2, 4), 4, (4,)
    expected = {program.name: program.bytes_before for program in largest_step(stage_of(config))}
    probe = MemoryProbe()
    update_programs, sampling_programs = trainer.update_programs, sampler.sampler_programs
    reference_program = grpo.reference_program

    def probed_update(*args):
        made = update_programs(*args)
        return made._replace(
            add_gradient=probe.wrap("gradient", made.add_gradient),
            apply_gradients=probe.wrap("apply gradient", made.apply_gradients),
        )

    def probed_sampling(*args):
        made = sampling_programs(*args)
        names = {"prefill": "prefix", "decode": "decode", "grow": "grow cache"}
        return made._replace(**{field: probe.wrap(name, getattr(made, field)) for field, name in names.items()})

    monkeypatch.setattr(trainer, "update_programs", probed_update)
    monkeypatch.setattr(sampler, "sampler_programs", probed_sampling)
    monkeypatch.setattr(grpo, "reference_program", lambda *args: probe.wrap("reference", reference_program(*args)))
    trainer.run(config, tmp_path)
    assert probe.largest.keys() == {"gradient", "apply gradient", "prefix", "decode", "grow cache", "reference"}
    for name, measured in probe.largest.items():
        assert measured == pytest.approx(expected[name], rel=0.1), name


def test_a_planned_program_has_xlas_memory_of_the_program_that_runs(checkpoint):
    stage = stage_of(config_of(checkpoint, checkpoint))
    (program,) = [program for program in largest_step(stage) if program.name == "apply gradient"]
    planned = compiled.compile_program(program, here())
    run = stage.update.apply_gradients.lower(stage.state, jax.eval_shape(stage.update.zero_gradient)).compile()
    stats = run.memory_analysis()
    assert planned.argument_bytes == pytest.approx(stats.argument_size_in_bytes, rel=0.01)
    assert planned.argument_bytes + planned.output_bytes == pytest.approx(
        stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes, rel=0.01
    )
    assert planned.resident_bytes.keys() == {"reference", "microbatches"}


# ---------------------------------------------------------------------------------------------------------- the program


def costs_of(stage_index: int = 0, seconds: float | None = 10.0, peak_gib: float = 50.0) -> budget.StageCosts:
    """Costs with a program of a peak, checkpoints of 40 GB and models of 6 GB; a batch of held-out rows takes 20 s."""
    program: Any = SimpleNamespace(peak_bytes=peak_gib * GIB, program=SimpleNamespace(name="gradient"))
    return budget.StageCosts(stage_index, [program], 40 * 10**9, 6 * 10**9, seconds, 20.0)


def test_the_verdict_is_the_sum_of_all_stages():
    sources = [Source("rows.jsonl")]
    stages = [Stage("a", sources, steps=250), Stage("b", sources, steps=30, held_out=sources)]
    config = Config(stages=stages, data=Data(batch_size=8), sampling=Sampling(group_size=4))
    # 280 steps in 10 s; once at the start, twice 7 batches of 32 rows, and as many after each stage; steps 100, 200 and
    # 250 are saved, the last two are kept, and the only one of stage b.
    assert budget.evaluation_batches(config, (0, 1)) == 3 * 2 * 7
    found = budget.verdict(config, [costs_of()], here(70 * GIB))
    assert found.startswith("fits here, with 20.0 of 70.0 GiB per device to spare; the whole config takes ")
    assert (
        f"takes {(2800 + 42 * 20) / 3600:.1f} h (280 steps in 10.00 s, 42 batches of held-out rows in 20.0 s)" in found
    )
    assert "keeps 132.0 GB on disk (3 checkpoints of 40.0 GB and 2 exported models of 6.0 GB; one more" in found
    assert "; assumed are steps of the largest batch at the shares of the devices' figures above, and no time" in found
    # Steps 10 and 20 are evaluated within stage b, both ways before a gate, and its best step is kept besides the last.
    config.logging = Logging(evaluate_every=10)
    assert budget.evaluation_batches(config, (0, 1)) == (3 * 2 + 24 + 2) * 7
    stages[1].promote_above = 0.9
    assert budget.evaluation_batches(config, (0, 1)) == (3 * 2 + 24 + 4) * 7
    unknown = budget.verdict(config, [costs_of(seconds=None)], here())
    assert unknown.startswith(
        "whether it fits here is unknown, as the memory of its devices is; the whole config keeps 2"
    )
    assert budget._size_text(15 * 10**6) == "15 MB"  # a small model's
    refused = budget.verdict(config, [costs_of(peak_gib=80.0)], here(70 * GIB))
    assert refused.startswith("does not fit here: gradient of stage a needs 80.0 of 70.0 GiB per device; the whole")


class Flags(SimpleNamespace):
    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(present=0)


def flags_of_program(**values: Any) -> SimpleNamespace:
    shares = dict.fromkeys(("compute_share", "memory_share", "link_share", "network_gbs"), 0.5)
    latencies = dict.fromkeys(("latency_us", "network_latency_us"), 1.0)
    flags = {"topology": "a800:1x8", "stage": None, "all": False, "search": False, **shares, **latencies, **values}
    return SimpleNamespace(FLAGS=Flags(**flags))


def test_settings_are_checked_before_the_compiler_is_looked_for(monkeypatch):
    monkeypatch.setattr(plan, "flags", flags_of_program(config=Config(stages=[Stage("a", steps=0)])))
    monkeypatch.setattr(plan, "topology_by_name", lambda name: pytest.fail("looked for the compiler"))
    with pytest.raises(SystemExit, match=r"^plan: config\.stages\[0\]\.sources is \[\]"):
        plan.main([])


@pytest.mark.parametrize("fits", [True, False])
def test_ctrl_c_ends_a_plan_while_it_compiles(monkeypatch, fits):
    handlers = []
    monkeypatch.setattr(plan, "flags", flags_of_program(config=Config(stages=[Stage("a", [Source("rows.jsonl")])])))
    monkeypatch.setattr(plan, "topology_by_name", lambda name: here())
    monkeypatch.setattr(plan, "plan_stages", lambda *_, **__: handlers.append(signal.getsignal(signal.SIGINT)) or fits)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    with pytest.raises(SystemExit) as ended:
        plan.main([])
    assert (handlers, signal.signal(signal.SIGINT, before)) == ([signal.SIG_DFL], signal.default_int_handler)
    assert ended.value.code == (0 if fits else 1)


def test_stages_that_are_batched_in_another_way_are_planned_too(monkeypatch, capsys):
    config = Config(stages=[Stage("a", steps=100), Stage("b", steps=200), Stage("c", steps=300, batch_size=32)])
    planned = {0: costs_of(0, 10.0), 2: costs_of(2, 2.0, peak_gib=60.0)}
    monkeypatch.setattr(plans, "compile_stage", lambda config, topology, efficiency, index, all_shapes: planned[index])
    assert plans.plan_stages(config, here(70 * GIB), Efficiency())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("fits here, with 10.0 of 70.0 GiB") and "the whole config takes 1.0 h" in last
    assert "(300 steps in 10.00 s, 300 steps in 2.00 s)" in last and "3 exported models" not in last
    assert plans.plan_stages(config, here(70 * GIB), Efficiency(), 2)
    assert "; the config without a, b takes 0.2 h (300 steps" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(plans, "remedy", lambda *arguments: "fits, in 1 s a step: --config.microbatches=2")
    monkeypatch.setattr(plans, "model_spec", lambda config: None)
    assert not plans.plan_stages(config, here(55 * GIB), Efficiency())  # the stage that does not fit is not the first
    lines = capsys.readouterr().out.splitlines()
    assert "does not fit" in lines and "fits, in 1 s a step: --config.microbatches=2" in lines
    assert lines[-1].startswith("does not fit here: gradient of stage c needs 60.0 of 55.0 GiB per device; ")


def test_the_plan_lists_every_program_and_finds_what_does_not_fit(checkpoint, capsys):
    config = config_of(checkpoint, checkpoint)
    step = plans.compile_stage(config, here(usable_bytes=GIB), Efficiency()).programs
    printed, log = capsys.readouterr()
    assert re.search(r": 0\.\d\d M parameters, batch ", printed)
    assert re.search(r"^plan: cast: [\d.]+ s$", log, re.MULTILINE) and " :" not in log
    sampling, training = (
        ("cast", "reshard", "prefix", "grow cache", "decode"),
        ("reference", "gradient", "apply gradient"),
    )
    for name in ("load reference", *sampling, *training, "step"):
        assert f"\n{name} " in printed, name
    assert "resident: masters" in printed and "programs in" in printed
    assert fit.fits(step, here(usable_bytes=GIB)) and not fit.fits(step, here(usable_bytes=2**20))
    assert fit.fits(step, here(usable_bytes=None))
    by_default = compiled.step_seconds(step, here(), Efficiency())
    assert by_default > compiled.step_seconds(step, here(), Efficiency(1, 1, 1, 1e12)) > 0


def test_supervised_training_has_a_plan(checkpoint):
    config = config_of(checkpoint, checkpoint, method=Method.SFT, loss_average=LossAverage.TOKEN)
    stage = stage_of(config)
    assert [program.name for program in largest_step(stage)] == ["gradient", "apply gradient"]
    assert stage.buckets()[-1].completion == 8
    assert stage.resident.keys() == {"masters", "moments"}


def test_buckets_are_the_shapes_of_microbatches(checkpoint):
    config = config_of(checkpoint, checkpoint)
    config.data.prompt_lengths, config.data.slots = (128, 256), (1, 2)
    stage = stage_of(config)
    buckets = stage.buckets()
    assert buckets[0].shape.slots == 0 and buckets[0].shape.length == 128
    assert buckets[-1].shape.slots == 2 and buckets[-1].shape.length == 256 and buckets[-1].completion == 8
    assert len(set(buckets)) == len(buckets)
    assert all(bucket.shape.max_slots_per_image <= bucket.shape.slots for bucket in buckets)
    assert stage.max_programs() > len(buckets)


@pytest.mark.parametrize(("path", "layers"), [("Qwen/Qwen2.5-VL-3B-Instruct", 36), ("Qwen/Qwen2.5-VL-7B-Instruct", 28)])
def test_a_published_model_needs_no_folder(path, layers):
    config = Config()
    config.model.path, config.grpo.reference_path = "runs/not-yet-trained/model", path
    assert model_spec(config).config.num_hidden_layers == layers
    config.grpo.reference_path = ""
    with pytest.raises(FileNotFoundError, match="give its folder as --config"):
        model_spec(config)


@pytest.mark.parametrize(("bound", "expected"), [(0, 12_544), (6_272, 6_272)])
def test_images_are_as_large_as_the_folder_allows_where_the_settings_leave_it_to_it(tmp_path, bound, expected):
    config = Config()
    config.model.path, config.model.max_pixels = str(tmp_path / "model"), bound
    tiny.write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 12_544}))
    assert model_spec(config).max_pixels == expected


def fake_compiler(temp_bytes):
    """Replaces `compile_program`; `temp_bytes` is a function of the program's name and the config."""

    def compile_program(program: StepProgram, topology: Topology) -> CompiledProgram:
        config = searched.candidate
        slowdown = {Remat.NONE: 1.0, Remat.DOTS: 1.1, Remat.BLOCK: 1.3}[config.model.remat]
        flops = (slowdown + 0.2 * (config.microbatches - 1)) * 1e12
        return CompiledProgram(program, 0.0, 0, 0, temp_bytes(program.name, config), {}, flops, Traffic())

    return compile_program


def searched(config: Config, topology: Topology, step_programs=None, log=lambda _: None) -> search.SearchResult | None:
    """Runs the search; the config that it tries is in `searched.candidate`."""

    def step(candidate: Config) -> list[StepProgram]:
        searched.candidate = candidate
        return (step_programs or bare_programs)(candidate)

    return search.Search(config, step, topology, Efficiency(), log).run()


def bare_programs(_: Config) -> list[StepProgram]:
    """Names of programs, without functions and arguments."""
    names = ("reference", "gradient", "apply gradient", "prefix", "decode")
    return [StepProgram(name, "", None, (), {}, awaits_collectives=name == "decode") for name in names]


def test_the_peak_of_a_program_is_its_own_bytes_and_the_resident_ones():
    program = CompiledProgram(None, 0.0, 1, 2, 3, {"moments": 10}, 0.0, Traffic())
    assert program.peak_bytes == 16
    assert replace(program, refused_bytes=20.0).peak_bytes == 30
    assert fit.fits([program], here(16)) and not fit.fits([program], here(15))


@pytest.mark.parametrize(
    ("gibibytes", "expected"),
    quick(
        [
            (lambda name, config: 0, (1, Remat.NONE, 1, 1)),
            (
                lambda name, config: 3 * (name == "gradient" and config.model.remat is not Remat.BLOCK),
                (1, Remat.BLOCK, 1, 1),
            ),
            (lambda name, config: 3 / config.microbatches if name == "gradient" else 0, (2, Remat.NONE, 1, 1)),
            (lambda name, config: 3 if name == "prefix" and config.sampling.mesh[1] < 4 else 0, (1, Remat.NONE, 1, 4)),
            (lambda name, config: 3 if config.mesh.tensor < 2 else 0, (1, Remat.NONE, 2, 1)),
            (lambda name, config: 3, None),
        ],
        2,
    ),
)
def test_the_search_finds_the_fastest_settings_that_fit(checkpoint, monkeypatch, gibibytes, expected):
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size, config.model.remat = 32, Remat.BLOCK
    compiler = fake_compiler(lambda name, config: int(gibibytes(name, config) * GIB))
    monkeypatch.setattr(search, "compile_program", compiler)
    best = searched(config, here(2 * GIB))
    if expected is None:
        assert best is None
        return
    found = best.config
    assert (found.microbatches, found.model.remat, found.mesh.tensor, found.sampling.mesh[1]) == expected
    assert f"--config.model.remat={expected[1].name}" in best.flags


@pytest.mark.parametrize(("collectives", "tensor"), [(0, 8), (60, 4), (1000, 1)])
def test_the_search_takes_the_fastest_of_all_sampling_meshes(checkpoint, monkeypatch, collectives, tensor):
    """Reading 1/t of the weights takes 4 / t ms; eight parts need twice the collectives of two and four."""
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size = 32

    def compile_program(program: StepProgram, topology: Topology) -> CompiledProgram:
        parts = searched.candidate.sampling.mesh[1] or 1  # 0 while training is compiled
        calls = collectives * (parts > 1) * (1 + (parts == 8))
        traffic = Traffic(4e-3 / parts * topology.spec.bandwidth * Efficiency().memory, calls={"all-reduce": calls})
        return CompiledProgram(program, 0.0, 0, 0, 0, {}, 0.0, traffic if program.name == "decode" else Traffic())

    monkeypatch.setattr(search, "compile_program", compile_program)
    best = searched(config, here(2 * GIB))
    assert best is not None and best.config.sampling.mesh == (-1, tensor)
    assert best.seconds == pytest.approx(
        4e-3 / tensor + collectives * (tensor > 1) * (1 + (tensor == 8)) * Efficiency().latency
    )


def test_the_search_compares_tensor_axes_of_training(checkpoint, monkeypatch):
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size = 32
    seconds = {1: 4.0, 2: 3.0, 4: 2.0, 8: 3.0}

    def compile_program(program: StepProgram, topology: Topology) -> CompiledProgram:
        flops = topology.spec.peak_flops * Efficiency().compute * seconds[searched.candidate.mesh.tensor]
        return CompiledProgram(program, 0.0, 0, 0, 0, {}, flops if program.name == "gradient" else 0.0, Traffic())

    monkeypatch.setattr(search, "compile_program", compile_program)
    best = searched(config, here(2 * GIB))
    assert best is not None and best.config.mesh.tensor == 4 and best.seconds == pytest.approx(2)


def test_collectives_that_are_awaited_add_their_seconds_and_latency():
    spec, efficiency = DEVICES["a100"], Efficiency()
    traffic = Traffic(
        memory=2 * spec.bandwidth * efficiency.memory,
        links={"all-reduce": spec.link_bandwidth * efficiency.links},
        network={"all-gather": 3 * efficiency.network},
        calls={"all-reduce": 1000.0, "all-gather": 2000.0},
        network_calls=2000.0,
    )
    program = StepProgram("prefix", "", None, (), {})
    hidden = CompiledProgram(program, 0.0, 0, 0, 0, {}, 0.0, traffic)
    assert hidden.seconds(here(), efficiency) == pytest.approx(3)
    awaited = replace(hidden, program=replace(program, awaits_collectives=True))
    latency = 1000 * efficiency.latency + 2000 * efficiency.network_latency
    assert awaited.seconds(here(), efficiency) == pytest.approx(2 + 1 + 3 + latency)


@pytest.mark.parametrize(("sent", "copies"), [(1e12, 2), (0, 1)])
def test_the_search_shards_parameters_within_a_host_where_that_is_faster(checkpoint, monkeypatch, sent, copies):
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size = 32

    def compile_program(program: StepProgram, topology: Topology) -> CompiledProgram:
        one_copy = searched.candidate.mesh.data == 1
        traffic = Traffic(network={"all-gather": sent * one_copy})
        return CompiledProgram(program, 0.0, 0, 0, 0, {}, 1e12 if one_copy else 1.1e12, traffic)

    monkeypatch.setattr(search, "compile_program", compile_program)
    best = searched(config, replace(here(2 * GIB), devices_per_host=len(jax.devices()) // 2))
    assert best is not None and best.config.mesh.data == copies


@pytest.mark.slow
def test_nothing_is_compiled_where_the_arrays_alone_do_not_fit(checkpoint, monkeypatch):
    config = config_of(checkpoint, checkpoint)
    lines: list[str] = []
    monkeypatch.setattr(search, "compile_program", lambda *_: pytest.fail("compiled"))
    step = lambda candidate: largest_step(stage_of(candidate))  # noqa: E731
    assert searched(config, here(1000), step, lines.append) is None
    assert all("takes" in line for line in lines) and lines


def test_training_refuses_what_does_not_fit_before_it_loads_anything(checkpoint, rows, tmp_path, monkeypatch):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1)
    monkeypatch.setattr(fit, "attached_topology", lambda of: replace(here(usable_bytes=2**20), devices=of))
    monkeypatch.setattr(trainer, "start_state", lambda *_: pytest.fail("loaded"))
    with pytest.raises(TooLarge, match=r"does not fit 0\.00 GiB per device"):
        trainer.run(config, tmp_path)


AUTO_REMAT = [(None, Remat.BLOCK), (1000, Remat.DOTS), (999, Remat.BLOCK), (1, Remat.BLOCK)]


@pytest.mark.parametrize(("usable_bytes", "expected"), AUTO_REMAT)
def test_products_are_kept_where_the_largest_gradient_leaves_a_tenth_of_the_memory(
    checkpoint,
    rows,  # noqa: F811
    tmp_path,
    monkeypatch,
    usable_bytes,
    expected,
):
    peaks = {"gradient": 900}
    compiled = lambda program, _: SimpleNamespace(peak_bytes=peaks[program.name])  # noqa: E731
    monkeypatch.setattr(programs, "compile_program", compiled)
    monkeypatch.setattr(trainer, "least_memory", lambda: usable_bytes)
    trained = []
    monkeypatch.setattr(trainer, "prepare_programs", lambda config, stage, *_: trained.append(stage))
    monkeypatch.setattr(trainer, "start_state", lambda session, *_: trained.append(session) or pytest.fail("enough"))
    config = config_of(checkpoint, rows, steps=1)
    config.model.remat = Remat.AUTO
    with pytest.raises(pytest.fail.Exception, match="enough"):
        trainer.run(config, tmp_path)
    stage, session = trained
    assert stage.model == session.model and stage.model.remat is session.config.model.remat is expected
    planned = programs.fit_remat(
        Remat.AUTO,
        lambda remat: stage_of(replace(config, model=replace(config.model, remat=remat))),
        here(usable_bytes),
        print,
    )
    assert planned.model.remat is expected


@pytest.mark.parametrize("remat", [remat for remat in Remat if remat is not Remat.AUTO])
def test_a_set_rematerialisation_is_taken_without_compiling(monkeypatch, remat):
    monkeypatch.setattr(programs, "compile_program", lambda *_: pytest.fail("compiled"))
    assert programs.fit_remat(remat, lambda chosen: chosen, here(usable_bytes=1), print) is remat


def count_compilations(config: Config, workdir: Path) -> int:
    """Number of programs that a run compiles."""
    compilations: list[str] = []
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
    )
    trainer.run(config, workdir)
    return len(compilations)


@pytest.mark.slow
def test_training_reuses_the_planned_programs(checkpoint, rows, tmp_path, monkeypatch):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1)
    without_plan = count_compilations(config, tmp_path / "without")
    monkeypatch.setattr(fit, "attached_topology", lambda of: replace(here(usable_bytes=2**40), devices=of))
    assert count_compilations(config, tmp_path / "with") == without_plan


def test_cpus_report_no_memory_and_train(checkpoint):
    assert devices.attached_topology().usable_bytes is None
    fit.refuse_too_large(largest_step(stage_of(config_of(checkpoint, Path()))), jax.devices())
