"""Wrong boxes and absent labels for an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from currreft_jax.data.builders.box_formats import Box
from currreft_jax.data.builders.converter import AnnotatedImage
from currreft_jax.data.builders.hashed_rng import hash64, hash_shuffle, hash_uniform
from currreft_jax.rewards import boxes
from currreft_jax.structs import Boxes, Frame

MAX_WRONG_IOU = 0.3  # with every right box; between this and MIN_SAME_IOU a box is neither wrong nor right
MIN_SAME_IOU = 0.9
MAX_OPTION_IOU = 0.5  # of two wrong boxes, so that the options differ
_MIN_SIDE = 8.0  # pixels
_MIN_SIDE_FRACTION = 0.01  # of the image's side: enough to survive the resize
_MAX_MOVES = 96


def pairwise_iou(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """Returns the IoU of every pair, float64 `[n, m]`."""
    return boxes.iou(Boxes(np.array(first), None), Boxes(np.array(second), None))


def is_large_enough(box: Box, frame: Frame) -> bool:
    """Returns whether a box keeps its shape when its image is resized and its corners are rounded."""
    sides = ((box[2] - box[0], frame.width), (box[3] - box[1], frame.height))
    return all(side >= max(_MIN_SIDE, _MIN_SIDE_FRACTION * image_side) for side, image_side in sides)


def choose_box(candidates: Sequence[Box], *names: object) -> Box:
    """Draws one of several boxes."""
    return sorted(candidates)[hash64(*names) % len(candidates)]


def wrong_boxes(golds: Sequence[Box], image: AnnotatedImage, wanted: int, *names: object) -> list[Box]:
    """Returns up to `wanted` wrong boxes.

    Other objects of the same category come first, then objects of other categories, then copies of the first right
    box, moved and stretched. The IoU of each is below `MAX_WRONG_IOU` with every right box, and below `MAX_OPTION_IOU`
    with the other wrong ones. Without a right box, an object of the image, or else a box in its middle, is copied.

    Args:
        golds: the right boxes; may be none.
        image: annotations of the image.
        wanted: maximum number of boxes.
        names: seed and row id, for the draws.
    """
    selected: list[Box] = []
    gold_label = _label_of_box(golds[0], image) if golds else ""
    same_label = {box for label, box in image.objects if gold_label and label == gold_label}
    other_labels = {box for _, box in image.objects} - same_label
    for box in (*hash_shuffle(same_label, *names), *hash_shuffle(other_labels, *names)):
        if len(selected) < wanted and _is_valid_negative(box, golds, selected, image.frame):
            selected.append(box)
    copied = golds[0] if golds else choose_box([*other_labels] or [_middle(image.frame)], *names, "copied")
    for index in range(_MAX_MOVES):
        if len(selected) == wanted:
            break
        box = _move_box(copied, image.frame, index, *names)
        if _is_valid_negative(box, golds, selected, image.frame):
            selected.append(box)
    return selected


def count_pairs(label_sets: Iterable[Iterable[str]]) -> Counter[tuple[str, str]]:
    """Counts for each ordered pair of labels the images that show both."""
    return Counter(pair for labels in label_sets for pair in permutations(sorted(set(labels)), 2))


def absent_labels(
    present: Iterable[str], vocabulary: Iterable[str], pair_counts: Mapping[tuple[str, str], int], *names: object
) -> list[str]:
    """Orders the labels that an image does not show; those that often occur with its own tend to come first.

    Weighted sampling without replacement (Efraimidis and Spirakis) with weights 1 + Σ_present pair_counts.

    Args:
        present: labels of the image.
        vocabulary: labels of the data set.
        pair_counts: from `count_pairs`.
        names: seed and row id, for the draws.
    """
    shown = set(present)

    def sort_key(label: str) -> float:
        weight = 1 + sum(pair_counts.get((label, other), 0) for other in shown)
        return -math.log(hash_uniform(*names, label)) / weight

    return sorted(set(vocabulary) - shown, key=lambda label: (sort_key(label), label))


def _label_of_box(gold: Box, image: AnnotatedImage) -> str:
    """Returns the category of a right box: that of the annotated object with nearly the same box, or empty."""
    iou, label = max(
        ((float(pairwise_iou([gold], [box])[0, 0]), label) for label, box in image.objects), default=(0.0, "")
    )
    return label if iou >= MIN_SAME_IOU else ""


def _is_valid_negative(box: Box, golds: Sequence[Box], selected: Sequence[Box], frame: Frame) -> bool:
    return (
        is_large_enough(box, frame)
        and (not golds or bool((pairwise_iou([box], golds) < MAX_WRONG_IOU).all()))
        and (not selected or bool((pairwise_iou([box], selected) < MAX_OPTION_IOU).all()))
    )


def _middle(frame: Frame) -> Box:
    """Returns the box in the middle, with sides of a third of the frame's."""
    return (frame.width / 3, frame.height / 3, frame.width * 2 / 3, frame.height * 2 / 3)


def _move_box(box: Box, frame: Frame, index: int, *names: object) -> Box:
    """Returns a box with sides scaled by 0.6 to 1.4: near the given one in the first half of moves, then anywhere."""
    corners = []
    for axis, low, high, image_side in (("x", box[0], box[2], frame.width), ("y", box[1], box[3], frame.height)):
        side = min((high - low) * (0.6 + 0.8 * hash_uniform(*names, index, axis, "side")), image_side)
        offset = hash_uniform(*names, index, axis)
        if index < _MAX_MOVES // 2:
            start = min(max(low + (2.5 * offset - 1.25) * (high - low), 0.0), image_side - side)
        else:
            start = offset * (image_side - side)
        corners += [round(start, 2), round(start + side, 2)]
    return (corners[0], corners[2], corners[1], corners[3])
