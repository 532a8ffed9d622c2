import re

from currreft_jax.config import Kind
from currreft_jax.world import tokenizer
from currreft_jax.world.drills import drill
from currreft_jax.world.scenes import COLOURS, SHAPES

WORDS = {*SHAPES, *COLOURS}


def test_every_verdict_and_every_letter_is_true():
    said = {"yes": 0, "no": 0, "none": 0, "letter": 0}
    for index in range(2000):
        row = drill(0, index)
        assert row.kind is Kind.CHAT and not row.images
        asked, answer = (turn.text for turn in row.messages)
        if index % 2:
            offered = {line[3:]: line[0] for line in asked.splitlines()[1:-1]}
            for name, letter in (it.rsplit(" ", 1) for it in answer.split(", ")):
                assert letter == offered.get(name, "none")
                said["letter" if name in offered else "none"] += 1
            continue
        assert asked == f"is there any {', '.join(run.split(', ')[0] for run in answer.split('; '))}?"
        for run in answer.split("; "):
            target, *seen = run.split(", ")
            for name, verdict in (it.rsplit(" ", 1) for it in seen):
                assert set(name.split()) <= WORDS and verdict == ("yes" if name == target else "no")
                said[verdict] += 1
    assert said["letter"] == 4 * said["none"] and 0.5 < said["no"] / said["yes"] < 2


def test_a_drill_depends_on_seed_and_index_alone():
    assert drill(0, 7) == drill(0, 7) and len({drill(seed, i).messages for seed in (0, 1) for i in range(50)}) == 100


def test_the_tokenizer_knows_every_word_of_a_drill():
    known = tokenizer.build()
    texts = [turn.text for index in range(300) for turn in drill(0, index).messages]
    for text in texts:
        ids = known.encode(text, add_special_tokens=False).ids
        assert known.decode(ids, skip_special_tokens=False) == text
        assert len(ids) == len(re.findall(r"\n[A-D]\.|\w+|[^\w\s]|\n", text))
