"""Line charts and heatmaps as SVG text, without a plotting library.

P points of a line   R, C rows and columns of a heatmap
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sensorium.errors import escape_html

# The palette of Okabe and Ito, distinguishable with color vision deficiency.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WIDTH, HEIGHT = 600, 360  # pixels of a line chart
MARGIN_LEFT, MARGIN_RIGHT = 64, 140  # the legend stands in the right margin
MARGIN_TOP, MARGIN_BOTTOM = 40, 52
CELL_SIZE = 34  # side in pixels of a heatmap cell
MAX_LABEL_PX = 126  # wider names of rows and columns are truncated
FONT_SIZE, TITLE_SIZE = 12, 14
MAX_WRITTEN_COUNT = 10_000  # from here on, counts in cells are in thousands
_GRID_COLOR = "#dddddd"

AxisRange = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class LineSeries:
    """Points joined by a line; points that are not finite are left out.

    Attributes:
        name: name in the legend.
        points: x and y of each point.
        radii: radius in pixels of a dot at each point; none by default.
        dashed: whether the line is dashed.
    """

    name: str
    points: Sequence[Point]
    radii: Sequence[float] = ()
    dashed: bool = False


def line_chart(
    series: Sequence[LineSeries],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_range: AxisRange | None = None,
    y_range: AxisRange | None = None,
) -> str:
    """Draw several lines on one pair of axes, each with its color and its name.

    Args:
        series: the lines.
        title: title above the chart.
        x_label: label of the x axis.
        y_label: label of the y axis.
        x_range: ends of the x axis; by default those of the data with some padding.
        y_range: ends of the y axis, likewise.

    Returns:
        An SVG document of `WIDTH` x `HEIGHT` pixels.
    """
    finite = [[p for p in line.points if all(map(math.isfinite, p))] for line in series]
    all_points = [point for points in finite for point in points]
    axes = _Axes(
        x_range or _padded_range([x for x, _ in all_points]),
        y_range or _padded_range([y for _, y in all_points]),
    )
    elements = list(axes.render(x_label, y_label))
    for i, (line, points) in enumerate(zip(series, finite, strict=True)):
        elements += _render_series(axes, line, points, COLORS[i % len(COLORS)])
    for i, line in enumerate(series):
        x, y = WIDTH - MARGIN_RIGHT + 12, MARGIN_TOP + 12 + 18 * i
        name = truncate_label(line.name, MARGIN_RIGHT - 16)
        elements.append(_text(x, y, name, fill=COLORS[i % len(COLORS)]))
    return _svg_document(WIDTH, HEIGHT, title, elements)


def stack_charts(charts: Sequence[str]) -> str:
    """Join line charts into one SVG document, one below the other."""
    panels = [
        chart.replace("<svg ", f'<svg y="{HEIGHT * i}" ', 1) for i, chart in enumerate(charts)
    ]
    return _svg_tag(WIDTH, HEIGHT * len(charts)) + "\n" + "".join(panels) + "</svg>\n"


def heatmap(
    counts: Sequence[Sequence[float]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Draw a matrix of counts, each cell as dark as its share of its row.

    Args:
        counts: the matrix [R C].
        row_names: names of the rows.
        column_names: names of the columns.
        title: title above the matrix.
        x_label: what the columns are.
        y_label: what the rows are.

    Returns:
        An SVG document.
    """
    rows = [truncate_label(name) for name in row_names]
    columns = [truncate_label(name) for name in column_names]
    left = 40 + max(map(_label_width, rows), default=0)
    labels_height = 0.87 * max(map(_label_width, columns), default=0)  # at 60 degrees
    top = 64 + labels_height
    elements = []
    for i, row in enumerate(counts):
        y = top + CELL_SIZE * i
        elements.append(_text(left - 6, y + CELL_SIZE / 2 + 4, rows[i], anchor="end"))
        total = sum(row) or 1
        for j, count in enumerate(row):
            elements += _render_cell(left + CELL_SIZE * j, y, count, count / total)
    for j, name in enumerate(columns):
        x = left + CELL_SIZE * j + CELL_SIZE / 2 + 4
        elements.append(_text(x, top - 8, name, rotation=-60))
    middle = top + CELL_SIZE * len(row_names) / 2
    elements += [
        _text(left, top - 16 - labels_height, x_label),
        _text(14, middle, y_label, "middle", rotation=-90),
    ]
    width = left + CELL_SIZE * max(len(column_names), 8) + 24
    height = top + CELL_SIZE * len(row_names) + 24
    return _svg_document(width, height, title, elements)


class _Axes:
    """Axes of a line chart, which map data to pixels.

    Args:
        x_range: values at the left and right end.
        y_range: values at the lower and upper end.
    """

    def __init__(self, x_range: AxisRange, y_range: AxisRange):
        self.x_range = x_range
        self.y_range = y_range

    def to_pixels(self, x: float, y: float) -> Point:
        """Return the position of a data point."""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        pixel_x = MARGIN_LEFT + across * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)
        pixel_y = HEIGHT - MARGIN_BOTTOM - up * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)
        return pixel_x, pixel_y

    def render(self, x_label: str, y_label: str) -> Iterator[str]:
        """Yield grid lines, tick labels and axis labels."""
        for value in _tick_values(*self.x_range):
            x, y = self.to_pixels(value, self.y_range[0])
            yield _polyline([(x, MARGIN_TOP), (x, y)], _GRID_COLOR)
            yield _text(x, y + 16, f"{value:.4g}", "middle")
        for value in _tick_values(*self.y_range):
            x, y = self.to_pixels(self.x_range[0], value)
            yield _polyline([(x, y), (WIDTH - MARGIN_RIGHT, y)], _GRID_COLOR)
            yield _text(x - 6, y + 4, f"{value:.4g}", "end")
        y_label = truncate_label(y_label, HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)
        yield _text((MARGIN_LEFT + WIDTH - MARGIN_RIGHT) / 2, HEIGHT - 14, x_label, "middle")
        yield _text(16, (MARGIN_TOP + HEIGHT - MARGIN_BOTTOM) / 2, y_label, "middle", rotation=-90)


def _render_series(
    axes: _Axes, series: LineSeries, points: Sequence[Point], color: str
) -> Iterator[str]:
    positions = [axes.to_pixels(*point) for point in points]
    yield _polyline(positions, color, 2, series.dashed)
    for (x, y), radius in zip(positions, series.radii, strict=False):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}"/>'


def _render_cell(x: float, y: float, count: float, intensity: float) -> Iterator[str]:
    lightness = 255 - round(intensity * 200)
    yield (
        f'<rect x="{x}" y="{y}" width="{CELL_SIZE}" height="{CELL_SIZE}" '
        f'fill="rgb({lightness},{lightness},255)" stroke="#ffffff"/>'
    )
    if count:
        color = "#ffffff" if intensity > 0.6 else "#000000"
        middle_x, baseline = x + CELL_SIZE / 2, y + CELL_SIZE / 2 + 4
        text = f"{count / 1000:.0f}k" if count >= MAX_WRITTEN_COUNT else f"{count:g}"
        yield _text(middle_x, baseline, text, "middle", fill=color)


def _polyline(positions: Iterable[Point], color: str, width: int = 1, dashed: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    style = f'fill="none" stroke="{color}" stroke-width="{width}"{dash}'
    return f'<polyline points="{points}" {style}/>'


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    rotation: int = 0,
    fill: str = "#000000",
) -> str:
    transform = f' transform="rotate({rotation} {x:.1f} {y:.1f})"' if rotation else ""
    position = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {position} fill="{fill}"{transform}>{escape_html(text)}</text>'


def _svg_document(width: float, height: float, title: str, elements: Iterable[str]) -> str:
    shown = truncate_title(title, width - 32)
    style = f'font-size="{TITLE_SIZE}" font-weight="bold"'
    lines = [
        _svg_tag(width, height),
        f"<title>{escape_html(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="22" {style}>{escape_html(shown)}</text>',
        *elements,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _svg_tag(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="{FONT_SIZE}">'
    )


def _padded_range(values: Sequence[float]) -> AxisRange:
    """Return the smallest and the largest value with 5 % of padding."""
    low = min(values, default=0.0)
    high = max(values, default=1.0)
    padding = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - padding, high + padding


def _tick_values(low: float, high: float) -> list[float]:
    """Return the four to ten round numbers between `low` and `high`."""
    step = 10 ** math.floor(math.log10(high - low))
    if (high - low) / step < 2:
        step = step / 5
    elif (high - low) / step < 5:
        step = step / 2
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def truncate_label(text: str, max_width: float = MAX_LABEL_PX) -> str:
    """Return as much of a text as about `max_width` pixels hold."""
    if _label_width(text) <= max_width:
        return text
    while text and _label_width(text + "…") > max_width:
        text = text[:-1]
    return text + "…"


def truncate_title(title: str, max_width: float) -> str:
    """Return a title that fits: of a long name, the part after the last colon stays."""
    scale = TITLE_SIZE / FONT_SIZE * 1.1  # it is bold
    name, colon, rest = title.rpartition(": ")
    room = max_width / scale - _label_width(colon + rest)
    if not colon or room < MAX_LABEL_PX / 2:
        return truncate_label(title, max_width / scale)
    return truncate_label(name, room) + colon + rest


def _label_width(text: str) -> float:
    """Return about how many pixels wide a text is."""
    return sum(map(_character_width, text))


def _character_width(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return FONT_SIZE
    if unicodedata.combining(character):
        return 0
    if character in "mwMW@%…—":
        return 0.98 * FONT_SIZE
    return (0.7 if character.isupper() else 0.58) * FONT_SIZE
