"""Render search results as a contact sheet (PNG) or a self-contained HTML page."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import PIL.Image
import PIL.ImageDraw

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.fonts import fit_line
from sensorium.io.web_page import escape_text, image_tag, notebook_html, render_page
from sensorium.search.results import MAX_CAPTIONS_SHOWN, THUMBNAIL_SIZE, Hit, SearchResult

CELL_GAP_PX = 16
CAPTION_HEIGHT_PX = 40
HEADING_HEIGHT_PX = 36
CELL_PX = THUMBNAIL_SIZE + CELL_GAP_PX
ROW_PX = THUMBNAIL_SIZE + CAPTION_HEIGHT_PX + CELL_GAP_PX
EMPTY_ROW_PX = 32
FOOTER_PX = 28
QUERY_THUMBNAIL_PX = 24
IMAGES_PER_ROW = 6
MAX_NOTEBOOK_HITS = 20
TEXT_COLOR = "#1c1b22"
MUTED_COLOR = "#77757f"
BACKGROUND_COLOR = "#f6f5f2"
CARD_COLOR = "#ffffff"
NO_FONT_NOTE = (
    "[ ] stands for a text whose letters no font found here has: save an .html file to see it."
)
SCORE_LEGEND = (
    "The number is the score of a result, at most 1: the cosine similarity of query and result if "
    "only vectors were compared, and otherwise how well words and vectors match together (1: a "
    "caption is the query). The word beside it says what matched. Compare scores within one query."
)
MATCHED_LABELS = {"words": "words", "vectors": "vectors", "both": "words + vectors"}
RESULTS_CSS = """
.results{list-style:none;margin:0;padding:0;display:grid;gap:16px;
grid-template-columns:repeat(6,minmax(0,1fr))}
.results li{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:12px;
min-width:0}
.query{display:flex;gap:14px;align-items:center}.query img{width:56px;height:56px;flex:none}
.query span{min-width:0}
.results img,.query img,.none{display:block;aspect-ratio:1;object-fit:contain;background:#fff;
border-radius:8px}.results img,.none{width:100%}
.none{display:grid;place-items:center;background:var(--paper);color:var(--pale)}
.score{display:flex;flex-wrap:wrap;gap:2px 8px;align-items:center;margin:10px 0 4px;font-size:13px;
font-variant-numeric:tabular-nums;color:var(--pale)}
.score b{color:var(--ink)}.score i{height:4px;border-radius:2px;background:var(--bar)}
.caption{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:4;line-clamp:4;
overflow:hidden}.name{color:var(--pale);font-size:12px;margin-top:4px}.name a{color:inherit}
.legend{font-size:13px;margin:0 0 28px;max-width:46em}
@media(max-width:1050px){.results{grid-template-columns:repeat(3,minmax(0,1fr))}}
@media(max-width:480px){.results{gap:10px;grid-template-columns:repeat(2,minmax(0,1fr))}
.results li{padding:8px;border-radius:10px}.caption{font-size:13px}}
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
            content = render_html(results, path.absolute().parent).encode()
        case _:
            raise SensoriumError(f"{path} must end in .png or .html. Rename it.")
    atomic.write_file(path, content)


def render_html(results: Sequence[SearchResult], folder: Path | None = None) -> str:
    """Return one HTML page with embedded images; all text from the data is escaped.

    Args:
        results: the results.
        folder: where the page is put, for links to the files; None: without links.
    """
    sections = "".join(render_section(result, folder) for result in results)
    queries = ", ".join(result.query for result in results[:3])
    return render_page(
        f"{queries} - Sensorium search" if queries else "Sensorium search",
        f'<h1>Sensorium search</h1><p class="legend">{SCORE_LEGEND}</p>{sections}',
        RESULTS_CSS,
    )


def render_section(result: SearchResult, folder: Path | None = None) -> str:
    """Return the HTML of one result.

    Args:
        result: the result.
        folder: where the page is put, for links to the files; None: without links.
    """
    query_image = ""
    if result.query_thumbnail:
        query_image = image_tag(result.query_thumbnail, "query image")
    hits = zip(result.hits, result.thumbnails, strict=True)
    cards = "".join(_render_card(hit, png, folder) for hit, png in hits)
    heading = f'<h2 class="query">{query_image}<span>{escape_text(result.query)}</span></h2>'
    return f'<section>{heading}<ol class="results">{cards or "<li>no results</li>"}</ol></section>'


def render_notebook(result: SearchResult) -> str:
    """Return a result as a small table for a notebook."""
    shown = list(zip(result.hits, result.thumbnails, strict=False))[:MAX_NOTEBOOK_HITS]
    rows = [[png, f"{hit.score:.3f}", hit.info.name, _join_captions(hit)] for hit, png in shown]
    hidden = len(result.hits) - len(rows)
    note = f"{hidden:,} more hits" if hidden else "" if rows else "no results"
    title = f"Search: {result.query}"
    return notebook_html(title, rows, header=["", "score", "name", "captions"], note=note)


def render_contact_sheet(results: Sequence[SearchResult]) -> bytes:
    """Return a PNG: for each result a heading and its hits, best first.

    A text is left out where no font on this machine has its letters; a line at the end says so.
    """
    heights = [
        HEADING_HEIGHT_PX + (math.ceil(len(result) / IMAGES_PER_ROW) * ROW_PX or EMPTY_ROW_PX)
        for result in results
    ]
    sheet = _Sheet(CELL_GAP_PX + IMAGES_PER_ROW * CELL_PX, CELL_GAP_PX + sum(heights))
    top = CELL_GAP_PX
    for result, height in zip(results, heights, strict=True):
        sheet.add_heading(top, result)
        for i, (hit, png) in enumerate(zip(result.hits, result.thumbnails, strict=True)):
            row, column = divmod(i, IMAGES_PER_ROW)
            x = CELL_GAP_PX + column * CELL_PX
            sheet.add_hit((x, top + HEADING_HEIGHT_PX + row * ROW_PX), hit, png)
        top += height
    return sheet.to_png()


def _render_card(hit: Hit, png: bytes, folder: Path | None) -> str:
    """Return the HTML of one hit."""
    captions = _join_captions(hit)
    image = image_tag(png, captions) if png else '<div class="none">no image</div>'
    name = escape_text(hit.info.name)
    address = None if folder is None else file_link(hit.info.path, folder)
    if address is not None:
        image = f'<a href="{address}" title="original file">{image}</a>'
        name = f'<a href="{address}">{name}</a>'
    width = max(0.0, min(hit.score, 1.0)) * 58
    bar = f'<i style="width:{width:.0f}%"></i>' if width >= 1 else ""
    return (
        f'<li>{image}<div class="score">{bar}<b>{hit.score:.3f}</b>{_matched(hit)}</div>'
        f'<p class="caption">{escape_text(captions)}</p><p class="name">{name}</p></li>'
    )


def file_link(path: str, folder: Path) -> str | None:
    """Return the address of a file for a page in a folder; None where there is no such file.

    It is relative, so that page and files can be moved together.
    """
    if not path or not os.path.isfile(path):  # noqa: PTH113 - a name may hold what Path rejects
        return None
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return Path(path).as_uri()
    return quote(Path(relative).as_posix().encode("utf-8", "surrogateescape"))


def _matched(hit: Hit) -> str:
    """Return by what a hit was found."""
    return MATCHED_LABELS[hit.matched]


def _join_captions(hit: Hit) -> str:
    return "; ".join(hit.info.captions[:MAX_CAPTIONS_SHOWN])


class _Sheet:
    """A contact sheet that is being drawn.

    Args:
        width: width in pixels.
        height: height in pixels without the line at the end.
    """

    def __init__(self, width: int, height: int):
        self.image = PIL.Image.new("RGB", (width, height + FOOTER_PX), BACKGROUND_COLOR)
        self.draw = PIL.ImageDraw.Draw(self.image)
        self.height = height
        self.has_left_out = False

    def add_heading(self, top: int, result: SearchResult) -> None:
        """Draw the query above its hits."""
        left = CELL_GAP_PX
        if result.query_thumbnail:
            size = (QUERY_THUMBNAIL_PX, QUERY_THUMBNAIL_PX)
            self.image.paste(_open_png(result.query_thumbnail).resize(size), (left, top))
            left += QUERY_THUMBNAIL_PX + 8
        width = self.image.width - left - CELL_GAP_PX
        self._add_text((left, top + 3), [result.query, "[query]"], width, 16)
        if not result.hits:
            self._add_text((CELL_GAP_PX, top + HEADING_HEIGHT_PX), ["no results"], width, 12)

    def add_hit(self, position: tuple[int, int], hit: Hit, png: bytes) -> None:
        """Draw one hit: its thumbnail, caption and score."""
        x, y = position
        bottom = y + THUMBNAIL_SIZE
        card = (x - 4, y - 4, x + THUMBNAIL_SIZE + 4, bottom + CAPTION_HEIGHT_PX)
        self.draw.rounded_rectangle(card, 8, CARD_COLOR)
        if png:
            self.image.paste(_open_png(png), position)
        texts = ["; ".join(hit.info.captions) or hit.info.name, f"[{hit.info.name}]", "[caption]"]
        self._add_text((x, bottom + 4), texts, THUMBNAIL_SIZE, 12)
        line = fit_line(f"{hit.score:.3f} {_matched(hit)}", 12, THUMBNAIL_SIZE)
        if line is not None:
            line.draw(self.draw, (x, bottom + 20), MUTED_COLOR)

    def to_png(self) -> bytes:
        """Return the sheet as PNG, with a line at the end where texts are left out."""
        line = fit_line(NO_FONT_NOTE, 12, self.image.width) if self.has_left_out else None
        if line is not None:
            line.draw(self.draw, (CELL_GAP_PX, self.height + 4), MUTED_COLOR)
        else:
            self.image = self.image.crop((0, 0, self.image.width, self.height))
        out = io.BytesIO()
        self.image.save(out, "PNG")
        return out.getvalue()

    def _add_text(
        self, position: tuple[int, int], texts: Sequence[str], width: int, size: int
    ) -> None:
        """Draw the first of some texts that a font has the letters of."""
        for i, text in enumerate(texts):
            line = fit_line(text, size, width)
            if line is not None:
                self.has_left_out |= i > 0
                line.draw(self.draw, position, TEXT_COLOR)
                return


def _open_png(png: bytes) -> PIL.Image.Image:
    """Return an image; only PNG is decoded."""
    return PIL.Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
