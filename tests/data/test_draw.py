"""Boxes are drawn where they are, on any background, whatever their labels say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from currreft_jax.data.draw import GREEN, ORANGE, draw_boxes


def plain(width=60, height=50, color=(255, 255, 255)) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def where(image: Image.Image, color) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((np.asarray(image) == color).all(-1))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_a_box_is_drawn_at_its_pixels_and_the_image_is_left_alone():
    image = plain()
    drawn = draw_boxes(image, [(10, 12, 40, 31)])
    assert where(drawn, ORANGE) == (10, 12, 40, 31)
    assert image.tobytes() == plain().tobytes()
    assert drawn.size == image.size
    inner = np.asarray(drawn)[20, 20]
    np.testing.assert_array_equal(inner, 255)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), ORANGE, GREEN, (128, 128, 128)])
@pytest.mark.parametrize("color", [ORANGE, GREEN, (0, 0, 0), (255, 255, 255)])
def test_lines_and_labels_show_on_any_background(background, color):
    image = plain(200, 150, background)
    for labels in ((), ["A"]):
        drawn = np.asarray(draw_boxes(image, [(50, 50, 150, 120)], labels, color)).astype(int)
        changed = np.abs(drawn - np.asarray(image)).sum(-1)
        assert np.count_nonzero(changed > 150) > 300  # a line of the outline's length at least


def test_lines_grow_with_the_image():
    def thickness(side):
        drawn = np.asarray(draw_boxes(plain(side, side), [(side // 4, side // 4, side // 2, side // 2)]))
        return np.count_nonzero((drawn[side // 3] == ORANGE).all(-1)) // 2

    assert [thickness(side) for side in (100, 1500, 3000)] == [2, 5, 10]


def test_other_modes_and_boxes_that_leave_the_image():
    for mode in ("L", "RGBA", "P", "1"):
        drawn = draw_boxes(Image.new(mode, (60, 50)), [(-10, -10, 30, 30), (40, 40, 1e300, 900)], ["a", "b"])
        assert drawn.mode == "RGB"
    assert where(draw_boxes(plain(), [(10.2, 10.2, 10.4, 10.4)]), ORANGE)[:2] == (10, 10)


@pytest.mark.parametrize("box", [(0, 0, 60, 50), (0, 0, 5, 5), (55, 45, 60, 50), (20, 49, 30, 50)])
def test_a_label_is_whole_inside_the_image(box):
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
def test_any_text_is_a_label(label):
    assert draw_boxes(plain(), [(5, 5, 30, 30)], [label]).size == (60, 50)


def test_labels_are_one_short_line():
    box = [(5.0, 5.0, 30.0, 30.0)]
    image = plain(600, 100)
    assert draw_boxes(image, box, ["a\n\u202eb\x00"]).tobytes() == draw_boxes(image, box, ["a b"]).tobytes()
    long = draw_boxes(image, box, ["x" * 10**6])
    assert long.tobytes() == draw_boxes(image, box, ["x" * 39 + "…"]).tobytes()
    assert draw_boxes(image, box, [" \n "]).tobytes() == draw_boxes(image, box).tobytes()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="1 labels for 2 boxes"):
        draw_boxes(plain(), [(0, 0, 1, 1)] * 2, ["a"])
    with pytest.raises(ValueError, match=r"box \(5, 5, 5, 9\) has no area"):
        draw_boxes(plain(), [(5, 5, 5, 9)])
