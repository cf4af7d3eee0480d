"""Draw text of any script into an image with a font that has all its letters, or not at all.

Pillow's own font has Latin letters only and draws a box for every other one. So each text is drawn
with the first of these that has all its glyphs: Pillow's font, then fonts of the system (those that
fontconfig names for the letters, or else those in the usual folders). A text without such a font
is split into runs of one font each. Scripts whose letters join, turn the direction or carry marks
are drawn by Pillow's Raqm layout alone; without it they are not drawn.
"""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

MAX_TEXT_CHARS = 200  # longer texts are cut before they are measured
MAX_FONT_FILES = 400  # files of the usual folders that are looked at
_MAX_QUERIED_CHARS = 64  # different letters in a question to fontconfig
_NO_CHARACTER = "\U0010ffff"  # no font has it: what is drawn for it is the box
_JOINERS = "\u200c\u200d"  # marks that join letters or keep them apart, without a glyph
_TIMEOUT_SECONDS = 10
_FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_PREFERRED_NAMES = ("notosans", "dejavusans", "arialunicode", "arial", "liberationsans", "freesans")

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class TextLine:
    """One line of text that can be drawn.

    Attributes:
        runs: text and font of each part, from left to right.
    """

    runs: tuple[tuple[str, Font], ...]

    @property
    def width(self) -> float:
        """Its width in pixels."""
        return sum(font.getlength(text) for text, font in self.runs)

    def draw(self, draw: ImageDraw.ImageDraw, position: tuple[float, float], color: str) -> None:
        """Draw it, with all runs on one baseline.

        Args:
            draw: what to draw on.
            position: its left end, and the top of its line.
            color: color of the text.
        """
        x, top = position
        baseline = top + max((font.size for _, font in self.runs), default=0)
        for text, font in self.runs:
            draw.text((x, baseline), text, color, font, anchor="ls")
            x += font.getlength(text)


def fit_line(text: str, size: int, max_width: float) -> TextLine | None:
    """Return as much of a text as fits on one line, or None where no font has its letters.

    Args:
        text: the text; white space is collapsed, and marks that are not drawn are left out.
        size: height of the font in pixels.
        max_width: width in pixels.
    """
    cleaned = clean_text(text)
    line = layout_text(cleaned, size)
    if line is None or line.width <= max_width:
        return line
    low, high = 0, len(cleaned)  # characters: the longest beginning that fits with an ellipsis
    while low < high:
        middle = (low + high + 1) // 2
        candidate = layout_text(cleaned[:middle].rstrip() + "…", size)
        if candidate is not None and candidate.width <= max_width:
            low = middle
        else:
            high = middle - 1
    return layout_text(cleaned[:low].rstrip() + "…", size)


def clean_text(text: str) -> str:
    """Return a text on one line, composed, without control marks and other invisible ones."""
    composed = unicodedata.normalize("NFC", text[: 2 * MAX_TEXT_CHARS])
    visible = (c for c in composed if c.isspace() or not _is_invisible(c))
    return " ".join("".join(visible).split())[:MAX_TEXT_CHARS]


def layout_text(text: str, size: int) -> TextLine | None:
    """Return a cleaned text with the fonts to draw it, or None where some letter has no font."""
    if needs_shaping(text) and not _has_shaping():
        return None
    font = _find_font(_letters(text), size)
    if font is not None:
        return TextLine(((text, font),))
    if any(map(_is_right_to_left, text)):  # runs would have to be reordered
        return None
    runs = list(_split_runs(text, size))
    if any(font is None for _, font in runs):
        return None
    return TextLine(tuple((run, font) for run, font in runs if font is not None))


def needs_shaping(text: str) -> bool:
    """Return whether letters of a text join, carry marks or run from right to left."""
    return any(
        _is_right_to_left(c)
        or unicodedata.category(c) in ("Mn", "Mc", "Me")
        or 0x0900 <= ord(c) <= 0x109F  # Indic scripts, Thai, Lao, Tibetan, Burmese
        or 0x1700 <= ord(c) <= 0x18AF  # Philippine scripts, Khmer, Mongolian
        or 0x1900 <= ord(c) <= 0x1AAF  # Limbu to Tai Tham
        or 0x1B00 <= ord(c) <= 0x1C4F  # Balinese to Lepcha
        or 0xA800 <= ord(c) <= 0xA8FF
        or 0xA930 <= ord(c) <= 0xA95F
        or 0xA980 <= ord(c) <= 0xAADF
        or 0xABC0 <= ord(c) <= 0xABFF
        or 0x11000 <= ord(c) <= 0x11FFF
        for c in text
    )


def _is_invisible(character: str) -> bool:
    """Return whether a character draws nothing: controls, marks of direction, variants."""
    if character in _JOINERS:
        return False
    is_variant = 0xFE00 <= ord(character) <= 0xFE0F
    return is_variant or unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _letters(text: str) -> frozenset[str]:
    """Return the characters of a text that need a glyph."""
    return frozenset(text) - {" ", *_JOINERS}


def _is_right_to_left(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL", "AN")


def _split_runs(text: str, size: int) -> Iterator[tuple[str, Font | None]]:
    """Yield the parts of a text that one font has, with that font.

    Words with joined letters or marks stay whole; others may be split between letters.
    """
    run, font = "", None
    for word in re.findall(r" |[^ ]+", text):
        for part in [word] if needs_shaping(word) else word:
            letters = _letters(part)
            if run and font is not None and has_glyphs(font, letters):
                run += part
                continue
            if run:
                yield run, font
            run, font = part, _find_font(letters, size)
    if run:
        yield run, font


@lru_cache(maxsize=1)
def _has_shaping() -> bool:
    return bool(features.check("raqm"))


@lru_cache(maxsize=4096)
def _find_font(characters: frozenset[str], size: int) -> Font | None:
    """Return a font with all these characters, or None."""
    default = default_font(size)
    if default is not None and has_glyphs(default, characters):
        return default
    for path, index in _candidates(characters):
        font = _open_font(path, index, size)
        if font is not None and has_glyphs(font, characters):
            return font
    return None


def default_font(size: int) -> Font | None:
    """Return Pillow's own font; None where Pillow was built without FreeType."""
    font = _load_default(size)
    return font if isinstance(font, Font) else None


@lru_cache(maxsize=16)
def _load_default(size: int) -> object:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _open_font(path: str, index: int, size: int) -> Font | None:
    """Return a font, or None where Pillow cannot draw with it (such as color bitmaps)."""
    try:
        return ImageFont.truetype(path, size, index)
    except OSError:
        return None


def has_glyphs(font: Font, characters: Sequence[str] | frozenset[str] | set[str]) -> bool:
    """Return whether a font draws each character by a glyph that is not its box, and not blank."""
    return all(_has_glyph(font, character) for character in characters)


@lru_cache(maxsize=65536)
def _has_glyph(font: Font, character: str) -> bool:
    drawn = _draw_glyph(font, character)
    return drawn[1] != b"" and drawn != _draw_glyph(font, _NO_CHARACTER)


def _draw_glyph(font: Font, character: str) -> tuple[float, bytes]:
    """Return advance and pixels of a character, without shaping."""
    left, top, right, bottom = map(int, font.getbbox(character))
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), character, 255, font)
    return font.getlength(character), image.tobytes() if image.getbbox() else b""


@lru_cache(maxsize=1024)
def _candidates(characters: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """Return files of fonts that may have these characters, and their number in the file."""
    command = shutil.which("fc-match")
    if command is None:
        return tuple((path, 0) for path in _font_files())
    codes = sorted(f"{ord(c):x}" for c in characters)[:_MAX_QUERIED_CHARS]
    pattern = f"sans:charset={' '.join(codes)}"
    arguments = [command, "-s", "-f", "%{file}\t%{index}\n", pattern]
    try:
        done = subprocess.run(
            arguments, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ()
    lines = [line.rpartition("\t") for line in done.stdout.splitlines()]
    found = ((path, int(index)) for path, tab, index in lines if tab and index.isdigit())
    return tuple(found)[:MAX_FONT_FILES]


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Return the fonts in the usual folders, those of many scripts first."""
    folders = [Path(folder).expanduser() for folder in _font_folders()]
    files = [
        f"{root}{os.sep}{name}"
        for folder in folders
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_FONT_SUFFIXES)
    ]
    return tuple(sorted(files, key=_font_order)[:MAX_FONT_FILES])


def _font_folders() -> list[str]:
    if sys.platform == "darwin":
        return ["/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"]
    if sys.platform == "win32":
        windows = os.environ.get("WINDIR", "C:\\Windows")
        return [f"{windows}\\Fonts", "~\\AppData\\Local\\Microsoft\\Windows\\Fonts"]
    return ["/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"]


def _font_order(path: str) -> tuple[bool, bool, str]:
    """Return a sort key: regular weights of well-known sans-serif fonts first."""
    name = Path(path).stem.lower().replace("-", "").replace("_", "").replace(" ", "")
    known = name.startswith(_PREFERRED_NAMES)
    return (not known, not (name.endswith("regular") or name in _PREFERRED_NAMES), name)
