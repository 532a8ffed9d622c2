"""Scenes of coloured shapes on a grid, drawn pixel for pixel alike on every machine.

An image has 84 x 84 pixels and 3 x 3 cells of 28, the size of a merged unit of the vision tower. Each object lies in a
cell of its own. Shapes are formulas, sampled 4 x 4 times a pixel and blended in whole numbers: no library draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import product
from random import Random

import numpy as np
from PIL import Image

from currreft_jax.structs import Frame
from currreft_jax.world.chance import pick, shuffled, stream, whole
from currreft_jax.world.settings import Settings

SIZE = 84
CELL = 28
FRAME = Frame(SIZE, SIZE)

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (235, 205, 30),
    "purple": (140, 40, 170),
    "orange": (243, 130, 20),
    "cyan": (40, 200, 215),
}
FAMILIAR_SHAPES, NEW_SHAPES = SHAPES[:4], SHAPES[4:]
FAMILIAR_COLOURS, NEW_COLOURS = tuple(COLOURS)[:4], tuple(COLOURS)[4:]

Pair = tuple[str, str]
Box = tuple[float, float, float, float]

ALL_PAIRS: tuple[Pair, ...] = tuple(product(COLOURS, SHAPES))
HELD_OUT: tuple[Pair, ...] = (("red", "star"), ("green", "triangle"), ("blue", "square"), ("yellow", "circle"))
FAMILIAR: tuple[Pair, ...] = tuple(pair for pair in product(FAMILIAR_COLOURS, FAMILIAR_SHAPES) if pair not in HELD_OUT)

_SAMPLES = 4
# Corners of a five-pointed star in thousandths of its box.
_STAR = ((500, 0), (639, 352), (1000, 382), (725, 630), (809, 1000), (500, 802), (191, 1000), (275, 630), (0, 382))
_STAR += ((361, 352),)
_HALF_BAR = 0.36


class Backdrop(Enum):
    """What lies behind the objects."""

    LIGHT = "light"
    DARK = "dark"
    GRADIENT = "gradient"
    NOISE = "noise"


@dataclass(frozen=True, slots=True)
class Domain:
    """Which scenes there are.

    Attributes:
        objects: least and greatest number of objects.
        novel: pairs of colour and shape beyond the familiar ones. Where there are any, half of the objects are of them,
            and at least one.
        backdrops: one of them, equally often.
        straddles: share of scenes whose grid is moved by half a cell, so that every object lies on a cell's border.
    """

    objects: tuple[int, int]
    novel: tuple[Pair, ...] = ()
    backdrops: tuple[Backdrop, ...] = (Backdrop.LIGHT,)
    straddles: float = 0.0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of colour and shape that its scenes may show, in the order of the tables."""
        return tuple(pair for pair in ALL_PAIRS if pair in FAMILIAR or pair in self.novel)


def domains(settings: Settings) -> dict[str, Domain]:
    """In domain, each axis out of it by itself, and all of them together."""
    few = settings.objects
    some = min(max(few[0], 2), settings.many_objects[1]), settings.many_objects[1]
    unfamiliar = tuple(pair for pair in ALL_PAIRS if pair not in FAMILIAR)
    return {
        "in": Domain(few),
        "shapes": Domain(few, tuple(product(FAMILIAR_COLOURS, NEW_SHAPES))),
        "colours": Domain(few, tuple(product(NEW_COLOURS, FAMILIAR_SHAPES))),
        "pairs": Domain(few, HELD_OUT),
        "dark": Domain(few, backdrops=(Backdrop.DARK,)),
        "gradient": Domain(few, backdrops=(Backdrop.GRADIENT,)),
        "noise": Domain(few, backdrops=(Backdrop.NOISE,)),
        "counts": Domain(settings.many_objects),
        "straddle": Domain(few, straddles=1.0),
        "any": Domain(some, unfamiliar, tuple(Backdrop), straddles=0.25),
    }


AXES = tuple(name for name in domains(Settings()) if name not in ("in", "any"))


@dataclass(frozen=True, slots=True)
class Thing:
    """One object.

    Attributes:
        colour: its name.
        shape: its name.
        box: (x1, y1, x2, y2) in pixels, 0-based and half-open, of exactly the pixels that are drawn.
        rgb: its shade of the colour.
    """

    colour: str
    shape: str
    box: Box
    rgb: tuple[int, int, int]

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True, slots=True)
class Background:
    """What is painted behind the objects.

    Attributes:
        backdrop: how.
        rgb: its colour, or the mean of it.
        slope: direction in which a gradient grows lighter, as (x, y).
        grain: seed of the noise.
    """

    backdrop: Backdrop
    rgb: tuple[int, int, int]
    slope: tuple[int, int] = (0, 0)
    grain: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """One image before it is drawn.

    Attributes:
        seed: of the world.
        index: of the scene in it.
        domain: what it was drawn from.
        background: behind the objects.
        things: the objects in reading order: cell by cell, row by row.
    """

    seed: int
    index: int
    domain: Domain
    background: Background
    things: tuple[Thing, ...]


def scene(seed: int, index: int, domain: Domain, settings: Settings) -> Scene:
    """The scene of an index. It has an object that can be asked for: see `askable`."""
    rng = stream("scene", seed, index)
    while True:
        things = _things(rng, domain, settings)
        if askable(things, domain):
            return Scene(seed, index, domain, _background(rng, pick(rng, domain.backdrops)), things)


def newsworthy(things: Sequence[Thing], domain: Domain) -> list[Thing]:
    """The objects that questions are about: those of novel pairs where the domain has any, else all."""
    return [thing for thing in things if not domain.novel or thing.pair in domain.novel]


def askable(things: Sequence[Thing], domain: Domain) -> list[Thing]:
    """Those of them that colour and shape tell from every other object."""
    pairs = [thing.pair for thing in things]
    return [thing for thing in newsworthy(things, domain) if pairs.count(thing.pair) == 1]


def _things(rng: Random, domain: Domain, settings: Settings) -> tuple[Thing, ...]:
    count = whole(rng, *domain.objects)
    cells = _cells(rng, count, rng.random() < domain.straddles)
    novel = whole(rng, 0, count - 1)  # one is novel for certain, wherever it lies
    things = []
    for number, (left, top) in enumerate(cells):
        is_novel = bool(domain.novel) and (number == novel or rng.random() < 0.5)
        colour, shape = pick(rng, domain.novel if is_novel else FAMILIAR)
        width = whole(rng, *settings.sides)
        height = min(max(width + whole(rng, -3, 3), settings.sides[0]), settings.sides[1])
        x, y = left + whole(rng, 0, CELL - width), top + whole(rng, 0, CELL - height)
        red, green, blue = (
            min(max(value + whole(rng, -settings.shade, settings.shade), 0), 255) for value in COLOURS[colour]
        )
        box = (float(x), float(y), float(x + width), float(y + height))
        things.append(Thing(colour, shape, box, (red, green, blue)))
    return tuple(things)


def _cells(rng: Random, count: int, straddle: bool) -> list[tuple[int, int]]:
    """Left and top of as many cells, in reading order."""
    half = CELL // 2
    moves = [(half, 0), (0, half), (half, half)] if straddle else [(0, 0)]
    grids = [
        [(x, y) for y in range(dy, SIZE - CELL + 1, CELL) for x in range(dx, SIZE - CELL + 1, CELL)] for dx, dy in moves
    ]
    grid = pick(rng, [grid for grid in grids if len(grid) >= count])
    return sorted(shuffled(rng, grid)[:count], key=lambda cell: (cell[1], cell[0]))


def _background(rng: Random, backdrop: Backdrop) -> Background:
    if backdrop in (Backdrop.LIGHT, Backdrop.DARK):
        low, high = (232, 254) if backdrop is Backdrop.LIGHT else (8, 64)
        return Background(backdrop, (whole(rng, low, high), whole(rng, low, high), whole(rng, low, high)))
    grey = whole(rng, 90, 190)
    tint = (grey + whole(rng, -10, 10), grey + whole(rng, -10, 10), grey + whole(rng, -10, 10))
    if backdrop is Backdrop.GRADIENT:
        return Background(backdrop, tint, slope=pick(rng, ((1, 0), (-1, 0), (0, 1), (0, -1))))
    return Background(backdrop, tint, grain=whole(rng, 0, 2**32 - 1))


def pixels(scene: Scene) -> np.ndarray:
    """The image, uint8 `[y, x, channel]`."""
    canvas = _paint(scene.background)
    for thing in scene.things:
        x1, y1, x2, y2 = map(int, thing.box)
        cover = coverage(thing.shape, x2 - x1, y2 - y1)[..., None]
        behind = canvas[y1:y2, x1:x2]
        full = _SAMPLES**2
        behind[:] = (behind * (full - cover) + np.array(thing.rgb, np.uint16) * cover + full // 2) // full
    return canvas


def render(scene: Scene) -> Image.Image:
    """The image."""
    return Image.fromarray(pixels(scene))


def _paint(background: Background) -> np.ndarray:
    canvas = np.empty((SIZE, SIZE, 3), np.uint8)
    canvas[:] = background.rgb
    if background.backdrop is Backdrop.GRADIENT:
        ramp = np.arange(SIZE) * 100 // (SIZE - 1) - 50
        dx, dy = background.slope
        return np.clip(canvas + (dx * ramp + dy * ramp[:, None])[..., None], 0, 255).astype(np.uint8)
    if background.backdrop is Backdrop.NOISE:
        # Of NumPy's generators only the raw bits are promised to stay the same.
        words = np.random.PCG64(background.grain).random_raw(SIZE * SIZE // 8).astype("<u8")
        grains = words.view(np.uint8).reshape(SIZE, SIZE, 1).astype(np.int32) * 17 // 256 * 5 - 40
        return np.clip(canvas + grains, 0, 255).astype(np.uint8)
    return canvas


@cache
def coverage(shape: str, width: int, height: int) -> np.ndarray:
    """How many of its 16 samples of each pixel a shape covers, uint16 `[height, width]`.

    Raises:
        ValueError: there is no such shape.
    """
    u = (2 * np.arange(width * _SAMPLES) + 1) / (2 * width * _SAMPLES)
    v = ((2 * np.arange(height * _SAMPLES) + 1) / (2 * height * _SAMPLES))[:, None]
    x, y = np.abs(2 * u - 1), np.abs(2 * v - 1)
    if shape == "circle":
        inside = x * x + y * y <= 1
    elif shape == "square":
        inside = (x <= 1) & (y <= 1)
    elif shape == "triangle":
        inside = x <= v
    elif shape == "star":
        inside = _in_star(1000 * u, 1000 * v)
    elif shape == "cross":
        inside = (x <= _HALF_BAR) | (y <= _HALF_BAR)
    elif shape == "diamond":
        inside = x + y <= 1
    else:
        raise ValueError(f"no shape {shape!r} in the world; there are {', '.join(SHAPES)}")
    return inside.reshape(height, _SAMPLES, width, _SAMPLES).sum((1, 3)).astype(np.uint16)


def _in_star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether a line from the point to the right crosses the outline an odd number of times."""
    inside = np.zeros((len(v), len(u)), bool)
    for (x1, y1), (x2, y2) in zip(_STAR, _STAR[1:] + _STAR[:1], strict=True):
        if y1 != y2:
            inside ^= ((y1 > v) != (y2 > v)) & (u < (x2 - x1) * (v - y1) / (y2 - y1) + x1)
    return inside


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """The scenes as one page of pictures, row by row."""
    gap = 4
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (SIZE + gap) - gap, rows * (SIZE + gap) - gap), "white")
    for number, scene in enumerate(scenes):
        y, x = divmod(number, columns)
        sheet.paste(render(scene), (x * (SIZE + gap), y * (SIZE + gap)))
    return sheet
