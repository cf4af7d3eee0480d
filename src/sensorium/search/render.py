"""Render search results as a contact sheet (PNG) or a self-contained HTML page."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from sensorium.errors import SensoriumError, escape_html
from sensorium.io import atomic
from sensorium.search.results import MAX_CAPTIONS_SHOWN, THUMBNAIL_SIZE, Hit, SearchResult

CELL_GAP_PX = 16
CAPTION_HEIGHT_PX = 40
HEADING_HEIGHT_PX = 36
CELL_PX = THUMBNAIL_SIZE + CELL_GAP_PX
ROW_PX = THUMBNAIL_SIZE + CAPTION_HEIGHT_PX + CELL_GAP_PX
QUERY_THUMBNAIL_PX = 24
IMAGES_PER_ROW = 6
MAX_TEXT_CHARS = 200
TEXT_COLOR = "#1c1b22"
MUTED_COLOR = "#77757f"
BACKGROUND_COLOR = "#f6f5f2"
CARD_COLOR = "#ffffff"
BASE_CSS = """
:root{color-scheme:light dark;--ink:#1c1b22;--pale:#77757f;--paper:#f6f5f2;--card:#fff;
--line:#e6e3dc;--bar:#5b5bd6}
@media(prefers-color-scheme:dark){:root{--ink:#ecebf0;--pale:#9b99a3;--paper:#16151a;--card:#211f27;
--line:#34323c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 80px}section{margin:0 0 48px}
h1{font-size:15px;font-weight:600;color:var(--pale);margin:0 0 28px}
h2{display:flex;gap:14px;align-items:center;font-size:24px;line-height:1.2;margin:0 0 18px;
overflow-wrap:anywhere}
h2 img{width:56px;height:56px}ol{list-style:none;margin:0;padding:0;display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(168px,1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px;min-width:0}
img,.none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff;
border-radius:8px}
.none{display:grid;place-items:center;background:var(--paper);color:var(--pale)}
.score{display:flex;gap:8px;align-items:center;margin:12px 0 6px;font-size:13px;
font-variant-numeric:tabular-nums}
.score i{height:4px;border-radius:2px;background:var(--bar)}p{margin:0;overflow-wrap:anywhere}
.name{color:var(--pale);font-size:12px;margin-top:4px}
"""


def save_results(results: Sequence[SearchResult], path: str | Path) -> None:
    """Write results as a contact sheet (.png) or a self-contained page (.html).

    Raises:
        SensoriumError: the file has another suffix, or cannot be written.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".png":
            content = render_contact_sheet(results)
        case ".html":
            content = render_html(results).encode()
        case _:
            raise SensoriumError(f"{path} must end in .png or .html. Rename it.")
    atomic.write_file(path, content)


def render_html(results: Sequence[SearchResult]) -> str:
    """Return one HTML page with embedded images; all text from the data is escaped."""
    sections = "".join(render_section(result) for result in results)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{BASE_CSS}</style></head>"
        f"<body><main><h1>Sensorium search</h1>{sections}</main></body></html>\n"
    )


def render_section(result: SearchResult) -> str:
    """Return the HTML of one result."""
    query_image = ""
    if result.query_thumbnail:
        query_image = _img_tag(result.query_thumbnail, "query image")
    hits = zip(result.hits, result.thumbnails, strict=True)
    cards = "".join(_render_card(hit, png) for hit, png in hits)
    heading = f"<h2>{query_image}{escape_html(result.query)}</h2>"
    return f"<section>{heading}<ol>{cards or '<li>no results</li>'}</ol></section>"


def render_contact_sheet(results: Sequence[SearchResult]) -> bytes:
    """Return a PNG: for each result a heading and its hits, best first."""
    heights = [
        HEADING_HEIGHT_PX + math.ceil(max(len(result), 1) / IMAGES_PER_ROW) * ROW_PX
        for result in results
    ]
    size = (CELL_GAP_PX + IMAGES_PER_ROW * CELL_PX, CELL_GAP_PX + sum(heights))
    image = PIL.Image.new("RGB", size, BACKGROUND_COLOR)
    draw = PIL.ImageDraw.Draw(image)
    top = CELL_GAP_PX
    for result, height in zip(results, heights, strict=True):
        _draw_heading(image, draw, top, result)
        for i, (hit, png) in enumerate(zip(result.hits, result.thumbnails, strict=True)):
            row, column = divmod(i, IMAGES_PER_ROW)
            x = CELL_GAP_PX + column * CELL_PX
            y = top + HEADING_HEIGHT_PX + row * ROW_PX
            _draw_cell(image, draw, (x, y), hit, png)
        top += height
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _render_card(hit: Hit, png: bytes) -> str:
    """Return the HTML of one hit."""
    captions = "; ".join(hit.info.captions[:MAX_CAPTIONS_SHOWN])
    image = _img_tag(png, captions) if png else '<div class="none">no image</div>'
    width = max(0.0, min(hit.score, 1.0)) * 70
    bar = f'<i style="width:{width:.0f}%"></i>'
    return (
        f'<li>{image}<div class="score">{bar}{hit.score:.3f}</div><p>{escape_html(captions)}</p>'
        f'<p class="name">{escape_html(hit.info.name)}</p></li>'
    )


def _img_tag(png: bytes, alt_text: str) -> str:
    """Return an <img> with the PNG inside."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape_html(alt_text)}" src="data:image/png;base64,{data}">'


def _draw_heading(
    image: PIL.Image.Image, draw: PIL.ImageDraw.ImageDraw, top: int, result: SearchResult
) -> None:
    """Draw the query above its hits."""
    left = CELL_GAP_PX
    if result.query_thumbnail:
        size = (QUERY_THUMBNAIL_PX, QUERY_THUMBNAIL_PX)
        image.paste(_open_png(result.query_thumbnail).resize(size), (left, top))
        left += QUERY_THUMBNAIL_PX + 8
    text = _truncate_text(result.query, image.width - left - CELL_GAP_PX, 16)
    draw.text((left, top + 3), text, TEXT_COLOR, _font(16))


def _draw_cell(
    image: PIL.Image.Image,
    draw: PIL.ImageDraw.ImageDraw,
    position: tuple[int, int],
    hit: Hit,
    png: bytes,
) -> None:
    """Draw one hit: its thumbnail, caption and score."""
    x, y = position
    bottom = y + THUMBNAIL_SIZE
    card = (x - 4, y - 4, x + THUMBNAIL_SIZE + 4, bottom + CAPTION_HEIGHT_PX)
    draw.rounded_rectangle(card, 8, CARD_COLOR)
    if png:
        image.paste(_open_png(png), position)
    caption = "; ".join(hit.info.captions) or hit.info.name
    draw.text((x, bottom + 4), _truncate_text(caption, THUMBNAIL_SIZE, 12), TEXT_COLOR, _font(12))
    draw.text((x, bottom + 20), f"{hit.score:.3f}", MUTED_COLOR, _font(12))


def _open_png(png: bytes) -> PIL.Image.Image:
    """Return an image; only PNG is decoded."""
    return PIL.Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")


def _truncate_text(text: str, max_width: int, font_size: int) -> str:
    """Return as much of a text as fits on one line."""
    text = " ".join(text.split())[:MAX_TEXT_CHARS]
    font = _font(font_size)
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> Any:
    """Return Pillow's built-in font."""
    return PIL.ImageFont.load_default(size)
