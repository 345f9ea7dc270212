"""The table of a sweep as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from acdc.files.table import OPTIONS, TEXTS, Row, check_column, every_column
from acdc.report.text import grid, number

SHOWN = (
    *("run", "state", "task", "model", "method", "ablation", "threshold", "edges", "kept", "value", "faithfulness"),
    *("accuracy", "seconds", "message"),
)


def to_text(rows: list[Row], names: Sequence[str] | None = None) -> str:
    """A table of some columns: of the usual ones by default, those that are not the same in every row. What is the same
    stands above it.

    Raises:
        UserError: there is no such column.
    """
    known = every_column(rows)
    for name in names or ():
        check_column("--columns", name, known)
    if not rows:
        return "no run is like that"
    same: dict[str, Any] = {}
    if names is None:
        candidates = [n for n in SHOWN if any(row.get(n) is not None for row in rows)]
        if len(rows) > 1:
            same = {n: rows[0].get(n) for n in candidates if len({row.get(n) for row in rows}) == 1}
        names = [n for n in candidates if n not in same]
        varied = [n for n in names if n in OPTIONS]
        if len({tuple(row.get(n) for n in varied) for row in rows}) == len(rows):
            names.remove("run")  # it says no more than its options
    head = "   ".join(f"{key} {_cell(key, value)}" for key, value in same.items())
    text = grid([list(names), *([_cell(n, row.get(n)) for n in names] for row in rows)], left=_left(names))
    return f"{head}\n\n{text}" if head else text


def _left(names: Sequence[str]) -> int:
    """How many columns, from the first, are texts."""
    return next((i for i, name in enumerate(names) if name not in TEXTS), len(names))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if name == "seconds":
            return f"{value:.1f}"
        return f"{value:g}" if name in OPTIONS else number(value, 4)
    return str(value)


def summary(rows: list[Row]) -> str:
    """How many runs are in which state."""
    found = Counter(row["state"] for row in rows)
    order = (("done", "done"), ("failed", "failed"), ("begun", "begun"), ("waiting", "not begun"))
    return f"{len(rows):,} runs: " + ", ".join(f"{found[key]:,} {word}" for key, word in order if found[key])
