"""The model: parameter counts, block-wise log-probs, attention, program size, and equality on every mesh."""

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from currreft_jax.config import AttentionKernel, Remat
from currreft_jax.data.packing import BatchShape, collate
from currreft_jax.data.processor import load as load_processor
from currreft_jax.models import attention
from currreft_jax.models import logprobs as logprobs_module
from currreft_jax.models.attention import KVSource, attend
from currreft_jax.models.config import PUBLISHED
from currreft_jax.models.flash import FlashAttention
from currreft_jax.models.layers import einsum
from currreft_jax.models.logprobs import Head, VocabMask, blockwise_logprobs
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.models.vision import attend_in_images, rows_sharing_images
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.sharding import data_shards, make_mesh, path_of
from currreft_jax.structs import Prompt
from tests import tiny
from tests.groups import batch_of, fused_logprobs, group_logprobs
from tests.marks import quick

# The 7B's from its published index (16,584,333,312 bytes of bf16); the others counted by PyTorch on its meta device.
PARAMETERS = {"3b": 3_754_622_976, "7b": 16_584_333_312 // 2, "32b": 33_452_718_336, "72b": 73_410_777_344}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_shapes_have_the_published_number_of_parameters(name):
    assert tiny.model_of(PUBLISHED[name]).num_parameters == PARAMETERS[name]


def test_the_3b_graph_lowers_forward_and_backward_without_memory():
    model = Model(PUBLISHED["3b"], make_mesh(devices=jax.devices()[:1]), jnp.dtype(jnp.bfloat16), Remat.BLOCK)
    batch = abstract_batch(model, prompts=2, length=640, slots=72)
    tokens = jax.ShapeDtypeStruct((2, 4, 256), jnp.int32)

    def loss(parameters, batch, tokens):
        return jnp.mean(fused_logprobs(model, parameters, batch, tokens))

    lowered = jax.jit(jax.value_and_grad(loss)).lower(model.abstract(jnp.float32), batch, tokens)
    grads = jax.tree.leaves(lowered.out_info[1])
    assert sum(np.prod(grad.shape) for grad in grads) == PARAMETERS["3b"]
    assert {grad.dtype for grad in grads} == {np.dtype(np.float32)}
    assert len(lowered.as_text()) < 1_500_000


def abstract_batch(model: Model, prompts: int, length: int, slots: int):
    """A batch of shapes without arrays."""
    text = Prompt(np.zeros(1, np.int32), np.zeros((3, 1), np.int32), 1, (), "abstract")
    batch = collate([text] * prompts, model.config, BatchShape(length, slots, slots))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


# ------------------------------------------------------------------------------------------------------ log-probs


def intermediates(jaxpr: Jaxpr):
    """Yields every array that a program computes, in nested programs too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from intermediates(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from intermediates(inner)


@pytest.fixture(scope="module")
def scoring():
    model = tiny.model_of(replace(tiny.UNTIED, vocab_size=1009))
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((3, 2, 37, 96)), jnp.float32)
    return model, tiny.parameters_of(model), hidden, rng.choice(allowed_tokens(model), (3, 2, 37))


def allowed_tokens(model):
    """All ids except image and video tokens, listed by hand."""
    size = model.config.vocab_size if model.tokenizer_size is None else model.tokenizer_size
    names = ["vision_start_token_id", "vision_end_token_id", "vision_token_id", "image_token_id", "video_token_id"]
    return np.setdiff1d(np.arange(size), [getattr(model.config, name) for name in names])


def blockwise(model, parameters, hidden, tokens, temperature=1.0):
    return model.bind(parameters).logprobs(hidden, tokens, temperature)


def by_definition(model, parameters, hidden, tokens, temperature=1.0):
    """Log-probs and entropies by definition, over the allowed columns."""
    columns = allowed_tokens(model)
    logprobs = jax.nn.log_softmax(model.bind(parameters).logits(hidden)[..., columns] / temperature)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    index = jnp.asarray(np.searchsorted(columns, tokens))
    return jnp.take_along_axis(logprobs, index[..., None], -1)[..., 0], entropy


@pytest.mark.parametrize("budget", [222, 50_000, 112_000, 10**9])
def test_blockwise_logprobs_and_gradients_equal_the_definition(scoring, budget, monkeypatch):
    model, parameters, hidden, tokens = scoring
    monkeypatch.setattr(logprobs_module, "BLOCK_LOGITS", budget)

    def loss(score, parameters, hidden):
        logprobs, entropy = score(model, parameters, hidden, tokens)
        return jnp.sum(jnp.sin(logprobs) + 0.3 * entropy), (logprobs, entropy)

    (_, ours), grads = jax.jit(jax.value_and_grad(partial(loss, blockwise), argnums=(0, 1), has_aux=True))(
        parameters, hidden
    )
    (_, theirs), expected = jax.jit(jax.value_and_grad(partial(loss, by_definition), argnums=(0, 1), has_aux=True))(
        parameters, hidden
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, rtol=0)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize(("temperature", "tokenizer_size"), [(0.7, None), (1.6, 901)])
def test_temperature_and_vocab_mask_apply_to_values_and_gradients(scoring, temperature, tokenizer_size, monkeypatch):
    model, parameters, hidden, _ = scoring
    model = replace(model, tokenizer_size=tokenizer_size)
    tokens = np.random.default_rng(1).choice(allowed_tokens(model), hidden.shape[:3])
    monkeypatch.setattr(logprobs_module, "BLOCK_LOGITS", 50_000)

    def loss(score, parameters, hidden):
        logprobs, entropy = score(model, parameters, hidden, tokens, temperature)
        return jnp.sum(jnp.sin(logprobs) + 0.3 * entropy), (logprobs, entropy)

    (_, ours), grads = jax.jit(jax.value_and_grad(partial(loss, blockwise), argnums=(0, 1), has_aux=True))(
        parameters, hidden
    )
    (_, theirs), expected = jax.jit(jax.value_and_grad(partial(loss, by_definition), argnums=(0, 1), has_aux=True))(
        parameters, hidden
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, rtol=0)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


def test_the_entropy_of_near_certain_tokens_is_never_negative():
    """Logits of a hundred and more: the difference of two fp32 numbers of that size rounds to -1.5e-5."""
    rng = np.random.default_rng(0)
    hidden, table = 30 * rng.standard_normal((1, 4, 64, 8)), rng.standard_normal((64, 8))
    head = Head(True, 64, make_mesh(devices=jax.devices()[:1]), VocabMask(64, ()), 1.0)
    tokens = np.zeros((1, 4, 64), np.int32)
    _, entropy = jax.jit(partial(blockwise_logprobs, head=head))(np.float32(hidden), np.float32(table), tokens)
    assert np.min(entropy) >= 0 and 0.5 < np.max(entropy) < np.log(64)


def test_a_forbidden_token_has_probability_zero_and_finite_gradients(scoring):
    model, parameters, hidden, tokens = scoring
    image, beyond = model.config.image_token_id, 1005
    tokens = tokens.copy()
    tokens[0, 0, 3], tokens[1, 1, 5] = image, beyond
    model = replace(model, tokenizer_size=1000)
    tokens[tokens >= 1000] = beyond

    def loss(hidden):
        logprobs, entropy = blockwise(model, parameters, hidden, tokens)
        return jnp.sum(jnp.where(jnp.isfinite(logprobs), logprobs, 0) + entropy), logprobs

    gradient, logprobs = jax.jit(jax.grad(loss, has_aux=True))(hidden)
    np.testing.assert_array_equal(np.isneginf(logprobs), (tokens == image) | (tokens >= 1000))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("vocabulary", "tied"), quick([(1008, True), (1009, False), (1008, False)]))
def test_blockwise_logprobs_of_a_sharded_head(scoring, vocabulary, tied, monkeypatch):
    """4 tensor shards divide 1,008 columns but not 1,009; the last block overlaps the one before."""
    _, _, hidden, tokens = scoring
    config = replace(tiny.UNTIED, vocab_size=vocabulary, tie_word_embeddings=tied)
    hidden, tokens = jnp.concatenate([hidden, hidden[:1]]), np.concatenate([tokens, tokens[:1]]) % vocabulary

    def value_and_grad(mesh, score):
        model = tiny.model_of(config, mesh=mesh)
        table = {
            name: value for name, value in tiny.parameters_of(model).items() if name in ("embed_tokens", "lm_head")
        }

        def loss(table, hidden):
            logprobs, entropy = score(model, {**parameters, **table}, hidden, tokens)
            return jnp.sum(jnp.sin(logprobs) + 0.3 * entropy)

        parameters = tiny.parameters_of(model)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(table, hidden)

    expected = value_and_grad(make_mesh(devices=jax.devices()[:1]), by_definition)
    monkeypatch.setattr(logprobs_module, "BLOCK_LOGITS", 40_000)
    found = value_and_grad(make_mesh(1, 2, 4), blockwise)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


def test_all_logits_never_exist(scoring, monkeypatch):
    model, parameters, hidden, tokens = scoring
    monkeypatch.setattr(logprobs_module, "BLOCK_LOGITS", 20_000)

    def largest(score) -> int:
        def loss(parameters, hidden):
            return jnp.sum(score(model, parameters, hidden, tokens)[0])

        program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(parameters, hidden)
        return max(int(np.prod(x.shape)) for x in intermediates(program.jaxpr))

    assert largest(blockwise) == 96 * 1009  # the head and its gradient
    assert largest(by_definition) == 3 * 2 * 37 * 1009


# ---------------------------------------------------------------------------------------------------------- programs


def program_size(config, prompts) -> int:
    model = tiny.model_of(config)
    batch = batch_of(prompts, config, max_slots=20)
    tokens = np.zeros((len(prompts), 2, 4), int)
    program = jax.make_jaxpr(lambda p: group_logprobs(model, p, batch, tokens))(model.abstract(jnp.float32))
    return sum(1 for _ in intermediates(program.jaxpr))


def test_program_size_is_independent_of_layers_and_windows(checkpoint):
    processor = load_processor(checkpoint)
    # Both are long enough to be split into blocks.
    few = [processor.prompt(tiny.user("x", 1), [tiny.picture(448, 336)])]
    many = [processor.prompt(tiny.user("x", 1), [tiny.picture(560, 420)])]
    config = tiny.CONFIG
    deeper = replace(config, num_hidden_layers=9, vision=replace(config.vision, depth=15))
    assert program_size(config, few) == program_size(deeper, few)
    assert program_size(config, few) == program_size(config, many)


def test_other_images_in_the_same_shape_do_not_recompile(checkpoint):
    model = tiny.model_of()
    parameters = tiny.parameters_of(model)
    processor = load_processor(checkpoint, max_pixels=60_000)
    shape = BatchShape(140, 12, 6)
    score = jax.jit(partial(group_logprobs, model))
    tokens = np.zeros((2, 2, 4), np.int32)
    for seed, (width, height) in enumerate([(100, 200), (30, 150), (84, 84), (200, 60)]):
        prompts = [
            processor.prompt(tiny.user("a" * seed, 1), [tiny.picture(width, height, seed)]),
            processor.prompt(tiny.user("b"), []),
        ]
        score(parameters, collate(prompts, model.config, shape), tokens)
    assert score._cache_size() == 1


EINSUM = FlashAttention(AttentionKernel.EINSUM, make_mesh(devices=jax.devices()[:1]), None, causal=False)
OTHER_IMAGES = [(4, 4, 4), (1, 4, 1), (4, 3, 3), (4,), (3,)]


@pytest.mark.parametrize("sizes", quick([((3, 2, 4, 2),), *((rows,) for rows in OTHER_IMAGES)], 0))
def test_attention_within_images_equals_masked_dense_attention(sizes):
    """In rows of four slots: images within a row, across one border, and across both."""
    key = jax.random.key(0)
    query, keys, values = jax.random.normal(key, (3, 2, sum(sizes), 4, 2, 8))
    image = np.stack([np.repeat(np.arange(len(sizes)), sizes), np.zeros(sum(sizes), int)])
    image[1, 4:] = -1
    image = np.repeat(image[..., None], 4, axis=2)
    image[..., 3] = -1  # padding in every slot
    shared_rows = rows_sharing_images(jnp.asarray(image), 4)
    starts = np.cumsum((0, *sizes))
    crossed = [any(a < border < b for a, b in pairwise(starts)) for border in range(4, sum(sizes), 4)]
    assert list(shared_rows) == [any(pair) for pair in pairwise((False, *crossed, False))]

    def flat(x):
        return x.reshape(2, -1, *x.shape[3:])

    def loss(attended):
        return jnp.sum(jnp.where(image[..., None, None] >= 0, attended, 0) ** 2)

    def in_rows(*arrays):
        return attend_in_images(*arrays, jnp.asarray(image), 4, shared_rows, EINSUM)

    def dense(query, keys, values):
        same = flat(image)[:, :, None] == flat(image)[:, None]
        out = attend("nqhd", flat(query), KVSource("nshd", flat(keys), flat(values), "nqs", same))
        return out.reshape(query.shape)

    arrays = query, keys, values
    real = image[..., None, None] >= 0
    np.testing.assert_allclose(np.where(real, in_rows(*arrays), 0), np.where(real, dense(*arrays), 0), atol=2e-6)
    gradients, expected = (jax.grad(lambda *a, f=f: loss(f(*a)), argnums=(0, 1, 2))(*arrays) for f in (in_rows, dense))
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("axes", "sources"),
    [("pqkgd", ["pskd"]), ("pcqkgd", ["pskd", "pcskd"]), ("pkcgd", ["pksd", "pkcsd"]), ("nqhd", ["nshd"])],
)
def test_scores_are_never_transposed(axes, sources):
    sizes = dict(zip("pkcgqhnd", (2, 3, 4, 5, 7, 2, 2, 8), strict=True))

    def shape(letters):
        return tuple(11 if letter == "s" else sizes[letter] for letter in letters)

    def attended(query, *keys):
        return attend(
            axes, query, *(KVSource(a, k, k, "s", jnp.ones(11, bool)) for a, k in zip(sources, keys, strict=True))
        )

    arrays = [jnp.ones(shape(letters)) for letters in (axes, *sources)]
    gradient = jax.grad(lambda *arrays: jnp.sum(attended(*arrays)), argnums=range(len(arrays)))
    lowered = jax.jit(gradient).lower(*arrays).as_text()
    transposed = [shape.split("x") for shape in re.findall(r"stablehlo.transpose .* -> tensor<([\dx]+)xf32>", lowered)]
    assert not [sizes for sizes in transposed if {"11", "22"} & {*sizes} and "8" not in sizes]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("completions", "length"), quick([(3, 7), (1, 11), (40, 2)], 0))
def test_attention_in_blocks_of_queries_equals_attention_at_once(monkeypatch, completions, length, dtype):
    rng = np.random.default_rng(0)
    shapes = (2, completions, length, 2, 3, 8), (2, 9, 2, 8), (2, completions, length, 2, 8)
    query, prompt, own = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    real = jnp.asarray([[True] * 9, [True] * 5 + [False] * 4])
    causal = jnp.tril(jnp.ones((length, length), bool))

    def out_and_gradients(block_scores):
        def loss(query, prompt, own):
            sources = KVSource("pskd", prompt, prompt, "ps", real), KVSource("pcskd", own, own, "qs", causal)
            out = attend("pcqkgd", query, *sources)
            return jnp.sum(out.astype(jnp.float32) ** 2), out

        monkeypatch.setattr(attention, "BLOCK_SCORES", block_scores)
        gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, prompt, own)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    for one, other in zip(out_and_gradients(60), out_and_gradients(10**6), strict=True):
        np.testing.assert_allclose(one, other, atol=np.abs(other).max() * (1e-6 if dtype == jnp.float32 else 2**-8))


def test_scores_of_many_queries_never_exist_at_once():
    x = jnp.ones((2, 900, 1, 8))

    def loss(query, keys):
        return jnp.sum(attend("pqkd", query, KVSource("pskd", keys, keys, "qs", jnp.ones((900, 900), bool))))

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, x).as_text()
    assert re.search("300x900xf32", program) and not re.search("900x900xf32", program)


def test_masks_and_scales_with_axes_in_another_order():
    rng = np.random.default_rng(0)
    query, keys, values = (rng.standard_normal(shape) for shape in ((2, 5, 3, 4, 8), (2, 7, 3, 8), (2, 7, 3, 8)))
    mask, scale = rng.random((2, 5, 3, 7)) < 0.7, rng.random((2, 7, 3))
    scores = np.einsum("pqkgd,pskd,psk->pqkgs", query, keys, scale) * 8**-0.5
    weights = np.where(mask[:, :, :, None], np.exp(scores), 0)
    expected = np.einsum("pqkgs,pskd,psk->pqkgd", weights / weights.sum(-1, keepdims=True), values, scale)
    arrays = map(jnp.asarray, (keys, values))
    source = KVSource("pskd", *arrays, "pqks", jnp.asarray(mask), jnp.asarray(scale), jnp.asarray(scale))
    np.testing.assert_allclose(attend("pqkgd", jnp.asarray(query), source), expected, atol=1e-5)


def test_einsum_accumulates_in_fp32_and_gives_fp32_gradients_to_fp32_parameters():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 512)), jnp.bfloat16)
    y = jnp.asarray(rng.standard_normal((512, 32)), jnp.float32)
    rounded = np.asarray(y.astype(jnp.bfloat16), np.float64)
    out, pullback = jax.vjp(partial(einsum, "ab,bc->ac"), x, y)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, np.asarray(x, np.float64) @ rounded, atol=2e-4)
    g = jnp.asarray(rng.standard_normal((64, 32)), jnp.bfloat16).astype(jnp.float32)
    dx, dy = pullback(g)
    assert (dx.dtype, dy.dtype) == (jnp.bfloat16, jnp.float32)
    kept = {a.dtype.name for a in jax.tree.leaves(pullback) if a.size}
    assert kept == {"bfloat16"}  # no fp32 kernel waits for it
    np.testing.assert_allclose(dy, np.asarray(x, np.float64).T @ np.asarray(g, np.float64), atol=2e-4)
    np.testing.assert_allclose(np.asarray(dx, np.float64), np.asarray(g, np.float64) @ rounded.T, rtol=1e-2, atol=0.1)


# ------------------------------------------------------------------------------------------------------------- meshes


@pytest.fixture(scope="module")
def sharded_group(checkpoint):
    """Eight prompts with none, one or two images of several sizes; 2 key/value heads, which 4 shards do not divide."""
    config = replace(tiny.CONFIG, num_attention_heads=8, num_key_value_heads=2, mrope_section=(2, 2, 2))
    processor = load_processor(checkpoint, max_pixels=30_000)
    sizes = [[(90, 130)], [], [(28, 28), (150, 60)], [(60, 60)], [(140, 84)], [], [(84, 140)], [(56, 200)]]
    prompts = [
        processor.prompt(tiny.user("?" * (i + 1), len(prompt_sizes)), [tiny.picture(*size, i) for size in prompt_sizes])
        for i, prompt_sizes in enumerate(sizes)
    ]
    return config, prompts, np.random.default_rng(0).integers(0, 256, (8, 2, 5))


def on_devices(config, prompts, tokens, mesh):
    model = tiny.model_of(config, mesh=mesh)
    shards = data_shards(mesh)
    shape = BatchShape(110, 30 // shards + 8, 6)
    return model, tiny.parameters_of(model), *to_devices((collate(prompts, config, shape, shards), tokens), mesh)


def logprobs_and_gradients(config, prompts, tokens, mesh):
    model, parameters, batch, tokens = on_devices(config, prompts, tokens, mesh)

    def loss(parameters, batch, tokens):
        logprobs = fused_logprobs(model, parameters, batch, tokens)
        return jnp.sum(jnp.sin(logprobs)), logprobs

    (_, logprobs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters, batch, tokens)
    return np.asarray(logprobs), jax.tree.map(np.asarray, grads)


@pytest.fixture(scope="module")
def on_one_device(sharded_group):
    return logprobs_and_gradients(*sharded_group, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 2, 4)])
def test_every_mesh_gives_the_same_logprobs_and_gradients(sharded_group, on_one_device, sizes):
    expected, expected_grads = on_one_device
    logprobs, grads = logprobs_and_gradients(*sharded_group, make_mesh(*sizes))
    np.testing.assert_allclose(logprobs, expected, atol=5e-6, rtol=0)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0, err_msg=path_of(path))


@pytest.mark.slow
def test_a_model_by_a_kernel_has_the_logprobs_and_gradients_of_einsum(
    sharded_group, on_one_device, run_kernels_on_cpu, monkeypatch
):
    monkeypatch.setattr("currreft_jax.models.qwen2_5_vl.choose_kernel", lambda *_: AttentionKernel.CUDNN)
    logprobs, grads = logprobs_and_gradients(*sharded_group, make_mesh(1, 2, 4))
    expected, expected_grads = on_one_device
    np.testing.assert_allclose(logprobs, expected, atol=5e-6, rtol=0)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0, err_msg=path_of(path))


@pytest.mark.parametrize(("heads", "kv_heads"), quick([(6, 2), (4, 1)], 0))
def test_head_counts_that_the_tensor_axis_does_not_divide(sharded_group, heads, kv_heads):
    _, prompts, tokens = sharded_group
    sections = {4: (4, 4, 4), 6: (2, 3, 3)}[heads]
    config = replace(tiny.CONFIG, num_attention_heads=heads, num_key_value_heads=kv_heads, mrope_section=sections)
    one, many = (
        jax.jit(partial(group_logprobs, model))(*inputs)
        for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(1, 2, 4))
        for model, *inputs in [on_devices(config, prompts, tokens, mesh)]
    )
    np.testing.assert_allclose(many, one, atol=5e-6, rtol=0)


def collectives(compiled, kind: str) -> int:
    return compiled.as_text().count(f" {kind}(")


def test_prompts_and_images_stay_on_their_data_shard(sharded_group):
    """Pure data parallelism, forward only: the devices exchange one bit for each border between rows of slots."""
    config, prompts, tokens = sharded_group
    mesh = make_mesh(8, 1, 1)
    model = tiny.model_of(config, mesh=mesh)
    parameters = tiny.parameters_of(model)
    batch, tokens = to_devices((collate(prompts, config, BatchShape(110, 12, 6), 8), tokens), mesh)
    compiled = jax.jit(partial(group_logprobs, model)).lower(parameters, batch, tokens).compile()
    one_bit = [(1,)]  # whether an image of any shard crosses from one row of slots to the next
    assert communicated(compiled, "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter") == one_bit


def communicated(compiled, kinds: str) -> list[tuple[int, ...]]:
    """Shapes of the arrays that a compiled program sends between devices."""
    found = []
    for line in compiled.as_text().splitlines():
        if re.search(rf" ({kinds})(-start)?\(", line):
            results = re.split(rf" (?:{kinds})(?:-start)?\(", line)[0]
            found += [tuple(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", results)]
    return found


@pytest.mark.slow
def test_fsdp_communicates_weights_and_never_activations():
    """With the 3B's widths, compiled but not run: at small widths the partitioner decides otherwise."""
    published = PUBLISHED["3b"]
    config = replace(
        published, num_hidden_layers=2, vision=replace(published.vision, depth=2, fullatt_block_indexes=(1,))
    )
    mesh = make_mesh(1, 8, 1)
    model = Model(config, mesh, jnp.dtype(jnp.bfloat16), Remat.BLOCK)
    text = Prompt(np.zeros(1, np.int32), np.zeros((3, 1), np.int32), 1, (), "abstract")
    batch = collate([text] * 8, config, BatchShape(600, 36, 36), shards=8)
    shapes = (batch, np.zeros((8, 8, 128), np.int32))
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    batch, tokens = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), shapes)

    def loss(parameters, batch, tokens):
        return jnp.sum(fused_logprobs(model, parameters, batch, tokens))

    compiled = jax.jit(jax.grad(loss)).lower(model.abstract(jnp.float32), batch, tokens).compile()
    sent = communicated(compiled, "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
    assert (11008, 2048) in sent
    for shape in sent:
        assert shape[1:3] != (36, 64), shape  # packed patches
        # Embeddings are looked up in shards of D and exchanged; whole hidden states and MLP activations are not.
        assert not ({600, 128} & set(shape[1:-1]) and shape[0] == 8 and shape[-1] in (2048, 11008)), shape
        assert 151_936 not in shape, shape  # the whole head


def test_forward_gathers_each_weight_once(sharded_group):
    config, prompts, tokens = sharded_group
    mesh = make_mesh(1, 8, 1)
    model = tiny.model_of(config, mesh=mesh)
    batch, tokens = to_devices((collate([prompts[1]] * 8, config, BatchShape(110, 0, 1), 8), tokens), mesh)

    def hidden(parameters):
        return model.bind(parameters).forward(batch, tokens)

    compiled = jax.jit(hidden).lower(tiny.parameters_of(model)).compile()
    sizes = [int(np.prod(shape)) for shape in communicated(compiled, "all-gather")]
    width = config.hidden_size * config.intermediate_size
    assert sizes.count(width) == 3  # gate, up, down


def test_more_tensor_shards_than_kv_heads_need_two_all_reduces_per_layer(sharded_group):
    """Text prompts, tensor = 4, 2 key/value heads: one all-reduce after attention, one after the MLP, none for keys."""
    config, prompts, tokens = sharded_group
    mesh = make_mesh(1, 1, 4, devices=jax.devices()[:4])
    model = tiny.model_of(config, mesh=mesh)
    module = tiny.parameters_of(model)
    text = [prompts[1], prompts[5]]
    batch, _ = to_devices((collate(text, config, BatchShape(110, 0, 1)), tokens[:2]), mesh)

    def keys(parameters, batch):
        prefix = model.bind(parameters).prefix(batch)
        return prefix.keys

    compiled = jax.jit(keys).lower(module, batch).compile()
    body = [part for part in compiled.as_text().split("\n\n") if "dynamic-slice" in part and " all-reduce(" in part]
    assert sum(part.count(" all-reduce(") for part in body) == 2
    assert collectives(compiled, "all-gather") <= 1  # the embedding's, once


def test_batches_and_meshes_that_do_not_divide_raise(sharded_group):
    config, prompts, _ = sharded_group
    batch = collate(prompts[:3], config, BatchShape(110, 30, 6))
    with pytest.raises(ValueError, match="3 rows do not divide into 8 data shards"):
        to_devices(replace(batch, images=None), make_mesh(2, 4, 1))
    with pytest.raises(ValueError, match="does not fill 8 devices"):
        make_mesh(3, 1, 1)
    assert make_mesh(2, -1, 2).shape == {"data": 2, "fsdp": 2, "tensor": 2}


def test_every_parameter_has_a_sharding_rule_and_fsdp_shards_large_ones():
    model = Model(PUBLISHED["3b"], make_mesh(1, 8, 1), jnp.dtype(jnp.bfloat16))
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract(jnp.float32)):
        parts = int(np.prod(leaf.shape)) // int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        assert parts == 8 or np.prod(leaf.shape) < 10_000_000 / 3, path_of(path)
    tensor = Model(PUBLISHED["3b"], make_mesh(1, 2, 4), jnp.dtype(jnp.bfloat16)).abstract(jnp.float32)
    attention, mlp = tensor["layers"]["self_attn"], tensor["layers"]["mlp"]
    assert attention["q_proj"]["kernel"].sharding.spec == jax.P(None, "fsdp", "tensor")
    assert attention["k_proj"]["kernel"].sharding.spec == jax.P(None, "fsdp", None)
    assert mlp["down_proj"]["kernel"].sharding.spec == jax.P(None, "tensor", "fsdp")
    large = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tensor):
        if np.prod(leaf.shape) > 1e6 and "visual" not in (name := path_of(path)):
            large[name] = int(np.prod(leaf.shape)) // int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
    # The two heads of keys and values do not divide into four.
    whole_heads = {f"layers/self_attn/{name}_proj/kernel" for name in "kv"}
    assert large.keys() > whole_heads and large == {name: 2 if name in whole_heads else 8 for name in large}


@pytest.mark.slow
def test_init_is_the_same_on_every_mesh():
    model = tiny.model_of()
    one = model.init(3)
    other = tiny.model_of(mesh=make_mesh(1, 4, 2)).init(3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    kernels = one["layers"]["mlp"]["up_proj"]["kernel"]
    assert np.std(kernels) == pytest.approx(kernels.shape[1] ** -0.5, rel=0.05)
    assert not np.array_equal(kernels[0], kernels[1])
