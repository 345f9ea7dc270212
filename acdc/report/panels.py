"""What the plots of many circuits show, on a page or in a picture: panels of lines of points."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from acdc.files.comparison import Comparison
from acdc.files.table import OPTIONS, Row
from acdc.io.files import plain
from acdc.report.text import heading, readable, readable_estimate

SWEPT = ("threshold", "target", "edges", "sparsity", "penalty")  # vary along a line; others that differ make lines
VALUE = ("value", "value_low", "value_high")
NAMED = ("method", "metric", "ablation", "prefilter", "order", "dtype")  # options whose values speak for themselves
FAITHFULNESS = (-0.5, 1.5)  # shown of it; random circuits can be far below


@dataclass(frozen=True)
class Point:
    """A circuit, or an end of a ROC."""

    x: float
    y: float
    low: float | None = None  # 95 % interval of y
    high: float | None = None
    row: int = -1  # of the circuit in the table


@dataclass(frozen=True)
class Line:
    """Points that belong together, from left to right."""

    label: str
    points: tuple[Point, ...]
    note: str = ""  # added in the legend of this panel


@dataclass(frozen=True)
class Panel:
    """One plot."""

    kind: str  # `pareto` (edges against a measure), `thresholds` (against edges) or `roc`
    picture: str  # name of the file it is drawn in, without suffix
    title: str
    x: str  # labels of the axes
    y: str
    lines: tuple[Line, ...]
    levels: tuple[float, ...] = ()  # y of the full model, and with everything ablated
    limits: tuple[float, float] | None = None  # of y; a page draws points outside at the edge, a picture not at all


def labels(panels: Iterable[Panel]) -> list[str]:
    """Return the labels of all lines, each once, in order."""
    return list(dict.fromkeys(line.label for panel in panels for line in panel.lines))


# ---------------------------------------------------------------- of a sweep


def of_rows(rows: list[Row]) -> list[Panel]:
    """Return the panels of a sweep's table: one per kind, task and model, and metric where it is plotted."""
    done = [(i, row) for i, row in enumerate(rows) if row["state"] == "done"]
    return [
        *_panels(done, "pareto", "kept", "value", ("task", "model", "metric")),
        *_panels(done, "thresholds", "threshold", "kept", ("task", "model", "metric")),
        *_panels(done, "roc", "false_positive_rate", "true_positive_rate", ("task", "model")),
    ]


def _panels(done: list[tuple[int, Row]], kind: str, x: str, y: str, keys: tuple[str, ...]) -> list[Panel]:
    """One panel of columns x and y for each combination of `keys`."""
    groups: dict[tuple[object, ...], list[tuple[int, Row]]] = defaultdict(list)
    for i, row in done:
        if row[x] is not None and row[y] is not None:
            groups[tuple(row[k] for k in keys)].append((i, row))
    several_metrics = len({row["metric"] for _, row in done}) > 1
    line_keys = _line_keys([row for _, row in done], keys)
    panels = []
    for members in groups.values():
        lines: dict[str, list[Point]] = defaultdict(list)
        for i, row in members:
            values: Sequence[Any] = (row[y], None, None)
            if y == "value":
                values = readable_estimate(row["metric"], [row[k] for k in VALUE])
            lines[_label(row, line_keys)].append(Point(row[x], values[0], values[1], values[2], i))
        if kind == "roc":
            for points in lines.values():
                points += [Point(0.0, 0.0), Point(1.0, 1.0)]  # no edge, all edges
        first = members[0][1]
        half = str(first["judged_on"]).replace("_", " ")
        texts = {
            "kept": "residual edges kept",
            "value": f"{half} {heading(first['metric'])}",
            "threshold": "threshold",
            "false_positive_rate": "false positive rate of edges",
            "true_positive_rate": "true positive rate of edges",
        }
        full = readable(first["metric"], (first["full"],)) if y == "value" else ()
        levels = tuple(level for level in full if level is not None)
        sorted_lines = tuple(Line(label, _sorted(points)) for label, points in lines.items())
        title = f"{first['task']} in {first['model']}"
        if "metric" in keys and several_metrics:
            title += f", {first['metric']}"
        panels.append(Panel(kind, kind, title, texts[x], texts[y], sorted_lines, levels))
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


def _sorted(points: list[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda p: (p.x, p.y)))


def _label(row: Row, keys: Sequence[str]) -> str:
    """The options that tell a line from the others."""
    words = []
    for key in keys:
        value = row[key]
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(str(value) if key in NAMED else f"{key} {value}")
    return ", ".join(words) or "–"


# ---------------------------------------------------------------- of a comparison


def of_comparison(comparison: Comparison) -> list[Panel]:
    """Return faithfulness against edges, and ROC, for every task. Rows are those of table.csv."""
    panels = []
    row = 0
    for task in comparison.tasks:
        title = f"{task.name} in {task.model}"
        lines = []
        curves = []
        for method in task.methods:
            points = []
            for c in method.circuits:
                if math.isfinite(c.faithfulness):
                    points.append(Point(c.edges, c.faithfulness, plain(c.low), plain(c.high), row))
                row += 1
            lines.append(Line(method.name, _sorted(points)))
            if method.roc:
                points = [Point(x, y) for x, y in method.roc]
                curves.append(Line(method.name, tuple(points), f"AUC {method.auc:.2f}"))
        setup = f"{title}: {task.metric}, {task.ablation} ablation"
        axes = ("residual edges after pruning", f"faithfulness, {task.half.replace('_', ' ')}")
        levels = (0.0, 1.0)
        panels.append(Panel("pareto", f"faithfulness-{task.name}", setup, *axes, tuple(lines), levels, FAITHFULNESS))
        if curves:
            setup = f"{title}: edges of {task.reference}"
            axes = ("false positive rate", "true positive rate")
            panels.append(Panel("roc", f"roc-{task.name}", setup, *axes, tuple(curves)))
    return panels
