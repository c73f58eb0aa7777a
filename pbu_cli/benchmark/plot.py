"""Draw a table of results as an SVG file, without a plotting library.

The left panel shows A_Dr against A_Df, the right panel A_Dr against seconds. Each method is one
numbered marker, the mean over its classes and seeds. A legend names the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, PANEL, TOP, LEFT, GAP = 980, 420, 310, 40, 60, 70  # pixels
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")


class Point(NamedTuple):
    """One method: a_df and a_dr in percent, and seconds."""

    name: str
    a_df: float
    a_dr: float
    seconds: float


class Scale(NamedTuple):
    """A linear or, with `log`, logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float:
        """Where the value lies on the axis: 0 at the low end, 1 at the high end.

        >>> Scale(0.0, 10.0).fraction(5.0), Scale(1.0, 100.0, log=True).fraction(10.0)
        (0.5, 0.5)
        """
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """The labelled values: powers of ten on a logarithmic axis, else six equal steps."""
        if self.log:
            powers = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
            return [10.0**power for power in powers]
        return [self.low + (self.high - self.low) * k / 5 for k in range(6)]


def draw(title: str, points: Sequence[Point]) -> str:
    """The text of the SVG document."""
    a_df = _percent_scale([point.a_df for point in points])
    a_dr = _percent_scale([point.a_dr for point in points])
    seconds = [max(point.seconds, 1e-3) for point in points]
    powers = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)) + 1e-9)
    time = Scale(10.0 ** powers[0], 10.0 ** max(powers[1], powers[0] + 1), log=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
        *_panel(LEFT, a_df, a_dr, "A_Df (%)", [(p.a_df, p.a_dr) for p in points]),
        *_panel(
            LEFT + PANEL + GAP, time, a_dr, "seconds",
            list(zip(seconds, [p.a_dr for p in points], strict=True)),
        ),
        *_legend(2 * (LEFT + PANEL) + GAP - 40, [point.name for point in points]),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _panel(
    x: int, across: Scale, up: Scale, name: str, values: Sequence[tuple[float, float]]
) -> list[str]:
    """A scatter plot whose left edge is at `x`; `name` is the title of the horizontal axis."""
    bottom = TOP + PANEL
    parts = [
        f'<rect x="{x}" y="{TOP}" width="{PANEL}" height="{PANEL}" fill="none" stroke="#999"/>',
        f'<text x="{x + PANEL / 2}" y="{bottom + 36}" text-anchor="middle">{name}</text>',
        f'<text x="{x}" y="{TOP - 6}">A_Dr (%)</text>',
    ]
    for tick in across.ticks():
        tick_x = x + across.fraction(tick) * PANEL
        parts.append(
            f'<text x="{tick_x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    for tick in up.ticks():
        tick_y = bottom - up.fraction(tick) * PANEL
        parts.append(f'<text x="{x - 6}" y="{tick_y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
        parts.append(
            f'<line x1="{x}" x2="{x + PANEL}" y1="{tick_y:.1f}" y2="{tick_y:.1f}" stroke="#eee"/>'
        )
    for number, (horizontal, vertical) in enumerate(values):
        cx, cy = x + across.fraction(horizontal) * PANEL, bottom - up.fraction(vertical) * PANEL
        parts.append(_marker(number, cx, cy))
    return parts


def _legend(x: int, names: Sequence[str]) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        y = TOP + 12 + 22 * number
        parts.append(_marker(number, x, y))
        parts.append(f'<text x="{x + 16}" y="{y + 4}">{escape(name)}</text>')
    return parts


def _marker(number: int, x: float, y: float) -> str:
    colour = COLOURS[number % len(COLOURS)]
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{colour}" fill-opacity="0.8"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" font-size="10"'
        f' fill="white">{number + 1}</text>'
    )


def _percent_scale(values: Sequence[float]) -> Scale:
    """A scale a little wider than the values, within 0 to 100.

    >>> _percent_scale([90.0, 98.0])
    Scale(low=89.0, high=99.0, log=False)
    """
    low, high = math.floor(min(values) - 0.5), math.ceil(max(values) + 0.5)
    return Scale(float(max(low, 0)), float(min(high, 100)))
