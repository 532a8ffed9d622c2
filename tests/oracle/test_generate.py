"""Greedy completions and their log-probs equal Hugging Face's `generate` with the same suppressed tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import currreft_jax as cr
from currreft_jax.config import CacheType, Precision, Sampling
from tests import tiny
from tests.oracle import reference
from tests.oracle.reference import inputs, pixel_values

TOKENS = 24
EXACT = Sampling(
    group_size=1, max_new_tokens=TOKENS, temperature=0.0, precision=Precision.FLOAT32, cache=CacheType.FLOAT32
)


def theirs(model, prompt, forbidden: list[int], stop_tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log-probs of one greedy completion."""
    with torch.no_grad():
        out = model.generate(
            **inputs(model, prompt, pixel_values(prompt)),
            do_sample=False,
            max_new_tokens=TOKENS,
            suppress_tokens=forbidden,
            eos_token_id=stop_tokens,
            pad_token_id=stop_tokens[0],
            return_dict_in_generate=True,
            output_scores=True,
        )
    tokens = out.sequences[0, len(prompt.tokens) :].numpy()
    logprobs = torch.log_softmax(torch.stack([logits[0] for logits in out.scores]), dim=-1).numpy()
    return tokens, logprobs[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.UNTIED], ids=["tied", "untied"])
def test_greedy_completions_are_hugging_faces(config, tmp_path):
    tiny.write_checkpoint(tmp_path / "model", replace(config, max_position_embeddings=4096), seed=5, scale=0.12)
    model, parameters = cr.load_model(tmp_path / "model")
    processor = cr.load_processor(tmp_path / "model", max_pixels=40_000)
    processor.eos_token_ids = tuple(range(3, 256, 16))
    images = [tiny.picture(60 + 25 * i, 120 - 9 * i, i) for i in range(6)]
    prompts = [
        processor.prompt(tiny.user("question " * (i % 5) + str(i), i % 4), images[i % 3 : i % 3 + i % 4], name=str(i))
        for i in range(20)
    ]
    ours = cr.sample(model, parameters, processor, prompts, EXACT)
    other = reference.open_model(tmp_path / "model")
    forbidden = [*config.forbidden_tokens, *range(processor.tokenizer_size, config.vocab_size)]
    different, lengths = set(), set()
    for row, prompt in enumerate(prompts):
        tokens, logprobs = theirs(other, prompt, forbidden, list(processor.eos_token_ids))
        mask = np.asarray(ours.mask)[row, 0]
        np.testing.assert_array_equal(np.asarray(ours.tokens)[row, 0][mask], tokens)
        np.testing.assert_allclose(np.asarray(ours.logprobs)[row, 0][mask], logprobs, atol=1e-5, rtol=0)
        different.add(len(set(tokens.tolist())))
        lengths.add(len(tokens))
    assert max(different) > 5 and len(lengths) > 1, (different, lengths)  # not one token repeated, and some ended
