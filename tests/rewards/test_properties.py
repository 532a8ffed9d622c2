"""Rewards of any text: values in their ranges, reasons, and what must not change them.

The suite draws thousands of texts, `make oracle` tens of thousands.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currreft_jax.config import DetectionScore, Maths, PartialCredit, Rewards
from currreft_jax.rewards import boxes, score_completions
from currreft_jax.rewards.detection import detection_accuracy
from currreft_jax.rewards.maths import Comparison, gold_expression, math_accuracy, parse_expression
from currreft_jax.structs import Boxes, Completion, Frame, Reason, Row
from tests.rewards.helpers import accuracy, make_row, well_formed

RANGES = {"accuracy": (0, 1), "format": (0, 1), "length": (-1, 0), "repetition": (-1, 0), "overlong": (-1, 0)}
ALL_REWARDS = Rewards(weights=dict.fromkeys(RANGES, 1.0))
FRAME = Frame(100, 80)

ROWS = [
    make_row("judge", "detection", "yes"),
    make_row("choice", "math", "B", 4),
    make_row("choice", "classify", "A, C", 5, True),
    make_row("open", "classify", "dog, dining table"),
    make_row("open", "detection", "[1, 2, 30, 40]", frame=FRAME),
    make_row("open", "detection", "[[1, 2, 30, 40], [50, 50, 60, 70]]", frame=FRAME),
    make_row("open", "detection", "[]", frame=FRAME),
]
MATH_ROW = make_row("open", "math", r"2\sqrt{3}")

FRAGMENTS = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "yes",
            "no",
            "A",
            "B,",
            "dog",
            "x",
            "and",
            "true",
            "NaN",
            "1e999",
        ),
        *(
            "[",
            "]",
            "{",
            "}",
            '"bbox_2d"',
            ":",
            "[1, 2, 30, 40]",
            ",",
            "```json",
            "```",
            "$",
            "^",
            "%",
            ".",
            "-",
            "((((",
            "°",
        ),
        *(
            r"\boxed{",
            r"\frac",
            r"\text{",
            "\\",
            "1/0",
            "7" * 50,
            "12 cm",
            "2 or 3",
            "\n",
            " ",
            "\x00",
            "\ud800",
            "İ",
            "²",
            "٣",
        ),
    ]
)
TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.text(max_size=40).map(well_formed),
    st.lists(FRAGMENTS, max_size=10).map("".join).map(well_formed),
)


def check_any_text(text: str, tokens: int, finished: bool) -> None:
    completion = Completion(text, tokens, finished)
    scores = score_completions(ROWS, [[completion]] * len(ROWS), ALL_REWARDS)
    for name, (low, high) in RANGES.items():
        values, reasons = scores.parts[name], scores.reasons[name]
        assert ((values >= low) & (values <= high)).all()
        assert all(isinstance(reason, Reason) for reason in reasons[values < high])
        assert all(reason is None for reason in reasons[values == high])
    # Only up to the comparison: math-verify itself is covered by `survives_math_verify` and the tests of the pool.
    parsed = parse_expression(text, Maths())
    if not isinstance(parsed, Reason):
        verdict = math_accuracy(gold_expression(MATH_ROW, Maths()), parsed)
        assert isinstance(verdict, Comparison) or verdict.value in (0, 1)


@settings(max_examples=400, deadline=None)
@given(TEXT, st.integers(0, 3000), st.booleans())
def test_any_text_gets_values_in_range_and_reasons(text, tokens, finished):
    check_any_text(text, tokens, finished)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, database=None)
@given(TEXT, st.integers(0, 3000), st.booleans())
def test_four_thousand_texts_get_values_in_range_and_reasons(text, tokens, finished):
    check_any_text(text, tokens, finished)


@pytest.mark.oracle
@settings(max_examples=20_000, deadline=None, database=None)
@given(TEXT, st.integers(0, 3000), st.booleans())
def test_twenty_thousand_texts_get_values_in_range_and_reasons(text, tokens, finished):
    check_any_text(text, tokens, finished)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXT, min_size=8, max_size=8))
def test_any_text_survives_math_verify(pool, texts):
    survives_math_verify(pool, texts)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, database=None)
@given(texts=st.lists(TEXT, min_size=8, max_size=8))
def test_twelve_hundred_texts_survive_math_verify(pool, texts):
    survives_math_verify(pool, texts)


@pytest.mark.oracle
@settings(max_examples=1000, deadline=None, database=None)
@given(texts=st.lists(TEXT, min_size=8, max_size=8))
def test_eight_thousand_texts_survive_math_verify(pool, texts):
    survives_math_verify(pool, texts)


def survives_math_verify(pool, texts) -> None:
    answers = [text.replace("<answer>", "").replace("</answer>", "") for text in texts]
    right = well_formed(r"\sqrt{12}")
    scores = score_completions(
        [MATH_ROW], [[Completion(right), *[Completion(well_formed(answer)) for answer in answers]]], pool=pool
    )
    values = scores.parts["accuracy"][0]
    assert values[0] == 1
    assert set(values) <= {0, 1}
    assert all(
        (reason is None) == bool(value) for value, reason in zip(values, scores.reasons["accuracy"][0], strict=True)
    )


SPACE = st.text(" \n\t", max_size=3)


@given(st.sampled_from([*ROWS, MATH_ROW]), SPACE, SPACE, SPACE)
def test_white_space_around_tags_and_answer_changes_nothing(row: Row, first, second, third):
    text = f"{first}<think>x</think>{second}<answer>{third}{row.solution}{first}</answer>{second}"
    scores = score_completions([row], [[Completion(text)]])
    assert scores.total[0, 0] == 2


@given(st.permutations(["dog", "dining table", "cat"]), SPACE, SPACE)
def test_white_space_and_order_of_labels_change_nothing(labels, before, after):
    row = make_row("open", "classify", "dog, dining table")
    answer = f"{before},{after}".join(labels)
    assert accuracy(row, answer) == (pytest.approx(2 / 3), Reason.LABELS_DIFFER)
    assert accuracy(row, json.dumps(labels, indent=len(after))) == (pytest.approx(2 / 3), Reason.LABELS_DIFFER)


@given(st.permutations(["bbox_2d", "label", "score"]), st.integers(0, 3), st.booleans())
def test_white_space_and_order_of_keys_change_nothing(keys, indent, fenced):
    values = {"bbox_2d": [1, 2, 30, 40], "label": "dog", "score": 0.5}
    answer = json.dumps([{key: values[key] for key in keys}], indent=indent)
    assert accuracy(ROWS[4], f"```json\n{answer}\n```" if fenced else answer) == (1, None)


@given(st.permutations("ACD"), st.sampled_from([",", ", ", " ", "\n", ";", "、"]))
def test_order_and_separators_of_options_change_nothing(letters, separator):
    row = make_row("choice", "classify", "A, C, D, E", 5, True)
    assert accuracy(row, separator.join(letters), Rewards(partial_credit=PartialCredit.SUBSET)) == (
        0.2,
        Reason.NOT_EQUAL,
    )


@st.composite
def corner_arrays(draw):
    corners = []
    for _ in range(draw(st.integers(1, 5))):
        x, y = draw(st.integers(0, 90)), draw(st.integers(0, 70))
        corners.append([x, y, x + draw(st.integers(1, 10)), y + draw(st.integers(1, 10))])
    return np.array(corners, np.float64)


STRUCTURE = '",]}`[{'


@st.composite
def damaged_answers(draw):
    """Draws boxes, an answer that names them in sound JSON, and that answer with one character deleted or added."""
    corners = draw(corner_arrays())
    label = draw(st.sampled_from([None, "dog", "dog 2", "2 dogs, one cat", "7", "[1]"]))
    items = [box if label is None else {"bbox_2d": box, "label": label} for box in corners.astype(int).tolist()]
    sound = json.dumps(items, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])))
    sound = draw(st.sampled_from(["{}", "```json\n{}\n```"])).format(sound)
    if draw(st.booleans()):
        index = draw(st.integers(0, len(sound)))
        return corners, sound, sound[:index] + draw(st.sampled_from(STRUCTURE)) + sound[index:]
    index = draw(st.sampled_from([index for index, character in enumerate(sound) if character in STRUCTURE]))
    return corners, sound, sound[:index] + sound[index + 1 :]


@settings(max_examples=500, deadline=None)
@given(damaged_answers(), st.integers(0, 4), st.integers(1, 5), st.sampled_from(DetectionScore))
def test_damage_never_raises_the_accuracy(answers, first, num_gold, variant):
    """Holds for damage of one character, and for labels that hold no bracket of several numbers."""
    corners, sound, damaged = answers
    gold = corners[first % len(corners) :][:num_gold].tolist()
    row = make_row("open", "detection", json.dumps(gold), frame=FRAME)
    rewards = Rewards(detection=variant)
    assert accuracy(row, damaged, rewards)[0] <= accuracy(row, sound, rewards)[0]


ANSWERS = st.one_of(
    st.text('[],1 2.-"`{}', max_size=30),
    st.lists(FRAGMENTS.filter(lambda text: "answer" not in text), max_size=12).map("".join),
    damaged_answers().map(lambda answers: answers[2]),
)


@settings(max_examples=500, deadline=None)
@given(corner_arrays(), ANSWERS)
def test_no_answer_pays_more_than_its_boxes_in_sound_json(gold, answer):
    named = boxes.named_corners(answer.strip())
    for solution in ("[]", "[1, 2, 30, 40]", json.dumps(gold.tolist())):
        row = make_row("open", "detection", solution, frame=FRAME)
        expected = 0 if isinstance(named, Reason) else accuracy(row, json.dumps(named.tolist()))[0]
        assert accuracy(row, answer)[0] == expected


@given(corner_arrays(), corner_arrays(), st.sampled_from(DetectionScore), st.integers(1, 9), st.integers(1, 9))
def test_scaling_image_and_boxes_together_changes_nothing(gold, answer, variant, sx, sy):
    rewards = Rewards(detection=variant)
    plain = detection_accuracy(Boxes(gold, FRAME), Boxes(answer, FRAME), rewards)
    larger = Frame(FRAME.width * sx, FRAME.height * sy)
    scaled = [boxes.rescale(Boxes(corners, FRAME), larger) for corners in (gold, answer)]
    assert detection_accuracy(scaled[0], scaled[1], rewards).value == pytest.approx(plain.value)


@given(corner_arrays(), corner_arrays(), st.sampled_from([(2, 4), (0.5, 2), (8, 0.25)]))
def test_the_resized_frame_changes_no_verdict(gold, answer, factors):
    row = make_row("open", "detection", json.dumps(gold.tolist()), frame=FRAME)
    sx, sy = factors
    resized = Frame(int(FRAME.width * sx), int(FRAME.height * sy))
    moved = (answer * np.array([sx, sy, sx, sy])).tolist()
    assert accuracy(row, json.dumps(moved), frame=resized) == accuracy(row, json.dumps(answer.tolist()))


@given(corner_arrays(), corner_arrays(), st.sampled_from(DetectionScore), st.randoms(use_true_random=False))
def test_permuting_boxes_changes_nothing(gold, answer, variant, random):
    rewards = Rewards(detection=variant)
    plain = detection_accuracy(Boxes(gold, FRAME), Boxes(answer, FRAME), rewards)
    for corners in (gold, answer):
        order = list(range(len(corners)))
        random.shuffle(order)
        corners[:] = corners[order]
    assert detection_accuracy(Boxes(gold, FRAME), Boxes(answer, FRAME), rewards) == plain


@given(corner_arrays(), corner_arrays())
def test_one_box_is_the_best_answer_to_one_gold_box(gold, answer):
    one = Boxes(gold[:1], FRAME)
    for variant in DetectionScore:
        rewards = Rewards(detection=variant)
        values = [detection_accuracy(one, Boxes(box[None], FRAME), rewards).value for box in answer]
        assert detection_accuracy(one, Boxes(answer, FRAME), rewards).value <= max(values)


def test_fractions_of_any_notation_are_parsed_exactly():
    numbers = st.fractions(max_denominator=999)

    @given(numbers, numbers, st.booleans())
    def agrees(a, b, latex):
        def write(x):
            sign = "-" if x < 0 else ""
            return (
                rf"{sign}\frac{{{abs(x.numerator)}}}{{{x.denominator}}}" if latex else f"{x.numerator}/{x.denominator}"
            )

        row = replace(MATH_ROW, solution=write(a))
        assert accuracy(row, write(b))[0] == (a == b)
        assert accuracy(row, write(a)) == (1, None)

    agrees()
