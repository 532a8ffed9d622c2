"""Wrong boxes and wrong labels for an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from currreft_jax.data.builders.items import Box, Scene
from currreft_jax.data.builders.keyed import digest, shuffled, uniform
from currreft_jax.rewards import boxes
from currreft_jax.structs import Boxes, Frame

WRONG_BELOW = 0.3  # IoU with every right box; between this and SAME_ABOVE a box is neither wrong nor right
SAME_ABOVE = 0.9
APART_BELOW = 0.5  # IoU of two wrong boxes, so that the options differ
_LEAST_PIXELS = 8.0
_LEAST_SHARE = 0.01  # of the image's side: enough to survive the resize
_TRIES = 96


def overlaps(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """IoU of every pair, `[n, m]`."""
    return boxes.iou(Boxes(np.array(first), None), Boxes(np.array(second), None))


def large_enough(box: Box, frame: Frame) -> bool:
    """Whether a box keeps its shape when its image is resized and its corners are rounded."""
    sides = ((box[2] - box[0], frame.width), (box[3] - box[1], frame.height))
    return all(side >= max(_LEAST_PIXELS, _LEAST_SHARE * whole) for side, whole in sides)


def wrong_boxes(golds: Sequence[Box], scene: Scene, wanted: int, *names: object) -> list[Box]:
    """Up to `wanted` boxes that are no answer.

    Other objects of the same category come first, then objects of other categories, then the first right box moved
    and stretched. Every one has an IoU below `WRONG_BELOW` with all right boxes, and below `APART_BELOW` with the other
    wrong ones.

    Args:
        golds: the right boxes.
        scene: the image.
        wanted: how many.
        names: seed and row id.
    """
    chosen: list[Box] = []
    label = _label(golds[0], scene)
    alike = {box for its, box in scene.objects if label and its == label}
    others = {box for _, box in scene.objects} - alike
    for box in (*shuffled(alike, *names), *shuffled(others, *names)):
        if len(chosen) < wanted and _wrong(box, golds, chosen, scene.frame):
            chosen.append(box)
    for number in range(_TRIES):
        if len(chosen) == wanted:
            break
        box = _moved(golds[0], scene.frame, number, *names)
        if _wrong(box, golds, chosen, scene.frame):
            chosen.append(box)
    return chosen


def together(labels: Iterable[Iterable[str]]) -> Counter[tuple[str, str]]:
    """How many images show both of two labels."""
    return Counter(pair for those in labels for pair in permutations(sorted(set(those)), 2))


def absent(
    present: Iterable[str], vocabulary: Iterable[str], counts: Mapping[tuple[str, str], int], *names: object
) -> list[str]:
    """The labels that an image does not show, those that often stand beside its own ones likelier first.

    A draw without replacement of weights 1 + Σ counts.
    """
    there = set(present)

    def order(label: str) -> float:
        weight = 1 + sum(counts.get((label, other), 0) for other in there)
        return -math.log(uniform(*names, label)) / weight

    return sorted(set(vocabulary) - there, key=lambda label: (order(label), label))


def _label(gold: Box, scene: Scene) -> str:
    """The category of a right box, if an annotated object has nearly the same box."""
    best = max(((float(overlaps([gold], [box])[0, 0]), label) for label, box in scene.objects), default=(0.0, ""))
    return best[1] if best[0] >= SAME_ABOVE else ""


def _wrong(box: Box, golds: Sequence[Box], chosen: Sequence[Box], frame: Frame) -> bool:
    return (
        large_enough(box, frame)
        and bool((overlaps([box], golds) < WRONG_BELOW).all())
        and (not chosen or bool((overlaps([box], chosen) < APART_BELOW).all()))
    )


def _moved(box: Box, frame: Frame, number: int, *names: object) -> Box:
    """The box with sides of 0.6 to 1.4 times its own: beside itself in the first half of the tries, then anywhere."""
    corners = []
    for axis, low, high, whole in (("x", box[0], box[2], frame.width), ("y", box[1], box[3], frame.height)):
        side = min((high - low) * (0.6 + 0.8 * uniform(*names, number, axis, "side")), whole)
        place = uniform(*names, number, axis)
        if number < _TRIES // 2:
            start = min(max(low + (2.5 * place - 1.25) * (high - low), 0.0), whole - side)
        else:
            start = place * (whole - side)
        corners += [round(start, 2), round(start + side, 2)]
    return (corners[0], corners[2], corners[1], corners[3])


def pick(items: Sequence[Box], *names: object) -> Box:
    """One of several boxes."""
    return sorted(items)[digest(*names) % len(items)]
