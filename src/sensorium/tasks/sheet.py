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

from sensorium import durable
from sensorium.errors import SensoriumError
from sensorium.tasks.answer import SIDE, Answer, Hit

GAP, WORDS, HEADING = 16, 40, 36                    # pixels: between cells, under a picture, above a row
ACROSS = 6                                          # pictures in a row
INK, PALE, PAPER, CARD = "#1c1b22", "#77757f", "#f6f5f2", "#ffffff"
STYLE = """
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


def save(answers: Sequence[Answer], path: str | Path) -> None:
    """Write a .png or an .html; raises SensoriumError for another ending."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".png", ".html"):
        raise SensoriumError(f"{path}: answers are drawn as .png or .html; give the file one of these endings.")
    durable.write(path, sheet(answers) if ending == ".png" else page(answers).encode())


def page(answers: Sequence[Answer]) -> str:
    """One page of HTML, pictures inside it; whatever comes from data is escaped."""
    sections = "".join(section(answer) for answer in answers)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
            f"<body><main><h1>Sensorium search</h1>{sections}</main></body></html>\n")


def sheet(answers: Sequence[Answer]) -> bytes:
    """A PNG: for each query a heading and its answers, six across, best first."""
    deep = [HEADING + -(-max(len(a), 1) // ACROSS) * (SIDE + WORDS + GAP) for a in answers]
    picture = PIL.Image.new("RGB", (GAP + ACROSS * (SIDE + GAP), GAP + sum(deep)), PAPER)
    pen, top = PIL.ImageDraw.Draw(picture), GAP
    for answer, depth in zip(answers, deep, strict=True):
        left = GAP
        if answer.shown_query:
            picture.paste(_opened(answer.shown_query).resize((24, 24)), (left, top))
            left += 32
        pen.text((left, top + 3), _cut(answer.query, picture.width - left - GAP, 16), INK, _font(16))
        for i, (hit, png) in enumerate(zip(answer.hits, answer.shown, strict=True)):
            at = GAP + i % ACROSS * (SIDE + GAP), top + HEADING + i // ACROSS * (SIDE + WORDS + GAP)
            _cell(picture, pen, at, hit, png)
        top += depth
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def section(answer: Answer) -> str:
    asked = _img(answer.shown_query, "the picture asked with") if answer.shown_query else ""
    cards = "".join(_card(hit, png) for hit, png in zip(answer.hits, answer.shown, strict=True))
    return f"<section><h2>{asked}{html.escape(answer.query)}</h2><ol>{cards or '<li>nothing found</li>'}</ol></section>"


def _card(hit: Hit, png: bytes) -> str:
    words = "; ".join(hit.payload.captions[:3])
    picture = _img(png, words) if png else '<div class="none">no picture</div>'
    bar = f'<i style="width:{max(0.0, min(hit.score, 1.0)) * 70:.0f}%"></i>'
    return (f'<li>{picture}<div class="score">{bar}{hit.score:.3f}</div><p>{html.escape(words)}</p>'
            f'<p class="name">{html.escape(hit.payload.name)}</p></li>')


def _img(png: bytes, words: str) -> str:
    return f'<img alt="{html.escape(words, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _cell(picture: PIL.Image.Image, pen: PIL.ImageDraw.ImageDraw, at: tuple[int, int], hit: Hit, png: bytes) -> None:
    x, y = at
    pen.rounded_rectangle((x - 4, y - 4, x + SIDE + 4, y + SIDE + WORDS), 8, CARD)
    if png:
        picture.paste(_opened(png), at)
    pen.text((x, y + SIDE + 4), _cut("; ".join(hit.payload.captions) or hit.payload.name, SIDE, 12), INK, _font(12))
    pen.text((x, y + SIDE + 20), f"{hit.score:.3f}", PALE, _font(12))


def _opened(png: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")


def _cut(words: str, width: int, size: int) -> str:
    """As much of one line of words as fits."""
    words, font = " ".join(words.split())[:200], _font(size)
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1]
    return words + "…"


def _font(size: int) -> Any:
    return PIL.ImageFont.load_default(size)
