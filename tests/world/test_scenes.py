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
    coverage,
    domains,
    make_scene,
    render_array,
    render_image,
    unambiguous_targets,
)
from currreft_jax.world.settings import WorldSettings
from tests.world.contact_sheet import contact_sheet

SETTINGS = WorldSettings()
DOMAINS = domains(SETTINGS)


def make_scenes(domain: str, count: int = 200):
    return [make_scene(7, index, DOMAINS[domain], SETTINGS) for index in range(count)]


@given(st.sampled_from(sorted(DOMAINS)), st.integers(0, 10**9))
def test_a_box_is_the_exact_bounds_of_its_objects_pixels(domain, index):
    scene = make_scene(0, index, DOMAINS[domain], SETTINGS)
    for position, obj in enumerate(scene.objects):
        without = replace(scene, objects=scene.objects[:position] + scene.objects[position + 1 :])
        y, x = np.nonzero((render_array(scene) != render_array(without)).any(-1))
        assert obj.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_touches_all_sides_of_its_box(shape):
    for width in range(14, CELL + 1):
        for height in range(14, CELL + 1):
            cover = coverage(shape, width, height)
            assert cover.shape == (height, width)
            assert cover.max() == 16
            assert all(side.any() for side in (cover[0], cover[-1], cover[:, 0], cover[:, -1]))


def test_the_coverage_of_a_small_triangle():
    """In sixteenths of each pixel."""
    assert coverage("triangle", 4, 4).tolist() == [
        [0, 4, 4, 0],
        [0, 12, 12, 0],
        [4, 16, 16, 4],
        [12, 16, 16, 12],
    ]


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_scenes_follow_their_domain(domain):
    expected = DOMAINS[domain]
    scenes = make_scenes(domain)
    assert {len(scene.objects) for scene in scenes} == set(range(expected.num_objects[0], expected.num_objects[1] + 1))
    assert {scene.background.backdrop for scene in scenes} == set(expected.backdrops)
    for scene in scenes:
        pairs = [obj.pair for obj in scene.objects]
        assert set(pairs) <= {*FAMILIAR, *expected.novel}
        assert not expected.novel or set(pairs) & set(expected.novel)
        assert unambiguous_targets(scene.objects, expected)
        for obj in scene.objects:
            x1, y1, x2, y2 = obj.box
            assert 0 <= x1 < x2 <= FRAME.width and 0 <= y1 < y2 <= FRAME.height
            assert all(SETTINGS.sides[0] <= side <= SETTINGS.sides[1] for side in (x2 - x1, y2 - y1))


def test_in_domain_scenes_show_familiar_pairs_only():
    pairs = {obj.pair for scene in make_scenes("in") for obj in scene.objects}
    assert pairs == set(FAMILIAR)
    assert not pairs & set(HELD_OUT)
    assert not {colour for colour, _ in pairs} & set(NEW_COLOURS)
    assert not {shape for _, shape in pairs} & set(NEW_SHAPES)


@pytest.mark.parametrize("domain", [name for name in sorted(DOMAINS) if name not in ("straddle", "any")])
def test_each_object_has_a_cell_of_its_own_in_reading_order(domain):
    for scene in make_scenes(domain):
        first = [(obj.box[1] // CELL, obj.box[0] // CELL) for obj in scene.objects]
        last = [((obj.box[3] - 1) // CELL, (obj.box[2] - 1) // CELL) for obj in scene.objects]
        assert first == last == sorted(set(first))


def test_straddling_objects_lie_on_a_cells_border():
    for scene in make_scenes("straddle"):
        for x1, y1, x2, y2 in (obj.box for obj in scene.objects):
            assert x1 // CELL != (x2 - 1) // CELL or y1 // CELL != (y2 - 1) // CELL


@pytest.mark.parametrize("backdrop", Backdrop)
def test_backdrops_match_their_names(backdrop):
    for scene in make_scenes("any"):
        if scene.background.backdrop is backdrop:
            empty = render_array(replace(scene, objects=())).astype(int)
            spread = empty.max((0, 1)) - empty.min((0, 1))
            plain = backdrop in (Backdrop.LIGHT, Backdrop.DARK)
            assert (spread == 0).all() if plain else (spread > 40).all()
            assert backdrop is not Backdrop.LIGHT or empty.min() >= 232
            assert backdrop is not Backdrop.DARK or empty.max() <= 64


def test_a_backdrop_axis_changes_only_the_backdrop():
    """The objects of an index are the same in domain and on the axis."""
    for index in range(50):
        plain, *others = (make_scene(1, index, DOMAINS[name], SETTINGS) for name in ("in", "dark", "gradient", "noise"))
        assert all(other.objects == plain.objects for other in others)


def test_scenes_depend_on_seed_and_index_alone():
    assert make_scene(3, 4, DOMAINS["in"], SETTINGS) == make_scene(3, 4, DOMAINS["in"], WorldSettings())
    distinct = {
        render_array(make_scene(seed, index, DOMAINS["in"], SETTINGS)).tobytes()
        for seed in (0, 1)
        for index in range(99)
    }
    assert len(distinct) == 198


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.blake2b(digest_size=8)
    for name in DOMAINS:
        for index in range(4):
            digest.update(render_array(make_scene(0, index, DOMAINS[name], SETTINGS)).tobytes())
    assert digest.hexdigest() == "95243d6ad99f8f2b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": (13, 27)}, "sides = (13, 27): 14 to 28"),
        ({"sides": (20, 19)}, "sides = (20, 19)"),
        ({"objects": (0, 4)}, "objects = (0, 4): 1 to 6"),
        ({"many_objects": (5, 7)}, "many_objects = (5, 7)"),
        ({"objects": (4, 6)}, "many_objects = (5, 6): more than objects = (4, 6)"),
        ({"kinds": {}}, "kinds = {}: at least one weight above 0"),
        ({"broken": 1.5}, "broken = 1.5: a share"),
        ({"turns": 0}, "turns = 0: 1 or more"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WorldSettings(**change)


def test_images_and_contact_sheets():
    scenes = make_scenes("any", 5)
    assert isinstance(render_image(scenes[0]), Image.Image)
    assert render_image(scenes[0]).size == (SIZE, SIZE)
    sheet = np.asarray(contact_sheet(scenes, columns=3))
    assert sheet.shape == (2 * SIZE + 4, 3 * SIZE + 8, 3)
    np.testing.assert_array_equal(sheet[SIZE + 4 :, SIZE + 4 : 2 * SIZE + 4], render_array(scenes[4]))


def test_the_axes_are_all_domains_but_two():
    assert set(AXES) == set(DOMAINS) - {"in", "any"}
    assert (DOMAINS["in"].num_objects, DOMAINS["counts"].num_objects, DOMAINS["any"].num_objects) == (
        (1, 4),
        (5, 6),
        (2, 6),
    )
