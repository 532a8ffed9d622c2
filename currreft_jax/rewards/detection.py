"""Boxes against gold boxes: equations 6 and 7."""

from math import fsum

import numpy as np
from scipy.optimize import linear_sum_assignment

from currreft_jax.config import BoxReading, DetectionScore, Rewards
from currreft_jax.rewards.answer import DamagedAnswer, RowError, gold_text, refuse_gold
from currreft_jax.rewards.boxes import degenerate, inside, iou, parse_corners, read_corners, rescale
from currreft_jax.structs import Boxes, Frame, Reason, Row, Verdict


def parse_boxes(answer: str, row: Row, frame: Frame | None, settings: Rewards) -> Boxes | DamagedAnswer[Boxes] | Reason:
    """Parses boxes in the frame that the model saw; `frame` is None for the row's own."""
    corners = read_corners(answer) if settings.box_reading is BoxReading.READABLE else parse_corners(answer)
    match corners:
        case Reason():
            return corners
        case DamagedAnswer(value, reason):
            return DamagedAnswer(Boxes(value, frame or row.frame), reason)
        case _:
            return Boxes(corners, frame or row.frame)


def gold_boxes(row: Row, frame: Frame | None) -> Boxes:
    """Returns the gold boxes, rescaled from the row's frame to the one that the model saw; none for the solution `[]`.

    Args:
        row: a detection row.
        frame: the frame that the model saw; None for the row's own.

    Raises:
        RowError: boxes that are unreadable, degenerate or outside their frame, or whose frame is needed but unknown.
    """
    corners = parse_corners(gold_text(row))
    if isinstance(corners, Reason):
        refuse_gold(row, corners, '[x1, y1, x2, y2], {"bbox_2d": […]}, a list of these, or [] for nothing to find')
    if not len(corners):
        return Boxes(corners, frame or row.frame)
    if degenerate(corners).any():
        refuse_gold(row, Reason.DEGENERATE_BOX, "boxes with x1 < x2 and y1 < y2 (is it x, y, width, height?)")
    if row.frame and not inside(corners, row.frame).all():
        remedy = f"leaves its frame {row.frame}; give the frame it is measured in"
        raise RowError(row, f"solution {row.solution!r} {remedy}", cause=remedy)
    if frame and not row.frame:
        raise RowError(row, f"the model saw {frame} but the frame of the solution is unknown; give the row its frame")
    boxes = Boxes(corners, row.frame)
    return rescale(boxes, frame) if frame else boxes


def detection_accuracy(gold: Boxes, answer: Boxes, settings: Rewards) -> Verdict:
    """Scores P predicted against M gold boxes under the one-to-one matching with the highest score.

    `PAPER`: R = 1 if R_IoU > accept_iou, else 0 (equation 7), with R_IoU = Σ_V IoU(p_i, g_j) / (|V| + max(0, P - M))
    over the matches V of IoU ≥ tau. For P ≤ M this is equation 6, which counts neither missed nor wrong boxes. Each
    prediction beyond M counts as a match of IoU 0, so that adding boxes cannot pay.
    `F1`: 2|V| / (P + M) for the matches V of IoU ≥ tau. `SOFT_IOU`: Σ IoU / max(P, M).
    If there is nothing to find, M = 0, all three are 1 for no box and 0 for any.
    """
    num_predicted, num_gold = len(answer.corners), len(gold.corners)
    if not num_gold:
        return Verdict(0.0, Reason.EXTRA_BOXES) if num_predicted else Verdict(1.0)
    if not num_predicted:
        return Verdict(0.0, Reason.NO_BOXES)
    overlap = iou(answer, gold)
    valid = overlap >= settings.tau
    passes_without_extras = False
    if settings.detection is DetectionScore.PAPER:
        credit = _best_matching(overlap * valid)
        matches = np.count_nonzero(credit)
        if matches and fsum(credit) / (matches + max(0, num_predicted - num_gold)) > settings.accept_iou:
            return Verdict(1.0)
        value, passes_without_extras = 0.0, bool(matches) and fsum(credit) / matches > settings.accept_iou
    elif settings.detection is DetectionScore.F1:
        value = 2 * fsum(_best_matching(valid)) / (num_predicted + num_gold)
    else:
        value = fsum(_best_matching(overlap)) / max(num_predicted, num_gold)
    if value == 0 and degenerate(answer.corners).all():
        return Verdict(0.0, Reason.DEGENERATE_BOX)
    if value < 1:
        return Verdict(value, Reason.EXTRA_BOXES if passes_without_extras else Reason.IOU_BELOW)
    return Verdict(value)


def _best_matching(credit: np.ndarray) -> np.ndarray:
    """Returns the credits, out of `[P, M]`, of the one-to-one matching with the largest sum."""
    if min(credit.shape) == 1:
        return credit.max(keepdims=True)[0]
    return credit[linear_sum_assignment(credit, maximize=True)]
