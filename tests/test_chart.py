"""Charts: what is given is what is drawn, and nothing given can break out of the page."""

import math
import xml.etree.ElementTree as ET

from sensorium.evaluation.chart import LineSeries, heatmap, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str) -> list[list[tuple[float, ...]]]:
    """Points of the curves, without those of the grid."""
    found = [
        p.get("points", "")
        for p in ET.fromstring(svg).iter(f"{SVG}polyline")
        if p.get("stroke-width") == "2"
    ]
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_a_rising_curve_rises_and_ends_at_the_corners() -> None:
    drawn = line_chart(
        [LineSeries("a", [(0, 0), (0.5, 0.5), (1, 1)])],
        "rising",
        "x",
        "y",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    ((first, middle, last),) = lines(drawn)
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1]
    assert {"rising", "x", "y", "a", "0", "1"} <= set(texts(drawn))


def test_what_is_not_finite_is_left_out_and_nothing_is_a_page_too() -> None:
    assert (
        len(
            lines(
                line_chart(
                    [LineSeries("a", [(0, math.nan), (1, 1), (2, math.inf), (3, 2)])], "t", "x", "y"
                )
            )[0]
        )
        == 2
    )
    assert lines(line_chart([LineSeries("a", [(2.0, 5.0)])], "t", "x", "y"))[
        0
    ]  # one point has no extent
    assert texts(line_chart([], "t", "x", "y"))[0] == "t"


def test_points_have_the_sizes_given() -> None:
    drawn = ET.fromstring(
        line_chart([LineSeries("a", [(0, 0), (1, 1)], radii=(2, 5))], "t", "x", "y")
    )
    assert [c.get("r") for c in drawn.iter(f"{SVG}circle")] == ["2.0", "5.0"]


def test_a_matrix_says_its_counts_and_names() -> None:
    drawn = heatmap(
        [[3, 0], [1, 12]], ["cat", "dog"], ["cat", "dog"], "confusion", "predicted", "true"
    )
    assert texts(drawn) == [
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
    assert heatmap([], [], [], "t", "x", "y")


def test_names_cannot_write_into_the_page() -> None:
    bad = '</text><script>alert("x")</script>&'
    for drawn in (
        line_chart([LineSeries(bad, [(0, 0)])], bad, bad, bad),
        heatmap([[1]], [bad], [bad], bad, bad, bad),
    ):
        assert not list(ET.fromstring(drawn).iter(f"{SVG}script"))
        assert bad in texts(drawn)
