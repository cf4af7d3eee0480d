"""Builds a set of emoji contact sheets (`emoji.py` reads it) from packages of drawings and names.

The embedded set was made with

    python -c "from sensorium.data.emoji_build import build_emoji; print(build_emoji('src/sensorium/data/embedded/emoji', size=32))"

and `sensorium data build emoji --full` makes the full one: ten styles, 28 languages, 64 pixels. Drawings are SVG from strangers:
only shapes, gradients and filters are let through to the rasteriser, nothing that could name a file or an address.
"""
import hashlib
import io
import json
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium import durable
from sensorium.data import emoji
from sensorium.data.emoji_names import Concept, Matcher, read_concepts, split_of
from sensorium.data.emoji_packages import LANGUAGES, NAMES, PERMISSIVE, STYLES, Opened, fetch, find, open_package
from sensorium.errors import SensoriumError

EMBEDDED_LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "ru", "ja", "zh")
ATTRIBUTION = "ATTRIBUTION.md"
MAX_DRAWING = 2 << 20               # characters; the longest known has 0.9 million
_ELEMENTS = frozenset("path circle ellipse rect line polygon polyline g defs use symbol clipPath mask linearGradient radialGradient "
                      "stop filter feFlood feBlend feColorMatrix feOffset feGaussianBlur feComposite".split())


@dataclass(frozen=True)
class Report:
    """What was built."""

    folder: Path
    size: int
    concepts: int
    families: int
    languages: tuple[str, ...]
    drawings: dict[str, int]                    # style -> how many
    splits: dict[str, int]
    neighbours: dict[str, emoji.Neighbour]      # artist -> how hard
    skipped: tuple[str, ...]                    # drawings left out, and why
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.folder}: {sum(self.drawings.values()):,} drawings of {self.concepts:,} concepts ({self.families:,} families), "
                 f"{len(self.languages)} languages, {self.size} pixels, {self.megabytes:.1f} MB, {self.seconds:.0f} s",
                 "  styles  " + ", ".join(f"{name} {n:,}" for name, n in self.drawings.items()),
                 "  splits  " + ", ".join(f"{name} {n:,}" for name, n in self.splits.items()),
                 *(f"  {artist:<18} found by pixels {n.same:.3f}, near twins {n.twin:.3f} of {n.drawings:,}"
                   for artist, n in self.neighbours.items()),
                 *(f"  skipped {what}" for what in self.skipped)]
        return "\n".join(lines)


def build_emoji(out: str | Path, *, full: bool = False, size: int = 64, languages: Sequence[str] | None = None, flags: bool = False,
                packages: str | Path | None = None, say: Callable[[str], object] = print) -> Report:
    """Build a set of contact sheets in the folder `out`, replacing a set that is there.

    full: all ten styles and 28 languages, two artists held out. Two styles are CC-BY-SA: use them, but do not ship them in a
    package of another licence. Otherwise: the eight styles under Apache-2.0, MIT or CC-BY-4.0, ten languages, one artist held out.
    size: pixels of a drawing's side. flags: also the 270 flags. packages: a folder with the tarballs; None: fetched with npm.
    Raises SensoriumError on a package that is missing, broken, unsafe or under another licence, and where `out` holds other files.
    """
    start, folder = time.monotonic(), Path(out)
    codes = _languages(languages or (LANGUAGES if full else EMBEDDED_LANGUAGES))
    if not 8 <= size <= emoji.MAX_SIZE:
        raise SensoriumError(f"size={size} is out of bounds; choose 8 to {emoji.MAX_SIZE} pixels.")
    _renderer()
    _claim(folder)
    styles = [style for style in STYLES if full or style.licence in PERMISSIVE]
    with tempfile.TemporaryDirectory() as work:
        if packages is None:
            say(f"fetching {len(styles) + 1} packages (about {36 if full else 31} MB)")
            fetch(Path(work), [NAMES, *styles])
        paths = find(Path(packages or work), [NAMES, *styles])
        names = open_package(paths[NAMES.name], NAMES, [f"{code}/data.json" for code in codes])
        sets = [open_package(paths[style.name], style, ["icons.json", "chars.json"]) for style in styles]
        concepts = read_concepts(names, codes, flags)
        stage = Path(work) / "set"
        stage.mkdir()
        sheets, skipped = _draw_all(stage, sets, concepts, size, say)
        (stage / emoji.CONCEPTS).write_bytes(b"".join(_line(concept) for concept in concepts))
        say("measuring how hard each artist is")
        header = emoji.Header(emoji.FORMAT, emoji.VERSION, size, _columns(concepts), len(concepts), list(codes), "", "", {}, sheets)
        header = _hold_out(stage, header, full)
        (stage / ATTRIBUTION).write_bytes(_attribution(names, header, full))
        _publish(stage, folder)
    return _report(folder, header, concepts, skipped, time.monotonic() - start)


def _languages(wanted: Sequence[str]) -> tuple[str, ...]:
    for code in wanted:
        if code not in LANGUAGES:
            raise SensoriumError(f"there are no emoji names in {code!r}; known are {', '.join(LANGUAGES)}.")
    return tuple(dict.fromkeys(["en", *wanted]))


def _claim(folder: Path) -> None:
    """See that `folder` is new, empty, or a set of sheets that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise SensoriumError(f"{folder} is a file; choose a new or empty folder.")
    ours = {emoji.HEADER, emoji.CONCEPTS, ATTRIBUTION}
    other = [p.name for p in folder.glob("*") if p.name not in ours and p.suffix not in (".webp", ".tmp")]
    if other:
        raise SensoriumError(f"{folder} holds other files ({', '.join(sorted(other)[:3])}); choose a new or empty folder.")


def _publish(stage: Path, folder: Path) -> None:
    """Put the finished set into `folder`. Its header goes first and comes back last: half a set is no set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.sweep(folder)
        for old in [folder / emoji.HEADER, *folder.glob("*.webp")]:
            old.unlink(missing_ok=True)
    except OSError as e:
        raise SensoriumError(f"could not write {folder}: {e.strerror or e}. Choose another place.") from e
    for path in sorted(stage.iterdir(), key=lambda p: (p.name == emoji.HEADER, p.name)):
        durable.write(folder / path.name, path.read_bytes())


def _columns(concepts: Sequence[Concept]) -> int:
    return math.ceil(math.sqrt(len(concepts)))


def _draw_all(stage: Path, sets: list[Opened], concepts: list[Concept], size: int,
              say: Callable[[str], object]) -> tuple[list[emoji.Sheet], list[str]]:
    """One sheet per set, written; and the drawings that could not be used, at most 1 % of them."""
    matcher, sheets, skipped = Matcher(concepts, sets), [], []
    for i, icons in enumerate(sets):
        about, left_out = icons.package, len(skipped)
        say(f"drawing {about.style} ({i + 1} of {len(sets)})")
        sheet = _draw(icons, matcher, concepts, size, skipped)
        drawings = sum(about.style in concept.styles for concept in concepts)
        if not drawings or len(skipped) - left_out > 0.01 * drawings + 1:
            raise SensoriumError(f"{icons.path}: {drawings} drawings could be used, {len(skipped) - left_out} could not "
                                 f"({'; '.join(skipped[left_out:][:3])}); fetch {about.name}@{about.version}.")
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=100, method=6)
        (stage / f"{about.style}.webp").write_bytes(buffer.getvalue())
        sheets.append(emoji.Sheet(about.style, about.artist, f"{about.style}.webp", hashlib.sha256(buffer.getvalue()).hexdigest(),
                                  drawings, about.name, icons.version, about.licence, about.author, about.project))
    return sheets, skipped


def _draw(icons: Opened, matcher: Matcher, concepts: list[Concept], size: int, skipped: list[str]) -> np.ndarray:
    """The sheet of one set, uint8 [rows * size, columns * size, 3]; says in each concept that this style draws it."""
    columns = _columns(concepts)
    sheet = np.full((-(-len(concepts) // columns) * size, columns * size, 3), 255, np.uint8)
    book = _Icons(icons)
    names = matcher.drawings(icons, book.names)
    for i, concept in enumerate(concepts):
        if concept.code not in names:
            continue
        name = names[concept.code]
        try:
            pixels = _rasterise(book.svg(name), size)
        except ValueError as e:
            skipped.append(f"{icons.package.style}/{name}: {e}")
            continue
        row, column = divmod(i, columns)
        sheet[row * size:(row + 1) * size, column * size:(column + 1) * size] = pixels
        concept.styles.append(icons.package.style)
    return sheet


class _Icons:
    """icons.json of one set: SVG bodies by name, and other names (sometimes mirrored) for them."""

    def __init__(self, icons: Opened):
        book: Any = icons.json("icons.json")
        self.path, self.book = icons.path, book
        if not isinstance(book, dict) or not all(isinstance(book.get(k, {}), dict) for k in ("icons", "aliases")):
            raise SensoriumError(f"{icons.path}: icons.json is not a set of icons; fetch {icons.package.name} again.")
        self.icons, self.aliases = book.get("icons", {}), book.get("aliases", {})
        self.names = [*self.icons, *self.aliases]

    def svg(self, name: str) -> str:
        """The drawing on a square canvas. Raises ValueError on one that cannot be drawn, SensoriumError on an unsafe one."""
        mirrored, seen = False, set()
        while name not in self.icons and isinstance(self.aliases.get(name), dict) and name not in seen:
            seen.add(name)
            mirrored ^= self.aliases[name].get("hFlip") is True
            name = self.aliases[name].get("parent", "")
        icon = self.icons.get(name)
        if not isinstance(icon, dict) or not isinstance(icon.get("body"), str):
            raise ValueError("it has no drawing")
        body = safe_drawing(icon["body"], f"{self.path}: icon {name!r}")
        left, top, width, height = (icon.get(k, self.book.get(k, default)) for k, default in
                                    (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
        if not all(isinstance(v, int | float) and abs(v) < 1e5 for v in (left, top, width, height)) or min(width, height) <= 0:
            raise ValueError("its size is not a number")
        if mirrored:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        side = max(width, height)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}">{body}</svg>')


def safe_drawing(body: str, what: str) -> str:
    """`body` itself, if it holds only shapes, gradients and filters that point at nothing outside of it; else SensoriumError."""
    foreign = set(re.findall(r"<\s*/?([^\s/>]*)", body)) - _ELEMENTS
    outside = re.search(r"href\s*=\s*(?![\"']#)|url\(\s*[\"']?(?!#)", body, re.IGNORECASE)
    if foreign or outside or len(body) > MAX_DRAWING:
        why = f"<{min(foreign)[:20]}>" if foreign else "a link out of the drawing" if outside else f"{len(body):,} characters"
        raise SensoriumError(f"{what} holds {why}, which a drawing of an emoji has no use for; nothing of this package was used.")
    return body


def _renderer() -> Any:
    try:
        import resvg_py
    except ImportError as e:
        raise SensoriumError('building the emoji set needs resvg-py: pip install "sensorium[emoji]"') from e
    return resvg_py


def _rasterise(svg: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3] on white. ValueError where the drawing is broken or blank."""
    png = _renderer().svg_to_bytes(svg_string=svg, width=size, height=size, dpi=96, background="white", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png)), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (size, size, 3) or pixels.min() > 250:
        raise ValueError("it is blank")
    return pixels


def _line(concept: Concept) -> bytes:
    values = {**asdict(concept), "split": split_of(concept.family)}
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def _hold_out(stage: Path, header: emoji.Header, full: bool) -> emoji.Header:
    """Write the header, with the artist held out (in the full set: the two) that pixels find least, and how hard all are."""
    durable.write_json(stage / emoji.HEADER, asdict(header))
    neighbours = emoji.pixel_neighbour(emoji.open_sheets(stage, languages=["en"]))
    ranked = sorted(neighbours, key=lambda artist: neighbours[artist].same)
    header = replace(header, neighbours={artist: asdict(neighbours[artist]) for artist in ranked},
                     test_artist=ranked[0] if len(ranked) > 1 else "", val_artist=ranked[1] if full and len(ranked) > 2 else "")
    durable.write_json(stage / emoji.HEADER, asdict(header))
    return header


def _report(folder: Path, header: emoji.Header, concepts: list[Concept], skipped: list[str], seconds: float) -> Report:
    table = emoji.open_sheets(folder, languages=["en"], captions="label")
    return Report(
        folder, header.size, len(concepts), len({c.family for c in concepts}), tuple(header.languages),
        {s.style: s.drawings for s in header.sheets}, dict(Counter(table.columns["split"])),
        {artist: emoji.Neighbour(**hard) for artist, hard in header.neighbours.items()}, tuple(skipped),
        sum(p.stat().st_size for p in folder.iterdir()) / 1e6, seconds)


def _attribution(names: Opened, header: emoji.Header, full: bool) -> bytes:
    rows = [f"| `{s.file}` | {s.author} | <{s.project}> | {s.licence} | `{s.package}` {s.version} | {s.drawings:,} |"
            for s in header.sheets]
    hard = [f"| {artist} | {n['drawings']:,} | {n['same']:.3f} | {n['twin']:.3f} |" for artist, n in header.neighbours.items()]
    return _ATTRIBUTION.format(
        size=header.size, rows="\n".join(rows), hard="\n".join(hard), test=header.test_artist or "nobody",
        val=f" for tests and {header.val_artist} for validation" if header.val_artist else "",
        names=f"`{NAMES.name}` {names.version}, {NAMES.author}, <{NAMES.project}>, {NAMES.licence}",
        languages=", ".join(header.languages), warning=_SHARE_ALIKE if full else "",
        notices=(emoji.EMBEDDED.parent / "NOTICES.md").read_text("utf-8")).encode()


_SHARE_ALIKE = """
**The CC-BY-SA sheets are share-alike.** Use them as you like, but what you publish of them stays under CC-BY-SA-4.0.
"""
_ATTRIBUTION = """# Whose work this is

Drawings of emoji by several artists, and their names and keywords in {languages}. `sensorium data build emoji` made these
files from the packages below. **Changed**: each drawing was rasterised from SVG to {size} x {size} pixels on white, and placed on one
sheet per style; names and keywords were put together per emoji in `concepts.jsonl`. Nothing was redrawn. None of the authors
endorses this use.

| sheet | author | project | licence | package | drawings |
|---|---|---|---|---|---|
{rows}

Names and keywords (`concepts.jsonl`): {names}, from Unicode CLDR, (c) Unicode, Inc., Unicode-3.0.
{warning}
## How hard each artist is

Share of an artist's drawings whose nearest neighbour in pixels among all other artists' shows the same concept, and share with a
near twin there (cosine above 0.95), both at 32 pixels. The lowest is the hardest; held out is {test}{val}.

| artist | drawings | found by pixels | near twins |
|---|---|---|---|
{hard}

{notices}"""
