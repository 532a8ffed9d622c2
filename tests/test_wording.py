"""Words of messages."""

import pytest

from currreft_jax.config.wording import plural


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
