"""Draw the contact sheet of one style from the SVG of its package.

The SVG is untrusted, and the rasteriser would read any file that it names. Only shapes, gradients
and filters are allowed, and only links within the drawing; anything else stops the build.
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

MAX_SVG_CHARS = 2 << 20  # the longest known drawing has 0.9 million
_ALLOWED_ELEMENTS = {
    *("path", "circle", "ellipse", "rect", "line", "polygon", "polyline", "g", "defs", "use"),
    *("symbol", "clipPath", "mask", "linearGradient", "radialGradient", "stop", "filter"),
    *("feFlood", "feBlend", "feColorMatrix", "feOffset", "feGaussianBlur", "feComposite"),
}


def num_sheet_columns(concepts: Sequence[Concept]) -> int:
    """Return how many drawings are in a row of a sheet, so that it is about square."""
    return math.ceil(math.sqrt(len(concepts)))


def draw_sheet(
    icon_package: PackageContents,
    matcher: ConceptMatcher,
    concepts: list[Concept],
    size: int,
    skipped: list[str],
) -> np.ndarray:
    """Draw the sheet of one style, and add the style to each concept that it draws.

    Args:
        icon_package: the package of the style.
        matcher: finds the icon of each concept.
        concepts: all concepts; each has the same cell on every sheet.
        size: side of a drawing in pixels.
        skipped: drawings that cannot be used are added to it, with the reason.

    Returns:
        uint8 [rows * size, columns * size, 3].
    """
    columns = num_sheet_columns(concepts)
    sheet = np.full((-(-len(concepts) // columns) * size, columns * size, 3), 255, np.uint8)
    icons = IconSet(icon_package)
    names = matcher.match_icons(icon_package, icons.names)
    for i, concept in enumerate(concepts):
        if concept.code not in names:
            continue
        name = names[concept.code]
        try:
            pixels = rasterize_svg(icons.build_svg(name), size)
        except ValueError as e:
            skipped.append(f"{icon_package.package.style}/{name}: {e}")
            continue
        row, column = divmod(i, columns)
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = pixels
        concept.styles.append(icon_package.package.style)
    return sheet


class IconSet:
    """The file icons.json of a package: SVG bodies by name, and aliases, some of them mirrored.

    Args:
        icon_package: the package.

    Raises:
        SensoriumError: if the file is missing or malformed.
    """

    def __init__(self, icon_package: PackageContents):
        data: Any = icon_package.load_json("icons.json")
        self.path = icon_package.path
        if not isinstance(data, dict) or not all(
            isinstance(data.get(key, {}), dict) for key in ("icons", "aliases")
        ):
            raise SensoriumError(
                f"{icon_package.path}: icons.json is not a set of icons. "
                f"Fetch {icon_package.package.name} again."
            )
        self.data = data
        self.icons = data.get("icons", {})
        self.aliases = data.get("aliases", {})
        self.names = [*self.icons, *self.aliases]

    def build_svg(self, name: str) -> str:
        """Return a drawing on a square canvas.

        Raises:
            ValueError: if it cannot be drawn.
            SensoriumError: if it is unsafe.
        """
        name, mirrored = self._resolve_alias(name)
        icon = self.icons.get(name)
        if not isinstance(icon, dict) or not isinstance(icon.get("body"), str):
            raise ValueError("it has no drawing")
        body = check_svg(icon["body"], f"{self.path}: icon {name!r}")
        defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
        box = [icon.get(key, self.data.get(key, value)) for key, value in defaults.items()]
        left, top, width, height = box
        if (
            not all(isinstance(value, int | float) and abs(value) < 1e5 for value in box)
            or min(width, height) <= 0
        ):
            raise ValueError("its size is not a number")
        if mirrored:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        side = max(width, height)
        view_box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{view_box}">{body}</svg>'
        )

    def _resolve_alias(self, name: str) -> tuple[str, bool]:
        """The icon behind a name, and whether it is mirrored."""
        mirrored = False
        visited = set()
        while (
            name not in self.icons
            and isinstance(self.aliases.get(name), dict)
            and name not in visited
        ):
            visited.add(name)
            mirrored ^= self.aliases[name].get("hFlip") is True
            name = self.aliases[name].get("parent", "")
        return name, mirrored


def check_svg(body: str, label: str) -> str:
    """Return an SVG body if it holds only allowed elements, and no link out of the drawing.

    Args:
        body: the SVG inside of `<svg>`.
        label: what the drawing is called in errors.

    Raises:
        SensoriumError: if it holds anything else.
    """
    foreign = set(re.findall(r"<\s*/?([^\s/>]*)", body)) - _ALLOWED_ELEMENTS
    fault = None
    if foreign:
        fault = f"<{min(foreign)[:20]}>"
    elif re.search(r"href\s*=\s*(?![\"']#)|url\(\s*[\"']?(?!#)", body, re.IGNORECASE):
        fault = "a link out of the drawing"
    elif len(body) > MAX_SVG_CHARS:
        fault = f"{len(body):,} characters"
    if fault is not None:
        raise SensoriumError(
            f"{label} holds {fault}, which a drawing of an emoji does not need. Nothing was built."
        )
    return body


def import_renderer() -> Any:
    """Return the module resvg_py.

    Raises:
        SensoriumError: if it is not installed.
    """
    try:
        import resvg_py
    except ImportError as e:
        raise SensoriumError(
            'Building the emoji set needs resvg-py: pip install "sensorium[emoji]".'
        ) from e
    return resvg_py


def rasterize_svg(svg: str, size: int) -> np.ndarray:
    """Return a drawing on white as uint8 [size, size, 3].

    Raises:
        ValueError: if it is broken or blank.
    """
    png = import_renderer().svg_to_bytes(
        svg_string=svg, width=size, height=size, dpi=96, background="white", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png)), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (size, size, 3) or pixels.min() > 250:
        raise ValueError("it is blank")
    return pixels
