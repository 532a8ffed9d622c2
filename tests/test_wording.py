"""Words of messages."""

import pytest

from currreft_jax.config.wording import most_frequent, plural


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ["row"], "0 rows"),
        (1, ["row"], "1 row"),
        (2000, ["row"], "2,000 rows"),
        (1, ["row is", "rows are"], "1 row is"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count, words, text):
    assert plural(count, *words) == text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, ""),
        ({"a": 1}, "a 1"),
        ({"d": 1, "b": 2, "a": 2000, "c": 2}, "a 2,000, b 2, c 2, d 1"),
        ({"e": 1, "d": 1, "c": 2, "b": 3, "a": 3}, "a 3, b 3, c 2 and 2 others"),
    ],
)
def test_the_most_frequent_names_come_first_with_their_counts(counts, text):
    assert most_frequent(counts) == text
