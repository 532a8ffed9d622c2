"""The bounds on a base, as `benchmarks.world_base` measures them."""

import numpy as np
import pytest

from benchmarks.world_base import CAREFUL_PREFIX, missed_bounds, with_prefix
from currreft_jax.structs import Prompt
from currreft_jax.world.pretraining import careful_text, hasty_text
from currreft_jax.world.questions import KINDS, TASKS
from currreft_jax.world.tokenizer import build_tokenizer


def table(**changes):
    """Returns a table within all bounds, but for the changes of its open cells about mathematics."""
    cells = []
    for domain in ("test", "test_dark"):
        for kind in KINDS:
            for task in TASKS:
                cell = {"domain": domain, "kind": kind.value, "task": task.value}
                cell |= {"greedy": 0.5, "careful": 0.65, "sampled_format": 0.7}
                cell |= {"sampled": 0.4, "sampled_careful": 0.3}
                is_changed = (domain, kind.value, task.value) == ("test", "open", "math")
                cells.append(cell | (changes if is_changed else {}))
    return cells


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"sampled_format": 0.49}, ["missed: open math, format at 1 0.490, 0.50 to 0.90"]),
        ({"sampled_format": 0.91}, ["missed: open math, format at 1 0.910, 0.50 to 0.90"]),
        ({"greedy": 0.09}, ["missed: open math, greedy accuracy 0.090, 0.10 to 0.70"]),
        ({"greedy": 0.7, "careful": 0.7}, []),
        ({"greedy": 0.71, "careful": 0.86}, ["missed: open math, greedy accuracy 0.710, 0.10 to 0.70"]),
        ({"careful": 0.3}, ["missed: open, careful less greedy 0.033, at least 0.06"]),
    ],
)
def test_missed_bounds_are_named(changes, missed):
    assert missed_bounds(table(**changes)) == missed


def test_judge_and_choice_need_more_headroom_than_open():
    cells = [cell | {"careful": 0.58} for cell in table()]
    assert [line.split(",")[0] for line in missed_bounds(cells)] == ["missed: judge", "missed: choice"]


def test_the_careful_prefix_opens_careful_answers_alone():
    tokenizer = build_tokenizer()
    prefix = tokenizer.encode(CAREFUL_PREFIX).ids
    assert tokenizer.encode(careful_text("red 2", "yes")).ids[: len(prefix)] == prefix
    assert tokenizer.encode(hasty_text("yes")).ids[: len(prefix)] != prefix


def test_a_prefix_goes_on_where_the_prompt_ends():
    positions = np.array([[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]], np.int32)
    prompt = Prompt(np.arange(4, dtype=np.int32), positions, 4, (), "prompt")
    longer = with_prefix(prompt, np.array([8, 9]))
    assert longer.tokens.tolist() == [0, 1, 2, 3, 8, 9] and longer.next_position == 6
    np.testing.assert_array_equal(longer.positions[:, 4:], [[4, 5]] * 3)
    np.testing.assert_array_equal(longer.positions[:, :4], positions)
