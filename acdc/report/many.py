"""The page of many circuits, of a sweep or a comparison: plots whose points lead to the runs, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

from acdc.report.panels import Panel, labels
from acdc.report.render import render


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
    """Return the page as HTML.

    Args:
        columns, rows: the table
        links: for each row, the path of the run's page relative to this one
        panels: plots, whose points name their row
    """
    data = {
        "columns": columns,
        "rows": rows,
        "links": links,
        "panels": [asdict(panel) for panel in panels],
        "labels": labels(panels),
    }
    return render(
        "many.html",
        {"data": data},
        title=title,
        answer=description,
        summary=summary,
        notes=notes,
        linked=any(links),
        version=version("acdc-circuits"),
    )
