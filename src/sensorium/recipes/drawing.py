"""Sheets to look at while a model learns: words on the left, pictures beside them, a line each."""
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

LEFT, CELL = 260, 72                        # room for words, side of a picture with its margin
WIDE, HIGH = 40, 4                          # letters in a line of words, and lines


def sheet(lines: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """One line for each (words, pictures)."""
    across = max((len(pictures) for _, pictures in lines), default=0)
    drawn = Image.new("RGB", (LEFT + CELL * across, CELL * max(1, len(lines))), "white")
    pen = ImageDraw.Draw(drawn)
    for y, (words, pictures) in enumerate(lines):
        told = textwrap.wrap(words, WIDE)[:HIGH]
        pen.text((8, y * CELL + CELL // 2), "\n".join(told), fill="black", anchor="lm")
        for x, picture in enumerate(pictures):
            drawn.paste(picture.resize((CELL - 8, CELL - 8)), (LEFT + x * CELL + 4, y * CELL + 4))
    return drawn


def framed(picture: Image.Image, colour: str = "green") -> Image.Image:
    """A picture in a frame, of the size of a cell's."""
    return ImageOps.expand(picture.resize((CELL - 14, CELL - 14)), 3, colour)
