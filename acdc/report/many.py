"""The page of many circuits, of a sweep or a comparison: plots whose points lead to the runs, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.metadata import version

from acdc.report.page import page, template
from acdc.report.panels import Panel, labels


def render_many(
    title: str,
    description: str,
    summary: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    links: Sequence[str | None],
    panels: Sequence[Panel],
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML text.

    Args:
        columns, rows: the table
        links: by row, where the page of the run is, relative to this one
        panels: their points say to which row they belong
    """
    body = template("many.html").substitute(
        title=escape(title),
        description=escape(description),
        summary=escape(summary),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        count=f"{len(rows):,}",
        hint="hover it for its row, click it for its page" if any(links) else "hover it for its row",
        version=escape(version("acdc-circuits")),
    )
    data = {
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "links": list(links),
        "panels": [asdict(panel) for panel in panels],
        "labels": labels(panels),
    }
    return page(title, body, {"data": data}, "many.js")
