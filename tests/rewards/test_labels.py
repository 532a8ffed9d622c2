import pytest

from currreft_jax.config import Rewards, validate_rewards
from currreft_jax.rewards import RowError
from currreft_jax.structs import Reason
from tests.rewards.helpers import accuracy, make_row

R = Reason

# (case, solution, answer, |P ∩ G| / |P ∪ G|, reason); equation 5
LABELS = [
    ("one", "dog", "dog", 1, None),
    ("order", "dog, cat", "cat, dog", 1, None),
    ("official: case counts", "dog", "Dog", 1, None),
    ("official: spaces tear labels apart", "dining table, dog", "dog, dining table", 1, None),
    ("double space", "dining table", "dining   table", 1, None),
    ("final full stop", "dog, cat", "dog, cat.", 1, None),
    ("no space after the comma", "dog,cat", "dog,cat", 1, None),
    ("lines", "dog, cat", "dog\ncat", 1, None),
    ("Chinese commas", "dog, cat", "dog，cat", 1, None),
    ("named twice", "dog", "dog, dog", 1, None),
    ("comma at the end", "dog", "dog,", 1, None),
    ("official: a bracket crashes", "dog, cat", '["cat", "dog"]', 1, None),
    ("JSON label with a comma", '["salt, pepper"]', '["salt, pepper"]', 1, None),
    ("fenced JSON", "dog", '```json\n["dog"]\n```', 1, None),
    ("gold as JSON", '["dog", "cat"]', "cat, dog", 1, None),
    ("one of two", "dog, cat", "dog", 1 / 2, R.LABELS_DIFFER),
    ("one too many", "dog", "dog, cat", 1 / 2, R.LABELS_DIFFER),
    ("one right, one wrong", "dog, cat", "dog, bus", 1 / 3, R.LABELS_DIFFER),
    ("two of three and one wrong", "dog, cat, car", "dog, cat, bus", 2 / 4, R.LABELS_DIFFER),
    ("half of a label", "dining table", "dining", 0, R.LABELS_DIFFER),
    ("a label within a label", "cat", "catfish", 0, R.LABELS_DIFFER),
    ("official: and becomes a label", "dog, cat", "dog and cat", 0, R.LABELS_DIFFER),
    ("another", "dog", "cat", 0, R.LABELS_DIFFER),
    ("official: evaluation passes supersets", "dog", "dog, cat, car, bus", 1 / 4, R.LABELS_DIFFER),
    ("JSON of numbers", "dog", "[1, 2]", 0, R.BAD_JSON),
    ("JSON object", "dog", '{"label": "dog"}', 0, R.BAD_JSON),
    ("JSON, nested", "dog", '[["dog"]]', 0, R.BAD_JSON),
    ("broken JSON", "dog", '["dog"', 0, R.BAD_JSON),
    ("fenced words", "dog", "```dog```", 0, R.BAD_JSON),
    ("empty JSON", "dog", "[]", 0, R.EMPTY_ANSWER),
    ("JSON of nothing", "dog", '[""]', 0, R.EMPTY_ANSWER),
    ("only commas", "dog", ", ,", 0, R.EMPTY_ANSWER),
    ("empty", "dog", "", 0, R.EMPTY_ANSWER),
]


@pytest.mark.parametrize(
    ("solution", "answer", "value", "reason"), [case[1:] for case in LABELS], ids=[case[0] for case in LABELS]
)
def test_labels(solution, answer, value, reason):
    assert accuracy(make_row("open", "classify", solution), answer) == (pytest.approx(value), reason)


def test_naming_all_80_classes_earns_one_eightieth():
    names = ", ".join(f"class {n}" for n in range(80))
    assert accuracy(make_row("open", "classify", "class 7"), names) == (pytest.approx(1 / 80), R.LABELS_DIFFER)


def test_aliases_apply_to_gold_and_answer():
    settings = Rewards(aliases={"tv": "tvmonitor", "sofa": "couch"})
    assert accuracy(make_row("open", "classify", "TV, couch"), "tvmonitor, Sofa", settings) == (1, None)
    assert accuracy(make_row("open", "classify", "tv"), "tvmonitor")[0] == 0


@pytest.mark.parametrize("aliases", [{"TV": "tvmonitor"}, {"tv": "tv  monitor"}, {"tv": "TV"}])
def test_an_alias_that_could_never_match_is_refused(aliases):
    with pytest.raises(ValueError, match=r"rewards.aliases is .*; it takes labels in lower case"):
        validate_rewards(Rewards(aliases=aliases))


@pytest.mark.parametrize("solution", ["[]", "[1]", ",", '{"a": 1}'])
def test_an_invalid_gold_answer_is_refused_with_a_remedy(solution):
    with pytest.raises(RowError, match="labels with commas between them, or a JSON list"):
        accuracy(make_row("open", "classify", solution), "dog")
