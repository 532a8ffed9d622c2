"""What training minimises, against numbers worked out by hand."""

import numpy as np
import pytest

from currreft_jax.config import LossAverage
from currreft_jax.losses import loss_counts, loss_weights, sft_loss

MASK = np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]], bool)
LOGPROBS = -np.array([[[1.0, 2, 3, 9]], [[9, 8, 9, 9]], [[9, 9, 9, 9]]], np.float32)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (LossAverage.TOKEN, (1 + 2 + 3 + 8) / 4),
        (LossAverage.SEQUENCE, ((1 + 2 + 3) / 3 + 8) / 2),  # the third sequence teaches nothing and counts nothing
    ],
)
def test_loss_by_hand(average, expected):
    weights = loss_weights(MASK, average, loss_counts([MASK]))
    assert float(sft_loss(LOGPROBS, weights)) == pytest.approx(expected, rel=1e-6)
    assert weights.sum() == pytest.approx(1)
    assert (weights[~MASK] == 0).all()


@pytest.mark.parametrize("average", LossAverage)
def test_the_parts_of_a_batch_add_up_to_the_whole(average):
    parts = [MASK[:1], MASK[1:]]
    counts = loss_counts(parts)
    np.testing.assert_array_equal(counts, sum(loss_counts([part]) for part in parts))
    apart = np.concatenate([loss_weights(part, average, counts) for part in parts])
    np.testing.assert_array_equal(apart, loss_weights(MASK, average, loss_counts([MASK])))


def test_a_batch_without_a_learnt_token_has_no_loss():
    nothing = np.zeros_like(MASK)
    assert sft_loss(LOGPROBS, loss_weights(nothing, LossAverage.TOKEN, loss_counts([nothing]))) == 0
