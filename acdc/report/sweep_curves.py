"""The plots of a sweep as pictures, one panel per task: edges against the metric, thresholds against edges, ROC."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from acdc.report.curves import COLOURS, DASHES, MARKERS, files
from acdc.report.panels import Line, Panel, labels

ACROSS = 3  # panels in a row


def draw(panels: list[Panel]) -> dict[str, bytes]:
    """A picture of the panels of each kind, by file name."""
    out: dict[str, bytes] = {}
    for kind in dict.fromkeys(panel.kind for panel in panels):
        picture = _picture([panel for panel in panels if panel.kind == kind])
        out |= {f"{kind}.{suffix}": data for suffix, data in picture.items()}
    return out


def _picture(panels: list[Panel]) -> dict[str, bytes]:
    from matplotlib.figure import Figure

    names, across = labels(panels), min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.2 * across + (2 if len(names) > 1 else 0), 3.6 * down), layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        for line in panel.lines:
            _line(axes, line, _style(names.index(line.label)) | {"label": line.label})
        _scale(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    if len(names) > 1:
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            found, said = axes.get_legend_handles_labels()
            handles |= dict(zip(said, found, strict=True))
        figure.legend([handles[n] for n in names], names, loc="outside right upper", frameon=False, fontsize=9)
    return files(figure)


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


def _line(axes: Any, line: Line, style: dict[str, Any]) -> None:
    """A line with its 95 % intervals, where it has some."""
    x, y = [p.x for p in line.points], [p.y for p in line.points]
    axes.plot(x, y, **style)
    if any(p.low is not None for p in line.points):
        low = [p.y if p.low is None else p.low for p in line.points]
        high = [p.y if p.high is None else p.high for p in line.points]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)


def _scale(axes: Any, panel: Panel) -> None:
    """The axes of a kind of plot; dotted, the full model; of a ROC, the diagonal."""
    if panel.level is not None:
        axes.axhline(panel.level, color="#999999", lw=0.8, ls=":", zorder=0)
    if panel.kind == "pareto":
        _count(axes.xaxis, axes.set_xscale)
    elif panel.kind == "thresholds":
        positive = all(p.x > 0 for line in panel.lines for p in line.points)
        axes.set_xscale("log" if positive else "symlog")
        _count(axes.yaxis, axes.set_yscale)
    else:
        axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, zorder=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)


def _count(axis: Any, scale: Callable[..., None]) -> None:
    """A logarithmic axis of edges, on which 0 has a place, too."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    scale("symlog", linthresh=1, linscale=0.3)
    axis.set_major_locator(FixedLocator([0, *(d * 10**k for k in range(7) for d in (1, 2, 5))]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
