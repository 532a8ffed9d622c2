"""Figures as SVG: bars with intervals, and lines. Numbers in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#777777",
    "#000000",
    "#ee7733",
    "#009988",
)
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_LEFT, _TOP, _BOTTOM = 52, 28, 26
_FONT = 'font-family="sans-serif" font-size="11"'


class Bar(NamedTuple):
    """A bar: its height, and half its interval if there is one."""

    value: float
    half: float | None


class Curve(NamedTuple):
    """A curve: points (x, y), and half the interval of each y if there is one."""

    points: Sequence[tuple[float, float]]
    halves: Sequence[float | None]


def bar_chart(title: str, groups: Mapping[str, Mapping[str, Bar]]) -> str:
    """Draws bars in groups, from zero.

    Args:
        title: above the figure.
        groups: label of a group -> label of a bar -> the bar; all groups have the same labels of bars.
    """
    labels = list(dict.fromkeys(label for bars in groups.values() for label in bars))
    top = max((bar.value + (bar.half or 0) for bars in groups.values() for bar in bars.values()), default=0) or 1
    width, height = 900, 260
    parts = _axes(title, width, height, 0, top)
    step = (width - _LEFT - 170) / max(1, len(groups))
    for place, (group, bars) in enumerate(groups.items()):
        left = _LEFT + place * step
        thick = step * 0.8 / max(1, len(labels))
        for index, label in enumerate(labels):
            if label in bars:
                parts += _bar(bars[label], left + step * 0.1 + index * thick, thick * 0.9, top, height, index)
        parts.append(_text(left + step / 2, height + _TOP + 16, group, "middle"))
    return _svg(width, height + _TOP + _BOTTOM, [*parts, *_legend(labels, width, dashed=False)])


def _bar(bar: Bar, x: float, thick: float, top: float, height: int, index: int) -> list[str]:
    y = _TOP + height * (1 - bar.value / top)
    fill = _COLOURS[index % len(_COLOURS)]
    parts = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick:.1f}" height="{_TOP + height - y:.1f}" fill="{fill}"/>']
    if bar.half:
        low, high = (_TOP + height * (1 - (bar.value + sign * bar.half) / top) for sign in (-1, 1))
        middle = x + thick / 2
        parts.append(f'<path d="M{middle:.1f} {low:.1f}V{high:.1f}" stroke="#000" stroke-width="1.2"/>')
    return parts


def line_chart(title: str, curves: Mapping[str, Curve], x_label: str) -> str:
    """Draws curves of shares, with a whisker for each interval; those of one x stand side by side."""
    points = [(x, y, half or 0) for curve in curves.values() for (x, y), half in zip(*curve, strict=True)]
    width, height = 900, 260
    if not points:
        return _svg(width, height + _TOP + _BOTTOM, [_text(_LEFT, 16, f"{title}: nothing yet")])
    right = max(x for x, _, _ in points) or 1
    low, high = min(y - half for _, y, half in points), max(y + half for _, y, half in points)
    margin = (high - low) * 0.1 or 0.05
    low, high = max(0.0, low - margin), high + margin

    def place(x: float, y: float, aside: float = 0.0) -> str:
        y = max(y, low)  # no share is below 0
        left = _LEFT + (width - _LEFT - 170) * x / right + aside
        return f"{left:.1f} {_TOP + height * (1 - (y - low) / (high - low)):.1f}"

    parts = _axes(title, width, height, low, high)
    for index, curve in enumerate(curves.values()):
        colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
        for (x, y), half in zip(curve.points, curve.halves, strict=True):
            if half:
                aside = 3 * (index - (len(curves) - 1) / 2)
                whisker = f"M{place(x, y - half, aside)}L{place(x, y + half, aside)}"
                parts.append(f'<path d="{whisker}" stroke="{colour}" opacity="0.4"/>')
        path = "L".join(place(x, y) for x, y in curve.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>')
    parts.append(_text(_LEFT + (width - _LEFT - 170) / 2, height + _TOP + 20, f"{x_label} (0 to {right:g})", "middle"))
    return _svg(width, height + _TOP + _BOTTOM, [*parts, *_legend(list(curves), width, dashed=True)])


def _axes(title: str, width: int, height: int, low: float, high: float) -> list[str]:
    parts = [_text(_LEFT, 16, title)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _TOP + height * (1 - share)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{width - 170}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 4, y + 4, f"{low + (high - low) * share:.2f}", "end"))
    return parts


def _legend(labels: Sequence[str], width: int, *, dashed: bool) -> list[str]:
    parts = []
    for index, label in enumerate(labels):
        y = _TOP + 10 + 17 * index
        dash = _DASHES[index % len(_DASHES)] if dashed else ""
        stroke = (
            f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="{2 if dashed else 9}" stroke-dasharray="{dash}"'
        )
        parts += [f'<path d="M{width - 160} {y}H{width - 136}" {stroke}/>', _text(width - 130, y + 4, label)]
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"]) + "\n"
