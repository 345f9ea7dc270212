"""The picture of a circuit: inputs at the bottom, the layers above them, logits on top, or in another direction.

A head shows its q, k, v inputs; those in use have the colour of their edges. Width and opacity of an edge follow its
score. Heads and MLPs of a known component class have the colour of the class. A circuit by span has a column for each
span, and arcs for what heads move between them.
"""

import json
import math
import textwrap
from dataclasses import dataclass, replace

import numpy as np

from acdc.files.circuit import CircuitFile
from acdc.graph.circuit import Circuit
from acdc.graph.graph import AT, QKV
from acdc.registry import METHODS
from acdc.report.canvas import Curve, Drawing, Group, Mark, Point, Rect, Text
from acdc.report.layout import Box, Layout, lay_out, port
from acdc.report.positions import LINE, ByPosition, lay_out_by_position
from acdc.report.style import COLOURS, GREY, INK, LETTERS, MOVE, PALE, PLAIN, SAND, SHADE, PictureStyle, Scale
from acdc.report.text import bound

MOST = 300  # edges in a picture; more show nothing
SCREEN, PRINT = 144, 300  # dots an inch
MARGIN, LEGEND = 20.0, 420.0  # points: around a picture; the least width of its header
LETTER = 0.58  # width of a letter, times its size

Area = tuple[float, float, float, float]  # x and y of the centre, width, height
Sample = tuple[str, float, str]  # of the legend: colour, height, text


def title_of(file: CircuitFile) -> str:
    """What tells a circuit from others: its task, model, method and threshold or number of edges."""
    title = f"{file.task.name} in {file.model.name}"
    method = file.method
    if method.name == "stability":
        return f"{title}: edges found in {method.options['core']:.0%} or more of the reruns"
    if file.of_eap_ig or method.name not in METHODS:
        return title
    return f"{title}: {method.name}, {bound(method.name, method.threshold, method.options)}"


def to_svg(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The picture as SVG text, with the strongest edges of a large circuit. Edges have their names as ids."""
    return _draw(circuit, title, look).svg()


def to_png(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as a bitmap at 144 dots an inch, or at 300 with a set size."""
    return _draw(circuit, title, look).png(PRINT if look.width or look.font_size else SCREEN)


def to_pdf(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as one page of PDF, with its fonts."""
    return _draw(circuit, title, look).pdf()


def to_tikz(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The picture for LaTeX."""
    return _draw(circuit, title, look).tikz()


def to_dot(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The circuit as DOT text for Graphviz: its nodes and all its edges."""
    edges = _edges(circuit)
    scale = Scale.of(edge.score for edge in edges)
    lines = ["digraph circuit {", f"rankdir=BT; labelloc=t; label={_quote(title)};"]
    for node in circuit.nodes():  # no defaults for all nodes: some parsers make a node of them
        lines.append(f"{_quote(node)} [shape=box, style=filled, fillcolor={_quote(look.fill(node) or 'white')}];")
    for edge in edges:
        values = {"id": edge.name, "color": edge.colour + f"{round(255 * scale.opacity(edge.score)):02x}"}
        values |= {"penwidth": f"{scale.width(edge.score):.2f}", "style": "dashed" if edge.score < 0 else "solid"}
        if math.isfinite(edge.score):
            values["label"] = f"{edge.score:.2g}"
        if edge.at:
            values["label"] = f"{values.get('label', '')}{edge.at}".strip()
        attributes = ", ".join(f"{key}={_quote(value)}" for key, value in values.items())
        lines.append(f"{_quote(edge.sender)} -> {_quote(edge.node)} [{attributes}];")
    return "\n".join([*lines, "}", ""])


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True)
class Edge:
    """An edge to draw."""

    index: tuple[int, ...]  # sender, receiver and, in a circuit by span, span
    name: str
    sender: str
    node: str
    kind: str  # of the receiver
    score: float  # NaN without one
    at: str = ""  # " @ " and its span

    @property
    def colour(self) -> str:
        """The colour of its kind."""
        return COLOURS.get(self.kind, INK)

    @property
    def size(self) -> float:
        """|score|; edges without a score come last."""
        return abs(self.score) if math.isfinite(self.score) else -1.0


def _edges(circuit: Circuit, most: int | None = None) -> list[Edge]:
    """The strongest edges, the weakest of them first."""
    g = circuit.graph
    scores = np.full(circuit.kept.shape, np.nan) if circuit.scores is None else circuit.scores
    edges = []
    for index in map(tuple, np.argwhere(circuit.kept).tolist()):
        s, r, *span = index
        receiver = g.receivers[r]
        names = (g.part_name(index, circuit.spans), g.senders[s].name, receiver.node, receiver.kind)
        edges.append(Edge(index, *names, float(scores[index]), "".join(AT + circuit.spans[i] for i in span)))
    strongest = sorted(edges, key=lambda edge: edge.size, reverse=True)[:most]
    return sorted(strongest, key=lambda edge: edge.size)


def _draw(circuit: Circuit, title: str, look: PictureStyle) -> Drawing:
    edges = _edges(circuit, MOST)
    scale = Scale.of(edge.score for edge in edges)
    shown = np.zeros_like(circuit.kept)
    for edge in edges:
        shown[edge.index] = True
    drawn = Circuit(circuit.graph, shown, spans=circuit.spans)
    layout: Layout
    groups = []
    if circuit.spans:
        layout = lay_out_by_position(drawn, look.prompted, look.sideways)
        groups += _columns(layout, look)
    else:
        layout = lay_out(drawn, look.sideways)
    used = {f"{edge.node}{edge.at}<{edge.kind}>" for edge in edges}
    groups += [_edge(edge, layout.paths[edge.name], scale, look) for edge in edges]
    groups += [_node(name, box, used, look) for name, box in layout.boxes.items()]
    if look.scores:
        groups += _scores(edges, layout, look)

    corners = [look.turn(layout.corners[:2]), look.turn(layout.corners[2:])]
    left, right = sorted(x for x, _ in corners)
    top, bottom = sorted(y for _, y in corners)
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
        moves = any(group.kind == "move" for group in groups)
        legend = _legend(edges, moves, scale, look) if look.legend else []
        header, height = _header(title, _counts(circuit, edges), legend, left, top, width)
        groups.append(Group("header", marks=header))
        right = left + width
        top -= height
    margin = MARGIN if look.width is None else 2.0  # a picture of a set width stands within the paper's margins
    width = right - left + 2 * margin
    height = bottom - top + 2 * margin
    size = (look.font_size or LETTERS) / LETTERS if look.width is None else 72 * look.width / width
    return Drawing(groups, left - margin, top - margin, width, height, size)


def _centred(text: str, x: float, y: float, size: float, colour: str) -> Text:
    """Text with its middle at a point."""
    return Text(x, y + 0.36 * size, text, size, colour, "middle")


def _centred_rect(area: Area, fill: str, line: str = "", radius: float = 0.0) -> Rect:
    x, y, width, height = area
    return Rect(x - width / 2, y - height / 2, width, height, fill, line, radius)


def _edge(edge: Edge, path: list[Point], scale: Scale, look: PictureStyle) -> Group:
    tip = f"{edge.name}  {edge.score:.4g}" if math.isfinite(edge.score) else edge.name
    line = (edge.colour, scale.opacity(edge.score), scale.width(edge.score), edge.score < 0)
    return Group("edge", edge.name, tip, [_curve([look.turn(point) for point in path], *line)])


def _curve(points: list[Point], colour: str, opacity: float, width: float, dashed: bool = False) -> Curve:
    """A line whose last piece is the head of its arrow."""
    x0, y0 = points[-4]
    x1, y1 = points[-1]
    half = 0.25 + 0.11 * width  # half the width of the arrow's head, divided by its length
    across = ((y1 - y0) * half, (x0 - x1) * half)
    arrow = [(x1, y1), (x0 + across[0], y0 + across[1]), (x0 - across[0], y0 - across[1])]
    return Curve(points[:-3], arrow, colour, opacity, width, dashed)


def _columns(layout: ByPosition, look: PictureStyle) -> list[Group]:
    """What a circuit by span has behind its edges: columns, the prompt below them, the answer, and arcs."""
    _, bottom, _, top = layout.corners
    shades = Group("columns")
    axis = Group("axis")
    for column in layout.columns:
        if not column.folded:
            box = Box("column", column.x, (bottom + top) / 2, column.width, top - bottom)
            shades.marks.append(_centred_rect(_area(box, look), SHADE, radius=6))
        x, y = look.turn((column.x, layout.axis))
        last = len(column.lines) - 1
        first = {"up": 0, "down": -last}.get(look.direction, -last / 2)
        for i, line in enumerate(column.lines):
            colour = INK if i == 0 and not column.folded else GREY
            axis.marks.append(_centred(line, x, y + LINE * (first + i), 11, colour))
    if layout.answer:
        axis.marks.append(_centred(look.prompted.answer, *look.turn(layout.answer), 11, INK))
    groups = [shades, axis]
    for move in layout.moves:
        name = f"{move.head}: {move.start} → {move.end}"
        share = "" if move.attention is None else f"  {move.attention:.0%} of its attention"
        points = [look.turn(point) for point in move.path]
        opacity = 0.7 if move.attention is None else 0.05 + 0.95 * move.attention
        groups.append(Group("move", name, name + share, [_curve(points, MOVE, opacity, 2.0)]))
    return groups


def _area(box: Box, look: PictureStyle) -> Area:
    """Where a box is in the picture."""
    size = (box.height, box.width) if look.sideways else (box.width, box.height)
    return (*look.turn((box.x, box.y)), *size)


def _node(key: str, box: Box, used: set[str], look: PictureStyle) -> Group:
    """A node's box. A head has its name at the side where edges leave, its inputs at the side where they enter."""
    name, _, span = key.partition(AT)
    area = _area(box, look)
    x, y, *_ = area
    if box.kind == "end":
        marks: list[Mark] = [_centred_rect(area, INK, radius=8), _centred(name, x, y, LETTERS, "white")]
    elif box.kind == "mlp":
        marks = [_centred_rect(area, look.fill(name) or SAND, INK), _centred(name, x, y, LETTERS, INK)]
    else:
        x, y = look.turn((box.x, box.y + 8))
        marks = [_centred_rect(area, look.fill(name) or "white", INK), _centred(name, x, y, LETTERS, INK)]
        for kind in QKV:
            fill, ink = (COLOURS[kind], "white") if f"{key}<{kind}>" in used else (PALE, "#A0A0A0")
            x, y = look.turn((box.x + port(kind, look.sideways or bool(span)), box.y + 9 - box.height / 2))
            marks += [_centred_rect((x, y, 13 if span else 15, 13), fill), _centred(kind, x, y, 10, ink)]
    return Group("node", tip=key, marks=marks)


def _scores(edges: list[Edge], layout: Layout, look: PictureStyle) -> list[Group]:
    """The scores, each on its edge where there is room, near the receiver if possible; the strongest choose first."""
    taken = [_area(box, look) for box in layout.boxes.values()]
    groups = []
    for edge in reversed([edge for edge in edges if math.isfinite(edge.score)]):
        text = f"{edge.score:.2g}"
        width = LETTER * 9 * len(text) + 2
        areas = [(*point, width, 10.0) for point in _points_of(layout.paths[edge.name], look)]
        best = min(areas, key=lambda area: sum(_overlap(area, other) for other in taken))
        taken.append(best)
        marks: list[Mark] = [_centred_rect(best, "white"), _centred(text, *best[:2], 9, edge.colour)]
        groups.append(Group("score", tip=edge.name, marks=marks))
    return groups


def _overlap(a: Area, b: Area) -> float:
    """The size of the area that two have in common."""
    width = (a[2] + b[2]) / 2 - abs(a[0] - b[0])
    height = (a[3] + b[3]) / 2 - abs(a[1] - b[1])
    return max(0.0, width) * max(0.0, height)


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
    if circuit.spans:
        text += f" at {circuit.size:,} of {g.n_edges * len(circuit.spans):,} edge-spans"
    if circuit.direct is not None:
        text += f", {circuit.n_edges + circuit.n_direct:,} of {g.n_edges_direct:,} with direct edges"
    if len(edges) < circuit.size:
        scored = any(math.isfinite(edge.score) for edge in edges)
        text += f"; the {len(edges):,} strongest are drawn" if scored else f"; {len(edges):,} are drawn"
    return text


def _legend(edges: list[Edge], moves: bool, scale: Scale, look: PictureStyle) -> list[list[Sample]]:
    """Its groups: colours of edges, their widths, classes of nodes."""
    used = {edge.colour for edge in edges}
    into = {"query": COLOURS["q"], "key": COLOURS["k"], "value": COLOURS["v"], "MLP or logits": INK}
    legend: list[list[Sample]] = [[(colour, 3, f"into {what}") for what, colour in into.items() if colour in used]]
    if scale.high > 0:
        negative = any(edge.score < 0 for edge in edges)
        widths = [(INK, scale.width(x), f"{x:.2g}") for x in scale.marks]
        legend.append([*widths, ("", 0, f"|{look.measure}|, dashed if negative" if negative else look.measure)])
    if moves:
        by = ", fainter where it is less" if look.prompted.attention else ""
        legend.append([(MOVE, 2, f"moved by a head's attention{by}")])
    nodes = {edge.sender for edge in edges} | {edge.node for edge in edges}
    classes = [(tint, 10, name) for name, tint in look.tints.items() if nodes & set(look.classes[name])]
    if look.published and classes:
        legend.append([*classes, ("", 0, f"class in {look.published.model}, as published")])
    return legend


def _header(
    title: str, counts: str, legend: list[list[Sample]], left: float, bottom: float, width: float
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
