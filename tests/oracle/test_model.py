"""Parity with Hugging Face's model, layer by layer, with awkward shapes and weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from packaging.version import Version

from currreft_jax.data.processor import load
from currreft_jax.models import hf
from currreft_jax.models.config import PUBLISHED
from tests import tiny
from tests.groups import fused_logprobs
from tests.oracle import reference
from tests.oracle.reference import pixel_values
from tests.states import decoder_states, features, one_batch, patches_of, units_of, vision_states

TOLERANCE = 3e-5
WIDE_TOLERANCE = 1e-4
CONFIGS = {
    "tied": tiny.CONFIG,
    "untied": tiny.UNTIED,
    "one key head, small windows": replace(
        tiny.CONFIG,
        num_key_value_heads=1,
        vision=replace(tiny.CONFIG.vision, window_size=56, fullatt_block_indexes=(0, 3)),
    ),
}


def prompts_of(folder):
    processor = load(folder, max_pixels=1_100_000)
    return [
        processor.prompt(tiny.user("a portrait", 1), [tiny.picture(300, 520)]),
        processor.prompt(tiny.user("tiny and huge", 2), [tiny.picture(28, 28, 1), tiny.picture(1000, 730, 2)]),
        processor.prompt(tiny.user("text only, in the same batch")),
        processor.prompt(tiny.user("a strip", 1), [tiny.picture(1000, 40, 3)]),
    ]


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity") / "checkpoint"
    model, parameters = tiny.write_checkpoint(folder, CONFIGS[request.param])
    prompts = prompts_of(folder)
    oracle = reference.open_model(folder)
    answers = [reference.answer(oracle, prompt, pixel_values(prompt)) for prompt in prompts]
    return model, parameters, prompts, one_batch(prompts, model.config), answers, oracle


def test_positions_are_equal(both):
    _, _, prompts, _, answers, _ = both
    for prompt, answer in zip(prompts, answers, strict=True):
        np.testing.assert_array_equal(prompt.positions, answer.positions)
        assert prompt.next_position == answer.next_position


def test_every_vision_block_and_the_merged_features(both):
    model, parameters, prompts, batch, answers, _ = both
    blocks, merged = vision_states(model, parameters, batch), features(model, parameters, batch)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if prompt.images:
            patches = patches_of(batch, row, model.config)
            for ours, theirs in zip(blocks, answer.blocks, strict=True):
                np.testing.assert_allclose(ours[patches], theirs, atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(merged[units_of(batch, row)], answer.features, atol=TOLERANCE, rtol=0)


def test_every_decoder_layer_and_the_logits(both):
    model, parameters, prompts, batch, answers, _ = both
    states = decoder_states(model, parameters, batch)
    logits = np.asarray(jax.jit(lambda p, b: model.bind(p).logits(model.bind(p).prompt_hidden(b)))(parameters, batch))
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        size = len(prompt.tokens)
        for ours, theirs in zip(states, answer.states, strict=True):
            np.testing.assert_allclose(ours[row, :size], theirs, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(logits[row, :size], answer.logits, atol=TOLERANCE, rtol=0)


def test_gradients(both):
    """The gradient of a weighted sum of completion log-probs, with respect to every weight."""
    model, parameters, prompts, _, _, oracle = both
    prompt = prompts[0]
    tokens = np.random.default_rng(0).integers(0, 256, (1, 1, 9))
    weights = np.random.default_rng(1).standard_normal(9).astype(np.float32)
    batch = one_batch([prompt], model.config)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(fused_logprobs(model, p, batch, tokens) * weights)))(parameters)

    whole = replace(prompt, tokens=np.concatenate([prompt.tokens, tokens[0, 0].astype(np.int32)]))
    oracle.zero_grad()
    logits = oracle(**reference.inputs(oracle, whole, pixel_values(prompt))).logits[0]
    start = len(prompt.tokens)
    masked = logits[start - 1 : -1].index_fill(-1, torch.tensor(model.config.forbidden_tokens), -torch.inf)
    logprobs = torch.log_softmax(masked, -1).gather(1, torch.tensor(tokens[0, 0][:, None]))[:, 0]
    (logprobs * torch.tensor(weights)).sum().backward()
    theirs = {hf.hub_name(name): p.grad.numpy() for name, p in oracle.named_parameters()}
    ours = dict(hf.hub_tensors(grads))
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        scale = np.abs(theirs[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(grad, theirs[name], atol=5e-5 * scale, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The 3B's widths with few layers; kernels are random with a standard deviation of 0.02."""
    config = replace(
        PUBLISHED["3b"],
        num_hidden_layers=2,
        vocab_size=tiny.CONFIG.vocab_size,
        dtype="float32",
        **{name: getattr(tiny.CONFIG, name) for name in tiny.TOKEN_FIELDS},
        vision=replace(PUBLISHED["3b"].vision, depth=4, fullatt_block_indexes=(1, 3)),
    )
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    model, parameters = tiny.write_checkpoint(folder, config, scale=0.02)
    prompts = [load(folder).prompt(tiny.user("at the published widths", 1), [tiny.picture(300, 200)])]
    return folder, model, parameters, prompts, one_batch(prompts, config)


def logits_of(model, parameters, batch):
    return np.asarray(jax.jit(lambda p, b: model.bind(p).logits(model.bind(p).prompt_hidden(b)))(parameters, batch))[0]


def test_the_published_widths_in_fp32(wide):
    folder, model, parameters, prompts, batch = wide
    answer = reference.answer(reference.open_model(folder), prompts[0], pixel_values(prompts[0]))
    np.testing.assert_allclose(
        features(model, parameters, batch)[units_of(batch, 0)], answer.features, atol=WIDE_TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(logits_of(model, parameters, batch), answer.logits, atol=WIDE_TOLERANCE, rtol=0)


def test_bf16_is_as_close_to_fp32_as_hugging_face_is(wide):
    folder, _, _, prompts, batch = wide
    exact = reference.answer(reference.open_model(folder), prompts[0], pixel_values(prompts[0])).logits
    rounded = reference.open_model(folder, torch.bfloat16)
    theirs = np.abs(reference.answer(rounded, prompts[0], pixel_values(prompts[0])).logits - exact)
    half, weights = hf.load(folder, dtype=jnp.bfloat16)
    ours = np.abs(logits_of(half, weights, batch) - exact)
    print(
        f"bf16 error: ours max {ours.max():.4f} mean {ours.mean():.5f},"
        f" theirs max {theirs.max():.4f} mean {theirs.mean():.5f}"
    )
    assert ours.mean() <= 1.25 * theirs.mean()
    assert ours.max() <= 1.25 * theirs.max()


def test_the_guard_rejects_versions_and_calls_with_wrong_positions(both):
    """Mistake 14: a wrong oracle."""
    for wrong in ("5.3.0", "5.4.0", "5.5.3"):
        with pytest.raises(RuntimeError, match="not an oracle"):
            reference.refuse_wrong_versions(Version(wrong))
    _, _, prompts, _, _, oracle = both
    arguments = reference.inputs(oracle, prompts[0], pixel_values(prompts[0]))
    length = len(prompts[0].tokens)
    one_dimensional = np.tile(np.arange(length), (3, 1))
    doubled = prompts[0].positions.copy()
    doubled[0, prompts[0].tokens == tiny.CONFIG.image_token_id] *= 2
    for wrong in (one_dimensional, doubled):
        with pytest.raises(RuntimeError, match="oracle"):
            reference.check_positions(arguments, tiny.CONFIG.image_token_id, wrong)
