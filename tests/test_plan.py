"""What a plan says, against what XLA counts, what a run holds, and small programs that can be counted by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from currreft_jax import experience, plan, rollout, train
from currreft_jax.config import Config, LossAverage, MeshShape, Method, Remat
from currreft_jax.models.config import ModelConfig
from currreft_jax.planning import devices, fit, flops, hlo, parts
from currreft_jax.planning import search as searching
from currreft_jax.planning.devices import DEVICES, GIB, MissingCompiler, Platform, Slice, topology
from currreft_jax.planning.fit import Measured, Shares, TooLarge
from currreft_jax.planning.hlo import Traffic, traffic
from currreft_jax.planning.parts import Part
from tests import tiny
from tests.test_grpo import config_of, rows  # noqa: F401 (a fixture)

SPLIT = {"microbatches": 2, "mesh": MeshShape(1, 2, 4)}


def programs_of(config: Config, place: Slice | None = None) -> parts.Programs:
    place = place or here()
    return parts.programs_of(config, 0, parts.reader_of(config), place.devices)


def here(usable: float | None = None) -> Slice:
    """The eight simulated devices, with an A100's figures."""
    return Slice("here", DEVICES["a100"], jax.devices(), 8, usable)


def planned(config: Config, place: Slice, names: tuple[str, ...] = ()) -> list[Measured]:
    programs = programs_of(config, place)
    wanted = parts.parts(programs, parts.buckets(programs)[-1])
    return [fit.measured(it, programs, place) for it in wanted if not names or it.name in names]


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_its_figures_and_their_sources(name):
    device = DEVICES[name]
    assert all(source.startswith("https://") for source in device.sources)
    assert 10 * GIB < device.memory < 200 * GIB and 0.9 < device.usable < 1
    # Between a fifth and a half of a thousand operations for each byte: a slipped power of ten is seen.
    assert 100 < device.peak / device.bandwidth < 600
    assert device.link < device.bandwidth
    if device.platform is Platform.CUDA:
        text = devices.target(device)
        assert f"device_memory_size: {device.memory}" in text and text.count("{") == text.count("}")


@pytest.mark.parametrize("name", ["a900:1x8", "a800", "a800:8", "a800:0x8", "v5e:2x", ""])
def test_a_topology_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="no topology"):
        topology(name)


@pytest.mark.parametrize(("name", "extra"), [("a800:1x8", "cuda12"), ("v5e:2x4", "tpu")])
def test_a_missing_compiler_names_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(devices, "find_spec", lambda module: None)
    with pytest.raises(MissingCompiler, match=rf"pip install 'currreft_jax\[{extra}\]'"):
        topology(name)


# ----------------------------------------------------------------------------------------------------------- operations


def wide(layers: int) -> ModelConfig:
    """Wide enough that products are nearly all that XLA counts."""
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


def unrolled(checkpoint: Path, monkeypatch, layers: int, remat: Remat):
    """Our count of a program's operations and the lowered program without its scans, for those with most products."""
    config = config_of(checkpoint, checkpoint, mesh=MeshShape(1, 1, 1))
    config.model.remat, config.data.batch_size, config.data.slots = remat, 1, (4,)
    config.model.max_pixels = 4 * 112 * 112
    config.sampling.max_new_tokens = config.sampling.segment = 64
    reader = parts.reader_of(config)._replace(config=wide(layers), tokenizer_size=None)

    def traced():
        programs = parts.programs_of(config, 0, reader, jax.devices()[:1])
        for it in parts.parts(programs, parts.buckets(programs)[-1]):
            if it.name in ("reference", "gradient"):
                yield it.program.trace(*it.arguments)

    ours = [flops.products(it.jaxpr.jaxpr, taken=1 / layers) for it in traced()]
    scan = partial(jax.lax.scan, unroll=True)
    monkeypatch.setattr(jax.lax, "scan", scan)
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: scan(lambda _, x: (None, f(x)), None, xs)[1])
    jax.clear_caches()
    return zip(ours, [it.lower() for it in traced()], strict=True)


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("remat", Remat)
def test_operations_are_xlas_of_the_unrolled_model(checkpoint, monkeypatch, layers, remat):
    for ours, lowered in unrolled(checkpoint, monkeypatch, layers, remat):
        assert ours == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 4])
def test_operations_are_xlas_of_the_compiled_unrolled_model(checkpoint, monkeypatch, layers):
    for ours, lowered in unrolled(checkpoint, monkeypatch, layers, Remat.BLOCK):
        assert ours == pytest.approx(lowered.compile().cost_analysis()["flops"], rel=0.05)


def test_loops_and_conditions_count_as_often_as_they_run():
    x = jnp.ones((8, 8))
    product = 2 * 8**3

    def count(f, **how):
        return flops.products(jax.jit(f).trace(x).jaxpr.jaxpr, **how) / product

    assert count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]) == 5
    until = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)  # noqa: E731
    assert count(until, trips=7) == 7
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    assert count(either, taken=0.25) == 1.25
    inside = lambda x: jax.lax.cond(x[0, 0] > 0, either, lambda x: x @ x, x)  # noqa: E731
    assert count(inside, taken=0.25) == 0.75 + 0.25 * 2
    assert count(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x))(x)))) == 4  # one of them again


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


def test_traffic_of_a_loop_is_that_of_its_runs():
    known = MODULE.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"3"}}')
    seen = traffic(known, of_host=4)
    # A row and its number are read, the row written; the gather reads it and writes four; the sum is read, written.
    assert seen.memory == 3 * ((16 + 4 + 16) + (16 + 64) + 128)
    assert seen.links == {"all-gather": 3 * 64 * 3 / 4}
    assert seen.network == {"all-reduce": 3 * 2 * 64 / 2}
    assert seen.calls == {"all-gather": 3, "all-reduce": 3}
    assert traffic(known, of_host=8).network == {}
    unknown = MODULE.replace("TRIPS", "x={}")
    assert traffic(unknown, 4, trips=5).calls["all-gather"] == 5
    i = "%i = s32[] get-tuple-element(%p), index=0"
    below = f"%n = s32[] constant(7)\n  {i}\n  ROOT %c = pred[] compare(%i, %n), direction=LT"
    counted = unknown.replace("ROOT %c = pred[] constant(true)", below)
    assert traffic(counted, 4, trips=5).calls["all-gather"] == 7
    by_two = f"{i}\n  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)"
    counted = counted.replace(i, by_two, 1).replace("tuple(%i, %x)", "tuple(%next, %x)")
    assert traffic(counted, 4, trips=5).calls["all-gather"] == 4
    # What lies beside a TPU's units is not read from its memory.
    near = known.replace("%all = f32[4,4]{1,0}", "%all = f32[4,4]{1,0:T(8,128)S(1)}")
    assert traffic(near, of_host=4).memory == seen.memory - 3 * 64


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
def test_groups_of_devices_in_every_notation(text, groups):
    np.testing.assert_array_equal(hlo._members(text), groups)


def test_traffic_of_a_compiled_program():
    mesh = train.make_mesh(1, 8, 1)
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axis)) for axis in (("fsdp",), ()))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    seen = traffic(jax.jit(lambda x: x, out_shardings=whole).lower(x).compile().as_text(), 8)
    assert seen.links == {"all-gather": 64 * 64 * 4 * 7 / 8}
    assert seen.memory >= 64 * 64 * 4


# ------------------------------------------------------------------------------------------------ what lies on devices


class Watched:
    """Bytes on the first device when programs are called, without what lay there before."""

    def __init__(self) -> None:
        self._before = jax.live_arrays()  # held, so that none makes room meanwhile
        self._known = set(map(id, self._before))
        self.largest: dict[str, int] = {}

    def around(self, name: str, program):
        def call(*args, **named):
            self.largest[name] = max(self.largest.get(name, 0), self._now())
            return program(*args, **named)

        return call

    def _now(self) -> int:
        arrays = [x for x in jax.live_arrays() if id(x) not in self._known]
        return parts.device_bytes([x for x in arrays if jax.devices()[0] in x.sharding.device_set])


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_plan_knows_what_a_run_holds(checkpoint, rows, tmp_path, monkeypatch, split):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1, **(SPLIT if split else {}))
    if split:
        config.sampling.mesh, config.model.lora.rank, config.data.slots = (2, 4), 4, (4,)
    programs = programs_of(config)
    expected = {it.name: it.lying for it in parts.parts(programs, parts.buckets(programs)[-1])}
    watched = Watched()
    update, sampling, scorer = train.update_programs, rollout._programs, experience.scorer

    def watched_update(*args):
        made = update(*args)
        return made._replace(add=watched.around("gradient", made.add), move=watched.around("move", made.move))

    def watched_sampling(*args):
        made = sampling(*args)
        named = {"start": "prefix", "decode": "decode", "lengthen": "grow"}
        return made._replace(**{at: watched.around(name, getattr(made, at)) for at, name in named.items()})

    monkeypatch.setattr(train, "update_programs", watched_update)
    monkeypatch.setattr(rollout, "_programs", watched_sampling)
    monkeypatch.setattr(experience, "scorer", lambda *args: watched.around("reference", scorer(*args)))
    train.run(config, tmp_path)
    assert watched.largest.keys() == {"gradient", "move", "prefix", "decode", "grow", "reference"}
    for name, held in watched.largest.items():
        assert held == pytest.approx(expected[name], rel=0.1), name


def test_a_part_of_a_plan_takes_what_xla_gives_the_program_that_runs(checkpoint):
    config = config_of(checkpoint, checkpoint)
    (it,) = planned(config, here(), ("move",))
    programs = programs_of(config)
    compiled = programs.update.move.lower(programs.state, jax.eval_shape(programs.update.zeros)).compile()
    stats = compiled.memory_analysis()
    assert it.arguments == pytest.approx(stats.argument_size_in_bytes, rel=0.01)
    assert it.arguments + it.results == pytest.approx(
        stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes, rel=0.01
    )
    assert it.beside.keys() == {"reference", "microbatches"}


# ---------------------------------------------------------------------------------------------------------- the program


def test_the_report_names_every_part_and_what_does_not_fit(checkpoint, capsys):
    config = config_of(checkpoint, checkpoint)
    seen = plan.run(config, here(usable=GIB), Shares())
    told = capsys.readouterr().out
    drawing, learning = ("cast", "reshard", "prefix", "grow", "decode"), ("reference", "gradient", "move")
    for name in ("load reference", *drawing, *learning, "step"):
        assert f"\n{name} " in told, name
    assert "resident: masters" in told and "programs compiled in" in told
    assert fit.fits(seen, here(usable=GIB)) and not fit.fits(seen, here(usable=2**20))
    assert fit.fits(seen, here(usable=None))
    assert fit.step_seconds(seen, here(), Shares()) > fit.step_seconds(seen, here(), Shares(1, 1, 1, 1e12)) > 0


def test_supervised_training_is_planned_too(checkpoint):
    config = config_of(checkpoint, checkpoint, method=Method.SFT, loss_average=LossAverage.TOKEN)
    programs = programs_of(config)
    bucket = parts.buckets(programs)[-1]
    assert [it.name for it in parts.parts(programs, bucket)] == ["gradient", "move"]
    assert bucket.completion == 8
    assert programs.resident.keys() == {"masters", "moments"}


def test_every_bucket_is_a_shape_that_batches_take(checkpoint):
    config = config_of(checkpoint, checkpoint)
    config.data.prompt_lengths, config.data.slots = (128, 256), (1, 2)
    programs = programs_of(config)
    shapes = parts.buckets(programs)
    assert shapes[0].shape.slots == 0 and shapes[0].shape.length == 128
    assert shapes[-1].shape.slots == 2 and shapes[-1].shape.length == 256 and shapes[-1].completion == 8
    assert len(set(shapes)) == len(shapes)
    assert all(it.shape.max_slots_per_image <= it.shape.slots for it in shapes)
    assert parts.count(programs) > len(shapes)


@pytest.mark.parametrize(("path", "layers"), [("Qwen/Qwen2.5-VL-3B-Instruct", 36), ("Qwen/Qwen2.5-VL-7B-Instruct", 28)])
def test_a_published_shape_needs_no_folder(path, layers):
    config = Config()
    config.model.path, config.grpo.reference_path = "runs/not-yet-trained/model", path
    assert parts.reader_of(config).config.num_hidden_layers == layers
    config.grpo.reference_path = ""
    with pytest.raises(FileNotFoundError, match="give its folder as --config"):
        parts.reader_of(config)


def fake(peaks) -> object:
    """In place of compiling: bytes that a program would take, by its name and the programs' settings."""

    def measured(it: Part, programs: parts.Programs, place: Slice) -> Measured:
        how = programs.config
        slower = {Remat.NONE: 1.0, Remat.DOTS: 1.1, Remat.BLOCK: 1.3}[how.model.remat] + 0.2 * (how.microbatches - 1)
        return Measured(it, 0.0, 0, 0, peaks(it.name, how), {}, slower * 1e12, Traffic())

    return measured


@pytest.mark.parametrize(
    ("peaks", "found"),
    [
        (lambda name, how: 0, (1, Remat.NONE, 1, 1)),
        (lambda name, how: 3 * (name == "gradient" and how.model.remat is not Remat.BLOCK), (1, Remat.BLOCK, 1, 1)),
        (lambda name, how: 3 / how.microbatches if name == "gradient" else 0, (2, Remat.NONE, 1, 1)),
        (lambda name, how: 3 if name == "prefix" and how.sampling.mesh[1] < 4 else 0, (1, Remat.NONE, 1, 4)),
        (lambda name, how: 3 if how.mesh.tensor < 2 else 0, (1, Remat.NONE, 2, 1)),
        (lambda name, how: 3, None),
    ],
)
def test_the_search_takes_the_fastest_that_fits(checkpoint, monkeypatch, peaks, found):
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size, config.model.remat = 32, Remat.BLOCK
    monkeypatch.setattr(searching, "measured", fake(lambda name, how: int(peaks(name, how) * GIB)))
    best = searching.search(config, 0, parts.reader_of(config), here(2 * GIB), Shares(), lambda _: None)
    if found is None:
        assert best is None
        return
    got = best.config
    assert (got.microbatches, got.model.remat, got.mesh.tensor, got.sampling.mesh[1]) == found
    assert f"--config.model.remat={found[1].name}" in best.flags


@pytest.mark.parametrize(("sent", "copies"), [(1e12, 2), (0, 1)])
def test_the_search_keeps_parameters_within_a_host_where_that_is_faster(checkpoint, monkeypatch, sent, copies):
    config = config_of(checkpoint, checkpoint)
    config.data.batch_size = 32

    def measured(it: Part, programs: parts.Programs, place: Slice) -> Measured:
        alone = programs.config.mesh.data == 1
        return Measured(it, 0.0, 0, 0, 0, {}, 1e12 if alone else 1.1e12, Traffic(network={"all-gather": sent * alone}))

    monkeypatch.setattr(searching, "measured", measured)
    place = replace(here(2 * GIB), of_host=len(jax.devices()) // 2)
    best = searching.search(config, 0, parts.reader_of(config), place, Shares(), lambda _: None)
    assert best is not None and best.config.mesh.data == copies


def test_nothing_is_compiled_where_what_lies_there_is_too_much(checkpoint, monkeypatch):
    config = config_of(checkpoint, checkpoint)
    said: list[str] = []
    monkeypatch.setattr(searching, "measured", lambda *_: pytest.fail("compiled"))
    assert plan.search(config, 0, parts.reader_of(config), here(1000), Shares(), said.append) is None
    assert all("takes" in line for line in said) and said


def test_training_refuses_what_does_not_fit_before_it_loads_anything(checkpoint, rows, tmp_path, monkeypatch):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1)
    monkeypatch.setattr(fit, "present", lambda of: replace(here(usable=2**20), devices=of))
    monkeypatch.setattr(train, "start_state", lambda *_: pytest.fail("loaded"))
    with pytest.raises(TooLarge, match=r"does not fit 0\.00 GiB a device"):
        train.run(config, tmp_path)


def compiled(config: Config, workdir: Path) -> int:
    """Programs that a run compiles."""
    seen: list[str] = []
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **_: seen.append(event) if "backend_compile" in event else None
    )
    train.run(config, workdir)
    return len(seen)


@pytest.mark.slow
def test_what_training_planned_is_not_compiled_again(checkpoint, rows, tmp_path, monkeypatch):  # noqa: F811
    config = config_of(checkpoint, rows, steps=1)
    alone = compiled(config, tmp_path / "alone")
    monkeypatch.setattr(fit, "present", lambda of: replace(here(usable=2**40), devices=of))
    assert compiled(config, tmp_path / "planned") == alone


def test_cpus_say_nothing_of_their_memory_and_train(checkpoint):
    assert devices.present().usable is None
    fit.refuse_too_large(dataclasses.replace(programs_of(config_of(checkpoint, Path()))))
