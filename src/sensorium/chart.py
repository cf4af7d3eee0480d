"""Charts as SVG: curves over one scale, and matrices of counts. Text and numbers in, text out; nothing is drawn here.

    P points of a curve   R, C rows and columns of a matrix
"""
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")   # told apart by all eyes (Okabe and Ito)
WIDTH, HEIGHT = 600, 360
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 140, 52      # margins of the plane; the names stand at its right
CELL, LONGEST = 34, 18                          # side of a matrix's cell; letters of a name that are shown
Span = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points joined by a line; those that are not finite are left out. sizes: radii of the points in pixels."""

    name: str
    points: Sequence[tuple[float, float]]
    sizes: Sequence[float] = ()
    dashed: bool = False


def curves(given: Sequence[Curve], title: str, across: str, up: str, *, x: Span | None = None,
           y: Span | None = None) -> str:
    """Several curves on one plane, each with its colour and its name. x, y: ends of the axes, if not the data's."""
    kept = [[p for p in c.points if all(map(math.isfinite, p))] for c in given]
    x, y = (ends or _ends([p[i] for points in kept for p in points]) for i, ends in enumerate((x, y)))
    plane = _Plane(x, y)
    drawn = [line for i, c in enumerate(given) for line in _curve(plane, c, kept[i], COLOURS[i % len(COLOURS)])]
    legend = [_text(WIDTH - RIGHT + 12, TOP + 12 + 18 * i, c.name, fill=COLOURS[i % len(COLOURS)])
              for i, c in enumerate(given)]
    return _page(WIDTH, HEIGHT, title, [*plane.axes(across, up), *drawn, *legend])


def matrix(counts: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, across: str,
           up: str) -> str:
    """Counts in cells, each as dark as its share of its row."""
    left, top = 40 + 7 * max([len(_short(name)) for name in rows], default=0), 64 + 5 * LONGEST
    cells = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        cells.append(_text(left - 6, top + CELL * i + CELL / 2 + 4, _short(rows[i]), anchor="end"))
        for j, count in enumerate(row):
            cells += _cell(left + CELL * j, top + CELL * i, count, count / total)
    for j, name in enumerate(columns):
        at = left + CELL * j + CELL / 2 + 4, top - 8
        cells.append(_text(*at, _short(name), turn=-60))
    width, height = left + CELL * max(len(columns), 8) + 24, top + CELL * len(rows) + 24
    sides = [_text(left, top - 16 - 5 * LONGEST, across), _text(14, top + CELL * len(rows) / 2, up, "middle", turn=-90)]
    return _page(width, height, title, [*cells, *sides])


class _Plane:
    """Where numbers lie between the margins."""

    def __init__(self, x: Span, y: Span):
        self.x, self.y = x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, across: str, up: str) -> Iterator[str]:
        for value in _ticks(*self.x):
            x, y = self.at(value, self.y[0])
            yield _line([(x, TOP), (x, y)], "#dddddd")
            yield _text(x, y + 16, f"{value:.4g}", "middle")
        for value in _ticks(*self.y):
            x, y = self.at(self.x[0], value)
            yield _line([(x, y), (WIDTH - RIGHT, y)], "#dddddd")
            yield _text(x - 6, y + 4, f"{value:.4g}", "end")
        yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, across, "middle")
        yield _text(16, (TOP + HEIGHT - BOTTOM) / 2, up, "middle", turn=-90)


def _curve(plane: _Plane, curve: Curve, points: Sequence[tuple[float, float]], colour: str) -> Iterator[str]:
    places = [plane.at(*p) for p in points]
    yield _line(places, colour, 2, curve.dashed)
    for (x, y), size in zip(places, curve.sizes, strict=False):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}"/>'


def _cell(x: float, y: float, count: float, share: float) -> Iterator[str]:
    light = 255 - round(share * 200)
    yield f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="rgb({light},{light},255)" stroke="#ffffff"/>'
    ink = "#ffffff" if share > 0.6 else "#000000"
    if count:
        yield _text(x + CELL / 2, y + CELL / 2 + 4, f"{count:g}", "middle", fill=ink)


def _line(places: Iterable[tuple[float, float]], colour: str, width: int = 1, dashed: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", *, turn: int = 0, fill: str = "#000000") -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{turned}>{escape(words)}</text>'


def _page(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">')
    body = "\n".join([f"<title>{escape(title)}</title>", '<rect width="100%" height="100%" fill="#ffffff"/>',
                      f'<text x="16" y="22" font-size="14" font-weight="bold">{escape(title)}</text>', *parts])
    return f"{head}\n{body}\n</svg>\n"


def _ends(values: Sequence[float]) -> Span:
    """The least and the greatest, and a little beyond."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within, four to ten of them."""
    step = 10 ** math.floor(math.log10(high - low))
    step = step / 5 if (high - low) / step < 2 else step / 2 if (high - low) / step < 5 else step
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[:LONGEST - 1] + "…"
