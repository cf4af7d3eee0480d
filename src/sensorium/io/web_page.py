"""Self-contained HTML: pages that fit a phone and dark mode, and small tables for notebooks.

All text comes from data and is escaped. Each piece is isolated (`<bdi>`), so that text from right
to left, or a mark that turns the direction, does not reorder what stands beside it.
"""

import base64
from collections.abc import Mapping, Sequence

from sensorium.errors import escape_html

PAGE_CSS = """
:root{color-scheme:light dark;--ink:#1c1b22;--pale:#66646e;--paper:#f6f5f2;--card:#fff;
--line:#e6e3dc;--bar:#5b5bd6;--link:#4343b5}
@media(prefers-color-scheme:dark){:root{--ink:#ecebf0;--pale:#a3a1ab;--paper:#16151a;--card:#211f27;
--line:#34323c;--bar:#8a8af0;--link:#a5a5f7}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:40px 20px 80px}section{margin:0 0 48px}
h1{font-size:15px;font-weight:600;color:var(--pale);margin:0 0 28px;overflow-wrap:anywhere}
h2{font-size:24px;line-height:1.2;margin:0 0 18px;overflow-wrap:anywhere}
p{margin:0;overflow-wrap:anywhere}a{color:var(--link)}small,.legend{color:var(--pale)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:14px}
table{border-collapse:collapse;width:100%}
th,td{padding:9px 14px;text-align:right;font-variant-numeric:tabular-nums;vertical-align:top}
tr+tr>*{border-top:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;min-width:9em;max-width:24em;overflow-wrap:anywhere}
th{min-width:5.5em;font-weight:500;color:var(--pale);font-size:13px;vertical-align:bottom}
pre{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px;
overflow-x:auto}
figure{margin:0;overflow-x:auto;border-radius:14px;background:#fff;min-width:0}
figure img{display:block;width:100%;min-width:440px;height:auto}
@media(max-width:480px){main{padding:24px 12px 48px}h2{font-size:20px}section{margin-bottom:36px}
th,td{padding:8px 10px}}
"""
_NOTEBOOK_STYLE = "font-family:inherit;overflow-x:auto;max-width:100%"
_CELL_STYLE = "text-align:left;vertical-align:top;max-width:24em;overflow-wrap:break-word"
_THUMBNAIL_STYLE = "width:48px;height:48px;object-fit:contain"
MAX_CELL_CHARS = 160  # of a cell in a notebook


def render_page(title: str, body: str, css: str = "") -> str:
    """Return an HTML page that makes no request.

    Args:
        title: its title; escaped.
        body: HTML of the body.
        css: rules after those of `PAGE_CSS`.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape_html(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{PAGE_CSS}{css}</style></head><body><main>{body}</main></body></html>\n"
    )


def escape_text(text: object) -> str:
    """Return text as HTML, isolated from the direction of its surroundings."""
    return f"<bdi>{escape_html(str(text))}</bdi>"


def data_uri(content: bytes, media_type: str) -> str:
    """Return a file as an address that holds all of it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_tag(content: bytes, alt_text: str, media_type: str = "image/png") -> str:
    """Return an <img> with the image inside."""
    alt = escape_html(alt_text)
    return f'<img alt="{alt}" src="{data_uri(content, media_type)}">'


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls in its own box where it is wider than the page.

    Args:
        header: names of the columns; text.
        rows: the cells; text.
    """
    lines = ["".join(f'<th scope="col">{escape_text(name)}</th>' for name in header)]
    lines += ["".join(f"<td>{escape_text(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0" role="group"><table>{body}</table></div>'


def notebook_html(
    title: str,
    rows: Sequence[Sequence[object]] = (),
    *,
    header: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
    note: str = "",
) -> str:
    """Return a small piece of HTML for a notebook, in the colors of the notebook.

    Args:
        title: the heading.
        rows: cells of a table; bytes are a PNG.
        header: names of its columns.
        facts: name and value of lines before the table.
        note: a remark after the table.
    """
    parts = [f'<div style="overflow-wrap:anywhere"><strong>{escape_text(title)}</strong></div>']
    parts += [
        f"<div>{escape_text(name)}: {escape_text(value)}</div>"
        for name, value in (facts or {}).items()
    ]
    if rows:
        head = "".join(_notebook_cell("th", name) for name in header)
        lines = [f"<thead><tr>{head}</tr></thead>"] if header else []
        cells = ("".join(_notebook_cell("td", cell) for cell in row) for row in rows)
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        parts.append(f"<table>{''.join(lines)}<tbody>{body}</tbody></table>")
    if note:
        parts.append(f"<div>{escape_text(note)}</div>")
    return f'<div style="{_NOTEBOOK_STYLE}">{"".join(parts)}</div>'


def _notebook_cell(tag: str, value: object) -> str:
    if isinstance(value, bytes):
        content = f'<img alt="" style="{_THUMBNAIL_STYLE}" src="{data_uri(value, "image/png")}">'
        return f"<{tag}>{content if value else ''}</{tag}>"
    text = str(value)
    text = text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
    return f'<{tag} style="{_CELL_STYLE}">{escape_text(text)}</{tag}>'
