"""Sheets to look at while a model learns: words on the left, pictures beside them, a line each."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

TEXT_WIDTH, CELL_SIZE = 260, 72  # room for words, side of a picture with its margin
MAX_LINE_CHARS, MAX_TEXT_LINES = 40, 4  # letters in a line of words, and lines


def draw_contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """One line for each (words, pictures)."""
    across = max((len(pictures) for _, pictures in rows), default=0)
    drawn = Image.new(
        "RGB", (TEXT_WIDTH + CELL_SIZE * across, CELL_SIZE * max(1, len(rows))), "white"
    )
    pen = ImageDraw.Draw(drawn)
    for y, (words, pictures) in enumerate(rows):
        told = textwrap.wrap(words, MAX_LINE_CHARS)[:MAX_TEXT_LINES]
        pen.text((8, y * CELL_SIZE + CELL_SIZE // 2), "\n".join(told), fill="black", anchor="lm")
        for x, picture in enumerate(pictures):
            drawn.paste(
                picture.resize((CELL_SIZE - 8, CELL_SIZE - 8)),
                (TEXT_WIDTH + x * CELL_SIZE + 4, y * CELL_SIZE + 4),
            )
    return drawn


def add_frame(image: Image.Image, color: str = "green") -> Image.Image:
    """A picture in a frame, of the size of a cell's."""
    return ImageOps.expand(image.resize((CELL_SIZE - 14, CELL_SIZE - 14)), 3, color)
