"""What the plots of many circuits show, on a page or in a picture: panels of lines of points."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from acdc.files.comparison import ComparedMethod, Comparison
from acdc.files.table import OPTIONS, Row

SWEPT = ("threshold", "edges", "sparsity", "penalty")  # vary along a line; other options that differ make lines
NAMED = ("method", "metric", "ablation", "prefilter", "order", "dtype")  # options whose values speak for themselves
FAITHFULNESS = (-0.5, 1.5)  # shown of it; random circuits can be far below


@dataclass(frozen=True)
class Point:
    """A circuit.

    Args:
        low, high: 95 % interval of y
        row: its row in the table; -1 for a point that is no circuit
    """

    x: float
    y: float
    low: float | None
    high: float | None
    row: int


@dataclass(frozen=True)
class Line:
    """Points that belong together, from left to right.

    Args:
        note: what the legend of this panel adds
    """

    label: str
    points: tuple[Point, ...]
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        kind: `pareto` (edges against a measure), `thresholds` (against edges) or `roc`
        picture: name of the file it is drawn in, without suffix
        x, y: labels of the axes
        levels: y of the full model, and with everything ablated, where there is one
        limits: of y; outside them, a page draws points at the edge and a picture draws none
    """

    kind: str
    picture: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    levels: tuple[float, ...] = ()
    limits: tuple[float, float] | None = None


def labels(panels: Iterable[Panel]) -> list[str]:
    """Return the labels of all lines, each once, in order."""
    return list(dict.fromkeys(line.label for panel in panels for line in panel.lines))


# ---------------------------------------------------------------- of a sweep


def of_rows(rows: list[Row]) -> list[Panel]:
    """Return the panels of a sweep's table: one per kind, task and model, and metric where it is plotted."""
    return [
        *_panels(rows, "pareto", "value", ("task", "model", "metric"), _pareto),
        *_panels(rows, "thresholds", "threshold", ("task", "model", "metric"), _threshold),
        *_panels(rows, "roc", "true_positive_rate", ("task", "model"), _rates),
    ]


def _panels(
    rows: list[Row], kind: str, needed: str, keys: tuple[str, ...], point: Callable[[int, Row], Point]
) -> list[Panel]:
    """One panel for each combination of `keys`, of the finished runs that have the `needed` column."""
    groups: dict[tuple[object, ...], list[tuple[int, Row]]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["state"] == "done" and row[needed] is not None:
            groups[tuple(row[k] for k in keys)].append((i, row))
    line_keys = _line_keys([row for row in rows if row["state"] == "done"], keys)
    panels = []
    for members in groups.values():
        lines: dict[str, list[Point]] = defaultdict(list)
        for i, row in members:
            lines[_label(row, line_keys)].append(point(i, row))
        first = members[0][1]
        half = str(first["judged_on"]).replace("_", " ")
        x, y = {
            "pareto": ("residual edges kept", f"{half} {first['metric']} (lower is better)"),
            "thresholds": ("threshold", "residual edges kept"),
            "roc": ("false positive rate of edges", "true positive rate of edges"),
        }[kind]
        levels = (first["full"],) if kind == "pareto" and first["full"] is not None else ()
        sorted_lines = tuple(Line(label, _sorted(points, kind)) for label, points in lines.items())
        panels.append(Panel(kind, kind, f"{first['task']} in {first['model']}", x, y, sorted_lines, levels))
    return panels


def _line_keys(rows: list[Row], panel_keys: tuple[str, ...]) -> list[str]:
    """The options that tell lines apart: those that differ among the runs. If panels don't tell metrics apart, the
    metric is one of them, unless the other options already determine it."""
    keys = [k for k in OPTIONS if k not in (*SWEPT, "task", "model", "metric") and len({row[k] for row in rows}) > 1]
    if "metric" not in panel_keys:
        metrics = defaultdict(set)
        for row in rows:
            metrics[tuple(row[k] for k in (*panel_keys, *keys))].add(row["metric"])
        if any(len(found) > 1 for found in metrics.values()):
            keys.insert(0, "metric")
    return keys


def _sorted(points: list[Point], kind: str) -> tuple[Point, ...]:
    """From left to right; a ROC also has its ends, no edge and all edges, which are no circuits of the table."""
    ends = []
    if kind == "roc":
        ends = [Point(0.0, 0.0, None, None, -1), Point(1.0, 1.0, None, None, -1)]
    return tuple(sorted([*points, *ends], key=lambda p: (p.x, p.y)))


def _pareto(i: int, row: Row) -> Point:
    return Point(row["kept"], row["value"], row["value_low"], row["value_high"], i)


def _threshold(i: int, row: Row) -> Point:
    return Point(row["threshold"], row["kept"], None, None, i)


def _rates(i: int, row: Row) -> Point:
    return Point(row["false_positive_rate"], row["true_positive_rate"], None, None, i)


def _label(row: Row, keys: Sequence[str]) -> str:
    """The options that tell a line from the others."""
    words = []
    for key in keys:
        value = row[key]
        if value is None or value is False:
            continue
        if value is True:
            words.append(key)
        elif key in NAMED:
            words.append(str(value))
        else:
            words.append(f"{key} {value}")
    return ", ".join(words) or "–"


# ---------------------------------------------------------------- of a comparison


def of_comparison(comparison: Comparison) -> list[Panel]:
    """Return faithfulness against edges, and ROC, for every task. Rows are those of table.csv."""
    panels = []
    row = 0
    for task in comparison.tasks:
        title = f"{task.name} in {task.model}"
        lines = []
        for method in task.methods:
            points = []
            for c in method.circuits:
                if math.isfinite(c.faithfulness):
                    points.append(Point(c.edges, c.faithfulness, _finite(c.low), _finite(c.high), row))
                row += 1
            lines.append(Line(method.name, _sorted(points, "pareto")))
        panels.append(
            Panel(
                kind="pareto",
                picture=f"faithfulness-{task.name}",
                title=f"{title}: {task.metric}, {task.ablation} ablation",
                x="residual edges after pruning",
                y=f"faithfulness, {task.half.replace('_', ' ')}",
                lines=tuple(lines),
                levels=(0.0, 1.0),
                limits=FAITHFULNESS,
            )
        )
        curves = tuple(_roc(method) for method in task.methods if method.roc)
        if curves:
            panels.append(
                Panel(
                    kind="roc",
                    picture=f"roc-{task.name}",
                    title=f"{title}: edges of {task.reference}",
                    x="false positive rate",
                    y="true positive rate",
                    lines=curves,
                )
            )
    return panels


def _roc(method: ComparedMethod) -> Line:
    points = tuple(Point(x, y, None, None, -1) for x, y in method.roc)
    return Line(method.name, points, f"AUC {method.auc:.2f}")


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
