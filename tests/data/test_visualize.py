"""Boxes are drawn at their pixels, on any background, with any label."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from currreft_jax.data.visualize import GREEN, ORANGE, draw_boxes


def plain(width=60, height=50, color=(255, 255, 255)) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def extent(image: Image.Image, color) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((np.asarray(image) == color).all(-1))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_boxes_are_drawn_on_a_copy_at_their_pixels():
    image = plain()
    drawn = draw_boxes(image, [(10, 12, 40, 31)])
    assert extent(drawn, ORANGE) == (10, 12, 40, 31)
    assert image.tobytes() == plain().tobytes()
    assert drawn.size == image.size
    inner = np.asarray(drawn)[20, 20]
    np.testing.assert_array_equal(inner, 255)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), ORANGE, GREEN, (128, 128, 128)])
@pytest.mark.parametrize("color", [ORANGE, GREEN, (0, 0, 0), (255, 255, 255)])
def test_lines_and_labels_contrast_with_any_background(background, color):
    image = plain(200, 150, background)
    for labels in ((), ["A"]):
        drawn = np.asarray(draw_boxes(image, [(50, 50, 150, 120)], labels, color)).astype(int)
        changed = np.abs(drawn - np.asarray(image)).sum(-1)
        assert np.count_nonzero(changed > 150) > 300  # at least the outline


def test_line_width_scales_with_the_image():
    def thickness(side):
        drawn = np.asarray(draw_boxes(plain(side, side), [(side // 4, side // 4, side // 2, side // 2)]))
        return np.count_nonzero((drawn[side // 3] == ORANGE).all(-1)) // 2

    assert [thickness(side) for side in (100, 1500, 3000)] == [2, 5, 10]


def test_other_modes_and_boxes_outside_the_image():
    for mode in ("L", "RGBA", "P", "1"):
        drawn = draw_boxes(Image.new(mode, (60, 50)), [(-10, -10, 30, 30), (40, 40, 1e300, 900)], ["a", "b"])
        assert drawn.mode == "RGB"
    assert extent(draw_boxes(plain(), [(10.2, 10.2, 10.4, 10.4)]), ORANGE)[:2] == (10, 10)


@pytest.mark.parametrize("box", [(0, 0, 60, 50), (0, 0, 5, 5), (55, 45, 60, 50), (20, 49, 30, 50)])
def test_labels_stay_inside_the_image(box):
    image = plain(60, 50)
    with_label = np.asarray(draw_boxes(image, [box], ["B"], GREEN))
    text = (np.asarray(draw_boxes(image, [box], (), GREEN)) != with_label).any(-1)
    assert text.sum() > 80
    larger = Image.new("RGB", (260, 250), "white")
    elsewhere = np.asarray(draw_boxes(larger, [(100, 100, 200, 200)], ["B"], GREEN))
    without = np.asarray(draw_boxes(larger, [(100, 100, 200, 200)], (), GREEN))
    inside = (elsewhere != without).any(-1)
    ys, xs = np.nonzero(inside)
    assert xs.max() - xs.min() < 30
    assert ys.max() - ys.min() < 30


@given(st.text(max_size=200))
def test_any_text_can_be_a_label(label):
    assert draw_boxes(plain(), [(5, 5, 30, 30)], [label]).size == (60, 50)


def test_labels_are_shortened_to_one_line():
    box = [(5.0, 5.0, 30.0, 30.0)]
    image = plain(600, 100)
    assert draw_boxes(image, box, ["a\n\u202eb\x00"]).tobytes() == draw_boxes(image, box, ["a b"]).tobytes()
    long = draw_boxes(image, box, ["x" * 10**6])
    assert long.tobytes() == draw_boxes(image, box, ["x" * 39 + "…"]).tobytes()
    assert draw_boxes(image, box, [" \n "]).tobytes() == draw_boxes(image, box).tobytes()


def test_invalid_boxes_and_labels_raise():
    with pytest.raises(ValueError, match="1 labels for 2 boxes"):
        draw_boxes(plain(), [(0, 0, 1, 1)] * 2, ["a"])
    with pytest.raises(ValueError, match=r"box \(5, 5, 5, 9\) has no area"):
        draw_boxes(plain(), [(5, 5, 5, 9)])
