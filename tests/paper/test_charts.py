"""Figures of the comparison: intervals are drawn whole."""

import re

import pytest

from benchmarks.paper.charts import Curve, line_chart


def whiskers(svg: str) -> list[list[float]]:
    return [
        list(map(float, found))
        for found in re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" stroke="#\w+" op', svg)
    ]


def test_whiskers_have_the_length_of_their_intervals_and_stand_side_by_side():
    curves = {
        "wide": Curve([(0.0, 0.5), (1.0, 0.6)], [0.4, 0.2]),
        "narrow": Curve([(0.0, 0.5), (1.0, 0.6)], [None, 0.1]),
    }
    first, second, third = whiskers(line_chart("title", curves, "step"))
    lengths = [low - high for _, low, _, high in (first, second, third)]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 4], abs=0.2)
    assert second[0] == second[2] and third[0] - second[0] == pytest.approx(3)
    assert all(28 <= y <= 288 for whisker in (first, second, third) for y in whisker[1::2])
