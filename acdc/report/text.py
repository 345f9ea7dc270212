"""Tables as text."""

from __future__ import annotations

import math


def grid(rows: list[list[str]], left: int = 1, first: int = 0) -> str:
    """Columns, the first ones (`left`) to the left, the others to the right; the first one at least `first` wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(first, widths[0])
    lines = []
    for row in rows:
        cells = (f"{x:<{w}}" if i < left else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """– where there is none; no negative zero."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value, digits) + 0.0:.{digits}f}"
