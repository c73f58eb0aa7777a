"""The picture of a table."""

from __future__ import annotations

from xml.etree import ElementTree

from pbu_cli.benchmark.plot import Point, Scale, draw

POINTS = [
    Point("pbu", 0.0, 99.3, 21.0),
    Point("<retrain>", 0.0, 99.4, 900.0),
    Point("x", 90, 40, 0),
]


def test_the_picture_is_well_formed_and_has_every_point_in_both_panels_and_the_legend() -> None:
    root = ElementTree.fromstring(draw("a & b", POINTS))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3 * len(POINTS)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "pbu", "<retrain>", "seconds", "A_Df (%)"} <= set(texts)
    width = float(root.attrib["width"])
    assert all(0 <= float(circle.attrib["cx"]) <= width for circle in circles)


def test_better_is_higher() -> None:
    root = ElementTree.fromstring(draw("t", POINTS))
    heights = [float(c.attrib["cy"]) for c in root.findall("{http://www.w3.org/2000/svg}circle")]
    assert heights[1] < heights[0] < heights[2]


def test_one_point_is_enough() -> None:
    assert "NaN" not in draw("t", [Point("only", 0.0, 100.0, 0.0)])


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten() -> None:
    assert Scale(0.1, 100.0, log=True).ticks() == [0.1, 1.0, 10.0, 100.0]
