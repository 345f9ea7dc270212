"""The plots of a sweep, one panel per task: edges against the metric, thresholds against edges, ROC. They need
matplotlib, of the extra `sweeps`; without it there are none."""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from acdc.report.curves import COLOURS, DASHES, MARKERS, files
from acdc.results import OPTIONS, Row

ACROSS = 3  # panels in a row
Plot = Callable[[Any, list[Row], dict[str, Any]], None]  # draws one line
SWEPT = ("threshold", "edges", "sparsity", "penalty")  # along a line; everything else that differs makes a line


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(rows: list[Row]) -> dict[str, bytes]:
    """All plots that the runs allow, by file name."""
    done = [row for row in rows if row["state"] == "done"]
    if not done:
        return {}
    out: dict[str, bytes] = {}
    kinds: dict[str, tuple[Plot, str, tuple[str, ...]]] = {
        "pareto": (_pareto, "value", ("task", "model", "metric")),
        "thresholds": (_thresholds, "threshold", ("task", "model", "metric")),
        "roc": (_roc, "true_positive_rate", ("task", "model")),
    }
    for name, (plot, needed, panel_keys) in kinds.items():
        if some := [row for row in done if row[needed] is not None]:
            out |= {f"{name}.{suffix}": data for suffix, data in _panels(some, plot, panel_keys).items()}
    return out


def _panels(rows: list[Row], plot: Plot, panel_keys: tuple[str, ...]) -> dict[str, bytes]:
    from matplotlib.figure import Figure

    panels = defaultdict(list)
    for row in rows:
        panels[tuple(row[k] for k in panel_keys)].append(row)
    line_keys = [k for k in OPTIONS if k not in (*SWEPT, *panel_keys) and len({row[k] for row in rows}) > 1]
    labels = list(dict.fromkeys(_label(row, line_keys) for row in rows))
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.2 * across + (2 if len(labels) > 1 else 0), 3.6 * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, ((task, model, *_), members) in zip(grid, panels.items(), strict=False):
        axes.set_title(f"{task} in {model}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        for i, label in enumerate(labels):
            if line := [row for row in members if _label(row, line_keys) == label]:
                plot(axes, line, _style(i) | {"label": label})
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if len(labels) > 1:
        lines: dict[str, Any] = {}
        for axes in figure.axes:
            handles, names = axes.get_legend_handles_labels()
            lines |= dict(zip(names, handles, strict=True))
        figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False, fontsize=9)
    return files(figure)


def _label(row: Row, keys: Iterable[str]) -> str:
    """What a line is called: the options that make it one."""
    said = []
    for key in keys:
        value = row[key]
        if value is None or value is False:
            continue
        named = key in ("method", "metric", "ablation", "prefilter", "order", "dtype")
        said.append(key if value is True else str(value) if named else f"{key} {value}")
    return ", ".join(said) or "–"


def _style(i: int) -> dict[str, Any]:
    dashes = DASHES[i // len(COLOURS) % len(DASHES)]
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "ls": dashes,
        "lw": 1.5,
        "ms": 5,
        "mec": "white",
        "mew": 0.4,
    }


def _pareto(axes: Any, rows: list[Row], style: dict[str, Any]) -> None:
    """Residual edges against the metric on the prompts that count, with its 95 % interval; dotted, the full
    model."""
    rows = sorted(rows, key=lambda row: (row["kept"], row["value"]))
    edges, values = [row["kept"] for row in rows], [row["value"] for row in rows]
    axes.plot(edges, values, **style)
    low = [v if row["value_low"] is None else row["value_low"] for v, row in zip(values, rows, strict=True)]
    high = [v if row["value_high"] is None else row["value_high"] for v, row in zip(values, rows, strict=True)]
    axes.fill_between(edges, low, high, color=style["color"], alpha=0.12, lw=0)
    axes.axhline(rows[0]["full"], color="#999999", lw=0.8, ls=":", zorder=0)
    _count(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("residual edges kept")
    axes.set_ylabel(f"{rows[0]['judged_on'].replace('_', ' ')} {rows[0]['metric']} (lower is better)")


def _count(axis: Any, scale: Callable[..., None]) -> None:
    """A logarithmic axis of edges, on which 0 has a place, too."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    scale("symlog", linthresh=1, linscale=0.3)
    axis.set_major_locator(FixedLocator([0, *(d * 10**k for k in range(7) for d in (1, 2, 5))]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _thresholds(axes: Any, rows: list[Row], style: dict[str, Any]) -> None:
    """Thresholds against residual edges."""
    rows = sorted(rows, key=lambda row: row["threshold"])
    axes.plot([row["threshold"] for row in rows], [row["kept"] for row in rows], **style)
    axes.set_xscale("log" if all(row["threshold"] > 0 for row in rows) else "symlog")
    _count(axes.yaxis, axes.set_yscale)
    axes.set_xlabel("threshold")
    axes.set_ylabel("residual edges kept")


def _roc(axes: Any, rows: list[Row], style: dict[str, Any]) -> None:
    """False against true positive rates of the circuits, from the empty one to the whole graph."""
    points = sorted({(row["false_positive_rate"], row["true_positive_rate"]) for row in rows})
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8)
    axes.plot(*zip((0.0, 0.0), *points, (1.0, 1.0), strict=True), **style)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false positive rate of edges")
    axes.set_ylabel("true positive rate of edges")
