import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from currreft_jax.world.scenes import (
    AXES,
    CELL,
    FAMILIAR,
    FRAME,
    HELD_OUT,
    NEW_COLOURS,
    NEW_SHAPES,
    SHAPES,
    SIZE,
    Backdrop,
    askable,
    contact_sheet,
    coverage,
    domains,
    pixels,
    render,
    scene,
)
from currreft_jax.world.settings import Settings

SETTINGS = Settings()
DOMAINS = domains(SETTINGS)


def some(domain: str, count: int = 200):
    return [scene(7, index, DOMAINS[domain], SETTINGS) for index in range(count)]


@given(st.sampled_from(sorted(DOMAINS)), st.integers(0, 10**9))
def test_a_box_holds_exactly_the_pixels_that_its_object_changes(domain, index):
    shown = scene(0, index, DOMAINS[domain], SETTINGS)
    for number, thing in enumerate(shown.things):
        without = replace(shown, things=shown.things[:number] + shown.things[number + 1 :])
        y, x = np.nonzero((pixels(shown) != pixels(without)).any(-1))
        assert thing.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_reaches_all_sides_of_its_box(shape):
    for width in range(14, CELL + 1):
        for height in range(14, CELL + 1):
            cover = coverage(shape, width, height)
            assert cover.shape == (height, width)
            assert cover.max() == 16
            assert all(side.any() for side in (cover[0], cover[-1], cover[:, 0], cover[:, -1]))


def test_a_small_triangle_can_be_checked_by_eye():
    """In sixteenths of each pixel."""
    assert coverage("triangle", 4, 4).tolist() == [
        [0, 4, 4, 0],
        [0, 12, 12, 0],
        [4, 16, 16, 4],
        [12, 16, 16, 12],
    ]


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_scenes_are_what_their_domain_says(domain):
    wanted = DOMAINS[domain]
    scenes = some(domain)
    assert {len(shown.things) for shown in scenes} == set(range(wanted.objects[0], wanted.objects[1] + 1))
    assert {shown.background.backdrop for shown in scenes} == set(wanted.backdrops)
    for shown in scenes:
        pairs = [thing.pair for thing in shown.things]
        assert set(pairs) <= {*FAMILIAR, *wanted.novel}
        assert not wanted.novel or set(pairs) & set(wanted.novel)
        assert askable(shown.things, wanted)
        for thing in shown.things:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= FRAME.width and 0 <= y1 < y2 <= FRAME.height
            assert all(SETTINGS.sides[0] <= side <= SETTINGS.sides[1] for side in (x2 - x1, y2 - y1))


def test_in_domain_shows_nothing_that_the_axes_keep_for_themselves():
    pairs = {thing.pair for shown in some("in") for thing in shown.things}
    assert pairs == set(FAMILIAR)
    assert not pairs & set(HELD_OUT)
    assert not {colour for colour, _ in pairs} & set(NEW_COLOURS)
    assert not {shape for _, shape in pairs} & set(NEW_SHAPES)


@pytest.mark.parametrize("domain", [name for name in sorted(DOMAINS) if name not in ("straddle", "any")])
def test_each_object_has_a_cell_of_its_own_in_reading_order(domain):
    for shown in some(domain):
        first = [(thing.box[1] // CELL, thing.box[0] // CELL) for thing in shown.things]
        last = [((thing.box[3] - 1) // CELL, (thing.box[2] - 1) // CELL) for thing in shown.things]
        assert first == last == sorted(set(first))


def test_straddling_objects_all_lie_on_the_border_of_a_cell():
    for shown in some("straddle"):
        for x1, y1, x2, y2 in (thing.box for thing in shown.things):
            assert x1 // CELL != (x2 - 1) // CELL or y1 // CELL != (y2 - 1) // CELL


@pytest.mark.parametrize("backdrop", Backdrop)
def test_backdrops_look_as_they_are_called(backdrop):
    for shown in some("any"):
        if shown.background.backdrop is backdrop:
            empty = pixels(replace(shown, things=())).astype(int)
            spread = empty.max((0, 1)) - empty.min((0, 1))
            plain = backdrop in (Backdrop.LIGHT, Backdrop.DARK)
            assert (spread == 0).all() if plain else (spread > 40).all()
            assert backdrop is not Backdrop.LIGHT or empty.min() >= 232
            assert backdrop is not Backdrop.DARK or empty.max() <= 64


def test_an_axis_changes_nothing_but_itself():
    """The same index in domain and on a backdrop's axis: the same objects."""
    for index in range(50):
        plain, *others = (scene(1, index, DOMAINS[name], SETTINGS) for name in ("in", "dark", "gradient", "noise"))
        assert all(other.things == plain.things for other in others)


def test_scenes_depend_on_seed_and_index_alone():
    assert scene(3, 4, DOMAINS["in"], SETTINGS) == scene(3, 4, DOMAINS["in"], Settings())
    distinct = {pixels(scene(seed, index, DOMAINS["in"], SETTINGS)).tobytes() for seed in (0, 1) for index in range(99)}
    assert len(distinct) == 198


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.blake2b(digest_size=8)
    for name in DOMAINS:
        for index in range(4):
            digest.update(pixels(scene(0, index, DOMAINS[name], SETTINGS)).tobytes())
    assert digest.hexdigest() == "95243d6ad99f8f2b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": (13, 27)}, "sides = (13, 27): 14 to 28"),
        ({"sides": (20, 19)}, "sides = (20, 19)"),
        ({"objects": (0, 4)}, "objects = (0, 4): 1 to 6"),
        ({"many_objects": (5, 7)}, "many_objects = (5, 7)"),
        ({"kinds": {}}, "kinds = {}: at least one weight above 0"),
        ({"broken": 1.5}, "broken = 1.5: a share"),
        ({"turns": 0}, "turns = 0: 1 or more"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**change)


def test_images_and_pages_of_them():
    shown = some("any", 5)
    assert isinstance(render(shown[0]), Image.Image)
    assert render(shown[0]).size == (SIZE, SIZE)
    sheet = np.asarray(contact_sheet(shown, columns=3))
    assert sheet.shape == (2 * SIZE + 4, 3 * SIZE + 8, 3)
    np.testing.assert_array_equal(sheet[SIZE + 4 :, SIZE + 4 : 2 * SIZE + 4], pixels(shown[4]))


def test_the_axes_are_all_domains_but_two():
    assert set(AXES) == set(DOMAINS) - {"in", "any"}
    assert (DOMAINS["in"].objects, DOMAINS["counts"].objects, DOMAINS["any"].objects) == ((1, 4), (5, 6), (2, 6))
