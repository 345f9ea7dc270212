"""Tables, numbers and differences as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from acdc.files.diff import Diff


def grid(rows: Sequence[Sequence[str]], left: int = 1, widths: Sequence[int] = ()) -> str:
    """Return aligned columns, two spaces apart: the first `left` ones aligned left, the others right; `widths` are the
    least widths of the first columns."""
    used = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, width in enumerate(widths):
        used[i] = max(used[i], width)
    lines = []
    for row in rows:
        cells = [cell.ljust(used[i]) if i < left else cell.rjust(used[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed decimals, never -0; – for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def estimate(values: Sequence[float | None], digits: int) -> str:
    """Return a value with its interval: `value [low, high]`; the value alone if there is no interval."""
    value, low, high = (number(x, digits) for x in values)
    return value if low == "–" else f"{value} [{low}, {high}]"


def bound(method: str, threshold: float | None, options: Mapping[str, Any]) -> str:
    """Return what limits the number of edges that a method keeps."""
    among = f" among {options['prefilter']}" if "prefilter" in options else ""
    if "faithfulness" in options:
        return f"smallest found of faithfulness {options['faithfulness']:g}{among}"
    if threshold is None and method == "acdc":
        return f"best found of {options['edges']} edges{among}"
    if threshold is None:
        chosen = "greedy" if options.get("greedy") else "top"
        return f"{chosen} {options['edges']}" + (", by magnitude" if options.get("abs") else "")
    return f"{'τ' if method == 'acdc' else 'score from'} = {threshold:g}{among}"


def diff_text(diff: Diff) -> str:
    """Return a line for each changed edge, and the counts."""
    counts = f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.rescored)} re-scored"
    return "\n".join([*diff_lines(diff), counts])


def diff_lines(diff: Diff) -> list[str]:
    """Return a line for each changed edge: + added, - removed, ~ re-scored."""
    lines = [f"+ {name}" for name in diff.added]
    lines += [f"- {name}" for name in diff.removed]
    lines += [f"~ {name}  {before:.4g} → {after:.4g}" for name, before, after in diff.rescored]
    return lines
