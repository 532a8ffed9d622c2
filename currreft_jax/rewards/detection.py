"""Equations 6 and 7: boxes."""

from math import fsum

import numpy as np
from scipy.optimize import linear_sum_assignment

from currreft_jax.config import DetectionScore, Rewards
from currreft_jax.rewards import boxes
from currreft_jax.rewards.answer import RowError, gold_text, refuse_gold
from currreft_jax.structs import Boxes, Frame, Reason, Row, Verdict


def read(answer: str, row: Row, frame: Frame | None) -> Boxes | Reason:
    """The answered boxes, in the frame that the model saw."""
    corners = boxes.read(answer)
    return corners if isinstance(corners, Reason) else Boxes(corners, frame or row.frame)


def gold(row: Row, frame: Frame | None) -> Boxes:
    """The gold boxes, moved from the row's frame into the one that the model saw.

    Args:
        row: a detection row.
        frame: what the model saw; None for the row's own frame.

    Raises:
        RowError: for unreadable, degenerate or outlying boxes, and for boxes whose frame is needed but unknown.
    """
    corners = boxes.read(gold_text(row))
    if isinstance(corners, Reason):
        refuse_gold(row, corners, '[x1, y1, x2, y2], {"bbox_2d": […]} or a list of these')
    if boxes.degenerate(corners).any():
        refuse_gold(row, Reason.DEGENERATE_BOX, "boxes with x1 < x2 and y1 < y2 (is it x, y, width, height?)")
    if row.frame and not boxes.inside(corners, row.frame).all():
        raise RowError(row, f"solution {row.solution!r} leaves its frame {row.frame}; give the frame it is measured in")
    if frame and not row.frame:
        raise RowError(row, f"the model saw {frame} but the frame of the solution is unknown; give the row its frame")
    measured = Boxes(corners, row.frame)
    return boxes.rescale(measured, frame) if frame else measured


def accuracy(gold: Boxes, answer: Boxes, settings: Rewards) -> Verdict:
    """Score P answered against M gold boxes, matched one to one so that the score is the largest.

    `PAPER`: R = 1 if R_IoU > accept_iou, else 0 (equation 7), with R_IoU = Σ_V IoU(p_i, g_j) / (|V| + max(0, P - M))
    over the matches V of IoU ≥ tau. Up to as many answers as gold boxes this is equation 6, in which neither a missed
    box nor a wrong one counts; every answer beyond that number counts as a match of 0, so that a spray of boxes loses.
    `F1`: 2V / (P + M) for V matches of IoU ≥ tau. `SOFT_IOU`: Σ IoU / max(P, M).
    """
    overlap = boxes.iou(answer, gold)
    predicted, wanted = overlap.shape
    valid = overlap >= settings.tau
    if settings.detection is DetectionScore.PAPER:
        credit = _best_match(overlap * valid)
        matches = np.count_nonzero(credit)
        if matches and fsum(credit) / (matches + max(0, predicted - wanted)) > settings.accept_iou:
            return Verdict(1.0)
        value, enough_alone = 0.0, bool(matches) and fsum(credit) / matches > settings.accept_iou
    else:
        is_f1 = settings.detection is DetectionScore.F1
        credit = fsum(_best_match(valid if is_f1 else overlap))
        value = 2 * credit / (predicted + wanted) if is_f1 else credit / max(predicted, wanted)
        enough_alone = False
    if value == 0 and boxes.degenerate(answer.corners).all():
        return Verdict(0.0, Reason.DEGENERATE_BOX)
    if value < 1:
        return Verdict(value, Reason.EXTRA_BOXES if enough_alone else Reason.IOU_BELOW)
    return Verdict(value)


def _best_match(credit: np.ndarray) -> np.ndarray:
    """The credits of the one-to-one matching whose sum is the largest, of `[P, M]`."""
    if min(credit.shape) == 1:
        return credit.max(keepdims=True)[0]
    return credit[linear_sum_assignment(credit, maximize=True)]
