"""Groups against their sequences one by one: values, gradients, and invariance to padding, order and G."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.config import Remat
from currreft_jax.data.packing import BatchShape, collate
from currreft_jax.data.processor import load as load_processor
from tests import tiny
from tests.groups import batch_of, fused_logprobs, group_logprobs, plain_logprobs, sequence, shape_of
from tests.marks import quick

G, T = 3, 6


@pytest.fixture(scope="module", autouse=True)
def optimized() -> Iterator[None]:
    """Compiles as training does: the bounds here are tighter than unoptimized programs keep."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", params=quick([tiny.CONFIG, tiny.UNTIED]), ids=["tied", "untied"])
def group(request, checkpoint):
    model = tiny.model_of(request.param)
    parameters = tiny.parameters_of(model, seed=1)
    processor = load_processor(checkpoint, max_pixels=40_000)
    prompts = [
        processor.prompt(tiny.user("one image", 1), [tiny.picture(150, 90)], name="a"),
        processor.prompt(
            tiny.user("two of other sizes", 2), [tiny.picture(28, 28, 1), tiny.picture(90, 200, 2)], name="b"
        ),
        processor.prompt(tiny.user("none"), name="c"),
    ]
    tokens = np.random.default_rng(0).integers(0, 256, (len(prompts), G, T))
    return model, parameters, prompts, tokens


def test_a_group_equals_its_sequences_one_by_one(group):
    model, parameters, prompts, tokens = group
    grouped = jax.jit(partial(group_logprobs, model))(parameters, batch_of(prompts, model.config), tokens)
    plain = jax.jit(partial(plain_logprobs, model))
    for row, prompt in enumerate(prompts):
        for g in range(G):
            whole = sequence(prompt, tokens[row, g])
            alone = batch_of([whole], model.config, max_slots=10)
            one_by_one = plain(parameters, alone, np.array([len(prompt.tokens)]), tokens[row, g][None])
            np.testing.assert_allclose(grouped[row, g], one_by_one[0], atol=1e-5, rtol=0)


def test_forward_equals_prefix_then_forward_suffix(group):
    model, parameters, prompts, tokens = group
    batch = batch_of(prompts, model.config)
    two = jax.jit(partial(group_logprobs, model))(parameters, batch, tokens)
    one = jax.jit(partial(fused_logprobs, model))(parameters, batch, tokens)
    np.testing.assert_allclose(one, two, atol=2e-6, rtol=0)


@pytest.mark.parametrize("logprobs", quick([fused_logprobs, group_logprobs]))
def test_gradients_through_the_shared_prefix_are_the_sum_of_the_plain_ones(group, logprobs):
    model, parameters, prompts, tokens = group
    weights = np.random.default_rng(1).standard_normal(tokens.shape).astype(np.float32)
    repeated = [sequence(prompt, tokens[row, g]) for row, prompt in enumerate(prompts) for g in range(G)]
    starts = np.repeat([len(prompt.tokens) for prompt in prompts], G)

    def shared(parameters):
        return jnp.sum(logprobs(model, parameters, batch_of(prompts, model.config), tokens) * weights)

    def plain(parameters):
        flat = tokens.reshape(-1, T)
        batch = batch_of(repeated, model.config)
        return jnp.sum(plain_logprobs(model, parameters, batch, starts, flat) * weights.reshape(-1, T))

    (value, grads), (plain_value, plain_grads) = (jax.jit(jax.value_and_grad(f))(parameters) for f in (shared, plain))
    np.testing.assert_allclose(value, plain_value, rtol=1e-5)
    for (path, grad), expected in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(plain_grads), strict=True
    ):
        scale = np.abs(expected).max()
        assert scale > 0, path
        np.testing.assert_allclose(grad, expected, atol=1e-5 * scale, rtol=0, err_msg=str(path))


@pytest.fixture(scope="module")
def scored(group):
    model, parameters, prompts, tokens = group
    score = jax.jit(partial(group_logprobs, model))
    return score, np.asarray(score(parameters, batch_of(prompts, model.config), tokens))


def test_padding_and_buckets_do_not_change_logprobs(group, scored):
    model, parameters, prompts, tokens = group
    score, expected = scored
    shape = shape_of(prompts, model.config)
    for wider in (
        replace(shape, length=shape.length + 13),
        replace(shape, slots=shape.slots + 5),
        BatchShape(shape.length + 1, shape.slots + 1, 31),
    ):
        padded = np.pad(tokens, ((0, 0), (0, 0), (0, 5)), constant_values=7)
        result = score(parameters, collate(prompts, model.config, wider), padded)
        np.testing.assert_allclose(result[..., :T], expected, atol=2e-6, rtol=0, err_msg=str(wider))


@given(st.permutations(range(3)), st.permutations(range(G)), st.integers(0, 2**32 - 1))
def test_order_and_later_tokens_do_not_change_logprobs(group, scored, order, samples, seed):
    """Prompts and completions are permuted and all tokens from `length` on replaced: earlier log-probs stay."""
    model, parameters, prompts, tokens = group
    score, expected = scored
    length = seed % T + 1
    changed = tokens[list(order)][:, list(samples)].copy()
    changed[..., length:] = np.random.default_rng(seed).integers(0, 256, changed[..., length:].shape)
    batch = batch_of([prompts[i] for i in order], model.config)
    result = score(parameters, batch, changed)
    same = expected[list(order)][:, list(samples)]
    np.testing.assert_allclose(result[..., :length], same[..., :length], atol=2e-6, rtol=0)


def test_group_size_does_not_change_logprobs(group, scored):
    model, parameters, prompts, tokens = group
    score, expected = scored
    batch = batch_of(prompts, model.config)
    for samples in ([0], [2, 1], [0, 1, 2, 0, 1]):
        result = score(parameters, batch, tokens[:, samples])
        np.testing.assert_allclose(result, expected[:, samples], atol=2e-6, rtol=0)


def test_a_text_prompt_has_the_same_logprobs_with_and_without_images_in_the_batch(group, scored):
    model, parameters, prompts, tokens = group
    score, expected = scored
    alone = batch_of(prompts[2:], model.config)
    assert alone.images is None
    np.testing.assert_allclose(score(parameters, alone, tokens[2:]), expected[2:], atol=2e-6, rtol=0)


@pytest.mark.parametrize("group", [tiny.CONFIG], ids=["tied"], indirect=True)  # the head is in no block
@pytest.mark.parametrize("remat", quick([Remat.BLOCK, Remat.DOTS], 0))
def test_remat_saves_memory_and_keeps_gradients(group, remat):
    model, parameters, prompts, tokens = group
    batch = batch_of(prompts, model.config)

    def compiled(model):
        def loss(parameters):
            return jnp.sum(fused_logprobs(model, parameters, batch, tokens))

        return jax.jit(jax.grad(loss)).lower(parameters).compile()

    kept, recomputed = compiled(model), compiled(replace(model, remat=remat))
    for grad, expected in zip(jax.tree.leaves(recomputed(parameters)), jax.tree.leaves(kept(parameters)), strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert recomputed.memory_analysis().temp_size_in_bytes < 0.8 * kept.memory_analysis().temp_size_in_bytes
