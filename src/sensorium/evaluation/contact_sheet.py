"""Contact sheets: rows of images with a text next to them."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

TEXT_WIDTH = 260  # pixels of the text column
CELL_SIZE = 72  # side of an image with its margin
MAX_LINE_CHARS, MAX_TEXT_LINES = 40, 4  # longer texts are wrapped, then cut


def draw_contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Draw one line for each (text, images), the text on the left."""
    num_columns = max((len(images) for _, images in rows), default=0)
    size = (TEXT_WIDTH + CELL_SIZE * num_columns, CELL_SIZE * max(1, len(rows)))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, images) in enumerate(rows):
        top = i * CELL_SIZE
        lines = textwrap.wrap(text, MAX_LINE_CHARS)[:MAX_TEXT_LINES]
        draw.text((8, top + CELL_SIZE // 2), "\n".join(lines), fill="black", anchor="lm")
        for j, image in enumerate(images):
            small = image.resize((CELL_SIZE - 8, CELL_SIZE - 8))
            sheet.paste(small, (TEXT_WIDTH + j * CELL_SIZE + 4, top + 4))
    return sheet


def add_frame(image: Image.Image, color: str = "green") -> Image.Image:
    """Return an image with a colored frame, as large as an image on a contact sheet."""
    return ImageOps.expand(image.resize((CELL_SIZE - 14, CELL_SIZE - 14)), 3, color)
