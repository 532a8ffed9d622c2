"""A gold answer outscores every corruption of it, for every kind and task.

The suite corrupts 1,200 rows of each, `make oracle` 10,000.
"""

import json
from random import Random
from string import ascii_uppercase

import pytest

from currreft_jax.config import DetectionScore, Kind, Rewards, Task
from currreft_jax.rewards import RULES, score_completions
from currreft_jax.structs import Completion, Frame, Row

LABELS = ["dog", "cat", "dining table", "potted plant", "bus", "person", "tv", "hot dog", "bear", "teddy bear"]


def judge(random: Random):
    gold = random.choice(["yes", "no"])
    flipped = "no" if gold == "yes" else "yes"
    return {"solution": gold}, gold, [flipped, f"{gold} and {flipped}", f"{gold}, because {gold}", "maybe"]


def choice(random: Random):
    letters = ascii_uppercase[: random.randint(3, 8)]
    multiple = random.random() < 0.5
    gold = sorted(random.sample(letters, random.randint(1, len(letters) - 1) if multiple else 1))
    other = random.choice([letter for letter in letters if letter not in gold])
    added = ", ".join([*gold, other])
    replaced = ", ".join([other, *gold[1:]])
    dropped = ", ".join(gold[1:]) or other
    keys = {"solution": ", ".join(gold), "options": tuple(letters), "multiple": multiple}
    return (
        keys,
        ",".join(reversed(gold)),
        [added, replaced, dropped, ", ".join(letters), "Z", f"the answer is {gold[0]}"],
    )


def classify(random: Random):
    gold = random.sample(LABELS, random.randint(1, 4))
    other = random.choice([label for label in LABELS if label not in gold])
    superset = ", ".join([*gold, other])
    replaced = ", ".join([other, *gold[1:]])
    dropped = ", ".join(gold[1:]) or other
    shuffled = json.dumps(random.sample(gold, len(gold)))
    return {"solution": ", ".join(gold)}, shuffled, [superset, replaced, dropped, ", ".join(LABELS), f"{gold[0]} x"]


def detection(random: Random):
    """One box a cell, so that a shifted box overlaps no other."""
    original = Frame(random.randint(300, 900), random.randint(300, 900))
    resized = Frame(random.randint(10, 40) * 28, random.randint(10, 40) * 28)
    cells = random.sample([(x, y) for x in range(3) for y in range(3)], random.randint(1, 3))
    gold, resized_gold = [], []
    sx, sy = resized.width / original.width, resized.height / original.height
    for column, row in cells:
        x, y = (column + random.uniform(0, 0.2)) / 3, (row + random.uniform(0, 0.2)) / 3
        corners = x, y, x + random.uniform(0.3, 0.5) / 3, y + random.uniform(0.3, 0.5) / 3
        gold.append([v * (original.width, original.height)[i % 2] for i, v in enumerate(corners)])
        resized_gold.append([v * (sx, sy)[i % 2] for i, v in enumerate(gold[-1])])
    shifted = [[x1 + 0.6 * (x2 - x1), y1, x2 + 0.6 * (x2 - x1), y2] for x1, y1, x2, y2 in resized_gold]
    spray = [[x * 10.0, y * 10.0, x * 10.0 + 30, y * 10.0 + 30] for x in range(4) for y in range(4)]
    swapped = [[x2, y2, x1, y1] for x1, y1, x2, y2 in resized_gold]
    beyond = [[x1 + 2 * resized.width, y1, x2 + 2 * resized.width, y2] for x1, y1, x2, y2 in resized_gold]
    objects = [{"label": "dog", "bbox_2d": box} for box in resized_gold]
    keys = {"solution": json.dumps(gold), "frame": original, "resized": resized}
    corrupted = [shifted, resized_gold + spray, spray, swapped, beyond, [0, 0, 0, 0]]
    return keys, json.dumps(objects), [*map(json.dumps, corrupted), str(resized_gold)[1:-2]]


def math(random: Random):
    n, d = random.choice([-1, 1]) * random.randint(1, 999), random.randint(2, 99)
    sign, size = "-" if n < 0 else "", abs(n)
    form = random.random()
    if form < 0.3:
        gold, answer, wrong = f"{n}", f"${n}.0$", f"{n + random.choice([-1, 1])}"
    elif form < 0.6:
        gold, answer, wrong = f"{n}/{d}", rf"{sign}\frac{{{2 * size}}}{{{2 * d}}}", f"{n + 1}/{d}"
    elif form < 0.8:
        gold, answer, wrong = f"{n / 100}", f"{n / 100:.4f}", f"{(n + random.choice([-1, 1])) / 100}"
    elif form < 0.9:
        gold, answer, wrong = f"{d}%", rf"{d}.0\%", f"{d + 1}%"
    elif form < 0.98:
        letter, other = random.sample("ABCD", 2)
        gold, answer, wrong = letter, f"({letter})", other
    else:  # decided by math-verify, which is slow
        gold, answer, wrong = rf"{d}\sqrt{{2}}", rf"$\sqrt{{{2 * d * d}}}$", rf"{d + 1}\sqrt{{2}}"
        return {"solution": gold}, answer, [wrong, f"{wrong}, {gold}", f"{gold} or {wrong}", f"{d}"]
    hedges = [
        f"either {wrong} or perhaps {gold}",
        f"it is {gold}, {wrong} otherwise",
        f"not sure ${gold}$ or ${wrong}$",
    ]
    return {"solution": gold}, answer, [wrong, *hedges]


MAKERS = {
    **{pair: judge for pair in RULES if pair[0] is Kind.JUDGE},
    **{pair: choice for pair in RULES if pair[0] is Kind.CHOICE},
    (Kind.OPEN, Task.DETECTION): detection,
    (Kind.OPEN, Task.CLASSIFY): classify,
    (Kind.OPEN, Task.MATH): math,
}


def check_corruptions(kind: Kind, task: Task, count: int, pool, settings=None) -> None:
    random = Random(f"{kind} {task}")
    rows, frames, completions, answers = [], [], [], []
    for n in range(count):
        keys, right, wrong = MAKERS[kind, task](random)
        frames.append(keys.pop("resized", None))
        rows.append(Row(f"{n}", task, kind, "", **keys))
        right_text = f"<think>hm</think>\n<answer>{right}</answer>"
        texts = [
            right_text,
            *[f"<think>hm</think><answer>{answer}</answer>" for answer in wrong],
            "<think>hm</think><answer> </answer>",
            f"<think>hm</think>{right}",
            f"<think>hm</think><answer>{right}",
            f"<think>hm</think><answer>{right}</answer><answer>{right}</answer>",
            f"<think>hm</think><answer>{wrong[0]}</answer><answer>{right}</answer>",
            f"<answer>{right}</answer>",
            "",
        ]
        answers.append(texts)
        completions.append([*map(Completion, texts), Completion(right_text, finished=False)])
    scores = score_completions(rows, completions, settings, frames=frames, pool=pool)
    best = scores.total[:, 0]
    for p in range(count):
        assert best[p] == 2, (rows[p], answers[p][0], scores.reasons["accuracy"][p, 0])
        worst = scores.total[p, 1:].argmax() + 1
        assert scores.total[p, worst] < 2, (rows[p], answers[p][worst])
    for part, values in scores.parts.items():
        assert ((values > 0) | (scores.reasons[part] != None)).all()  # noqa: E711


def test_every_kind_and_task_has_corruptions():
    assert MAKERS.keys() == RULES.keys()


@pytest.mark.parametrize(("kind", "task"), RULES)
def test_gold_beats_every_corruption(kind, task, pool):
    check_corruptions(kind, task, 1200, pool)  # 10,800 rows in all


@pytest.mark.parametrize("variant", [DetectionScore.F1, DetectionScore.SOFT_IOU])
def test_gold_beats_every_corruption_of_boxes(variant, pool):
    check_corruptions(Kind.OPEN, Task.DETECTION, 1200, pool, Rewards(detection=variant))


@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "task"), RULES)
def test_gold_beats_every_corruption_of_ten_thousand_rows(kind, task, pool):
    check_corruptions(kind, task, 10_000, pool)
