"""Attention's kernels: which one runs where, equality with einsum, refusals, and their FLOPs."""

import re
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from currreft_jax.config import AttentionKernel, Pretrained, Sampling
from currreft_jax.models import flash
from currreft_jax.models.attention import KVSource, attend, block_scores
from currreft_jax.models.flash import FlashAttention, Sequences, choose_kernel
from currreft_jax.models.text import causal_mask
from currreft_jax.models.vision import attend_same_id
from currreft_jax.planning.flops import matmul_flops
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.sampling.state import sampler_spec
from currreft_jax.session.session import make_model
from tests import tiny
from tests.marks import quick

EINSUM, CUDNN, SPLASH = AttentionKernel.EINSUM, AttentionKernel.CUDNN, AttentionKernel.SPLASH
BF16, FP32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def mesh_of(platform: str, kind: str = "", reported: int | None = None):
    """Stands for the mesh of one attached device, which reports its memory."""
    stats = None if reported is None else {"bytes_limit": reported}
    device = SimpleNamespace(platform=platform, device_kind=kind, process_index=0, memory_stats=lambda: stats)
    return SimpleNamespace(devices=np.array([device]), shape={"data": 1, "fsdp": 1, "tensor": 1})


# ------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("mesh", "scores"),
    [
        (None, 2**18),
        (mesh_of("cpu"), 2**18),
        (mesh_of("gpu", "NVIDIA A800-SXM4-80GB"), 2**31 // (12 * 16 * 2)),
        (mesh_of("gpu", "NVIDIA A100-SXM4-40GB"), 2**31 // (12 * 16 * 2)),
        (mesh_of("gpu", "a new GPU", 48 * 10**9), 2**31 // (12 * 16 * 2)),
        (mesh_of("gpu", "a new GPU", 24 * 10**9), 2**28 // (12 * 16 * 2)),
        (mesh_of("gpu", "a new GPU"), 2**28 // (12 * 16 * 2)),
        (mesh_of("tpu", "TPU v5 lite"), 2**28 // (12 * 16 * 2)),
        (mesh_of("tpu", "TPU v5"), 2**31 // (12 * 16 * 2)),
    ],
)
def test_a_block_takes_what_the_memory_of_the_device_allows(mesh, scores):
    assert block_scores(mesh, num_heads=16, num_prompts=2) == scores


def test_a_block_is_counted_on_a_device(monkeypatch):
    counted = []
    monkeypatch.setattr(
        "currreft_jax.models.attention.block_scores", lambda mesh, *counts: counted.append(counts) or 10**9
    )
    mesh, x = make_mesh(1, 2, 2, jax.devices()[:4]), jnp.ones((4, 3, 2, 3, 8))  # 4 prompts, 3 queries, 2 x 3 heads
    source = KVSource("pskd", x[:, :, :, 0], x[:, :, :, 0], "qs", causal_mask(3))
    attend("pqkgd", x, source, mesh=mesh)
    attend("pqkgd", x[:, :, :1], KVSource("pskd", *(x[:, :, :1, 0],) * 2, "qs", causal_mask(3)), mesh=mesh)
    attend("nqhd", x[:, :, 0], KVSource("nshd", *(x[:, :, 0],) * 2, "qs", causal_mask(3)), mesh=mesh)
    attend("pqkgd", x, source)
    # Halves of 6 heads and 4 prompts; a single key/value head is whole; 3 heads whose queries are halved.
    assert counted == [(3, 2), (3, 2), (2, 2), (6, 4)]


@pytest.mark.parametrize(
    ("platform", "dtype", "setting", "kernel"),
    [
        ("gpu", BF16, "auto", CUDNN),
        ("cuda", BF16, "auto", CUDNN),
        ("tpu", BF16, "auto", SPLASH),
        ("cpu", BF16, "auto", EINSUM),
        ("gpu", FP32, "auto", EINSUM),
        ("tpu", FP32, "auto", EINSUM),
        ("gpu", BF16, "einsum", EINSUM),
        ("gpu", BF16, "cudnn", CUDNN),
        ("tpu", BF16, "splash", SPLASH),
        ("gpu", FP32, "cudnn", "a CUDA GPU and model.dtype=bfloat16, not gpu and float32"),
        ("cpu", BF16, "cudnn", "a CUDA GPU and model.dtype=bfloat16, not cpu and bfloat16"),
        ("gpu", BF16, "splash", "a TPU and model.dtype=bfloat16, not gpu and bfloat16"),
    ],
)
def test_the_platform_chooses_the_kernel_and_one_it_lacks_is_refused(platform, dtype, setting, kernel):
    mesh = mesh_of(platform)
    if isinstance(kernel, AttentionKernel):
        assert choose_kernel(AttentionKernel(setting), mesh, dtype) is kernel
        return
    with pytest.raises(ValueError, match=f"model.attention={setting} needs {kernel}: write auto or einsum"):
        choose_kernel(AttentionKernel(setting), mesh, dtype)


def test_a_run_is_refused_before_it_loads_weights():
    settings = Pretrained(attention=CUDNN)
    with pytest.raises(ValueError, match=r"model\.attention=cudnn needs a CUDA GPU"):
        make_model(settings, tiny.CONFIG, make_mesh(devices=jax.devices()[:1]), None)


# ---------------------------------------------------------------------------------------- equality with einsum, in fp32


def case(name: str, kernel: AttentionKernel, mesh):
    """A function of floats by each way, and the floats: 2 prompts, 4 queries heads of 2 key/value heads."""
    rng = np.random.default_rng(0)

    def floats(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    if name == "prompts":
        arrays = floats(2, 6, 2, 2, 8), floats(2, 6, 2, 8), floats(2, 6, 2, 8)
        fused = FlashAttention(kernel, mesh, "heads", causal=True)

        def by_kernel(query, key, value):
            return fused(Sequences(query[:, None], key[:, None], value[:, None]))[:, 0]

        def by_einsum(query, key, value):
            return attend("pqkgd", query, KVSource("pskd", key, value, "qs", causal_mask(6)))

    elif name == "completions":
        shapes = (2, 3, 4, 2, 2, 8), (2, 3, 4, 2, 8), (2, 3, 4, 2, 8), (2, 6, 2, 8), (2, 6, 2, 8)
        arrays, real = [floats(*shape) for shape in shapes], jnp.arange(6) < jnp.array([[6], [2]])
        fused = FlashAttention(kernel, mesh, "heads", causal=True)

        def by_kernel(query, key, value, *prompt):
            return fused(Sequences(query, key, value, *prompt, real))

        def by_einsum(query, key, value, *prompt):
            own = KVSource("pcskd", key, value, "qs", causal_mask(4))
            return attend("pcqkgd", query, KVSource("pskd", *prompt, "ps", real), own)

    else:  # images
        arrays = floats(2, 8, 3, 8), floats(2, 8, 3, 8), floats(2, 8, 3, 8)
        ids = jnp.broadcast_to(jnp.array([0, 0, 0, 1, 1, 2, -1, -1]), (2, 8))
        ways = (FlashAttention(which, mesh, "queries", causal=False) for which in (kernel, EINSUM))
        by_kernel, by_einsum = (
            lambda query, key, value, way=way: attend_same_id(query, ids, key, value, ids, way) for way in ways
        )
    return by_kernel, by_einsum, arrays


CASES = [
    (kernel, name, sizes)
    for sizes, name, kernel in product(((1, 2, 2), (1, 1, 1)), ("completions", "images", "prompts"), (CUDNN, SPLASH))
]


@pytest.mark.parametrize(
    ("kernel", "name", "sizes"), quick(CASES, lambda case: case[1] != "prompts" and case[2] == (1, 2, 2))
)
def test_a_kernel_equals_einsum_forward_and_backward(run_kernels_on_cpu, kernel, name, sizes):
    mesh = make_mesh(*sizes, jax.devices()[: np.prod(sizes)])
    by_kernel, by_einsum, arrays = case(name, kernel, mesh)

    def out_and_gradients(attended):
        def loss(arrays):
            out = attended(*arrays)
            return jnp.sum(jnp.sin(out)), out  # cotangents that differ

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(tuple(arrays))
        return out, *gradients

    for one, other in zip(out_and_gradients(by_kernel), out_and_gradients(by_einsum), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(other).max())


def test_the_gradients_of_a_repeated_prompt_add_up_in_fp32():
    own = jnp.ones((1, 5, 4, 2, 8), jnp.bfloat16)

    def loss(prompt):
        return jnp.sum(flash._with_prompt(prompt, own).astype(jnp.float32) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss))(own[:, 0]))
    assert re.search(r"f32\[[\d,]+\] = reduce_sum", program) and not re.search(r"bf16\S* = reduce_sum", program)


# --------------------------------------------------------------------------------------------------------- refusals


def completions(length: int = 4, dtype=jnp.bfloat16, rows: int = 2) -> Sequences:
    """Shapes of completions, by their prompts."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    own, prompt = shape(rows, 3, length, 2, 8), shape(rows, 6, 2, 8)
    return Sequences(shape(rows, 3, length, 2, 2, 8), own, own, prompt, prompt, shape(rows, 6, dtype=bool))


def test_a_shape_that_does_not_compile_is_named_once_and_left_to_einsum(capfd):
    flash._compiles.cache_clear()
    fused = FlashAttention(CUDNN, make_mesh(devices=jax.devices()[:1]), "heads", causal=True)
    assert not fused.takes(completions()) and not fused.takes(completions())
    (line,) = capfd.readouterr().err.splitlines()
    assert "attention: cudnn does not take queries (2, 3, 4, 2, 2, 8) with 10 keys (cuDNN is not detected" in line
    assert line.endswith(": einsum takes over")
    assert not fused.takes(completions(length=6))
    assert "with 12 keys" in capfd.readouterr().err


def test_odd_lengths_and_prompts_that_the_mesh_does_not_divide_are_left_to_einsum(
    run_kernels_on_cpu, monkeypatch, capfd
):
    fused = FlashAttention(CUDNN, make_mesh(1, 2, 1, jax.devices()[:2]), "heads", causal=True)
    assert fused.takes(completions()) and not capfd.readouterr().err
    assert not fused.takes(completions(rows=3))
    assert "should evenly divide the shape" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 92800)
    assert not fused.takes(completions(length=5))
    assert "(Unsupported sequence length Q 5, KV 11.): einsum takes over" in capfd.readouterr().err


def test_einsum_is_never_tried(monkeypatch):
    monkeypatch.setattr(flash, "_compiles", lambda *_: pytest.fail("it was compiled"))
    assert not FlashAttention(EINSUM, make_mesh(devices=jax.devices()[:1]), "heads", causal=True).takes(completions())


def test_the_sampler_reads_prompts_by_einsum_where_its_program_has_two_meshes(monkeypatch, capfd):
    monkeypatch.setattr(
        "currreft_jax.models.qwen2_5_vl.choose_kernel",
        lambda setting, *_: CUDNN if setting is AttentionKernel.AUTO else setting,
    )
    sharded, copies = (
        tiny.model_of(mesh=make_mesh(*sizes, jax.devices()[:2]), tokenizer_size=261) for sizes in ((1, 2, 1), (2, 1, 1))
    )
    assert sampler_spec(copies, Sampling(), (0,)).model is copies and not capfd.readouterr().err
    spec = sampler_spec(sharded, Sampling(), (0,))
    assert (spec.model.kernel, spec.decoding.kernel) == (EINSUM, EINSUM)
    told = "mesh (1, 2, 1) and decoding mesh (2, 1, 1) in one program): einsum takes over"
    assert told in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------ FLOPs


def flops_of(kernel: AttentionKernel, mesh, sequences: Sequences, causal: bool) -> tuple[float, float]:
    """FLOPs of attention, and of its value and gradient."""
    fused = FlashAttention(kernel, mesh, "heads", causal)
    trained = {name: x for name, x in sequences._asdict().items() if x is not None and x.dtype != bool}

    def loss(trained, others):
        return jnp.sum(fused(others._replace(**trained)).astype(jnp.float32))

    programs = (loss, jax.grad(loss))
    return tuple(matmul_flops(jax.make_jaxpr(program)(trained, sequences).jaxpr) for program in programs)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)])
def test_the_products_of_a_kernel_are_counted_on_all_devices(monkeypatch, sizes):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 92800)
    mesh = make_mesh(*sizes, jax.devices()[: np.prod(sizes)])
    product = 2 * (2 * 3) * 4 * 10 * 4 * 8  # 2 x 3 sequences, 4 queries, 6 + 4 keys, 4 heads of 8
    assert flops_of(CUDNN, mesh, completions(), causal=True) == (2 * product, 7 * product)
    # Splash attention pads all lengths to 128, and multiplies each output by its gradient.
    padded, outputs = 2 * (2 * 3) * 128 * 256 * 4 * 8, 2 * (2 * 3) * 4 * 128 * 8
    assert flops_of(SPLASH, mesh, completions(), causal=True) == (2 * padded, 7 * padded + outputs)
