"""A choice ends at its limit, its stop token or a stop string, however its tokens arrive."""

from itertools import pairwise

import pytest

from currreft_jax.serving.choices import GrowingChoice

END = 0


class Letters:
    """A token is a character; two of one code are halves of a character."""

    eos_token_ids = (END,)

    def decode(self, tokens):
        text = "".join(map(chr, (token for token in tokens if token != END)))
        whole = text.replace("<>", "é")
        return whole.replace("<", "\ufffd")


def grow(text, cuts, *, max_tokens=100, stops=(), ended=True):
    """Returns the deltas of a completion that arrives in pieces."""
    choice = GrowingChoice(3, Letters(), max_tokens, stops)
    tokens = [*map(ord, text), *([END] if ended else [])]
    deltas = []
    for start, end in pairwise([0, *cuts, len(tokens)]):
        deltas.append(choice.extend(tokens[start:end], [-float(i) for i in range(start, end)]))
        if choice.finish_reason:
            break
    return deltas


def joined(deltas):
    tokens = [token for delta in deltas for token in delta.tokens]
    assert [x for delta in deltas for x in delta.logprobs] == [-float(i) for i in range(len(tokens))]
    assert all(delta.finish_reason is None and delta.index == 3 for delta in deltas[:-1])
    return "".join(delta.text for delta in deltas), len(tokens), deltas[-1].finish_reason


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (1, 2, 3, 4, 5, 6, 7)], ids=str)
@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("abcdefg", {}, ("abcdefg", 8, "stop")),
        ("abcdefg", {"max_tokens": 4}, ("abcd", 4, "length")),
        ("abcdefg", {"max_tokens": 8}, ("abcdefg", 8, "stop")),
        ("abcdefg", {"stops": ("de", "cdef")}, ("abc", 5, "stop")),  # that which is complete first
        ("abcdefg", {"stops": ("c", "bc")}, ("a", 3, "stop")),  # of both, that which begins first
        ("abcdefg", {"stops": ("g!",)}, ("abcdefg", 8, "stop")),
        ("abcdefg", {"stops": ("fg",), "max_tokens": 6}, ("abcdef", 6, "length")),
        ("ab<>cd<", {"max_tokens": 7}, ("abécd\ufffd", 7, "length")),
        ("ab<>cde", {"stops": ("éc",)}, ("ab", 5, "stop")),
    ],
    ids=str,
)
def test_a_choice_is_the_same_in_any_pieces(text, options, expected, cuts):
    assert joined(grow(text, cuts, **options)) == expected


def test_what_may_begin_a_stop_string_and_half_a_character_are_held_back():
    first, second, *_ = grow("abcX<>", (3, 5), stops=("bcd",))
    assert (first.text, second.text) == ("a", "bcX")
