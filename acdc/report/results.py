"""The table of a sweep as text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from acdc.files.table import OPTIONS, TEXTS, Row, check_column, every_column
from acdc.report.text import grid, number

SHOWN = (
    *("run", "state", "task", "model", "method", "ablation", "threshold", "target", "edges", "kept", "value"),
    *("faithfulness", "accuracy", "seconds", "message"),
)
STATES = {"done": "done", "failed": "failed", "begun": "interrupted", "waiting": "pending"}


def to_text(rows: list[Row], names: Sequence[str] | None = None) -> str:
    """Return a table, by default of the usual columns whose values differ; above it, the values that all rows share.
    Raises UserError if a column doesn't exist."""
    known = every_column(rows)
    for name in names or ():
        check_column("--columns", name, known)
    if not rows:
        return "no matching runs"
    shared: dict[str, Any] = {}
    if names is None:
        names, shared = _usual(rows)
    left = 0
    while left < len(names) and names[left] in TEXTS:
        left += 1
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    table = grid([list(names), *cells], left=left)
    if not shared:
        return table
    return "   ".join(f"{name} {_cell(name, value)}" for name, value in shared.items()) + "\n\n" + table


def _usual(rows: list[Row]) -> tuple[list[str], dict[str, Any]]:
    """The columns to show, and the values that all rows share."""
    names = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
    shared = {}
    if len(rows) > 1:
        shared = {name: rows[0].get(name) for name in names if len({row.get(name) for row in rows}) == 1}
    names = [name for name in names if name not in shared]
    options = [name for name in names if name in OPTIONS]
    if len({tuple(row.get(name) for name in options) for row in rows}) == len(rows):
        names.remove("run")  # its options already tell the runs apart
    return names, shared


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:g}" if name in OPTIONS else number(value, 4)


def summary(rows: list[Row]) -> str:
    """Return how many runs are in which state."""
    found = Counter(row["state"] for row in rows)
    counts = [f"{found[state]:,} {words}" for state, words in STATES.items() if found[state]]
    return f"{len(rows):,} runs: " + ", ".join(counts)
