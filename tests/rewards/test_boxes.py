from itertools import permutations

import numpy as np
import pytest

from currreft_jax.config import DetectionScore, Rewards
from currreft_jax.rewards import RowError, boxes
from currreft_jax.rewards.detection import detection_accuracy
from currreft_jax.structs import Boxes, Frame, Reason
from tests.rewards.helpers import accuracy, make_row

R = Reason

ONE = "[0, 0, 10, 10]"
TWO = "[[0, 0, 10, 10], [20, 0, 30, 10]]"

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
    ("the box twice", ONE, "[[0, 0, 10, 10], [0, 0, 10, 10]]", 0, R.EXTRA_BOXES),
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
    ("official: last bracket of four in a text", ONE, "the box is [0, 0, 10, 10]", 0, R.BAD_JSON),
    ("official: tuple of corners", ONE, "(0, 0), (10, 10)", 0, R.BAD_JSON),
    ("numbers without brackets", ONE, "0, 0, 10, 10", 0, R.BAD_JSON),
    ("numbers between spaces", ONE, "[0 0 10 10]", 0, R.BAD_JSON),
    ("three numbers", ONE, "[0, 0, 10]", 0, R.BAD_JSON),
    ("five numbers", ONE, "[0, 0, 10, 10, 0.9]", 0, R.BAD_JSON),
    ("two corners", ONE, "[[0, 0], [10, 10]]", 0, R.BAD_JSON),
    ("text for numbers", ONE, '["0", "0", "10", "10"]', 0, R.BAD_JSON),
    ("truth for numbers", ONE, "[false, false, true, true]", 0, R.BAD_JSON),
    ("another key", ONE, '{"bbox": [0, 0, 10, 10]}', 0, R.BAD_JSON),
    ("a box and a word", ONE, '[[0, 0, 10, 10], "dog"]', 0, R.BAD_JSON),
    ("nested twice", ONE, "[[[0, 0, 10, 10]]]", 0, R.BAD_JSON),
    ("not a number", ONE, "[0, 0, NaN, 10]", 0, R.BAD_JSON),
    ("infinite", ONE, "[0, 0, 1e999, 10]", 0, R.BAD_JSON),
    ("beyond floats", ONE, f"[0, 0, {'9' * 400}, 10]", 0, R.BAD_JSON),
    ("no boxes", ONE, "[]", 0, R.EMPTY_ANSWER),
    ("empty", ONE, "", 0, R.EMPTY_ANSWER),
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
