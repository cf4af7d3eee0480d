"""Charts: points, labels and counts appear as given, and names are escaped."""

import math
import xml.etree.ElementTree as ET

import pytest

from sensorium.evaluation.chart import (
    HEIGHT,
    LineSeries,
    heatmap,
    line_chart,
    stack_charts,
    truncate_label,
)

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str) -> list[list[tuple[float, ...]]]:
    """The points of each line, without those of the grid."""
    polylines = [
        p.get("points", "")
        for p in ET.fromstring(svg).iter(f"{SVG}polyline")
        if p.get("stroke-width") == "2"
    ]
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in polylines]


def test_rising_line_rises_and_has_labels() -> None:
    svg = line_chart(
        [LineSeries("a", [(0, 0), (0.5, 0.5), (1, 1)])],
        "rising",
        "x",
        "y",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    ((first, middle, last),) = lines(svg)
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1]
    assert {"rising", "x", "y", "a", "0", "1"} <= set(texts(svg))


def test_points_that_are_not_finite_are_left_out() -> None:
    series = LineSeries("a", [(0, math.nan), (1, 1), (2, math.inf), (3, 2)])
    assert len(lines(line_chart([series], "t", "x", "y"))[0]) == 2


def test_a_single_point_and_no_series_are_drawn() -> None:
    assert len(lines(line_chart([LineSeries("a", [(2.0, 5.0)])], "t", "x", "y"))[0]) == 1
    assert texts(line_chart([], "t", "x", "y"))[0] == "t"


def test_stacked_charts_are_below_each_other() -> None:
    charts = [line_chart([LineSeries(name, [(0, 0), (1, 1)])], name, "x", "y") for name in "ab"]
    svg = ET.fromstring(stack_charts(charts))
    assert [panel.get("y") for panel in svg] == ["0", str(HEIGHT)]
    assert svg.get("height") == str(2 * HEIGHT)
    assert [panel.findtext(f"{SVG}title") for panel in svg] == ["a", "b"]


def test_dots_have_the_given_radii() -> None:
    series = LineSeries("a", [(0, 0), (1, 1)], radii=(2, 5))
    svg = ET.fromstring(line_chart([series], "t", "x", "y"))
    assert [c.get("r") for c in svg.iter(f"{SVG}circle")] == ["2.0", "5.0"]


def test_heatmap_has_counts_and_names() -> None:
    svg = heatmap(
        [[3, 0], [1, 12]], ["cat", "dog"], ["cat", "dog"], "confusion", "predicted", "true"
    )
    assert texts(svg) == [
        "confusion",
        "cat",
        "3",
        "dog",
        "1",
        "12",
        "cat",
        "dog",
        "predicted",
        "true",
    ]
    assert texts(heatmap([], [], [], "t", "x", "y")) == ["t", "x", "y"]


def test_names_are_escaped() -> None:
    bad = '</text><script>alert("x")</script>&'
    for svg in (
        line_chart([LineSeries(bad, [(0, 0)])], bad, bad, bad),
        heatmap([[1]], [bad], [bad], bad, bad, bad),
    ):
        assert not list(ET.fromstring(svg).iter(f"{SVG}script"))
        assert bad in texts(svg)


@pytest.mark.parametrize("name", ["Donaudampfschifffahrt " * 9, "猫" * 60, "W" * 80, "x" * 200])
def test_long_names_do_not_leave_the_chart(name: str) -> None:
    label = truncate_label(name)
    assert label.endswith("…")
    assert len(label) < len(name)
    assert truncate_label(label) == label
    assert truncate_label("short") == "short"
    svg = heatmap([[12345, 2], [3, 4]], [name, "b"], [name, "b"], f"{name}: confusion", "p", "t")
    assert texts(svg).count(label) == 2
    assert texts(svg)[0].endswith("…: confusion")
    assert "12k" in texts(svg)
    titles = [title.text for title in ET.fromstring(svg).iter(f"{SVG}title")]
    assert titles == [f"{name}: confusion"], "the title that is read aloud is whole"
    assert max(map(len, texts(line_chart([LineSeries(name, [(0, 1)])], name, "x", name)))) < 100
