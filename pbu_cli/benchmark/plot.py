"""A table of results as a picture: an SVG file of two scatter plots, written without a library.

Left A_Dr against A_Df, right A_Dr against seconds; one numbered marker a method, its classes and
seeds taken together, the numbers explained beside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, PANEL, TOP, LEFT, GAP = 980, 420, 310, 40, 60, 70
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")


class Mark(NamedTuple):
    """One method: percent, percent, seconds."""

    name: str
    a_df: float
    a_dr: float
    seconds: float


class Scale(NamedTuple):
    """From values to pixels, over [low, high], by logarithm where `log`."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one.

        >>> Scale(0.0, 10.0).share(5.0), Scale(1.0, 100.0, log=True).share(10.0)
        (0.5, 0.5)
        """
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
            return [10.0**power for power in powers]
        return [self.low + (self.high - self.low) * k / 5 for k in range(6)]


def draw(title: str, marks: Sequence[Mark]) -> str:
    """The SVG document."""
    kept = _range([mark.a_dr for mark in marks])
    gone = _range([mark.a_df for mark in marks])
    times = [max(mark.seconds, 1e-3) for mark in marks]
    powers = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)
    spent = Scale(10.0 ** powers[0], 10.0 ** max(powers[1], powers[0] + 1), log=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
        *_panel(LEFT, gone, kept, "A_Df (%)", [(m.a_df, m.a_dr) for m in marks]),
        *_panel(
            LEFT + PANEL + GAP, spent, kept, "seconds",
            list(zip(times, [m.a_dr for m in marks], strict=True)),
        ),
        *_legend(2 * (LEFT + PANEL) + GAP - 40, [mark.name for mark in marks]),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _panel(
    x: int, across: Scale, up: Scale, name: str, points: Sequence[tuple[float, float]]
) -> list[str]:
    bottom = TOP + PANEL
    parts = [
        f'<rect x="{x}" y="{TOP}" width="{PANEL}" height="{PANEL}" fill="none" stroke="#999"/>',
        f'<text x="{x + PANEL / 2}" y="{bottom + 36}" text-anchor="middle">{name}</text>',
        f'<text x="{x}" y="{TOP - 6}">A_Dr (%)</text>',
    ]
    for tick in across.ticks():
        place = x + across.share(tick) * PANEL
        parts.append(
            f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.4g}</text>'
        )
    for tick in up.ticks():
        place = bottom - up.share(tick) * PANEL
        parts.append(f'<text x="{x - 6}" y="{place + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
        parts.append(
            f'<line x1="{x}" x2="{x + PANEL}" y1="{place:.1f}" y2="{place:.1f}" stroke="#eee"/>'
        )
    for number, (value, height) in enumerate(points):
        cx, cy = x + across.share(value) * PANEL, bottom - up.share(height) * PANEL
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


def _range(values: Sequence[float]) -> Scale:
    """A little more than the values span, never outside 0 to 100.

    >>> _range([90.0, 98.0])
    Scale(low=89.0, high=99.0, log=False)
    """
    low, high = math.floor(min(values) - 0.5), math.ceil(max(values) + 0.5)
    return Scale(float(max(low, 0)), float(min(high, 100)))
