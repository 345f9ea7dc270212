"""The plots of a comparison: faithfulness against edges, and ROC."""

from __future__ import annotations

import io
import math
from typing import Any

from acdc.files.comparison import TaskPart
from acdc.registry import METHODS

# Okabe and Ito's colours, that colour-blind people can tell apart, but for yellow; with 7 markers and 3 kinds of lines
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
DASHES = ("-", "--", "-.", ":")
BELOW, ABOVE = -0.5, 1.5  # of faithfulness: what is farther off is cut


def faithfulness(task: TaskPart) -> dict[str, bytes]:
    """Faithfulness against the edges of pruned circuits, a line per method with its 95 % interval; by file suffix. A
    circuit that is pruned to nothing has no place on a log axis, and is 0."""
    title = f"{task.metric}, {task.ablation} ablation"
    figure, axes = _figure(task, title, "residual edges of the pruned circuit", "faithfulness", 8)
    axes.axhline(1, color="#999999", lw=0.8)
    axes.axhline(0, color="#999999", lw=0.8)
    least, most, low, high = math.inf, 1, -0.05, 1.05
    for i, m in enumerate(task.methods):
        circuits = sorted((c for c in m.circuits if c.edges), key=lambda c: c.edges)
        edges, style = [c.edges for c in circuits], _style(task, i)
        axes.plot(edges, [c.faithfulness for c in circuits], label=m.name, **style)
        lows, highs = [c.low for c in circuits], [c.high for c in circuits]
        axes.fill_between(edges, lows, highs, color=style["color"], alpha=0.1, lw=0)
        least, most = min([least, *edges]), max([most, *edges])
        low, high = min([low, *(x for x in lows if x > BELOW)]), max([high, *(x for x in highs if x < ABOVE)])
    axes.set_xscale("log")
    left, right = min(least, most) / 1.15, most * 1.15
    ticks = [t for t in (d * 10**k for k in range(7) for d in (1, 2, 5)) if left <= t <= right]
    axes.set_xlim(left, right)
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(low - 0.02, high + 0.02)
    return _files(figure, axes)


def roc(task: TaskPart) -> dict[str, bytes]:
    """True against false positive rate of the methods' scores, by file suffix."""
    figure, axes = _figure(task, f"edges of {task.reference}", "false positive rate", "true positive rate", 7)
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8)
    for i, m in enumerate(task.methods):
        if m.roc:
            style = _style(task, i) | {"markevery": max(1, len(m.roc) // 8)}
            axes.plot(*zip(*m.roc, strict=True), label=f"{m.name}, AUC {m.auc:.2f}", **style)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    return _files(figure, axes)


def _style(task: TaskPart, index: int) -> dict[str, Any]:
    """The same for a method in every plot."""
    name, known = task.methods[index].name, list(METHODS)
    new = [m.name for m in task.methods if m.name not in METHODS]
    i = known.index(name) if name in METHODS else len(known) + new.index(name)
    if name == "random":
        return {"color": "#888888", "marker": ".", "ls": ":", "lw": 1.2, "ms": 6}
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "ls": DASHES[i // len(COLOURS) % len(DASHES)],
        "lw": 1.5,
        "ms": 6,
        "mec": "white",
        "mew": 0.4,
    }


def _figure(task: TaskPart, title: str, x: str, y: str, width: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    figure = Figure(figsize=(width, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{task.name} in {task.model}: {title}", fontsize=10, wrap=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    return figure, axes


def _files(figure: Any, axes: Any) -> dict[str, bytes]:
    """As SVG and PNG, with a legend beside the plot if there are lines."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9, handlelength=3)
    return files(figure)


def files(figure: Any) -> dict[str, bytes]:
    """A figure of matplotlib as SVG and PNG, the same bytes for the same plot."""
    import matplotlib

    out = {}
    with matplotlib.rc_context({"svg.hashsalt": "acdc"}):
        for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
            data = io.BytesIO()
            figure.savefig(data, format=suffix, dpi=150, metadata=metadata)
            out[suffix] = data.getvalue()
    return out
