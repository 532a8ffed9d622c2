"""A step's batch of completions: every row of every microbatch, and what each of its tokens counts."""

import jax
import numpy as np
import pytest

from currreft_jax import experience
from currreft_jax.config import AdvantageScale, Config, Data, Grpo, LossAverage, Method, Sampling
from currreft_jax.losses import group_advantages
from currreft_jax.sharding import make_mesh
from tests import tiny
from tests.recorded import Recorded, context_of, numbers_of

P, G, T, LONGEST = 16, 3, 8, 16  # the rollout ended before the token limit


def recorded() -> Recorded:
    rng = np.random.default_rng(0)
    finished = rng.random((P, G)) < 0.6
    finished[3] = False
    return Recorded(
        prompts=[rng.integers(0, 256, size).astype(np.int32) for size in rng.permutation(np.arange(4, 4 + P))],
        tokens=rng.integers(0, 256, (P, G, T)).astype(np.int32),
        lengths=rng.integers(1, T + 1, (P, G)),
        finished=finished,
        logprobs=-rng.exponential(1, (P, G, T)).astype(np.float32),
        rewards=rng.choice([0.0, 1.0, 2.0], (P, G)),
    )


def plain_weights(learnt: np.ndarray, average: LossAverage) -> np.ndarray:
    """What each token of a minibatch counts, `[P, G, T]`, of completions that so many tokens are learnt of."""
    sequences, tokens = np.count_nonzero(learnt), learnt.sum()
    weights = np.zeros((*learnt.shape, T))
    for p, g in np.ndindex(*learnt.shape):
        weights[p, g, : learnt[p, g]] = {
            LossAverage.SEQUENCE: 1 / (sequences * max(1, learnt[p, g])),
            LossAverage.TOKEN: 1 / tokens,
            LossAverage.CONSTANT: 1 / (sequences * LONGEST),
        }[average]
    return weights


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize(
    ("average", "scale"),
    [
        (LossAverage.SEQUENCE, AdvantageScale.GROUP),
        (LossAverage.TOKEN, AdvantageScale.BATCH),
        (LossAverage.CONSTANT, AdvantageScale.NONE),
    ],
)
def test_every_row_keeps_what_belongs_to_it_and_every_token_counts_its_share(
    monkeypatch, average, scale, mask_truncated
):
    rollout = recorded()
    config = Config(
        method=Method.GRPO,
        loss_average=average,
        microbatches=2,
        data=Data(batch_size=P, prompt_lengths=(32,), slots=(1,)),
        grpo=Grpo(minibatches=2, num_updates=2, advantage_scale=scale, mask_truncated=mask_truncated),
        sampling=Sampling(group_size=G, max_new_tokens=LONGEST, temperature=0.5),
    )
    rollout.stands_in(monkeypatch, experience)
    monkeypatch.setattr(experience, "scorer", lambda model, temperature: lambda _, __, tokens: -temperature * tokens)
    model = tiny.model_of(mesh=make_mesh(data=2, devices=jax.devices()[:2]))
    batch = experience.drawn_batch(context_of(config, model, reference={}), rollout.examples(), {}, step=1)

    learnt = np.where(rollout.finished, rollout.lengths, 0) if mask_truncated else rollout.lengths
    advantages = group_advantages(rollout.rewards, scale).astype(np.float32)
    assert len(batch.updates) == 4 and batch.updates[2:] == batch.updates[:2]  # two passes over two minibatches
    for move, microbatches in enumerate(batch.updates[:2]):
        minibatch = np.arange(P // 2) + move * P // 2
        rows = [numbers_of(group.prompts) for group, _, _ in microbatches]
        assert [len(numbers) for numbers in rows] == [4, 4]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), minibatch)
        weights = np.zeros((P, G, T))
        weights[minibatch] = plain_weights(learnt[minibatch], average)
        for numbers, (group, own_weights, sampled) in zip(rows, microbatches, strict=True):
            for row, number in enumerate(numbers):
                prompt = rollout.prompts[number]
                np.testing.assert_array_equal(group.prompts.tokens[row, : len(prompt)], prompt)
            np.testing.assert_array_equal(group.tokens, rollout.tokens[numbers])
            np.testing.assert_array_equal(sampled.advantages, advantages[numbers])
            np.testing.assert_array_equal(sampled.logprobs, rollout.logprobs[numbers])
            np.testing.assert_array_equal(sampled.reference, -0.5 * rollout.tokens[numbers])
            np.testing.assert_allclose(own_weights, weights[numbers], rtol=1e-6)
            if mask_truncated:
                np.testing.assert_array_equal(np.any(own_weights, axis=-1), rollout.finished[numbers])
        if average is not LossAverage.CONSTANT:
            assert sum(float(np.sum(own_weights)) for _, own_weights, _ in microbatches) == pytest.approx(1)
    assert batch.about["learnt_tokens"] == learnt.sum()
