"""Draws one style's contact sheet from the SVG of its package.

Drawings come from strangers, and the rasteriser would read any file they name. So only shapes, gradients and filters
are let through, and only links within the drawing; everything else stops the build.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sensorium.data.bundled.emoji_names import Concept, ConceptMatcher
from sensorium.data.bundled.emoji_packages import PackageContents
from sensorium.errors import SensoriumError

MAX_SVG_CHARS = 2 << 20  # characters; the longest known has 0.9 million
_ALLOWED_ELEMENTS = frozenset(
    "path circle ellipse rect line polygon polyline g defs use symbol clipPath mask linearGradient radialGradient stop "
    "filter feFlood feBlend feColorMatrix feOffset feGaussianBlur feComposite".split()
)


def num_sheet_columns(concepts: Sequence[Concept]) -> int:
    """Drawings in a row of a sheet, so that it is about square."""
    return math.ceil(math.sqrt(len(concepts)))


def draw_sheet(
    icon_package: PackageContents,
    matcher: ConceptMatcher,
    concepts: list[Concept],
    size: int,
    skipped: list[str],
) -> np.ndarray:
    """The sheet of one set, uint8 [rows * size, columns * size, 3]; says in each concept that this style draws it."""
    columns = num_sheet_columns(concepts)
    sheet = np.full((-(-len(concepts) // columns) * size, columns * size, 3), 255, np.uint8)
    book = IconSet(icon_package)
    names = matcher.match_icons(icon_package, book.names)
    for i, concept in enumerate(concepts):
        if concept.code not in names:
            continue
        name = names[concept.code]
        try:
            pixels = rasterize_svg(book.build_svg(name), size)
        except ValueError as e:
            skipped.append(f"{icon_package.package.style}/{name}: {e}")
            continue
        row, column = divmod(i, columns)
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = pixels
        concept.styles.append(icon_package.package.style)
    return sheet


class IconSet:
    """icons.json of one set: SVG bodies by name, and other names (sometimes mirrored) for them."""

    def __init__(self, icon_package: PackageContents):
        book: Any = icon_package.load_json("icons.json")
        self.path, self.data = icon_package.path, book
        if not isinstance(book, dict) or not all(
            isinstance(book.get(k, {}), dict) for k in ("icons", "aliases")
        ):
            raise SensoriumError(
                f"{icon_package.path}: icons.json is not a set of icons; fetch {icon_package.package.name} again."
            )
        self.icons, self.aliases = book.get("icons", {}), book.get("aliases", {})
        self.names = [*self.icons, *self.aliases]

    def build_svg(self, name: str) -> str:
        """The drawing on a square canvas. ValueError on one that cannot be drawn, SensoriumError on an unsafe one."""
        mirrored, seen = False, set()
        while (
            name not in self.icons and isinstance(self.aliases.get(name), dict) and name not in seen
        ):
            seen.add(name)
            mirrored ^= self.aliases[name].get("hFlip") is True
            name = self.aliases[name].get("parent", "")
        icon = self.icons.get(name)
        if not isinstance(icon, dict) or not isinstance(icon.get("body"), str):
            raise ValueError("it has no drawing")
        body = check_svg(icon["body"], f"{self.path}: icon {name!r}")
        left, top, width, height = box = [
            icon.get(k, self.data.get(k, default))
            for k, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        ]
        if (
            not all(isinstance(v, int | float) and abs(v) < 1e5 for v in box)
            or min(width, height) <= 0
        ):
            raise ValueError("its size is not a number")
        if mirrored:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        side = max(width, height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}">{body}</svg>'
        )


def check_svg(body: str, label: str) -> str:
    """`body`, if it is only shapes, gradients and filters that point at nothing outside of it; else SensoriumError."""
    foreign = set(re.findall(r"<\s*/?([^\s/>]*)", body)) - _ALLOWED_ELEMENTS
    outside = re.search(r"href\s*=\s*(?![\"']#)|url\(\s*[\"']?(?!#)", body, re.IGNORECASE)
    if foreign or outside or len(body) > MAX_SVG_CHARS:
        why = (
            f"<{min(foreign)[:20]}>"
            if foreign
            else "a link out of the drawing"
            if outside
            else f"{len(body):,} characters"
        )
        raise SensoriumError(
            f"{label} holds {why}, which a drawing of an emoji has no use for; nothing was built."
        )
    return body


def import_renderer() -> Any:
    try:
        import resvg_py
    except ImportError as e:
        raise SensoriumError(
            'building the emoji set needs resvg-py: pip install "sensorium[emoji]"'
        ) from e
    return resvg_py


def rasterize_svg(svg: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3] on white. ValueError where the drawing is broken or blank."""
    png = import_renderer().svg_to_bytes(
        svg_string=svg, width=size, height=size, dpi=96, background="white", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png)), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (size, size, 3) or pixels.min() > 250:
        raise ValueError("it is blank")
    return pixels
