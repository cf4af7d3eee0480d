"""Contact sheets: rows of images with a text next to them."""

import textwrap
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

TEXT_WIDTH = 260  # pixels of the text column
CELL_SIZE = 72  # side of an image with its margin
MAX_LINE_CHARS, MAX_TEXT_LINES = 40, 4  # longer texts are wrapped, then cut
FONT_SIZE, LINE_HEIGHT = 12, 15
NO_FONT_NOTE = "[no font here has the letters of this text]"


def draw_contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Draw one line for each (text, images), the text on the left.

    In place of a text whose letters no font on this machine has, a note says so.
    """
    num_columns = max((len(images) for _, images in rows), default=0)
    size = (TEXT_WIDTH + CELL_SIZE * num_columns, CELL_SIZE * max(1, len(rows)))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, images) in enumerate(rows):
        top = i * CELL_SIZE
        _draw_text(draw, text, top)
        for j, image in enumerate(images):
            small = image.resize((CELL_SIZE - 8, CELL_SIZE - 8))
            sheet.paste(small, (TEXT_WIDTH + j * CELL_SIZE + 4, top + 4))
    return sheet


def _draw_text(draw: ImageDraw.ImageDraw, text: str, top: int) -> None:
    """Draw the lines of a text in the middle of a row of images."""
    from sensorium.io.fonts import MAX_TEXT_CHARS, clean_text, fit_line  # for sheets alone

    cleaned = clean_text(text[:MAX_TEXT_CHARS])
    is_wide = any(unicodedata.east_asian_width(c) in "WF" for c in cleaned)
    max_chars = MAX_LINE_CHARS // 2 if is_wide else MAX_LINE_CHARS
    wrapped = textwrap.wrap(cleaned, max_chars)[:MAX_TEXT_LINES]
    lines = [fit_line(line, FONT_SIZE, TEXT_WIDTH - 12) for line in wrapped]
    color = "black"
    if any(line is None for line in lines):
        lines, color = [fit_line(NO_FONT_NOTE, FONT_SIZE, TEXT_WIDTH - 12)], "#77757f"
    y = top + (CELL_SIZE - LINE_HEIGHT * len(lines)) // 2
    for line in lines:
        if line is not None:
            line.draw(draw, (8, y), color)
        y += LINE_HEIGHT


def add_frame(image: Image.Image, color: str = "green") -> Image.Image:
    """Return an image with a colored frame, as large as an image on a contact sheet."""
    return ImageOps.expand(image.resize((CELL_SIZE - 14, CELL_SIZE - 14)), 3, color)
