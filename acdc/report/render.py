"""HTML pages from the Jinja templates in `web/`: one file each, complete and readable offline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from acdc.io.files import plain

WEB = Path(__file__).parent / "web"


def render(template: str, data: Mapping[str, object], **values: object) -> str:
    """Return a page as HTML. Every value is escaped; nothing is loaded from a network.

    Args:
        template: a file in `web/`
        data: what the page's script reads, as JSON, by element id; NaN and infinity become null
        values: the template's variables
    """
    return _environment().get_template(template).render(data=plain(data), **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    environment.globals["source"] = _source
    environment.filters["shown"] = shown
    return environment


def _source(name: str) -> str:
    """Return our own CSS or JavaScript, which isn't a template: D3 may contain `{{`."""
    return (WEB / name).read_text(encoding="utf-8")


def shown(value: object) -> str:
    """Return a table cell's text: four digits of a float, – for None and NaN."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"
