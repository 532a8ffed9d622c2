"""Scenes of coloured shapes on a grid, rendered to the same pixels on every machine.

An image has 84 x 84 pixels and 3 x 3 cells of 28, the size of a merged unit of the vision tower. Each object lies in a
cell of its own. Shapes are formulas, sampled 4 x 4 times a pixel and blended in integers, without a drawing library.
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
from currreft_jax.world.rng import hashed_rng, pick, randint, shuffled
from currreft_jax.world.settings import WorldSettings

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

_SAMPLES = 4  # along each side of a pixel
# Corners of a five-pointed star in thousandths of its box.
_STAR = ((500, 0), (639, 352), (1000, 382), (725, 630), (809, 1000), (500, 802), (191, 1000), (275, 630), (0, 382))
_STAR += ((361, 352),)
_HALF_BAR = 0.36  # half the width of a cross's bar, of half its box


class Backdrop(Enum):
    """Kind of background."""

    LIGHT = "light"
    DARK = "dark"
    GRADIENT = "gradient"
    NOISE = "noise"


@dataclass(frozen=True, slots=True)
class Domain:
    """A distribution of scenes.

    Attributes:
        num_objects: least and greatest number of objects.
        novel: pairs of colour and shape beyond the familiar ones. If there are any, half of the objects are of them,
            and at least one.
        backdrops: backgrounds, equally likely.
        straddles: share of scenes whose grid is shifted by half a cell, so that every object lies on a cell's border.
    """

    num_objects: tuple[int, int]
    novel: tuple[Pair, ...] = ()
    backdrops: tuple[Backdrop, ...] = (Backdrop.LIGHT,)
    straddles: float = 0.0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of colour and shape that its scenes may show, in the order of `ALL_PAIRS`."""
        return tuple(pair for pair in ALL_PAIRS if pair in FAMILIAR or pair in self.novel)


def domains(settings: WorldSettings) -> dict[str, Domain]:
    """Returns the domains by name: `in`, one axis at a time, and `any`, which mixes all axes."""
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


AXES = tuple(name for name in domains(WorldSettings()) if name not in ("in", "any"))


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object of a scene.

    Attributes:
        colour: name of its colour.
        shape: name of its shape.
        box: (x1, y1, x2, y2) in pixels, 0-based and half-open; the exact bounds of its pixels.
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
    """The background of a scene.

    Attributes:
        backdrop: its kind.
        rgb: its colour; the mean colour of a gradient or noise.
        slope: direction (x, y) in which a gradient becomes lighter.
        noise_seed: seed of the noise.
    """

    backdrop: Backdrop
    rgb: tuple[int, int, int]
    slope: tuple[int, int] = (0, 0)
    noise_seed: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image.

    Attributes:
        seed: seed of the world.
        index: index of the scene in the world.
        domain: the distribution it is drawn from.
        background: its background.
        objects: its objects in reading order: cell by cell, row by row.
    """

    seed: int
    index: int
    domain: Domain
    background: Background
    objects: tuple[SceneObject, ...]


def make_scene(seed: int, index: int, domain: Domain, settings: WorldSettings) -> Scene:
    """Returns the scene of an index, which has at least one of the `unambiguous_targets`."""
    rng = hashed_rng("scene", seed, index)
    while True:
        objects = _random_objects(rng, domain, settings)
        if unambiguous_targets(objects, domain):
            return Scene(seed, index, domain, _random_background(rng, pick(rng, domain.backdrops)), objects)


def target_objects(objects: Sequence[SceneObject], domain: Domain) -> list[SceneObject]:
    """Returns the objects that questions may be about: those of novel pairs if the domain has any, else all."""
    return [obj for obj in objects if not domain.novel or obj.pair in domain.novel]


def unambiguous_targets(objects: Sequence[SceneObject], domain: Domain) -> list[SceneObject]:
    """Returns the target objects whose pair of colour and shape no other object has."""
    pairs = [obj.pair for obj in objects]
    return [obj for obj in target_objects(objects, domain) if pairs.count(obj.pair) == 1]


def _random_objects(rng: Random, domain: Domain, settings: WorldSettings) -> tuple[SceneObject, ...]:
    count = randint(rng, *domain.num_objects)
    cells = _random_cells(rng, count, rng.random() < domain.straddles)
    always_novel = randint(rng, 0, count - 1)
    objects = []
    for position, (left, top) in enumerate(cells):
        is_novel = bool(domain.novel) and (position == always_novel or rng.random() < 0.5)
        colour, shape = pick(rng, domain.novel if is_novel else FAMILIAR)
        width = randint(rng, *settings.sides)
        height = min(max(width + randint(rng, -3, 3), settings.sides[0]), settings.sides[1])
        x, y = left + randint(rng, 0, CELL - width), top + randint(rng, 0, CELL - height)
        red, green, blue = (
            min(max(value + randint(rng, -settings.shade, settings.shade), 0), 255) for value in COLOURS[colour]
        )
        box = (float(x), float(y), float(x + width), float(y + height))
        objects.append(SceneObject(colour, shape, box, (red, green, blue)))
    return tuple(objects)


def _random_cells(rng: Random, count: int, straddle: bool) -> list[tuple[int, int]]:
    """Returns (left, top) of `count` cells in reading order; `straddle` shifts the grid by half a cell."""
    half = CELL // 2
    shifts = [(half, 0), (0, half), (half, half)] if straddle else [(0, 0)]
    grids = [
        [(x, y) for y in range(dy, SIZE - CELL + 1, CELL) for x in range(dx, SIZE - CELL + 1, CELL)]
        for dx, dy in shifts
    ]
    grid = pick(rng, [grid for grid in grids if len(grid) >= count])
    return sorted(shuffled(rng, grid)[:count], key=lambda cell: (cell[1], cell[0]))


def _random_background(rng: Random, backdrop: Backdrop) -> Background:
    if backdrop in (Backdrop.LIGHT, Backdrop.DARK):
        low, high = (232, 254) if backdrop is Backdrop.LIGHT else (8, 64)
        return Background(backdrop, (randint(rng, low, high), randint(rng, low, high), randint(rng, low, high)))
    grey = randint(rng, 90, 190)
    tint = (grey + randint(rng, -10, 10), grey + randint(rng, -10, 10), grey + randint(rng, -10, 10))
    if backdrop is Backdrop.GRADIENT:
        return Background(backdrop, tint, slope=pick(rng, ((1, 0), (-1, 0), (0, 1), (0, -1))))
    return Background(backdrop, tint, noise_seed=randint(rng, 0, 2**32 - 1))


def render_array(scene: Scene) -> np.ndarray:
    """Renders the scene as uint8 `[y, x, channel]`."""
    canvas = _render_background(scene.background)
    for obj in scene.objects:
        x1, y1, x2, y2 = map(int, obj.box)
        cover = coverage(obj.shape, x2 - x1, y2 - y1)[..., None]
        patch = canvas[y1:y2, x1:x2]
        full = _SAMPLES**2
        patch[:] = (patch * (full - cover) + np.array(obj.rgb, np.uint16) * cover + full // 2) // full
    return canvas


def render_image(scene: Scene) -> Image.Image:
    """Renders the scene as an RGB image."""
    return Image.fromarray(render_array(scene))


def _render_background(background: Background) -> np.ndarray:
    canvas = np.empty((SIZE, SIZE, 3), np.uint8)
    canvas[:] = background.rgb
    if background.backdrop is Backdrop.GRADIENT:
        ramp = np.arange(SIZE) * 100 // (SIZE - 1) - 50
        dx, dy = background.slope
        return np.clip(canvas + (dx * ramp + dy * ramp[:, None])[..., None], 0, 255).astype(np.uint8)
    if background.backdrop is Backdrop.NOISE:
        # NumPy promises reproducible streams for its bit generators alone, not for `Generator`'s methods.
        words = np.random.PCG64(background.noise_seed).random_raw(SIZE * SIZE // 8).astype("<u8")
        noise = words.view(np.uint8).reshape(SIZE, SIZE, 1).astype(np.int32) * 17 // 256 * 5 - 40
        return np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return canvas


@cache
def coverage(shape: str, width: int, height: int) -> np.ndarray:
    """Counts the samples of each pixel, of 16, that a shape covers, as uint16 `[height, width]`.

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
    """Marks the points inside the star: a ray to the right crosses its outline an odd number of times."""
    inside = np.zeros((len(v), len(u)), bool)
    for (x1, y1), (x2, y2) in zip(_STAR, _STAR[1:] + _STAR[:1], strict=True):
        if y1 != y2:
            inside ^= ((y1 > v) != (y2 > v)) & (u < (x2 - x1) * (v - y1) / (y2 - y1) + x1)
    return inside
