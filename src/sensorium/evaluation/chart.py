"""Charts as SVG: curves over one scale, and matrices of counts. Text and numbers in, text out; nothing is drawn here.

P points of a curve   R, C rows and columns of a matrix
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # told apart by all eyes (Okabe and Ito)
WIDTH, HEIGHT = 600, 360
MARGIN_LEFT, MARGIN_TOP, MARGIN_RIGHT, MARGIN_BOTTOM = (
    64,
    40,
    140,
    52,
)  # margins of the plane; the names stand at its right
CELL_SIZE, MAX_LABEL_CHARS = 34, 18  # side of a matrix's cell; letters of a name that are shown
AxisRange = tuple[float, float]


@dataclass(frozen=True)
class LineSeries:
    """Points joined by a line; those that are not finite are left out. sizes: radii of the points in pixels."""

    name: str
    points: Sequence[tuple[float, float]]
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
    """Several curves on one plane, each with its colour and its name. x, y: ends of the axes, if not the data's."""
    kept = [[p for p in c.points if all(map(math.isfinite, p))] for c in series]
    x_range, y_range = (
        ends or _padded_range([p[i] for points in kept for p in points])
        for i, ends in enumerate((x_range, y_range))
    )
    plane = _Axes(x_range, y_range)
    drawn = [
        line
        for i, c in enumerate(series)
        for line in _render_series(plane, c, kept[i], COLORS[i % len(COLORS)])
    ]
    legend = [
        _text(
            WIDTH - MARGIN_RIGHT + 12,
            MARGIN_TOP + 12 + 18 * i,
            c.name,
            fill=COLORS[i % len(COLORS)],
        )
        for i, c in enumerate(series)
    ]
    return _svg_document(WIDTH, HEIGHT, title, [*plane.render(x_label, y_label), *drawn, *legend])


def heatmap(
    counts: Sequence[Sequence[float]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Counts in cells, each as dark as its share of its row."""
    left, top = (
        40 + 7 * max([len(_truncate(name)) for name in row_names], default=0),
        64 + 5 * MAX_LABEL_CHARS,
    )
    cells = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells.append(
            _text(
                left - 6,
                top + CELL_SIZE * i + CELL_SIZE / 2 + 4,
                _truncate(row_names[i]),
                anchor="end",
            )
        )
        for j, count in enumerate(row):
            cells += _render_cell(left + CELL_SIZE * j, top + CELL_SIZE * i, count, count / total)
    for j, name in enumerate(column_names):
        at = left + CELL_SIZE * j + CELL_SIZE / 2 + 4, top - 8
        cells.append(_text(*at, _truncate(name), rotation=-60))
    width, height = (
        left + CELL_SIZE * max(len(column_names), 8) + 24,
        top + CELL_SIZE * len(row_names) + 24,
    )
    sides = [
        _text(left, top - 16 - 5 * MAX_LABEL_CHARS, x_label),
        _text(14, top + CELL_SIZE * len(row_names) / 2, y_label, "middle", rotation=-90),
    ]
    return _svg_document(width, height, title, [*cells, *sides])


class _Axes:
    """Where numbers lie between the margins."""

    def __init__(self, x_range: AxisRange, y_range: AxisRange):
        self.x_range, self.y_range = x_range, y_range

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return MARGIN_LEFT + across * (
            WIDTH - MARGIN_LEFT - MARGIN_RIGHT
        ), HEIGHT - MARGIN_BOTTOM - up * (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM)

    def render(self, x_label: str, y_label: str) -> Iterator[str]:
        for value in _tick_values(*self.x_range):
            x, y = self.to_pixels(value, self.y_range[0])
            yield _polyline([(x, MARGIN_TOP), (x, y)], "#dddddd")
            yield _text(x, y + 16, f"{value:.4g}", "middle")
        for value in _tick_values(*self.y_range):
            x, y = self.to_pixels(self.x_range[0], value)
            yield _polyline([(x, y), (WIDTH - MARGIN_RIGHT, y)], "#dddddd")
            yield _text(x - 6, y + 4, f"{value:.4g}", "end")
        yield _text((MARGIN_LEFT + WIDTH - MARGIN_RIGHT) / 2, HEIGHT - 14, x_label, "middle")
        yield _text(16, (MARGIN_TOP + HEIGHT - MARGIN_BOTTOM) / 2, y_label, "middle", rotation=-90)


def _render_series(
    axes: _Axes, series: LineSeries, points: Sequence[tuple[float, float]], color: str
) -> Iterator[str]:
    places = [axes.to_pixels(*p) for p in points]
    yield _polyline(places, color, 2, series.dashed)
    for (x, y), size in zip(places, series.radii, strict=False):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{color}"/>'


def _render_cell(x: float, y: float, count: float, intensity: float) -> Iterator[str]:
    light = 255 - round(intensity * 200)
    yield f'<rect x="{x}" y="{y}" width="{CELL_SIZE}" height="{CELL_SIZE}" fill="rgb({light},{light},255)" stroke="#ffffff"/>'
    ink = "#ffffff" if intensity > 0.6 else "#000000"
    if count:
        yield _text(x + CELL_SIZE / 2, y + CELL_SIZE / 2 + 4, f"{count:g}", "middle", fill=ink)


def _polyline(
    positions: Iterable[tuple[float, float]], color: str, width: int = 1, dashed: bool = False
) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    rotation: int = 0,
    fill: str = "#000000",
) -> str:
    turned = f' transform="rotate({rotation} {x:.1f} {y:.1f})"' if rotation else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{turned}>{escape(text)}</text>'


def _svg_document(width: float, height: float, title: str, elements: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">'
    )
    body = "\n".join(
        [
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="16" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
            *elements,
        ]
    )
    return f"{head}\n{body}\n</svg>\n"


def _padded_range(values: Sequence[float]) -> AxisRange:
    """The least and the greatest, and a little beyond."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _tick_values(low: float, high: float) -> list[float]:
    """Round numbers within, four to ten of them."""
    step = 10 ** math.floor(math.log10(high - low))
    step = step / 5 if (high - low) / step < 2 else step / 2 if (high - low) / step < 5 else step
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _truncate(name: str) -> str:
    return name if len(name) <= MAX_LABEL_CHARS else name[: MAX_LABEL_CHARS - 1] + "…"
