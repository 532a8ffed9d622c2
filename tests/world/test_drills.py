import re

from currreft_jax.config import Kind
from currreft_jax.world import tokenizer
from currreft_jax.world.drills import drill_row
from currreft_jax.world.scenes import COLOURS, SHAPES

WORDS = {*SHAPES, *COLOURS}


def test_every_yes_or_no_and_every_letter_is_right():
    counts = {"yes": 0, "no": 0, "none": 0, "letter": 0}
    for index in range(2000):
        row = drill_row(0, index)
        assert row.kind is Kind.CHAT and not row.images
        prompt, answer = (turn.text for turn in row.messages)
        if index % 2:
            offered = {line[3:]: line[0] for line in prompt.splitlines()[1:-1]}
            for name, letter in (item.rsplit(" ", 1) for item in answer.split(", ")):
                assert letter == offered.get(name, "none")
                counts["letter" if name in offered else "none"] += 1
            continue
        assert prompt == f"is there any {', '.join(search.split(', ')[0] for search in answer.split('; '))}?"
        for search in answer.split("; "):
            target, *listed = search.split(", ")
            for name, verdict in (item.rsplit(" ", 1) for item in listed):
                assert set(name.split()) <= WORDS and verdict == ("yes" if name == target else "no")
                counts[verdict] += 1
    assert counts["letter"] == 4 * counts["none"] and 0.5 < counts["no"] / counts["yes"] < 2


def test_a_drill_depends_on_seed_and_index_alone():
    assert (
        drill_row(0, 7) == drill_row(0, 7)
        and len({drill_row(seed, i).messages for seed in (0, 1) for i in range(50)}) == 100
    )


def test_the_tokenizer_knows_every_word_of_a_drill():
    world_tokenizer = tokenizer.build_tokenizer()
    texts = [turn.text for index in range(300) for turn in drill_row(0, index).messages]
    for text in texts:
        ids = world_tokenizer.encode(text, add_special_tokens=False).ids
        assert world_tokenizer.decode(ids, skip_special_tokens=False) == text
        assert len(ids) == len(re.findall(r"\n[A-D]\.|\w+|[^\w\s]|\n", text))
