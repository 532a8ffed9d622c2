"""The microbatches of a GRPO step: rows, and weights of tokens."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jaxtyping
import numpy as np
import pytest

from currreft_jax.config import AdvantageScale, Config, Data, Grpo, LossAverage, Method, Sampling, Stage
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.structs import GrpoTargets
from currreft_jax.training import grpo
from currreft_jax.training.losses import group_advantages
from currreft_jax.training.update import TrainState, UpdatePrograms
from tests import tiny
from tests.recorded import Recorded, context_of, numbers_of
from tests.test_shapes import check

P, G, T, MAX_TOKENS = 16, 3, 8, 16  # the rollout ended before the token limit


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


def plain_weights(loss_lengths: np.ndarray, average: LossAverage) -> np.ndarray:
    """Computes the token weights of a minibatch, `[P, G, T]`, from the number of loss tokens of each completion."""
    sequences, tokens = np.count_nonzero(loss_lengths), loss_lengths.sum()
    weights = np.zeros((*loss_lengths.shape, T))
    for p, g in np.ndindex(*loss_lengths.shape):
        weights[p, g, : loss_lengths[p, g]] = {
            LossAverage.SEQUENCE: 1 / (sequences * max(1, loss_lengths[p, g])),
            LossAverage.TOKEN: 1 / tokens,
            LossAverage.CONSTANT: 1 / (sequences * MAX_TOKENS),
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
def test_minibatches_keep_rows_together_and_weight_every_token(monkeypatch, average, scale, mask_truncated):
    rollout = recorded()
    config = Config(
        method=Method.GRPO,
        stages=[Stage("one", [])],
        loss_average=average,
        microbatches=2,
        data=Data(batch_size=P, prompt_lengths=(32,), slots=(1,)),
        grpo=Grpo(minibatches=2, num_updates=2, advantage_scale=scale, mask_truncated=mask_truncated),
        sampling=Sampling(group_size=G, max_new_tokens=MAX_TOKENS, temperature=0.5),
    )
    rollout.replace_sampling(monkeypatch)
    reference = lambda model, temperature: lambda _, __, tokens: -temperature * tokens  # noqa: E731
    monkeypatch.setattr(grpo, "reference_program", reference)
    monkeypatch.setattr(grpo, "to_policy", lambda model: lambda params: params)
    updates = [[]]  # the microbatches of each update
    programs = UpdatePrograms(
        zero_gradient=lambda: {},
        add_gradient=lambda params, total, *microbatch: (total, updates[-1].append(microbatch) or {}),
        apply_gradients=lambda state, total: (state, updates.append([]) or 0.0),
        combine_metrics=lambda metrics, norms: {},
    )
    model = tiny.model_of(mesh=make_mesh(data=2, devices=jax.devices()[:2]))
    timer = StepTimer()
    with ThreadPoolExecutor(1) as host:
        context = context_of(config, model, reference={})
        result = grpo.grpo_step(context, programs, host, TrainState({}, {}), rollout.examples(), step=1, timer=timer)
    timer.close()
    assert updates.pop() == []

    loss_lengths = np.where(rollout.finished, rollout.lengths, 0) if mask_truncated else rollout.lengths
    advantages = group_advantages(rollout.rewards, scale).astype(np.float32)
    assert len(updates) == 4 and updates[2:] == updates[:2]  # two passes over two minibatches
    for index, microbatches in enumerate(updates[:2]):
        minibatch = np.arange(P // 2) + index * P // 2
        rows = [numbers_of(group.prompts) for group, _, _ in microbatches]
        assert [len(numbers) for numbers in rows] == [4, 4]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), minibatch)
        weights = np.zeros((P, G, T))
        weights[minibatch] = plain_weights(loss_lengths[minibatch], average)
        for numbers, (group, own_weights, targets) in zip(rows, microbatches, strict=True):
            for row, number in enumerate(numbers):
                prompt = rollout.prompts[number]
                np.testing.assert_array_equal(group.prompts.tokens[row, : len(prompt)], prompt)
            np.testing.assert_array_equal(group.tokens, rollout.tokens[numbers])
            with jaxtyping.jaxtyped("context"):
                assert check(targets, GrpoTargets, "targets") == 3
            np.testing.assert_array_equal(targets.advantages, advantages[numbers])
            np.testing.assert_array_equal(targets.old_logprobs, rollout.logprobs[numbers])
            np.testing.assert_array_equal(targets.ref_logprobs, -0.5 * rollout.tokens[numbers])
            np.testing.assert_allclose(own_weights, weights[numbers], rtol=1e-6)
            if mask_truncated:
                np.testing.assert_array_equal(np.any(own_weights, axis=-1), rollout.finished[numbers])
        if average is not LossAverage.CONSTANT:
            assert sum(float(np.sum(own_weights)) for _, own_weights, _ in microbatches) == pytest.approx(1)
    assert result.metrics["num_loss_tokens"] == loss_lengths.sum()
    assert result.metrics["padding/completion_waste"] == pytest.approx(1 - rollout.lengths.sum() / (P * G * T))
