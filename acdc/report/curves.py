"""The plots of sweeps and comparisons as SVG, PDF and PNG files."""

import math
from collections.abc import Sequence
from typing import Any

from acdc.report.mpl import own_settings, saved
from acdc.report.panels import Line, Panel, labels

# Okabe and Ito's colours without yellow, which colour-blind people can tell apart, then others. The first 7 have filled
# markers, the others hollow ones: enough for all methods. The page has the same in `web/many.js`.
COLOURS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#882255", "#999933",
    "#332288", "#8C6D46", "#FF66CC", "#66CC00", "#005A1E", "#FF9999",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "P", "*", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#999999"
ACROSS = 3  # panels in a row
SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "grid.color": "#eeeeee",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.markeredgewidth": 0.8,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # text that other programs can edit
    "svg.hashsalt": "acdc",  # the same ids each time
}


def draw(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Return SVG, PDF and PNG files by name, the same bytes for the same panels. Panels of the same picture are side
    by side; a label has the same colour, marker and dashes in all of them."""
    names = labels(panels)
    files: dict[str, bytes] = {}
    for picture in dict.fromkeys(panel.picture for panel in panels):
        members = [panel for panel in panels if panel.picture == picture]
        with own_settings(SETTINGS):
            figure = _figure(members, names)
            files[f"{picture}.svg"] = saved(figure, format="svg", metadata={"Date": None})
            files[f"{picture}.pdf"] = saved(figure, format="pdf", metadata={"CreationDate": None})
            files[f"{picture}.png"] = saved(figure, format="png", dpi=150)
    return files


def _figure(panels: Sequence[Panel], names: Sequence[str]) -> Any:
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    columns = min(ACROSS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = (6.0, 4.5) if len(panels) == 1 else (4.2 * columns, 3.6 * rows)
    legend = 2 if len(labels(panels)) > 1 else 0
    figure = Figure(figsize=(width + legend, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(_escaped(panel.title), wrap=True)
        axes.set_xlabel(_escaped(panel.x))
        axes.set_ylabel(_escaped(panel.y))
        for line in panel.lines:
            label = f"{line.label}, {line.note}" if line.note else line.label
            handles[_escaped(label)] = _line(axes, line, names.index(line.label))
        _scale(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    return figure


def _escaped(text: str) -> str:
    """Return text in which $ starts no formula."""
    return text.replace("$", r"\$")


def _line(axes: Any, line: Line, index: int) -> Any:
    """Draw a line, with markers at its circuits and a band for the 95 % intervals."""
    x = [p.x for p in line.points]
    y = [p.y for p in line.points]
    colour = COLOURS[index % len(COLOURS)]
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    inside, edge = ("white", colour) if index // len(MARKERS) % 2 else (colour, "white")
    markers = {"marker": MARKERS[index % len(MARKERS)], "markerfacecolor": inside, "markeredgecolor": edge}
    circuits = [i for i, p in enumerate(line.points) if p.row >= 0]
    (drawn,) = axes.plot(x, y, color=colour, linestyle=dashes, markevery=circuits, **markers)
    if any(p.low is not None for p in line.points):
        low = [p.y if p.low is None else p.low for p in line.points]
        high = [p.y if p.high is None else p.high for p in line.points]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    return drawn


def _scale(axes: Any, panel: Panel) -> None:
    """Scale the axes, and draw the levels or, in a ROC, the diagonal."""
    for level in panel.levels:
        axes.axhline(level, color=GREY, linewidth=0.8, zorder=1)
    if panel.limits is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, panel.limits[0]), min(high, panel.limits[1]))
    points = [point for line in panel.lines for point in line.points]
    if panel.kind == "pareto":
        _scale_edges(axes, "x", [p.x for p in points])
    elif panel.kind == "thresholds":
        axes.set_xlabel(f"{axes.get_xlabel()} (log scale)")
        positive = [p.x for p in points if p.x > 0]
        if len(positive) == len(points):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive, default=1))
        _scale_edges(axes, "y", [p.y for p in points])
    else:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, zorder=1)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)


def _scale_edges(axes: Any, which: str, edges: Sequence[float]) -> None:
    """Scale and label an axis ("x" or "y") of edges, which is logarithmic with a place for 0."""
    from matplotlib.ticker import FixedLocator, NullLocator

    lowest = min(edges, default=0)
    axis = getattr(axes, f"{which}axis")
    axis.set_label_text(f"{axis.get_label_text()} (log scale)")
    getattr(axes, f"set_{which}scale")("symlog", linthresh=1, linscale=0.3)
    getattr(axes, f"set_{which}lim")(lowest / 1.2 if lowest else -0.2, max([1, *edges]) * 1.2)
    axis.set_major_locator(FixedLocator([0, *(digit * 10**k for k in range(7) for digit in (1, 2, 5))]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.0f}")
