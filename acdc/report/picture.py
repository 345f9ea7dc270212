"""The picture of a circuit: inputs at the bottom, the layers above them, logits on top, or in another direction.

A head shows its q, k, v inputs; those in use have the colour of their edges. Width and opacity of an edge follow its
score. Heads and MLPs of a known component class have the colour of the class.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, replace

import numpy as np

from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV
from acdc.report.canvas import Curve, Drawing, Group, Mark, Point, Rect, Text
from acdc.report.layout import Box, Layout, lay_out, port
from acdc.report.style import COLOURS, GREY, INK, PALE, PLAIN, SAND, PictureStyle, Scale

MOST = 300  # edges in a picture; more show nothing
SCREEN, PRINT = 144, 300  # dots an inch
MARGIN, LEGEND = 20.0, 420.0  # points: around a picture; the least width of its header
LETTER = 0.58  # width of a letter, times its size


def to_svg(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The picture as SVG text; of a large circuit the strongest edges, and it says so. Edge ids are names."""
    return _draw(circuit, title, look).svg()


def to_png(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as a bitmap at 144 dots an inch, 300 if it has a set width; of a large circuit the strongest edges,
    and it says so."""
    return _draw(circuit, title, look).png(SCREEN if look.width is None else PRINT)


def to_pdf(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as one page of PDF, with its fonts; of a large circuit the strongest edges, and it says so."""
    return _draw(circuit, title, look).pdf()


def to_dot(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The circuit as DOT text for Graphviz, with every edge."""
    edges, scale = _edges(circuit, circuit.kept)
    nodes = circuit.nodes()
    lines = ["digraph circuit {", f"rankdir=BT; labelloc=t; label={_quote(title)};", "node [shape=box];"]
    lines += [f"{_quote(node)} [style=filled, fillcolor={_quote(look.fill(node) or 'white')}];" for node in nodes]
    for edge in edges:
        values = {"id": edge.name, "color": edge.colour + f"{round(255 * scale.opacity(edge.score)):02x}"}
        values |= {"penwidth": f"{scale.width(edge.score):.2f}", "style": "dashed" if edge.score < 0 else "solid"}
        if math.isfinite(edge.score):
            values["label"] = f"{edge.score:.2g}"
        attributes = ", ".join(f"{key}={_quote(value)}" for key, value in values.items())
        lines.append(f"{_quote(edge.sender)} -> {_quote(edge.node)} [{attributes}];")
    return "\n".join([*lines, "}", ""])


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True)
class Edge:
    """An edge to draw. The score is NaN if it has none."""

    name: str
    sender: str
    node: str
    kind: str
    score: float

    @property
    def colour(self) -> str:
        """By the kind of the receiver."""
        return COLOURS.get(self.kind, INK)


def _edges(circuit: Circuit, shown: np.ndarray) -> tuple[list[Edge], Scale]:
    """The shown edges, the weakest first, and the scale of their scores."""
    g = circuit.graph
    scores = np.full(shown.shape, np.nan) if circuit.scores is None else circuit.scores
    edges = []
    for s, r in np.argwhere(shown):
        receiver = g.receivers[r]
        edges.append(Edge(g.edge_name(s, r), g.senders[s].name, receiver.node, receiver.kind, float(scores[s, r])))
    edges.sort(key=lambda edge: abs(edge.score) if math.isfinite(edge.score) else -1.0)
    return edges, Scale.of(scores[shown])


def _strongest(circuit: Circuit, most: int) -> np.ndarray:
    """Bool[sender receiver]: the kept edges with the largest |score|; those without a score come last."""
    kept = circuit.kept
    sizes = np.full(kept.shape, -1.0) if circuit.scores is None else np.nan_to_num(np.abs(circuit.scores), nan=-1.0)
    order = np.argsort(-sizes[kept], kind="stable")
    shown = np.zeros_like(kept)
    shown[tuple(np.argwhere(kept)[order[:most]].T)] = True
    return shown


def _draw(circuit: Circuit, title: str, look: PictureStyle) -> Drawing:
    shown = _strongest(circuit, MOST)
    edges, scale = _edges(circuit, shown)
    layout = lay_out(Circuit(circuit.graph, shown), look.sideways)
    used = {f"{edge.node}<{edge.kind}>" for edge in edges}
    groups = [_edge(edge, layout.paths[edge.name], scale, look) for edge in edges]
    groups += [_node(name, box, used, look) for name, box in layout.boxes.items()]
    if look.scores:
        groups += _scores(edges, layout, look)

    low, near, high, far = layout.corners
    left, right = sorted((look.turn((low, near))[0], look.turn((high, far))[0]))
    top, bottom = sorted((look.turn((low, near))[1], look.turn((high, far))[1]))
    if not edges:
        middle = (left + right) / 2
        note = _centred("The circuit is empty: no edge was kept.", middle, bottom + 20, 12, INK)
        groups.append(Group("note", marks=[note]))
        left = min(left, middle - 130)
        right = max(right, middle + 130)
        bottom += 28
    if look.sideways:
        top -= 20
    else:
        left -= 64
    for text, along in layout.labels:
        x, y = look.turn((0.0, along))
        label = _centred(text, x, top + 6, 11, GREY) if look.sideways else Text(left, y + 4, text, 11, GREY)
        groups.append(Group("label", marks=[label]))

    if look.header:
        width = max(right - left, LEGEND)
        header, height = _header(title, _counts(circuit, edges), _legend(edges, scale, look), left, top, width)
        groups.append(Group("header", marks=header))
        right = left + width
        top -= height
    margin = MARGIN if look.width is None else 2.0  # around a picture of a set width are the paper's margins
    width = right - left + 2 * margin
    height = bottom - top + 2 * margin
    size = 1.0 if look.width is None else 72 * look.width / width
    return Drawing(groups, left - margin, top - margin, width, height, size)


def _centred(text: str, x: float, y: float, size: float, colour: str) -> Text:
    """Text with its middle at a point."""
    return Text(x, y + 0.36 * size, text, size, colour, "middle")


def _edge(edge: Edge, path: list[Point], scale: Scale, look: PictureStyle) -> Group:
    points = [look.turn(point) for point in path]
    (x0, y0), (x1, y1) = points[-4], points[-1]
    half = 0.25 + 0.11 * scale.width(edge.score)  # half the width of the arrow's head, of its length
    across = ((y1 - y0) * half, (x0 - x1) * half)
    arrow = [(x1, y1), (x0 + across[0], y0 + across[1]), (x0 - across[0], y0 - across[1])]
    tip = f"{edge.name}  {edge.score:.4g}" if math.isfinite(edge.score) else edge.name
    line = (edge.colour, scale.opacity(edge.score), scale.width(edge.score), edge.score < 0)
    return Group("edge", edge.name, tip, [Curve(points[:-3], arrow, *line)])


def _node(name: str, box: Box, used: set[str], look: PictureStyle) -> Group:
    """A node's box. A head has its name at the side where edges leave, its inputs at the side where they enter."""
    x, y = look.turn((box.x, box.y))
    width, height = (box.height, box.width) if look.sideways else (box.width, box.height)
    left, top = x - width / 2, y - height / 2
    if box.kind == "end":
        text = _centred(name, x, y, 12, "white")
        return Group("node", tip=name, marks=[Rect(left, top, width, height, INK, radius=8), text])
    if box.kind == "mlp":
        text = _centred(name, x, y, 12, INK)
        return Group("node", tip=name, marks=[Rect(left, top, width, height, look.fill(name) or SAND, INK), text])
    x, y = look.turn((box.x, box.y + 8))
    marks: list[Mark] = [Rect(left, top, width, height, look.fill(name) or "white", INK), _centred(name, x, y, 12, INK)]
    for kind in QKV:
        fill, ink = (COLOURS[kind], "white") if f"{name}<{kind}>" in used else (PALE, "#A0A0A0")
        x, y = look.turn((box.x + port(kind, look.sideways), box.y + 9 - box.height / 2))
        marks += [Rect(x - 7.5, y - 6.5, 15, 13, fill), _centred(kind, x, y, 10, ink)]
    return Group("node", tip=name, marks=marks)


def _scores(edges: list[Edge], layout: Layout, look: PictureStyle) -> list[Group]:
    """The scores, each on its edge where there is room, near the receiver if possible; the strongest choose first."""
    taken = []
    for box in layout.boxes.values():
        x, y = look.turn((box.x, box.y))
        width, height = (box.height, box.width) if look.sideways else (box.width, box.height)
        taken.append((x, y, width, height))
    groups = []
    for edge in reversed([edge for edge in edges if math.isfinite(edge.score)]):
        text = f"{edge.score:.2g}"
        width, height = LETTER * 9 * len(text) + 2, 10.0
        best, least = (0.0, 0.0), math.inf
        for x, y in _points_of(layout.paths[edge.name], look):
            overlap = sum(
                max(0.0, (w + width) / 2 - abs(x - a)) * max(0.0, (h + height) / 2 - abs(y - b)) for a, b, w, h in taken
            )
            if overlap < least:
                best, least = (x, y), overlap
        x, y = best
        taken.append((x, y, width, height))
        back = Rect(x - width / 2, y - height / 2, width, height, "white")
        groups.append(Group("score", tip=edge.name, marks=[back, _centred(text, x, y, 9, edge.colour)]))
    return groups


def _points_of(path: list[Point], look: PictureStyle) -> list[Point]:
    """Points along an edge, from its end on."""
    points = []
    for i in range(len(path) - 7, -1, -3):
        for t in (0.5, 0.7, 0.3, 0.85, 0.15):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            x, y = (sum(w * p[axis] for w, p in zip(weights, path[i : i + 4], strict=True)) for axis in (0, 1))
            points.append(look.turn((x, y)))
    return points


def _counts(circuit: Circuit, edges: list[Edge]) -> str:
    g = circuit.graph
    text = f"{circuit.n_edges:,} of {g.n_edges:,} edges (residual)"
    if circuit.direct is not None:
        text += f", {circuit.n_edges + circuit.n_direct:,} of {g.n_edges_direct:,} with direct edges"
    if len(edges) < circuit.n_edges:
        scored = any(math.isfinite(edge.score) for edge in edges)
        text += f"; the {len(edges):,} strongest are drawn" if scored else f"; {len(edges):,} are drawn"
    return text


Entry = tuple[str, float, str]  # of the legend: colour and height of a sample, text


def _legend(edges: list[Edge], scale: Scale, look: PictureStyle) -> list[list[Entry]]:
    """Its entries: colours of edges, their widths, classes of nodes."""
    inputs = (("q", "query"), ("k", "key"), ("v", "value"))
    into: list[Entry] = [(COLOURS[kind], 3, f"into {word}") for kind, word in inputs]
    legend = [[*into, (INK, 3, "into MLP or logits")]]
    if scale.high > 0:
        negative = any(edge.score < 0 for edge in edges)
        marks = [(INK, scale.width(x), f"{x:.2g}") for x in scale.marks]
        legend.append([*marks, ("", 0, "|score|, dashed if negative" if negative else "score of the edge")])
    nodes = {edge.sender for edge in edges} | {edge.node for edge in edges}
    classes = [(tint, 10, name) for name, tint in look.tints.items() if nodes & set(look.classes[name])]
    if look.published and classes:
        legend.append([*classes, ("", 0, f"class in {look.published.model}, as published")])
    return legend


def _header(
    title: str, counts: str, legend: list[list[Entry]], left: float, bottom: float, width: float
) -> tuple[list[Mark], float]:
    """Title, counts and legend in lines of at most the given width, above `bottom`; and their height."""
    marks: list[Rect | Text] = []
    y = 0.0
    for text, size, colour in ((title, 18, INK), (counts, 11, GREY)):
        for line in textwrap.wrap(text, int(width / (LETTER * size)), break_long_words=False):
            y += 1.3 * size
            marks.append(Text(left, y, line, size, colour))
    y += 4
    for group in legend:
        x = width  # each group begins a line
        for colour, height, text in group:
            length = LETTER * 10 * len(text) + 36
            if x + length > width + 12:
                x = 0.0
                y += 16
            if height:
                marks.append(Rect(left + x, y - 3.5 - height / 2, 20, height, colour))
            marks.append(Text(left + x + 24 if height else left + x, y, text, 10, INK))
            x += length
    height = y + 24
    return [replace(mark, y=mark.y + bottom - height) for mark in marks], height
