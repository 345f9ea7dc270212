"""What the plots of many circuits show, whatever draws them: panels of lines of points."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from acdc.files.comparison import Comparison
from acdc.files.table import OPTIONS, Row

SWEPT = ("threshold", "edges", "sparsity", "penalty")  # along a line; everything else that differs makes a line
NAMED = ("method", "metric", "ablation", "prefilter", "order", "dtype")  # options whose value says which one it is


@dataclass(frozen=True)
class Point:
    """A circuit: `low` to `high` is a 95 % interval of y; `row` is that of the table."""

    x: float
    y: float
    low: float | None
    high: float | None
    row: int


@dataclass(frozen=True)
class Line:
    """Points that belong together, from left to right."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        kind: `pareto` (edges against a measure), `thresholds` (against edges) or `roc`
        title: what it is of
        x, y: what the axes are
        level: y of the full model; None where it has none
    """

    kind: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    level: float | None = None


def labels(panels: Iterable[Panel]) -> list[str]:
    """Of all lines, each once, in their order."""
    return list(dict.fromkeys(line.label for panel in panels for line in panel.lines))


def of_rows(rows: list[Row]) -> list[Panel]:
    """All plots that the runs of a sweep allow: one per kind, task and model, and metric where that is plotted."""
    return [
        *_panels(rows, "pareto", "value", ("task", "model", "metric"), _pareto),
        *_panels(rows, "thresholds", "threshold", ("task", "model", "metric"), _threshold),
        *_panels(rows, "roc", "true_positive_rate", ("task", "model"), _rates),
    ]


def _panels(
    rows: list[Row], kind: str, needed: str, keys: tuple[str, ...], point: Callable[[int, Row], Point]
) -> list[Panel]:
    """Of the runs that are done and have what is needed."""
    some = [(i, row) for i, row in enumerate(rows) if row["state"] == "done" and row[needed] is not None]
    groups: dict[tuple[object, ...], list[tuple[int, Row]]] = defaultdict(list)
    for i, row in some:
        groups[tuple(row[k] for k in keys)].append((i, row))
    own = _line_keys([row for row in rows if row["state"] == "done"], keys)
    panels = []
    for members in groups.values():
        lines: dict[str, list[Point]] = defaultdict(list)
        for i, row in members:
            lines[_label(row, own)].append(point(i, row))
        first = members[0][1]
        x, y = {
            "pareto": ("residual edges kept", f"{first['judged_on']} {first['metric']} (lower is better)"),
            "thresholds": ("threshold", "residual edges kept"),
            "roc": ("false positive rate of edges", "true positive rate of edges"),
        }[kind]
        panels.append(
            Panel(
                kind,
                f"{first['task']} in {first['model']}",
                x,
                y.replace("held_out", "held out"),
                tuple(Line(k, _sorted(v, kind == "roc")) for k, v in lines.items()),
                first["full"] if kind == "pareto" else None,
            )
        )
    return panels


def _line_keys(rows: list[Row], of_panel: tuple[str, ...]) -> list[str]:
    """The options that make a line: those that differ among the runs; the metric only where the others don't say it."""
    keys = [k for k in OPTIONS if k not in (*SWEPT, "task", "model", "metric") and len({row[k] for row in rows}) > 1]
    if "metric" not in of_panel:
        metrics = defaultdict(set)
        for row in rows:
            metrics[tuple(row[k] for k in (*of_panel, *keys))].add(row["metric"])
        if any(len(found) > 1 for found in metrics.values()):
            keys.insert(0, "metric")
    return keys


def _sorted(points: list[Point], ends: bool) -> tuple[Point, ...]:
    """From left to right; `ends`: from no edge to all of them, which is no circuit of the table."""
    both = [Point(x, x, None, None, -1) for x in (0.0, 1.0)] if ends else []
    return tuple(sorted([*points, *both], key=lambda p: (p.x, p.y)))


def _pareto(i: int, row: Row) -> Point:
    return Point(row["kept"], row["value"], row["value_low"], row["value_high"], i)


def _threshold(i: int, row: Row) -> Point:
    return Point(row["threshold"], row["kept"], None, None, i)


def _rates(i: int, row: Row) -> Point:
    return Point(row["false_positive_rate"], row["true_positive_rate"], None, None, i)


def _label(row: Row, keys: Sequence[str]) -> str:
    """What a line is called: the options that make it one."""
    said = []
    for key in keys:
        value = row[key]
        if value is not None and value is not False:
            said.append(key if value is True else str(value) if key in NAMED else f"{key} {value}")
    return ", ".join(said) or "–"


def of_comparison(comparison: Comparison) -> list[Panel]:
    """Faithfulness against edges, and ROC, for every task; rows are those of table.csv."""
    panels, row = [], 0
    for task in comparison.tasks:
        title, lines = f"{task.name} in {task.model}", []
        for method in task.methods:
            points = []
            for c in method.circuits:
                points.append(Point(c.edges, c.faithfulness, _finite(c.low), _finite(c.high), row))
                row += 1
            known = sorted((p for p in points if math.isfinite(p.y)), key=lambda p: (p.x, p.y))
            lines.append(Line(method.name, tuple(known)))
        half = task.half.replace("_", " ")
        panels.append(
            Panel("pareto", title, "residual edges after pruning", f"faithfulness, {half}", tuple(lines), 1.0)
        )
        rocs = tuple(Line(m.name, tuple(Point(x, y, None, None, -1) for x, y in m.roc)) for m in task.methods if m.roc)
        if rocs:
            panels.append(Panel("roc", title, "false positive rate", "true positive rate", rocs))
    return panels


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
