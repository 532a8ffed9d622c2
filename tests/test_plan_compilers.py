"""Plans by the compilers of GPUs and TPUs; skipped where a compiler is not installed."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from math import prod

import jax
import pytest

from configs import common, stage3
from currreft_jax.config import AttentionKernel
from currreft_jax.planning.compiled import CUBLAS_ONLY, Efficiency, compile_programs
from currreft_jax.planning.devices import GIB, topology_by_name
from currreft_jax.planning.fit import fits
from currreft_jax.planning.spec import model_spec
from currreft_jax.runtime.programs import device_bytes
from currreft_jax.training.programs import stage_programs

pytestmark = pytest.mark.plan
LACKING = {
    "a800": (not find_spec("jax_cuda12_plugin"), "jax-cuda12-plugin is missing: pip install -e '.[cuda12]'"),
    "v5e": (not find_spec("libtpu"), "libtpu is missing: pip install -e '.[tpu]'"),
}


def stage_of(name: str, size: str, depth: int = 0, data: int = 1):
    """The programs of a model, cut to `depth` layers and vision blocks unless 0, and the topology they are for."""
    jax.config.update("jax_default_matmul_precision", None)  # the suite raises it
    config = stage3.get_config(size)
    config.stages[0].held_out = []
    config.mesh.data = data
    spec = model_spec(config)
    if depth:
        vision = replace(spec.config.vision, depth=depth, fullatt_block_indexes=(depth - 1,))
        spec = spec._replace(config=replace(spec.config, num_hidden_layers=depth, vision=vision))
    topology = topology_by_name(name)
    config.data.batch_size = len(topology.devices)
    return stage_programs(config, 0, spec, topology.devices), topology


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(LACKING[name.split(":")[0]][0], reason=LACKING[name.split(":")[0]][1])
        )
        for name in ("a800:1x8", "a800:2x8", "v5e:2x4")
    ],
)
def test_the_published_widths_compile(monkeypatch, capfd, name):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    stage, topology = stage_of(name, "3b", depth=2)
    assert stage.model.kernel is {"a800": AttentionKernel.CUDNN, "v5e": AttentionKernel.SPLASH}[name.split(":")[0]]
    programs = stage.step(stage.buckets()[-1])
    compiled = {result.program.name: result for result in compile_programs(programs, topology)}
    on_einsum = [line for line in capfd.readouterr().err.splitlines() if "einsum takes over" in line]
    assert all("does not take the prompts of the sampler" in line for line in on_einsum)  # two meshes in one program
    assert len(on_einsum) == (stage.model.kernel is AttentionKernel.CUDNN)
    gradient, decode = compiled["gradient"], compiled["decode"]
    assert gradient.temp_bytes > GIB / 4
    # Arguments are the masters and the gradient sum, 4 bytes per parameter each.
    shard_parameters = stage.model.num_parameters / len(topology.devices)
    assert gradient.argument_bytes == pytest.approx(8 * shard_parameters, rel=0.05)
    assert sum(gradient.traffic.sent.values()) > 4 * shard_parameters
    assert bool(gradient.traffic.network) == (name == "a800:2x8")
    # A token reads the head and both layers once, and little else; on v5e the head alone, two thirds of the bytes: a
    # device's parts of two layers, 73 MB, fit into VMEM.
    weights = device_bytes(decode.program.arguments[0])
    least = {"a800": 0.9, "v5e": 0.65}[name.split(":")[0]]
    assert least * weights < decode.traffic.memory / decode.program.iterations < 2 * weights
    assert fits(list(compiled.values()), topology)


@pytest.mark.skipif(LACKING["a800"][0], reason=LACKING["a800"][1])
def test_decoding_gathers_no_logits(monkeypatch):
    """On four tensor parts a token of 16 completions gathers sums of blocks; its logits would be 7.3 MB."""
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    stage, topology = stage_of("a800:1x8", "3b", depth=2)
    assert stage.config.sampling.mesh == (-1, 4)
    programs = [program for program in stage.step(stage.buckets()[-1]) if program.name == "decode"]
    (decode,) = compile_programs(programs, topology)
    tokens = decode.program.iterations
    assert decode.traffic.links.get("all-gather", 0) < 1e5 * tokens
    assert sum(decode.traffic.calls.values()) <= (2 * 2 + 4) * tokens  # two a layer; embedding, maximum, sums, block


@pytest.mark.parametrize("options", [CUBLAS_ONLY, None], ids=["cublas", "triton"])
@pytest.mark.skipif(LACKING["a800"][0], reason=LACKING["a800"][1])
def test_decoding_copies_no_weights(monkeypatch, options):
    """The decoding loop makes no array as large as the query kernel: it neither joins, copies nor casts weights."""
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    stage, _ = stage_of("a800:1x8", "3b", depth=2)
    programs = stage.step(stage.buckets()[-1])
    (decode,) = [program for program in programs if program.name == "decode"]
    text = decode.function.trace(*decode.arguments).lower().compile(options).as_text()
    loop = re.search(r"while\(.*body=%([\w.-]+)", text)[1]
    body = re.search(rf"^%{re.escape(loop)} .*?^}}", text, re.DOTALL | re.MULTILINE)[0]
    free = "get-tuple-element|parameter|bitcast|tuple"
    results = re.findall(rf"^ +(?:ROOT )?%[\w.-]+ = (.*?) (?!(?:{free})\()[\w-]+\(", body, re.MULTILINE)
    shapes = [
        shape
        for result in results
        for shape in re.findall(r"(?:f32|bf16|u16)\[([\d,]+)\]", result)  # s8 is cuBLAS's workspace
    ]
    sizes = [prod(map(int, shape.split(","))) for shape in shapes]
    assert len(sizes) > 20 and " call(" not in body
    assert max(sizes) < 2048 * 2048


@pytest.mark.parametrize(
    ("topology", "size", "depth", "data", "most_sent", "most_network"),
    [
        ("a800:1x8", "3b", 4, 1, 5.5e9, 0),
        ("a800:1x8", "3b", 0, 1, 27e9, 0),
        ("a800:2x8", "7b", 0, 2, 85e9, 0.3),
    ],
)
@pytest.mark.skipif(LACKING["a800"][0], reason=LACKING["a800"][1])
def test_gradients_are_scattered_once_within_a_host(monkeypatch, topology, size, depth, data, most_sent, most_network):
    """A gradient is not added up on every device to be sliced there; a copy a host sends its shards alone to others."""
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    stage, topology = stage_of(topology, size, depth, data)
    programs = [program for program in stage.step(stage.buckets()[-1]) if program.name == "gradient"]
    (gradient,) = compile_programs(programs, topology)
    traffic = gradient.traffic
    assert sum(traffic.sent.values()) < most_sent
    assert sum(traffic.network.values()) <= most_network * Efficiency().network
    # Norms and biases alone; a layer's smallest kernel would take 3.7 MB.
    assert traffic.links.get("all-reduce", 0) < 1e6 * stage.model.config.num_hidden_layers


@pytest.mark.skipif(LACKING["a800"][0], reason=LACKING["a800"][1])
def test_a_gradient_by_cudnn_has_the_flops_of_einsum_and_moves_less(monkeypatch):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    stage, topology = stage_of("a800:1x8", "3b", depth=2)
    by_kernel = []
    for kernel in (AttentionKernel.EINSUM, AttentionKernel.CUDNN):
        config = replace(stage.config, model=replace(stage.config.model, attention=kernel))
        programs = stage_programs(config, 0, stage.spec, topology.devices)
        gradients = [program for program in programs.step(stage.buckets()[-1]) if program.name == "gradient"]
        by_kernel += compile_programs(gradients, topology)
    einsum, cudnn = by_kernel
    assert cudnn.flops == pytest.approx(einsum.flops, rel=0.02)
    assert cudnn.traffic.memory < 0.7 * einsum.traffic.memory and cudnn.temp_bytes < 0.7 * einsum.temp_bytes
    assert cudnn.traffic.calls == einsum.traffic.calls


@pytest.mark.skipif(*LACKING["v5e"][:1], reason=LACKING["v5e"][1])
def test_what_does_not_fit_exits_with_one():
    command = [sys.executable, "-m", "currreft_jax.plan", "--config=configs/stage3.py:7b", "--topology=v5e:2x2"]
    settings = ["--config.data.batch_size=4", "--config.sampling.group_size=2"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stdout and "Use more devices" in done.stdout
