"""Answers to look at: a contact sheet (PNG), or one HTML page that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.search.results import THUMBNAIL_SIZE, Hit, SearchResult

CELL_GAP_PX, CAPTION_HEIGHT_PX, HEADING_HEIGHT_PX = (
    16,
    40,
    36,
)  # pixels: between cells, under a picture, above a row
IMAGES_PER_ROW = 6  # pictures in a row
TEXT_COLOR, MUTED_COLOR, BACKGROUND_COLOR, CARD_COLOR = "#1c1b22", "#77757f", "#f6f5f2", "#ffffff"
BASE_CSS = """
:root{color-scheme:light dark;--ink:#1c1b22;--pale:#77757f;--paper:#f6f5f2;--card:#fff;--line:#e6e3dc;--bar:#5b5bd6}
@media(prefers-color-scheme:dark){:root{--ink:#ecebf0;--pale:#9b99a3;--paper:#16151a;--card:#211f27;--line:#34323c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 80px}section{margin:0 0 48px}
h1{font-size:15px;font-weight:600;color:var(--pale);margin:0 0 28px}
h2{display:flex;gap:14px;align-items:center;font-size:24px;line-height:1.2;margin:0 0 18px;overflow-wrap:anywhere}
h2 img{width:56px;height:56px}ol{list-style:none;margin:0;padding:0;display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(168px,1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px;min-width:0}
img,.none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff;border-radius:8px}
.none{display:grid;place-items:center;background:var(--paper);color:var(--pale)}
.score{display:flex;gap:8px;align-items:center;margin:12px 0 6px;font-variant-numeric:tabular-nums;font-size:13px}
.score i{height:4px;border-radius:2px;background:var(--bar)}p{margin:0;overflow-wrap:anywhere}
.name{color:var(--pale);font-size:12px;margin-top:4px}
"""


def save_results(results: Sequence[SearchResult], path: str | Path) -> None:
    """Write a .png or an .html; raises SensoriumError for another ending."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".png", ".html"):
        raise SensoriumError(
            f"{path}: answers are drawn as .png or .html; give the file one of these endings."
        )
    atomic.write_file(
        path, render_contact_sheet(results) if ending == ".png" else render_html(results).encode()
    )


def render_html(results: Sequence[SearchResult]) -> str:
    """One page of HTML, pictures inside it; whatever comes from data is escaped."""
    sections = "".join(render_section(answer) for answer in results)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{BASE_CSS}</style></head>'
        f"<body><main><h1>Sensorium search</h1>{sections}</main></body></html>\n"
    )


def render_contact_sheet(results: Sequence[SearchResult]) -> bytes:
    """A PNG: for each query a heading and its answers, six across, best first."""
    deep = [
        HEADING_HEIGHT_PX
        + -(-max(len(a), 1) // IMAGES_PER_ROW) * (THUMBNAIL_SIZE + CAPTION_HEIGHT_PX + CELL_GAP_PX)
        for a in results
    ]
    picture = PIL.Image.new(
        "RGB",
        (CELL_GAP_PX + IMAGES_PER_ROW * (THUMBNAIL_SIZE + CELL_GAP_PX), CELL_GAP_PX + sum(deep)),
        BACKGROUND_COLOR,
    )
    pen, top = PIL.ImageDraw.Draw(picture), CELL_GAP_PX
    for answer, depth in zip(results, deep, strict=True):
        left = CELL_GAP_PX
        if answer.query_thumbnail:
            picture.paste(_open_png(answer.query_thumbnail).resize((24, 24)), (left, top))
            left += 32
        pen.text(
            (left, top + 3),
            _truncate_text(answer.query, picture.width - left - CELL_GAP_PX, 16),
            TEXT_COLOR,
            _font(16),
        )
        for i, (hit, png) in enumerate(zip(answer.hits, answer.thumbnails, strict=True)):
            at = (
                CELL_GAP_PX + i % IMAGES_PER_ROW * (THUMBNAIL_SIZE + CELL_GAP_PX),
                top
                + HEADING_HEIGHT_PX
                + i // IMAGES_PER_ROW * (THUMBNAIL_SIZE + CAPTION_HEIGHT_PX + CELL_GAP_PX),
            )
            _draw_cell(picture, pen, at, hit, png)
        top += depth
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def render_section(result: SearchResult) -> str:
    asked = (
        _img_tag(result.query_thumbnail, "the picture asked with") if result.query_thumbnail else ""
    )
    cards = "".join(
        _render_card(hit, png) for hit, png in zip(result.hits, result.thumbnails, strict=True)
    )
    return f"<section><h2>{asked}{html.escape(result.query)}</h2><ol>{cards or '<li>nothing found</li>'}</ol></section>"


def _render_card(hit: Hit, png: bytes) -> str:
    words = "; ".join(hit.info.captions[:3])
    picture = _img_tag(png, words) if png else '<div class="none">no picture</div>'
    bar = f'<i style="width:{max(0.0, min(hit.score, 1.0)) * 70:.0f}%"></i>'
    return (
        f'<li>{picture}<div class="score">{bar}{hit.score:.3f}</div><p>{html.escape(words)}</p>'
        f'<p class="name">{html.escape(hit.info.name)}</p></li>'
    )


def _img_tag(png: bytes, alt_text: str) -> str:
    return f'<img alt="{html.escape(alt_text, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _draw_cell(
    image: PIL.Image.Image,
    draw: PIL.ImageDraw.ImageDraw,
    position: tuple[int, int],
    hit: Hit,
    png: bytes,
) -> None:
    x, y = position
    draw.rounded_rectangle(
        (x - 4, y - 4, x + THUMBNAIL_SIZE + 4, y + THUMBNAIL_SIZE + CAPTION_HEIGHT_PX),
        8,
        CARD_COLOR,
    )
    if png:
        image.paste(_open_png(png), position)
    draw.text(
        (x, y + THUMBNAIL_SIZE + 4),
        _truncate_text("; ".join(hit.info.captions) or hit.info.name, THUMBNAIL_SIZE, 12),
        TEXT_COLOR,
        _font(12),
    )
    draw.text((x, y + THUMBNAIL_SIZE + 20), f"{hit.score:.3f}", MUTED_COLOR, _font(12))


def _open_png(png: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")


def _truncate_text(text: str, max_width: int, font_size: int) -> str:
    """As much of one line of words as fits."""
    text, font = " ".join(text.split())[:200], _font(font_size)
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(text + "…") > max_width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> Any:
    return PIL.ImageFont.load_default(size)
