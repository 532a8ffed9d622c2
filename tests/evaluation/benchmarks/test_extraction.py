"""Options read by VLMEvalKit's three generations and by ourselves; the first table is measured on VLMEvalKit."""

import pytest

from currreft_jax.config import Extraction
from currreft_jax.evaluation.benchmarks.extraction import infer_option
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem
from currreft_jax.evaluation.benchmarks.scorers import read_letter
from currreft_jax.structs import Completion

ANIMALS = ("teddy bear", "rabbit", "cat", "dog")
LONG = "I looked at the ears and at the tail for a long time, and it must be option D because dogs bark loudly at night"

# answer, G1, G2, G3, ours
TABLE = [
    *((text, "B", "B", "B", "B") for text in ("B", "(B)", "**B**", r"\boxed{B}")),
    ("The answer is B. rabbit", "B", "B", "B", "B"),
    ("b", None, None, None, "B"),
    ("I", None, None, None, None),
    ("rabbit and dog", None, None, None, None),
    ("A or B", None, None, None, None),
    ("A cat sits on a mat", "A", "C", "C", None),
    ("A rabbit", "A", "A", "A", "B"),
    ("The answer is a rabbit", "B", "B", "A", "B"),
    (LONG, "D", None, None, "D"),
    ("<answer>C</answer>", None, None, None, "C"),
    ("<answer> C </answer>", "C", "C", "C", "C"),
    ("Z", "Z", "Z", "Z", None),
    ("Cannot determine the answer", "Z", "Z", "Z", None),
    ("Failed to obtain answer via API. rabbit", "B", "B", "B", None),
    ("<think> A or B, hm </think> It is a dog", "D", "D", "D", None),
    ("B is wrong, so the correct answer is **D**, since they all bark at night", None, None, "D", "D"),
]


@pytest.mark.parametrize(("answer", "g1", "g2", "g3", "ours"), TABLE)
def test_each_generation_reads_its_own_option(answer, g1, g2, g3, ours):
    generations = (Extraction.G1, Extraction.G2, Extraction.G3)
    found = [infer_option(answer, ANIMALS, generation) for generation in generations]
    item = BenchmarkItem("1", "f:1", "q", "q", ("B",), AnswerType.CHOICE, ANIMALS)
    assert [*found, read_letter(item, Completion(answer), Extraction.READABLE)] == [g1, g2, g3, ours]


def test_a_letter_is_one_of_the_last_four_tokens_since_the_second_generation():
    for tail, found in (("x y z", "B"), ("w x y z", None)):
        answer = f"B {tail}"
        assert infer_option(answer, ANIMALS, Extraction.G1) == "B"
        assert infer_option(answer, ANIMALS, Extraction.G2) == found


def test_only_short_answers_are_searched_for_an_options_text_since_the_second_generation():
    limit = 2 * sum(map(len, ANIMALS))
    for length, found in ((limit, "C"), (limit + 1, None)):
        answer = "cat".ljust(length, "-")
        assert infer_option(answer, ANIMALS, Extraction.G1) == "C"
        assert infer_option(answer, ANIMALS, Extraction.G2) == found


def test_a_letter_that_is_not_offered_is_no_option():
    assert infer_option("The answer is D", ANIMALS[:2], Extraction.G3) is None
    assert infer_option("D", ANIMALS[:2], Extraction.G1) is None
