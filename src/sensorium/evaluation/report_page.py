"""The page of an evaluation report: tables and charts in one HTML file."""

import html
import re

from sensorium.evaluation.report import EvaluationReport
from sensorium.io.web_page import escape_text, image_tag, render_page, render_table

_CSS = """
.charts{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
dl{margin:0 0 20px}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 14px}dt{color:var(--pale)}
dd{margin:0;overflow-wrap:anywhere;min-width:0}ul{margin:14px 0 0;padding-left:20px}
li{overflow-wrap:anywhere}.legend{margin:12px 0 0;font-size:13px}summary{cursor:pointer}
details{margin:0 0 20px}details[open] summary{margin-bottom:14px}
"""


def render_report(report: EvaluationReport) -> str:
    """Return a report as one HTML page without requests; all text is escaped."""
    facts = "".join(
        f"<dt>{escape_text(name)}</dt><dd>{escape_text(value)}</dd>"
        for name, value in report.metadata.items()
    )
    headline = _metric_table(report, report.shown_metrics())
    notes = "".join(f"<li>{escape_text(note)}</li>" for note in report.notes)
    body = [
        f"<h1>Sensorium evaluation</h1><section><h2>{escape_text(report.task)}</h2>",
        f"<dl>{facts}</dl>{headline}{f'<ul>{notes}</ul>' if notes else ''}</section>",
    ]
    for table in report.tables:
        cells = render_table(table.header(), table.cells())
        note = f'<p class="legend">{escape_text(table.note)}</p>'
        body.append(f"<section><h2>{escape_text(table.title)}</h2>{cells}{note}</section>")
    if report.charts:
        figures = "".join(_figure(svg, path) for path, svg in report.charts.items())
        body.append(f'<section><h2>Charts</h2><div class="charts">{figures}</div></section>')
    body.append(
        "<section><h2>All metrics</h2><details><summary>Show</summary>"
        f"{_metric_table(report, report.metric_names())}</details>"
        f"{''.join(map(_paragraph, report.definitions.split(chr(10) * 2)))}</section>"
    )
    return render_page("Sensorium evaluation", "".join(body), _CSS)


def _metric_table(report: EvaluationReport, names: list[str]) -> str:
    rows = [[name, *report.format_row(name)] for name in names]
    return render_table(["metric", *report.metrics], rows)


def _paragraph(text: str) -> str:
    return f'<p class="legend">{escape_text(text)}</p>' if text.strip() else ""


def _figure(svg: str, path: str) -> str:
    """Return a chart, which scrolls in its own box where it would be too small to read."""
    found = re.search(r'<svg[^>]* width="(\d+)', svg)
    style = f"min-width:{min(2000, int(found[1])) * 3 // 4}px" if found else ""
    image = image_tag(svg.encode(), _chart_title(svg, path), "image/svg+xml")
    return (
        f'<figure tabindex="0">{image.replace("<img ", f"""<img style="{style}" """, 1)}</figure>'
    )


def _chart_title(svg: str, path: str) -> str:
    """Return the title of a chart, its alternative text."""
    _, found, rest = svg.partition("<title>")
    return html.unescape(rest.partition("</title>")[0]) if found else path
