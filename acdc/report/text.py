"""Tables and differences as text."""

from __future__ import annotations

import math

from acdc.files.diff import Diff


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


def diff_text(diff: Diff) -> str:
    """A line for each edge that has changed, and how many there are."""
    counts = f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.rescored)} re-scored"
    return "\n".join([*diff_lines(diff), counts])


def diff_lines(diff: Diff) -> list[str]:
    """A line for each edge: + is added, - removed, ~ re-scored."""
    moved = [f"~ {name}  {x:.4g} → {y:.4g}" for name, x, y in diff.rescored]
    return [*(f"+ {name}" for name in diff.added), *(f"- {name}" for name in diff.removed), *moved]
