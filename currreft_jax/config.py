"""Settings and their defaults, each in this one place."""

from enum import Enum


class Remat(Enum):
    """What the backward pass recomputes instead of keeping.

    `NONE` keeps everything, `DOTS` keeps the matrix products of a block, `BLOCK` keeps only a block's input.
    """

    NONE = "none"
    DOTS = "dots"
    BLOCK = "block"
