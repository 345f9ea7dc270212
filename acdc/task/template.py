"""Templates: texts with slots, written `{slot}` or `{slot.column}`; `{{` and `}}` are braces."""

import re
import string
from collections.abc import Mapping
from functools import cache

FIELD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


@cache
def parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return a template as (literal text, field or None) pairs; raise ValueError if it can't be parsed."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for braces in the text") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not FIELD.fullmatch(name)):
            raise ValueError(f"template {template!r}: fields are {{slot}} or {{slot.column}}, not {{{name}…}}")
    return tuple((text, name) for text, name, _, _ in parts)


def fields(template: str) -> list[str]:
    """Return the fields of a template: `slot` or `slot.column`."""
    return [name for _, name in parse(template) if name is not None]


def render(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its fields filled in. Not `str.format`, which can reach attributes of values."""
    return "".join(text + (values[name] if name is not None else "") for text, name in parse(template))
