"""Advantages, token weights and losses, against values by hand and plain formulas."""

import json
import re
from functools import partial
from math import exp
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currreft_jax.config import AdvantageScale, Grpo, Kind, LossAverage, Task
from currreft_jax.rewards import score_completions
from currreft_jax.rewards.boxes import corners_iou
from currreft_jax.structs import Completion, Frame, Row
from currreft_jax.training.losses import group_advantages, grpo_loss, loss_counts, loss_weights, sft_loss
from currreft_jax.training.update import combine_metrics

MASK = np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]], bool)
LOGPROBS = -np.array([[[1.0, 2, 3, 9]], [[9, 8, 9, 9]], [[9, 9, 9, 9]]], np.float32)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (LossAverage.TOKEN, (1 + 2 + 3 + 8) / 4),
        (LossAverage.SEQUENCE, ((1 + 2 + 3) / 3 + 8) / 2),  # the third sequence has no loss tokens and does not count
    ],
)
def test_loss_by_hand(average, expected):
    weights = loss_weights(MASK, average, loss_counts([MASK]))
    assert float(sft_loss(LOGPROBS, weights)) == pytest.approx(expected, rel=1e-6)
    assert weights.sum() == pytest.approx(1)
    assert (weights[~MASK] == 0).all()


@pytest.mark.parametrize("average", [LossAverage.TOKEN, LossAverage.SEQUENCE])
def test_weights_of_microbatches_equal_those_of_the_batch(average):
    masks = [MASK[:1], MASK[1:]]
    counts = loss_counts(masks)
    np.testing.assert_array_equal(counts, sum(loss_counts([mask]) for mask in masks))
    weights = np.concatenate([loss_weights(mask, average, counts) for mask in masks])
    np.testing.assert_array_equal(weights, loss_weights(MASK, average, loss_counts([MASK])))


def test_a_batch_without_loss_tokens_has_zero_loss():
    empty = np.zeros_like(MASK)
    assert sft_loss(LOGPROBS, loss_weights(empty, LossAverage.TOKEN, loss_counts([empty]))) == 0


# ---------------------------------------------------------------------------------------------------------- advantages


def test_advantages_by_hand():
    rewards = np.array([[2.0, 1.0, 1.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    deviation = (2 / 3) ** 0.5  # squares 1, 0, 0, 1 over G - 1
    by_group = group_advantages(rewards)
    np.testing.assert_allclose(by_group[0], np.array([1, 0, 0, -1]) / (deviation + 1e-4), rtol=1e-12)
    assert (by_group[1] == 0).all()
    np.testing.assert_array_equal(group_advantages(rewards, AdvantageScale.NONE)[0], [1, 0, 0, -1])
    batch = [*rewards.ravel(), 5.0]
    mean = sum(batch) / 9
    spread = (sum((r - mean) ** 2 for r in batch) / 8) ** 0.5
    by_batch = group_advantages(rewards, AdvantageScale.BATCH, np.array(batch))
    np.testing.assert_allclose(by_batch[0], np.array([1, 0, 0, -1]) / (spread + 1e-4), rtol=1e-12)


def test_the_example_of_docs_method_is_computed():
    text = (Path(__file__).parents[1] / "docs" / "method.md").read_text("utf-8").partition("**An example.**")[2]
    cells = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", text.partition("The first box")[0], re.M)
    image, box = Frame(84, 84), re.findall(r"`(\[.+?\])`", text)[0]
    row = Row("red", Task.DETECTION, Kind.OPEN, "where is the red circle?", box, images=("a.png",), frame=image)
    scores = score_completions([row], [[Completion(answer, num_tokens=9) for answer, *_ in cells]])
    advantages = group_advantages(scores.total)
    found = zip(scores.parts["accuracy"][0], scores.parts["format"][0], scores.total[0], advantages[0], strict=True)
    expected = [list(map(float, numbers)) for _, *numbers in cells]
    assert len(expected) == 4
    np.testing.assert_allclose(list(found), expected, atol=0.005)
    first, gold = (np.array(json.loads(found)) for found in (cells[0][0].split("<answer>")[1].split("<")[0], box))
    assert float(corners_iou(first[None], gold[None])[0, 0]) == pytest.approx(0.93, abs=0.005)
    assert scores.total.std(ddof=1) == pytest.approx(0.82, abs=0.005)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.floats(-3, 3), st.sampled_from(AdvantageScale))
def test_group_advantages_sum_to_zero_and_ignore_a_constant(rewards, level, scale):
    rewards = np.array([rewards])
    advantages = group_advantages(rewards, scale)
    assert abs(advantages.sum()) < 1e-9
    if np.ptp(rewards + level) > 0:
        np.testing.assert_allclose(group_advantages(rewards + level, scale), advantages, atol=1e-6)
    if np.ptp(rewards) == 0:
        assert (advantages == 0).all()


# ----------------------------------------------------------------------------------------------------------- the loss


def plain_loss(logprobs, old, reference, advantages, mask, average, settings, longest):
    """Computes the loss token by token, by the formulas of the papers."""
    sequences = []
    for p, g in np.ndindex(*advantages.shape):
        values = []
        for t in np.flatnonzero(mask[p, g]):
            ratio = exp(logprobs[p, g, t] - old[p, g, t])
            clipped = min(max(ratio, 1 - settings.clip_epsilon_low), 1 + settings.clip_epsilon_high)
            objective = min(ratio * advantages[p, g], clipped * advantages[p, g])
            d = reference[p, g, t] - logprobs[p, g, t]
            values.append(-(objective - settings.kl_coef * (exp(d) - d - 1)))
        if values:
            sequences.append(values)
    if average is LossAverage.SEQUENCE:
        return sum(sum(values) / len(values) for values in sequences) / len(sequences)
    if average is LossAverage.TOKEN:
        return sum(map(sum, sequences)) / sum(map(len, sequences))
    return sum(map(sum, sequences)) / len(sequences) / longest


@pytest.mark.parametrize("average", LossAverage)
@pytest.mark.parametrize("scale", AdvantageScale)
@pytest.mark.parametrize("updates", [1, 2])
def test_loss_and_gradient_match_the_plain_formula(average, scale, updates):
    rng = np.random.default_rng(7)
    shape = (3, 4, 5)
    settings = Grpo(kl_coef=0.3, clip_epsilon_low=0.2, clip_epsilon_high=0.3, num_updates=updates)
    logprobs, sampled, reference = -rng.exponential(1.0, (3, *shape))
    sampled = logprobs + 0.4 * rng.standard_normal(shape)
    advantages = group_advantages(rng.choice([0, 0.2, 1, 2], shape[:2]), scale)
    mask = np.arange(5) < rng.integers(0, 6, shape[:2])[..., None]

    def old_of(logprobs):
        return sampled if updates > 1 else logprobs

    with jax.enable_x64(True):
        exact = loss_weights(mask, average, loss_counts([mask]), 9)
        (loss, metrics), gradient = jax.value_and_grad(
            lambda x: grpo_loss(x, sampled, reference, advantages, exact.astype(np.float64), settings), has_aux=True
        )(logprobs)
    wanted = plain_loss(logprobs, old_of(logprobs), reference, advantages, mask, average, settings, 9)
    assert float(loss) == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    fixed, h = old_of(logprobs), 1e-6
    for index in np.ndindex(*shape):
        up, down = logprobs.copy(), logprobs.copy()
        up[index] += h
        down[index] -= h
        slope = (
            plain_loss(up, fixed, reference, advantages, mask, average, settings, 9)
            - plain_loss(down, fixed, reference, advantages, mask, average, settings, 9)
        ) / (2 * h)
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    kl = np.exp(reference - logprobs) - (reference - logprobs) - 1
    assert float(metrics["kl"]) == pytest.approx(kl[mask].sum(), rel=1e-6)
    difference = np.abs(logprobs - sampled)[mask]
    assert float(metrics["sampling/sampling_logp_difference/mean"]) == pytest.approx(difference.sum(), rel=1e-6)
    assert float(metrics["sampling/sampling_logp_difference/max"]) == pytest.approx(difference.max(), rel=1e-6)


def test_masked_tokens_have_no_effect_even_with_infinite_log_probs():
    logprobs = np.array([[[-1.0, -np.inf]]], np.float32)
    weights = np.array([[[1.0, 0.0]]], np.float32)
    loss, gradient = jax.value_and_grad(
        lambda x: grpo_loss(x, logprobs, logprobs, np.ones((1, 1), np.float32), weights, Grpo())[0]
    )(logprobs)
    assert float(loss) == -1.0
    np.testing.assert_array_equal(gradient, [[[-1.0, 0.0]]])


@pytest.mark.parametrize("reference", [None, np.log([[[0.5, 0.2, 0.1, 0.3]]])])
def test_truncated_importance_sampling_weights_the_objective_of_each_token(reference):
    """Factors of 1/2, 1, 3 and 9, of which the last is cut to the cap of 4; the KL penalty is not weighted."""
    factors = np.array([[[0.5, 1.0, 3.0, 9.0]]])
    logprobs = np.log([[[0.3, 0.2, 0.3, 0.09]]])
    weights, advantages = np.full(factors.shape, 1 / 4), np.array([[-2.0]])

    def loss_of(cap):
        settings = Grpo(kl_coef=0.3, importance_cap=cap)
        loss = partial(grpo_loss, settings=settings, weights=weights, advantages=advantages, ref_logprobs=reference)
        (_, metrics), gradient = jax.value_and_grad(
            lambda x: loss(x, old_logprobs=logprobs - np.log(factors)), has_aux=True
        )(logprobs)
        return np.asarray(gradient), metrics

    with jax.enable_x64(True):
        plain, metrics = loss_of(0.0)
        corrected, corrected_metrics = loss_of(4.0)
    # d/dlogp of -w (f A p/stop(p) - beta KL) is -w f A, and w beta (1 - p_ref/p) as without a cap.
    np.testing.assert_allclose(corrected - plain, -weights * -2.0 * ([0.5, 1.0, 3.0, 4.0] - np.ones(4)), atol=1e-12)
    name = "sampling/importance_sampling_ratio"
    assert not any(key.startswith(name) for key in metrics)
    found = {key.removeprefix(name): float(x) for key, x in corrected_metrics.items() if key.startswith(name)}
    assert found == pytest.approx({"/mean": 8.5, "/min": 0.5, "/max": 4.0}, rel=1e-6)


def test_tokens_out_of_the_loss_are_out_of_the_importance_ratios():
    logprobs, old = np.log([[[0.5, 0.5, 0.5]]]), np.log([[[0.25, 0.001, 0.9]]])
    metrics = grpo_loss(logprobs, old, None, np.ones((1, 1)), np.array([[[1.0, 0, 0]]]), Grpo(importance_cap=3.0))[1]
    ratios = [float(metrics[f"sampling/importance_sampling_ratio/{kind}"]) for kind in ("mean", "min", "max")]
    assert ratios == pytest.approx([2.0] * 3)


def test_minima_and_maxima_of_microbatches_are_joined_as_such():
    microbatches = [{"loss": jnp.float32(1), "a/min": jnp.float32(x), "a/max": jnp.float32(x)} for x in (2, 1, 3)]
    joined = combine_metrics(microbatches, [jnp.float32(1)])
    assert (joined["a/min"], joined["a/max"], joined["loss"]) == (1, 3, 3)


@pytest.mark.parametrize("several", ["num_updates", "minibatches"])
def test_clip_ratios_count_the_tokens_without_gradient(several):
    settings = Grpo(**{"kl_coef": 0.0, several: 2})
    logprobs = np.log(np.array([[[2.0, 0.5, 1.1, 0.9]], [[2.0, 0.5, 1.1, 0.9]]], np.float32))
    weights = np.full((2, 1, 4), 1 / 8, np.float32)
    zeros, advantages = np.zeros_like(logprobs), np.array([[1.0], [-1.0]], np.float32)
    metrics = grpo_loss(logprobs, zeros, None, advantages, weights, settings)[1]
    gradient = jax.grad(lambda x: grpo_loss(x, zeros, None, advantages, weights, settings)[0])(logprobs)
    assert (float(metrics["clip_ratio/high_mean"]), float(metrics["clip_ratio/low_mean"])) == (1, 1)
    np.testing.assert_array_equal(np.asarray(gradient) == 0, [[[1, 0, 0, 0]], [[0, 1, 0, 0]]])
    assert "kl" not in metrics
