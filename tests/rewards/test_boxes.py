import time
from itertools import permutations

import numpy as np
import pytest

from currreft_jax.config import BoxReading, DetectionScore, Rewards
from currreft_jax.rewards import RowError, boxes, score_completions
from currreft_jax.rewards.detection import detection_accuracy
from currreft_jax.structs import Boxes, Completion, Frame, Reason
from tests.rewards.helpers import accuracy, make_row, well_formed

R = Reason

ONE = "[0, 0, 10, 10]"
TWO = "[[0, 0, 10, 10], [20, 0, 30, 10]]"
NONE = "[]"
A, B = [12, 21, 99, 198], [300, 21, 399, 198]

# (case, solution, answer, value, reason); equations 6 and 7 with tau and threshold 0.5
PAPER = [
    ("the box", ONE, "[0, 0, 10, 10]", 1, None),
    ("floats", ONE, "[0.0, 0.4, 10.2, 9.9]", 1, None),
    ("exponent", ONE, "[0, 0, 1e1, 1.0E+1]", 1, None),
    ("object", ONE, '{"bbox_2d": [0, 0, 10, 10], "label": "dog"}', 1, None),
    ("list of an object", ONE, '[{"bbox_2d": [0, 0, 10, 10]}]', 1, None),
    ("list of a list", ONE, "[[0, 0, 10, 10]]", 1, None),
    ("fenced object", ONE, '```json\n[{"bbox_2d": [0, 0, 10, 10]}]\n```', 1, None),
    ("IoU 6/10", ONE, "[0, 0, 10, 6]", 1, None),
    ("IoU 51/100", ONE, "[0, 0, 10, 5.1]", 1, None),
    ("IoU just one half", ONE, "[0, 0, 10, 5]", 0, R.IOU_BELOW),
    ("IoU 4/10", ONE, "[0, 0, 10, 4]", 0, R.IOU_BELOW),
    ("shifted by half: IoU 1/3", ONE, "[5, 0, 15, 10]", 0, R.IOU_BELOW),
    ("far away", ONE, "[50, 50, 60, 60]", 0, R.IOU_BELOW),
    ("the whole image", ONE, "[0, 0, 640, 480]", 0, R.IOU_BELOW),
    ("official: unit coordinates are pixels", "[0, 0, 300, 300]", "[0.0, 0.0, 0.5, 0.5]", 0, R.IOU_BELOW),
    ("official: int() makes 0.496 of it 0.6", "[0, 0, 10, 10.9]", "[0.99, 0, 10, 6]", 0, R.IOU_BELOW),
    ("x, y, width, height", "[10, 10, 20, 20]", "[10, 10, 10, 10]", 0, R.DEGENERATE_BOX),
    ("corners swapped", ONE, "[10, 10, 0, 0]", 0, R.DEGENERATE_BOX),
    ("official: two degenerate boxes crash", ONE, "[[3, 3, 3, 3], [5, 5, 5, 9]]", 0, R.DEGENERATE_BOX),
    ("a point", ONE, "[5, 5, 5, 5]", 0, R.DEGENERATE_BOX),
    ("the box and another", ONE, TWO, 0, R.EXTRA_BOXES),
    ("the box twice", ONE, "[[0, 0, 10, 10], [0, 0, 10, 10.0]]", 1, None),
    ("nearly the box twice", ONE, "[[0, 0, 10, 10], [0, 0, 10, 9.9]]", 0, R.EXTRA_BOXES),
    ("the box and a degenerate one", ONE, "[[0, 0, 10, 10], [3, 3, 3, 3]]", 0, R.EXTRA_BOXES),
    ("spray without a hit", ONE, "[[20, 0, 30, 10], [40, 0, 50, 10]]", 0, R.IOU_BELOW),
    ("both", TWO, "[[20, 0, 30, 10], [0, 0, 10, 10]]", 1, None),
    ("one missed, as in equation 6", TWO, ONE, 1, None),
    ("both and a third: 2/3", TWO, "[[0, 0, 10, 10], [20, 0, 30, 10], [50, 0, 60, 10]]", 1, None),
    ("both and two more: 2/4", TWO, "[[0,0,10,10],[20,0,30,10],[50,0,60,10],[70,0,80,10]]", 0, R.EXTRA_BOXES),
    ("one and a wrong one, as in equation 6", TWO, "[[0, 0, 10, 10], [50, 0, 60, 10]]", 1, None),
    ("one of two and two guesses: 1/2", TWO, "[[0,0,10,10],[50,0,60,10],[70,0,80,10]]", 0, R.EXTRA_BOXES),
    ("one gold box answered twice, the other missed", TWO, "[[0, 0, 10, 10], [0, 0, 10, 10]]", 1, None),
    ("IoU 6/10 and 8/10: 0.7", TWO, "[[0, 0, 10, 6], [20, 0, 30, 8]]", 1, None),
    ("IoU 1 and 4/10, which is no match", TWO, "[[0, 0, 10, 10], [20, 0, 30, 4]]", 1, None),
    ("official: tuple of corners", ONE, "(0, 0), (10, 10)", 0, R.BAD_JSON),
    ("numbers without brackets", ONE, "0, 0, 10, 10", 0, R.BAD_JSON),
    ("three numbers", ONE, "[0, 0, 10]", 0, R.BAD_JSON),
    ("five numbers", ONE, "[0, 0, 10, 10, 0.9]", 0, R.BAD_JSON),
    ("two corners", ONE, "[[0, 0], [10, 10]]", 0, R.BAD_JSON),
    ("truth for numbers", ONE, "[false, false, true, true]", 0, R.BAD_JSON),
    ("not a number", ONE, "[0, 0, NaN, 10]", 0, R.BAD_JSON),
    ("infinite", ONE, "[0, 0, 1e999, 10]", 0, R.BAD_JSON),
    ("beyond floats", ONE, f"[0, 0, {'9' * 400}, 10]", 0, R.BAD_JSON),
    ("no boxes", ONE, "[]", 0, R.NO_BOXES),
    ("empty", ONE, "", 0, R.EMPTY_ANSWER),
    ("nothing to find, and none found", NONE, "[]", 1, None),
    ("nothing to find, in a fence", NONE, "```json\n[ ]\n```", 1, None),
    ("a box where there is nothing", NONE, ONE, 0, R.EXTRA_BOXES),
    ("a degenerate box where there is nothing", NONE, "[3, 3, 3, 3]", 0, R.EXTRA_BOXES),
    ("a word where there is nothing", NONE, "none", 0, R.BAD_JSON),
    ("blank where there is nothing", NONE, " ", 0, R.EMPTY_ANSWER),
    ("an empty object", NONE, "{}", 0, R.BAD_JSON),
    ("a list in a list", NONE, "[[]]", 0, R.BAD_JSON),
]

# (case, answer, boxes that it names); none of them is sound JSON in the layout
DAMAGED = [
    ("a quoted object", '["{"bbox_2d": [12, 21, 99, 198], "label": "cat"}"]', [A]),
    ("one stray quote", '["{"bbox_2d": [12, 21, 99, 198], "label": "cat"}]', [A]),
    ("a quoted box", '{"bbox_2d": "[12, 21, 99, 198]"}', [A]),
    ("quoted numbers", '["12", "21", "99", "198"]', [A]),
    ("a quote inside the bracket", '{"bbox_2d": [12, 21, 99", 198]}', [A]),
    ("an unclosed quote", '{"bbox_2d": [12, 21, 99, 198], "label": "cat}', [A]),
    ("a quote in a label", '{"bbox_2d": [12, 21, 99, 198], "label": "5" pipe"}', [A]),
    ("Python's quotes", "[{'bbox_2d': [12, 21, 99, 198], 'label': 'cat'}]", [A]),
    ("a link", '["{"bbox_2d": [12, 21, 99, 198], "label": "cat"}](https://example.org/2024/1,2)', [A]),
    ("a backtick", '{"bbox_2d": [12, 21, 99, 198]}`', [A]),
    ("an unclosed fence", '```json\n{"bbox_2d": [12, 21, 99, 198]}', [A]),
    ("a fence with text around", 'Here:\n```json\n[{"bbox_2d": [12, 21, 99, 198]}]\n```\nDone.', [A]),
    ("a fence of another language", "```python\n[12, 21, 99, 198]\n```", [A]),
    ("a comma before the end", '[{"bbox_2d": [12, 21, 99, 198], "label": "cat"},]', [A]),
    ("a comma in the bracket", "[12, 21,, 99, 198,]", [A]),
    ("no comma between the pairs", '{"bbox_2d": [12, 21, 99, 198] "label": "cat"}', [A]),
    ("no commas between the numbers", "[12 21 99 198]", [A]),
    ("full-width punctuation", "［12，21、99， 198］", [A]),
    ("a stray closing bracket", "[12, 21, 99, 198]]", [A]),
    ("a stray opening bracket", "[[12, 21, 99, 198]", [A]),
    ("no closing bracket", '{"bbox_2d": [12, 21, 99, 198}', [A]),
    ("no opening bracket", '{"bbox_2d": 12, 21, 99, 198]}', [A]),
    ("no closing brace", '[{"bbox_2d": [12, 21, 99, 198]]', [A]),
    ("an unquoted key", "{bbox_2d: [12, 21, 99, 198]}", [A]),
    ("no colon", '{"bbox_2d" [12, 21, 99, 198]}', [A]),
    ("a comment", '{"bbox_2d": [12, 21, 99, 198]} // the cat of 2 cats', [A]),
    ("prose", "the cat is at [12, 21, 99, 198]", [A]),
    ("floats", "the cat: [12.0, 2.1e1, +99., 198.00]", [A]),
    ("negative numbers", "the cat: [-1, -.5, 9, 8]", [[-1, -0.5, 9, 8]]),
    ("objects without a list", '{"bbox_2d": [12, 21, 99, 198]}, {"bbox_2d": [300, 21, 399, 198]}', [A, B]),
    ("JSON lines", '{"bbox_2d": [12, 21, 99, 198]}\n{"bbox_2d": [300, 21, 399, 198]}', [A, B]),
    ("a damaged list of two", '["{"bbox_2d": [12, 21, 99, 198]}, {"bbox_2d": [300, 21, 399, 198]}]', [A, B]),
    ("one box twice", '{"bbox_2d": [12, 21, 99, 198]}, {"bbox_2d": [12.0, 21, 99, 198]}', [A]),
    ("brackets closed by the next one", "[[12, 21, 99, 198, [300, 21, 399, 198]]", [A, B]),
    ("another key", '{"bbox": [12, 21, 99, 198]}', [A]),
    ("a box and a word", '[[12, 21, 99, 198], "cat"]', [A]),
    ("a box and a number", "[[12, 21, 99, 198], 0.9]", [A]),
    ("nested twice", "[[[12, 21, 99, 198]]]", [A]),
    ("a point beside the box", '{"bbox_2d": [12, 21, 99, 198], "point_2d": [55, 110]', [A]),
    ("a polygon beside the box", '{"bbox_2d": [12, 21, 99, 198], "mask": [1, 2, 3, 4, 5, 6],}', [A]),
    ("an empty list and a comma", "[],", []),
    ("a quoted empty list", '"[]"', []),
    ("an empty list in a damaged fence", "```json\n[]]\n```", []),
]

# (case, answer): no box, or one that cannot be told
UNREADABLE = [
    ("numbers outside brackets", "the cat is at 12 21 99 198"),
    ("numbers outside brackets, with commas", "12, 21, 99, 198"),
    ("two corners", "(12, 21), (99, 198)"),
    ("two corners in brackets", "[[12, 21], [99, 198]]"),
    ("a round bracket", "(12, 21, 99, 198)"),
    ("an element", "<box>12, 21, 99, 198</box>"),
    ("sides by name", '{"x1": 12, "y1": 21, "x2": 99, "y2": 198}'),
    ("three numbers", '{"bbox_2d": [12, 21, 99],}'),
    ("five numbers", '{"bbox_2d": [12, 21, 99, 198, 0.9],}'),
    ("a truncated box", '{"bbox_2d": [12, 21, 99'),
    ("a box and a truncated one", '[{"bbox_2d": [12, 21, 99, 198]}, {"bbox_2d": [300, 21'),
    ("a box and one that lost a comma", "[[12,21,99,198],[30021,399,198]],"),
    ("a box and one in two", "[[12, 21, 99, 198], [300, 21], 399, 198]]"),
    ("a box and one with a cut number", "[[12, 21, 99, 198], [3`00, 21, 399, 198]]"),
    ("digits cut by a bracket", "[10]12, 21, 99, 198]"),
    ("digits cut by a brace", "[10}12, 21, 99, 198]"),
    ("digits cut by an opening brace", "[10{12, 21, 99, 198]"),
    ("digits cut by an opening bracket", "[10[12, 21, 99, 198]"),
    ("a box and a point next to it", "[[12, 21, 99, 198],[300,21,]399,198]]"),
    ("units", "[12px, 21px, 99px, 198px]"),
    ("not a number", "[12, 21, NaN, 198],"),
    ("infinite", "[12, 21, 1e999, 198],"),
    ("a huge number", f"[12, 21, {'9' * 400}, 198],"),
    ("a large number", "[12, 21, 99, 1e7],"),
    ("nothing, in words", "there is no cat, so []"),
    ("a lone bracket", "["),
]

# (case, solution, answer, F1, soft IoU)
VARIANTS = [
    ("the box", ONE, "[0, 0, 10, 10]", 1, 1),
    ("IoU 6/10", ONE, "[0, 0, 10, 6]", 1, 0.6),
    ("IoU exactly tau", ONE, "[0, 0, 10, 5]", 1, 0.5),
    ("IoU 4/10", ONE, "[0, 0, 10, 4]", 0, 0.4),
    ("the box and another", ONE, TWO, 2 / 3, 1 / 2),
    ("one missed", TWO, ONE, 2 / 3, 1 / 2),
    ("both", TWO, TWO, 1, 1),
    ("IoU 6/10 and 8/10", TWO, "[[0, 0, 10, 6], [20, 0, 30, 8]]", 1, 0.7),
    ("IoU 1 and 4/10", TWO, "[[0, 0, 10, 10], [20, 0, 30, 4]]", 1 / 2, 0.7),
    ("both and two more", TWO, "[[0,0,10,10],[20,0,30,10],[50,0,60,10],[70,0,80,10]]", 4 / 6, 2 / 4),
    ("degenerate", ONE, "[5, 5, 5, 5]", 0, 0),
]


@pytest.mark.parametrize(
    ("solution", "answer", "value", "reason"), [case[1:] for case in PAPER], ids=[case[0] for case in PAPER]
)
def test_paper_detection_score(solution, answer, value, reason):
    assert accuracy(make_row("open", "detection", solution), answer) == (value, reason)


def rewards_of(solution: str, answer: str, settings: Rewards | None = None) -> list[tuple[float, Reason | None]]:
    """Value and reason of accuracy and format."""
    scores = score_completions([make_row("open", "detection", solution)], [[Completion(well_formed(answer))]], settings)
    return [(float(scores.parts[name][0, 0]), scores.reasons[name][0, 0]) for name in ("accuracy", "format")]


@pytest.mark.parametrize(("answer", "named"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_answer_has_the_accuracy_of_its_boxes_and_no_format(answer, named):
    for solution in ("[10, 20, 100, 200]", "[[10, 20, 100, 200], [300, 20, 400, 200]]", "[]"):
        sound, _ = rewards_of(solution, str(named))
        assert rewards_of(solution, answer) == [sound, (0, R.BAD_JSON)]
    np.testing.assert_array_equal(boxes.named_corners(answer), np.array(named).reshape(-1, 4))


@pytest.mark.parametrize("answer", [case[1] for case in UNREADABLE], ids=[case[0] for case in UNREADABLE])
def test_an_answer_whose_boxes_cannot_be_told_earns_nothing(answer):
    for solution in ("[10, 20, 100, 200]", "[]"):
        assert rewards_of(solution, answer) == [(0, R.BAD_JSON), (0, R.BAD_JSON)]


@pytest.mark.parametrize(
    ("answer", "accuracy_value"),
    [
        ('{"bbox_2d": [12, 21, 99, 198], "label": "cat"}', 1),
        ('```JSON\n[{"bbox_2d": [12, 21, 99, 198], "label": "cat"}]\n```', 1),
        ("```Json\n[12, 21, 99, 198]\n```", 1),
        ('{"bbox_2d": [12, 21, 99, 198], "label": "[300, 21, 399, 198]", "quad": [1, 2, 3, 4]}', 1),
        ('[{"bbox_2d": [12, 21, 99, 198]}, {"bbox_2d": [12, 21, 99, 198]}]', 1),
        ("[300, 21, 399, 198]", 0),
        ("[]", 0),
    ],
)
def test_sound_json_earns_the_format_whatever_its_boxes(answer, accuracy_value):
    found, layout = rewards_of("[10, 20, 100, 200]", answer)
    assert (found[0], layout) == (accuracy_value, (1, None))


def test_box_reading_json_pays_nothing_for_damaged_answers():
    strict = Rewards(box_reading=BoxReading.JSON)
    for _, answer, _ in DAMAGED:
        assert rewards_of("[10, 20, 100, 200]", answer, strict) == [(0, R.BAD_JSON), (0, R.BAD_JSON)]
    assert rewards_of("[10, 20, 100, 200]", str(A), strict) == [(1, None), (1, None)]


def test_the_gold_answer_is_always_sound_json():
    for _, solution, named in DAMAGED:
        if named:
            with pytest.raises(RowError, match="bad_json"):
                rewards_of(solution, "[12, 21, 99, 198]")


@pytest.mark.parametrize("variant", DetectionScore)
def test_a_repeated_box_counts_once_in_answer_and_gold(variant):
    settings = Rewards(detection=variant)
    for solution in (TWO, "[[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]]"):
        assert rewards_of(solution, TWO, settings) == [(1, None), (1, None)]
        assert rewards_of(solution, "[[0,0,10,10],[20,0,30,10],[20,0,30,10]]", settings) == [(1, None), (1, None)]


@pytest.mark.parametrize("variant", DetectionScore)
def test_where_there_is_nothing_to_find_only_the_empty_list_is_right(variant):
    settings = Rewards(detection=variant)
    assert rewards_of(NONE, "[]", settings) == [(1, None), (1, None)]
    assert accuracy(make_row("open", "detection", NONE), "[]", settings, Frame(50, 50)) == (1, None)  # of any frame
    assert rewards_of(NONE, ONE, settings) == [(0, R.EXTRA_BOXES), (1, None)]
    assert rewards_of(ONE, "[]", settings) == [(0, R.NO_BOXES), (1, None)]


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "]",
        "[1,",
        "1,",
        "9",
        "[ ",
        " ",
        "`",
        "[1,2,3,4]",
        "[1 ",
        "1 ]",
        "-",
        "1.",
        "1e",
        "[]",
        "{",
        '"',
        "[1,2,3,4",
        "，",
    ],
)
def test_long_answers_are_read_in_linear_time(text):
    answer = text * (2**18 // len(text))  # quadratic time would be minutes
    start = time.process_time()
    boxes.read_corners(answer)
    boxes.read_corners("x" + answer)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("solution", "answer", "f1", "soft"), [case[1:] for case in VARIANTS], ids=[case[0] for case in VARIANTS]
)
def test_f1_and_soft_iou(solution, answer, f1, soft):
    row = make_row("open", "detection", solution)
    scored = [accuracy(row, answer, Rewards(detection=name)) for name in (DetectionScore.F1, DetectionScore.SOFT_IOU)]
    assert [value for value, _ in scored] == pytest.approx([f1, soft])
    assert all((reason is None) == (value == 1) for value, reason in scored)


def test_the_matching_is_optimal_and_not_greedy():
    # IoU: first answer 1 with the first gold box and 6/10 with the second; second answer 6/10 with the first only.
    gold = Boxes(np.array([[0, 0, 10, 10], [0, 0, 10, 6.0]]), None)
    answer = Boxes(np.array([[0, 0, 10, 10], [0, 4, 10, 10.0]]), None)
    np.testing.assert_allclose(boxes.iou(answer, gold), [[1, 0.6], [0.6, 0.2]])
    assert detection_accuracy(gold, answer, Rewards(detection=DetectionScore.F1)).value == 1
    assert detection_accuracy(gold, answer, Rewards(detection=DetectionScore.SOFT_IOU)).value == pytest.approx(0.6)


def test_iou_by_hand():
    first = Boxes(np.array([[0, 0, 4, 4], [0, 0, 2, 2], [9, 9, 9, 9.0]]), None)
    second = Boxes(np.array([[2, 2, 6, 6], [0, 0, 4, 4.0]]), None)
    np.testing.assert_allclose(boxes.iou(first, second), [[4 / 28, 1], [0, 4 / 16], [0, 0]])


def test_boxes_are_rescaled_by_one_factor_per_axis():
    original, resized = Frame(640, 480), Frame(616, 476)
    moved = boxes.rescale(Boxes(np.array([[64, 48, 320, 240.0]]), original), resized)
    np.testing.assert_allclose(moved.corners, [[61.6, 47.6, 308, 238]])
    assert moved.frame == resized


def test_gold_boxes_are_compared_in_the_resized_frame():
    row = make_row("open", "detection", "[100, 100, 200, 300]", frame=Frame(1000, 1000))
    resized = Frame(500, 250)  # x halved, y quartered: the gold box is [50, 25, 100, 75]
    assert accuracy(row, "[50, 25, 100, 75]", frame=resized) == (1, None)
    assert accuracy(row, "[100, 100, 200, 300]", frame=resized) == (0, R.IOU_BELOW)
    assert accuracy(row, "[50, 50, 100, 150]", frame=resized) == (0, R.IOU_BELOW)  # one factor for both axes
    assert accuracy(row, "[100, 100, 200, 300]") == (1, None)


def test_boxes_of_two_frames_are_not_compared():
    first = Boxes(np.array([[0, 0, 10, 10.0]]), Frame(100, 100))
    for frame in (Frame(100, 99), None):
        with pytest.raises(ValueError, match="cannot be compared"):
            boxes.iou(first, Boxes(first.corners, frame))
    with pytest.raises(ValueError, match="unknown frame"):
        boxes.rescale(Boxes(first.corners, None), Frame(10, 10))


def test_a_resized_image_needs_the_frame_of_the_gold_boxes():
    with pytest.raises(RowError, match="give the row its frame"):
        accuracy(make_row("open", "detection", ONE), ONE, frame=Frame(100, 100))


@pytest.mark.parametrize(
    ("solution", "remedy"),
    [
        ("[10, 10, 10, 20]", "x1 < x2"),
        ("[100, 100, 20, 30]", "width, height"),
        ("[1, 2, 3]", "bbox_2d"),
        ("a dog", "bbox_2d"),
        ("[0, 0, 102, 10]", "leaves its frame"),
        ("[-2, 0, 10, 10]", "leaves its frame"),
    ],
)
def test_an_invalid_gold_answer_is_refused_with_a_remedy(solution, remedy):
    with pytest.raises(RowError, match=remedy):
        accuracy(make_row("open", "detection", solution, frame=Frame(100, 100)), ONE)


def test_only_boxes_beyond_the_number_of_gold_boxes_count_as_wrong():
    gold = [[i * 20, 0, i * 20 + 10, 10] for i in range(4)]
    noise = [[i * 20, 50, i * 20 + 10, 60] for i in range(12)]
    row = make_row("open", "detection", str(gold))
    for right in range(1, 5):
        for wrong in range(12):
            value, _ = accuracy(row, str(gold[:right] + noise[:wrong]))
            assert value == (right > right + wrong - len(gold))


def test_extra_boxes_never_rescue_a_wrong_answer():
    """A prediction that scores 0 with as many boxes as the gold answer still scores 0 with more."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        corners = rng.integers(0, 40, (rng.integers(1, 4), 2))
        gold = np.hstack([corners, corners + 10])
        guesses = rng.integers(0, 40, (rng.integers(1, 9), 2))
        answer = np.hstack([guesses, guesses + 10])
        row = make_row("open", "detection", str(gold.tolist()))
        without_extras, _ = accuracy(row, str(answer[: len(gold)].tolist()))
        with_extras, _ = accuracy(row, str(answer.tolist()))
        assert with_extras <= without_extras


@pytest.mark.parametrize("variant", DetectionScore)
def test_the_order_of_boxes_does_not_matter(variant):
    gold = "[[0, 0, 10, 10], [2, 0, 12, 10], [40, 0, 50, 10]]"
    answer = [[1, 0, 11, 10], [0, 0, 10, 7], [41, 0, 50, 9], [3, 1, 12, 10]]
    row, settings = make_row("open", "detection", gold), Rewards(detection=variant)
    assert len({accuracy(row, str(list(order)), settings) for order in permutations(answer)}) == 1
