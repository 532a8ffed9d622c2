"""The model and the converter against Hugging Face's outputs, stored in `golden/`; needs no torch."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from currreft_jax.models import hf
from tests.golden.files import CONFIGS, EVERY, FOLDER, path_of, prompts_of, write_folder
from tests.states import decoder_states, features, one_batch, patches_of, units_of, vision_states

close = partial(np.testing.assert_allclose, atol=2e-5, rtol=0)


@pytest.fixture(scope="module", params=CONFIGS)
def golden(request, tmp_path_factory):
    file = dict(np.load(path_of(request.param)))
    folder = tmp_path_factory.mktemp("golden") / request.param
    write_folder(file, folder)
    model, parameters = hf.load(folder)
    prompts = prompts_of(file, folder)
    return file, model, parameters, prompts, one_batch(prompts, model.config), folder


def test_tokens_and_positions(golden):
    file, _, _, prompts, _, _ = golden
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(prompt.tokens, file[f"tokens:{row}"])
        np.testing.assert_array_equal(prompt.positions, file[f"positions:{row}"])
        assert prompt.next_position == file[f"next_position:{row}"]


def test_vision_blocks_and_features(golden):
    file, model, parameters, prompts, batch, _ = golden
    blocks, merged = vision_states(model, parameters, batch), features(model, parameters, batch)
    for row, prompt in enumerate(prompts):
        if prompt.images:
            patches = patches_of(batch, row, model.config)[::EVERY]
            close(np.stack(blocks)[:, patches], file[f"blocks:{row}"])
            close(merged[units_of(batch, row)[::EVERY]], file[f"features:{row}"])


def test_decoder_layers(golden):
    file, model, parameters, prompts, batch, _ = golden
    states = np.stack(decoder_states(model, parameters, batch))
    for row, prompt in enumerate(prompts):
        close(states[:, row, : len(prompt.tokens) : EVERY], file[f"states:{row}"])


def logits_of(model, parameters, batch):
    return np.asarray(jax.jit(lambda p, b: model.bind(p).logits(model.bind(p).prompt_hidden(b)))(parameters, batch))


def test_logits(golden):
    file, model, parameters, prompts, batch, _ = golden
    logits = logits_of(model, parameters, batch)
    for row, prompt in enumerate(prompts):
        close(logits[row, : len(prompt.tokens) : EVERY], file[f"logits:{row}"])


def test_bf16_is_as_close_to_fp32_as_hugging_face(golden):
    file, _, _, prompts, batch, folder = golden
    half, parameters = hf.load(folder, dtype=jnp.bfloat16)
    logits = logits_of(half, parameters, batch)
    assert logits.dtype == np.float32
    ours, theirs = (
        np.concatenate(rows)
        for rows in zip(
            *(
                (
                    np.abs(logits[row, : len(prompt.tokens) : EVERY] - file[f"logits:{row}"]),
                    file[f"bf16_error:{row}"],
                )
                for row, prompt in enumerate(prompts)
            ),
            strict=True,
        )
    )
    assert ours.mean() <= 1.25 * theirs.mean()
    assert np.quantile(ours, 0.999) <= 1.25 * np.quantile(theirs, 0.999)


@pytest.mark.slow
def test_fp32_parameters_with_bf16_matmuls(golden):
    """The training setting: the logits of bf16 parameters, and fp32 gradients."""
    _, model, parameters, _, batch, folder = golden
    half, rounded = hf.load(folder, dtype=jnp.bfloat16)
    mixed = replace(model, dtype=jnp.dtype(jnp.bfloat16))
    np.testing.assert_array_equal(logits_of(mixed, parameters, batch), logits_of(half, rounded, batch))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(mixed.bind(p).logits(mixed.bind(p).prompt_hidden(batch)))))(parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


def test_the_files_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 3_000_000
