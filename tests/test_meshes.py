"""Meshes that settings leave open, the order of TPUs, and sampling from a vocabulary that is split over devices."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import currreft_jax as cr
from currreft_jax.config import Config, Data, Lora, MeshShape, Method, Optimizer, Pretrained, Rule, Sampling
from currreft_jax.models.config import PUBLISHED
from currreft_jax.models.decoder import decoding_model, decoding_tensor
from currreft_jax.models.sampling import sample_token
from currreft_jax.runtime.sharding import devices_per_host, make_mesh
from currreft_jax.sampling import sampler
from currreft_jax.session.meshes import choose_meshes
from tests import tiny
from tests.marks import quick
from tests.test_rollout import EXACT


@dataclass(frozen=True)
class Device:
    """Stands for a device of another machine."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "a device"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


@dataclass(frozen=True)
class SliceDevice(Device):
    """One of several slices; JAX gives a topology's devices no `slice_index`."""

    slice_index: int = 0


def gpus(hosts: int, per_host: int = 8) -> list[Device]:
    return [Device(index, index // per_host) for index in range(hosts * per_host)]


def tpus(*shape: int, kind: str = "TPU v6 lite", slice_index: int | None = None) -> list[Device]:
    """A slice whose hosts have 2 x 2 chips, listed host by host."""
    wide = (*shape, 1)[:3]
    chips = [(x, y, z) for z, y, x in product(*map(range, reversed(wide)))]
    hosts = {place: index for index, place in enumerate(dict.fromkeys((x // 2, y // 2, z) for x, y, z in chips))}
    listed = sorted(chips, key=lambda chip: hosts[chip[0] // 2, chip[1] // 2, chip[2]])
    first = 100 * (slice_index or 0)
    of_slice = Device if slice_index is None else partial(SliceDevice, slice_index=slice_index)
    return [
        of_slice(first + i, first + hosts[x // 2, y // 2, z], "tpu", kind, (x, y, z))
        for i, (x, y, z) in enumerate(listed)
    ]


# -------------------------------------------------------------------------------------------------------- chosen meshes


def grpo_config(size: str = "3b", mesh: MeshShape | None = None, **changes) -> Config:
    model = Pretrained(path=f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct")
    sampling, data = Sampling(group_size=4), Data(batch_size=8)
    settings = {"method": Method.GRPO, "model": model, "sampling": sampling, "data": data, **changes}
    return Config(mesh=mesh or MeshShape(), **settings)


def shape_of(config: Config, devices: list[Device], usable_bytes: float | None = None) -> tuple[int, ...]:
    chosen = choose_meshes(config, PUBLISHED["3b"], devices, usable_bytes).mesh
    return make_mesh(chosen.data, chosen.fsdp, chosen.tensor, devices).devices.shape


@pytest.mark.parametrize(
    ("mesh", "devices", "expected"),
    [
        (MeshShape(), gpus(1, 1), (1, 1, 1)),
        (MeshShape(), gpus(1), (1, 8, 1)),
        (MeshShape(), gpus(2), (2, 8, 1)),
        (MeshShape(), gpus(4, 4), (4, 4, 1)),
        (MeshShape(tensor=2), gpus(2), (2, 4, 2)),
        (MeshShape(fsdp=4), gpus(2), (4, 4, 1)),
        (MeshShape(fsdp=4, tensor=-1), gpus(2), (1, 4, 4)),
        (MeshShape(data=1), gpus(2), (1, 16, 1)),
        (MeshShape(), tpus(4, 4), (1, 16, 1)),  # four hosts, one slice
        (MeshShape(), [*tpus(2, 4, slice_index=0), *tpus(2, 4, slice_index=1)], (2, 8, 1)),
    ],
)
def test_parameters_are_split_within_a_host_and_copied_to_each(mesh, devices, expected):
    assert shape_of(grpo_config(mesh=mesh), devices) == expected


@pytest.mark.parametrize(
    ("changes", "bytes_per_parameter"),
    [
        ({}, 4 + 8 + 2),
        ({"method": Method.SFT}, 4 + 8),
        ({"method": Method.SFT, "optimizer": Optimizer(moments="bfloat16")}, 4 + 6),
        ({"optimizer": Optimizer(rule=Rule.ADAFACTOR)}, 4 + 2),
        ({"model": Pretrained(lora=Lora(rank=8))}, 4 + 2),
    ],
)
def test_a_host_has_a_copy_if_half_its_memory_holds_it(changes, bytes_per_parameter):
    state = 3.7546e9 * bytes_per_parameter / 8
    config = grpo_config(**changes)
    assert shape_of(config, gpus(2), 2.1 * state) == (2, 8, 1)
    assert shape_of(config, gpus(2), 1.9 * state) == (1, 16, 1)


@pytest.mark.parametrize(
    ("size", "devices", "completions", "expected"),
    [
        ("3b", gpus(1), 32, 4),  # eight would repeat the two key/value heads four times
        ("3b", gpus(1), 128, 4),
        ("3b", gpus(1), 1024, 1),  # the activations of so many take longer than the weights
        ("3b", gpus(1, 2), 32, 2),
        ("3b", gpus(1, 6), 30, 2),
        ("3b", gpus(8, 1), 32, 1),
        ("7b", gpus(2), 32, 4),  # eight do not divide 28 heads
        ("7b", gpus(1), 128, 4),
        ("72b", gpus(2), 32, 8),
        ("3b", tpus(2, 4), 32, 4),
    ],
)
def test_decoding_is_split_where_that_pays(size, devices, completions, expected):
    assert decoding_tensor(PUBLISHED[size], devices, completions) == expected
    config = grpo_config(data=Data(batch_size=completions), sampling=Sampling(group_size=1))
    assert choose_meshes(config, PUBLISHED[size], devices).sampling.mesh == (-1, expected)


def test_a_small_model_is_not_split_and_settings_are_kept():
    assert decoding_tensor(tiny.CONFIG, jax.devices()) == 1
    model = tiny.model_of(mesh=make_mesh(2, 4, 1))
    assert decoding_model(model, (-1, 0), model.dtype).mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}
    wide = replace(model, config=PUBLISHED["3b"])
    assert decoding_model(wide, (-1, 0), model.dtype).mesh.shape == {"data": 2, "fsdp": 1, "tensor": 4}
    config = grpo_config(mesh=MeshShape(1, 2, 4), sampling=Sampling(mesh=(4, 2)))
    assert choose_meshes(config, PUBLISHED["3b"], gpus(1)) == config


# ------------------------------------------------------------------------------------------------------- order of TPUs


def hops(axis: int, mesh) -> list[int]:
    """Distances of neighbours along an axis of a mesh, its rings closed."""
    places = np.vectorize(lambda device: np.array(device.coords), otypes=[object])(mesh.devices)
    return [int(np.abs(a - b).sum()) for a, b in zip(places.flat, np.roll(places, -1, axis).flat, strict=True)]


def test_neighbours_of_a_tpu_mesh_are_close():
    listed = tpus(4, 4)
    assert max(hops(1, make_mesh(1, 16, 1, listed))) == 1  # a ring; 6 in the order of the list
    assert max(hops(1, make_mesh(1, 8, 1, tpus(2, 4)))) < 4
    both = [*tpus(4, 4, slice_index=0), *tpus(4, 4, slice_index=1)]
    mesh = make_mesh(2, 16, 1, both)
    assert [{device.slice_index for device in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    assert max(hops(1, mesh)) == 1


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [
        ((1, 32, 2), tpus(4, 4, 4, kind="TPU v5p")),
        ((2, 8, 1), tpus(4, 4)),
        ((1, 4, 4), tpus(4, 4)),
        ((1, 2, 4), tpus(2, 4)),
    ],
)
def test_an_axis_may_split_a_physical_one_but_no_process_shares_a_data_shard(sizes, devices):
    mesh = make_mesh(*sizes, devices)
    assert mesh.devices.shape == sizes and {*mesh.devices.flat} == {*devices}
    for shard in mesh.devices.reshape(-1, sizes[2]):
        assert len({device.process_index for device in shard}) == 1


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [
        ((1, 16, 1), gpus(2)),  # a host's GPUs stay together
        ((1, 3, 1), tpus(2, 2)[:3]),  # no cuboid
        ((1, 32, 1), [*tpus(4, 4, slice_index=0), *tpus(4, 4, slice_index=1)]),  # an axis over two slices
        ((1, 1, 1), tpus(2, 2)[3:]),
    ],
)
def test_other_devices_stay_in_their_order(sizes, devices):
    assert [*make_mesh(*sizes, devices).devices.flat] == devices


def test_a_slice_of_tpus_shares_links_and_so_does_a_host_of_gpus():
    assert devices_per_host(gpus(2)) == 8 and devices_per_host(gpus(1, 1)) == 1
    assert devices_per_host(tpus(4, 4)) == 16
    assert devices_per_host([*tpus(2, 4, slice_index=0), *tpus(2, 4, slice_index=1)]) == 8


# -------------------------------------------------------------------------------------------------- sampling in shards

VOCABULARY, SHARDS = 700, 4  # six blocks, of which four shards hold two each, and two are padding


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), quick([(1.0, 0, 1.0), (0.0, 0, 1.0), (0.7, 5, 1.0), (1.0, 300, 0.9)], 2), ids=str
)
def test_a_vocabulary_in_shards_gives_the_same_tokens_and_is_never_gathered(temperature, top_k, top_p):
    rows, padded = (3, 50), 2 * SHARDS * 128
    logits = 2 * np.random.default_rng(0).standard_normal((*rows, VOCABULARY)).astype(np.float32)
    logits[:, :, 40:60] = np.finfo(np.float32).min
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), rows))
    draw = partial(sample_token, temperature=temperature, top_k=top_k, top_p=top_p)
    expected = jax.jit(draw)(logits, keys, jnp.int32(3))

    mesh = make_mesh(1, 1, SHARDS, jax.devices()[:SHARDS])
    filler = np.full((*rows, padded - VOCABULARY), np.finfo(np.float32).min, np.float32)
    split = jax.device_put(np.concatenate([logits, filler], axis=2), NamedSharding(mesh, P(None, None, "tensor")))
    in_shards = jax.jit(partial(draw, num_padded=padded - VOCABULARY, mesh=mesh))
    keys = jax.device_put(keys, NamedSharding(mesh, P()))
    compiled = in_shards.lower(split, keys, jnp.int32(3)).compile()
    found = compiled(split, keys, jnp.int32(3))
    np.testing.assert_array_equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=0)
    assert len(np.unique(expected[0])) > 3
    if not top_k:  # top-k and top-p sort all logits
        assert largest_sent(compiled) <= np.prod(rows) * 128


def largest_sent(compiled) -> int:
    """Elements of the largest array that devices exchange."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    lines = [line for line in compiled.as_text().splitlines() if re.search(rf" ({kinds})(-start)?\(", line)]
    assert lines
    shapes = [shape for line in lines for shape in re.findall(r"\w+\[([\d,]+)\]", re.split(rf" (?:{kinds})", line)[0])]
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.slow
def test_decoding_on_a_tensor_mesh_gathers_no_logits(checkpoint):
    """The decoding program of four tensor parts, compiled: nothing as large as the logits is sent."""
    model, parameters = cr.load_model(checkpoint, mesh=make_mesh(1, 1, SHARDS, jax.devices()[:SHARDS]))
    processor = cr.load_processor(checkpoint, max_pixels=6_000)
    prompts = [processor.prompt(tiny.user("?" * i), key=i) for i in range(8)]
    sampling = replace(EXACT, mesh=(1, SHARDS), group_size=4)
    run = sampler.start(model, parameters, processor, prompts, sampling, None, (0, 0, 0))
    compiled = run.programs.decode.lower(run.decoding_params, run.prompts, run.state, np.int32(8)).compile()
    assert run.decoding_params["embed_tokens"]["embedding"].shape == (512, 96)  # 270 tokens, in whole blocks
    assert largest_sent(compiled) <= 32 * 128
