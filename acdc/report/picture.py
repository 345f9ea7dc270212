"""The picture of a circuit: inputs at the bottom, the layers above them, logits on top, or in another direction.

Graphviz does the layout. Each layer has two ranks, the heads and above them the MLP. A head shows its q, k, v
inputs; those in use have the colour of their edges. Width and opacity of an edge follow its score. Heads and MLPs
of a known component class have the colour of the class.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise, zip_longest

import numpy as np
import pygraphviz as pgv

from acdc.files.published import Published
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV

# Okabe and Ito's colours, which can be told apart with every kind of colour blindness.
COLOURS = {"q": "#D55E00", "k": "#0072B2", "v": "#009E73"}
INK, GREY, PALE, SAND = "#333333", "#8A8A8A", "#F0F0F0", "#F2E9C9"
# Paul Tol's light scheme, made to stand behind dark text and to be told apart by the colour-blind, too. In this order
# the first seven, which IOI has, differ most (CIEDE2000 at least 8 with red-green blindness).
TINTS = ("#77AADD", "#EE8866", "#FFAABB", "#99DDFF", "#AAAA00", "#EEDD88", "#44BB99", "#BBCC33")
FONT = "Helvetica,Arial,sans-serif"
THIN, THICK = 1, 5  # points
HEAVY = "20"
FAINT = 0.4  # opacity of the weakest edge
MOST = 300  # edges in a picture: of more, a layout takes minutes and shows nothing
SCREEN, PRINT = 144, 300  # dots an inch

# Where the logits are from the input: Graphviz's name, and at which side of a node edges leave and enter.
DIRECTIONS = {"up": ("BT", "n", "s"), "down": ("TB", "s", "n"), "right": ("LR", "e", "w"), "left": ("RL", "w", "e")}


@dataclass(frozen=True)
class PictureStyle:
    """How a picture is drawn.

    Args:
        width: inches; None for that of the layout. With a width, text is larger in its boxes and the legend narrower,
            so that a circuit of some 50 edges can be read in a column of a paper, 3.3 inches wide.
        direction: one of DIRECTIONS.
        scores: whether the edges' scores are written beside them.
        header: whether title, counts and legend are above the circuit.
        published: a circuit whose component classes the nodes are coloured by. Of a node in two, the first counts.
    """

    width: float | None = None
    direction: str = "up"
    scores: bool = False
    header: bool = True
    published: Published | None = None

    @property
    def sideways(self) -> bool:
        """Whether layers stand side by side."""
        return self.direction in ("left", "right")

    @property
    def room(self) -> float:
        """For the legend, in points of the layout: at 0.6 times their size its letters can be read."""
        return math.inf if self.width is None else 72 * self.width / 0.6

    def size(self, points: int) -> int:
        """Of letters, in points of the layout. Those of a set width are larger: they will be scaled down."""
        return points if self.width is None else round(1.3 * points)

    @property
    def tints(self) -> dict[str, str]:
        """Class → colour."""
        return dict(zip(self.classes, cycle(TINTS), strict=False))

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class → nodes."""
        return self.published.classes if self.published else {}

    def fill(self, node: str) -> str | None:
        """The colour of a node; None for one without a class."""
        return next((tint for name, tint in self.tints.items() if node in self.classes[name]), None)


PLAIN = PictureStyle()


def to_dot(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The picture as DOT text, with every edge of the circuit."""
    return str(_drawing(circuit, title, circuit.n_edges, look).to_string())


def to_svg(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> str:
    """The picture as SVG text; of a large circuit the strongest edges, and it says so. Edge ids are names."""
    svg = _draw(_drawing(circuit, title, MOST, look), "svg")
    # Graphviz titles an edge by its ends and ports, and browsers show that, not the tooltip.
    tooltip = r'<title>.*</title>(\n<g id="a_.*"><a xlink:title="(.*)">)'
    return re.sub(tooltip, r"<title>\2</title>\1", svg.decode())


def to_png(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as a bitmap at 144 dots an inch, 300 if it has a set width; of a large circuit the strongest edges,
    and it says so."""
    drawing = _drawing(circuit, title, MOST, look)
    drawing.graph_attr["dpi"] = str(SCREEN if look.width is None else PRINT)
    return _draw(drawing, "png")


def to_pdf(circuit: Circuit, title: str = "", look: PictureStyle = PLAIN) -> bytes:
    """The picture as one page of PDF, with its fonts; of a large circuit the strongest edges, and it says so."""
    drawing = _drawing(circuit, title, MOST, look)
    drawing.graph_attr["margin"] = "0"  # those of a page, half an inch for Graphviz
    pdf = _draw(drawing, "pdf")
    # Blanks in place of the date: the same bytes each time, and the places that the file lists stay right.
    return re.sub(rb"/CreationDate \(.*?\)", lambda date: b" " * len(date[0]), pdf)


def _draw(drawing: pgv.AGraph, to: str) -> bytes:
    """Graphviz's picture. What fontconfig has to say of the system's font settings is kept off the user's terminal."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            picture: bytes = drawing.draw(format=to, prog="dot")
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        said.seek(0)
        os.write(2, b"".join(line for line in said if not line.startswith(b"Fontconfig warning")))
    return picture


@dataclass(frozen=True)
class Scale:
    """From the score of an edge to its line. Without scores all lines are of middle width."""

    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, scores: np.ndarray) -> Scale:
        """The scale of some scores; those that are no numbers don't count."""
        sizes = np.abs(scores[np.isfinite(scores)])
        return cls(float(sizes.min()), float(sizes.max())) if sizes.size else cls()

    @property
    def marks(self) -> list[float]:
        """Scores for the legend: lowest, of middle width, highest."""
        middle = ((math.sqrt(self.low) + math.sqrt(self.high)) / 2) ** 2
        return [self.low, middle, self.high] if self.high > self.low else [self.low]

    def weight(self, score: float) -> float:
        """From 0 (weakest) to 1, linear in the root of |score|: scores span decades, and the weak count."""
        if not math.isfinite(score) or self.high <= self.low:
            return 0.5
        low, root, high = (math.sqrt(x) for x in (self.low, abs(score), self.high))
        return (root - low) / (high - low)

    def width(self, score: float) -> float:
        """Of the line, in points."""
        return THIN + (THICK - THIN) * self.weight(score)

    def colour(self, colour: str, score: float) -> str:
        """The line's colour, fainter for a weaker edge."""
        return f"{colour}{round(255 * (FAINT + (1 - FAINT) * self.weight(score))):02x}"


def _drawing(circuit: Circuit, title: str, most: int, look: PictureStyle) -> pgv.AGraph:
    scores = np.full(circuit.kept.shape, np.nan) if circuit.scores is None else circuit.scores
    shown = Circuit(circuit.graph, _strongest(circuit.kept, scores, most), scores=scores)
    scale = Scale.of(scores[shown.kept])
    negative = bool((scores[shown.kept] < 0).any())
    out = pgv.AGraph(directed=True, strict=False, name="circuit")
    out.graph_attr.update(rankdir=DIRECTIONS[look.direction][0], ranksep="0.36", nodesep="0.06", bgcolor="white")
    out.graph_attr.update(pad="0.3", outputorder="edgesfirst", fontname=FONT, labelloc="t", labeljust="l")
    if look.header:
        out.graph_attr["label"] = _header(title, _counts(circuit, shown), _legend(shown, scale, negative, look), look)
    if look.width is not None:  # margins are the paper's; any height
        out.graph_attr.update(pad="0.03", size=f"{look.width:g},10000!")
    out.node_attr.update(fontname=FONT, fontsize=str(look.size(12)), fontcolor=INK, height="0.32", width="0.6")
    out.edge_attr.update(arrowsize="0.6")
    _add_nodes(out, shown, look)
    _add_edges(out, shown, scores, scale, look)
    return out


def _strongest(kept: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Bool[sender receiver]: the kept edges with the largest |score|; those without a score come last."""
    order = np.argsort(-np.nan_to_num(np.abs(scores[kept]), nan=-1.0), kind="stable")
    shown = np.zeros_like(kept)
    shown[tuple(np.argwhere(kept)[order[:most]].T)] = True
    return shown


def _add_nodes(out: pgv.AGraph, circuit: Circuit, look: PictureStyle) -> None:
    """The nodes, rank by rank from the input, and the layer's number beside them."""
    g = circuit.graph
    touched = set(circuit.nodes())
    ranks: list[tuple[str, list[str]]] = [("", list(g.inputs))]
    for layer in range(g.n_layers):
        for kind in ("head", "mlp"):
            names = [s.name for s in g.senders if (s.layer, s.kind) == (layer, kind) and s.name in touched]
            if names:
                ranks.append((f"layer {layer}", names))
    if not touched:
        ranks.append(("", ["empty"]))
    ranks.append(("", ["logits"]))

    looks = {name: _end(name) for name in (*g.inputs, "logits")}
    looks |= {s.name: _mlp(s.name, look) for s in g.senders if s.kind == "mlp"}
    empty = "The circuit is empty: no edge was kept."
    looks["empty"] = {"shape": "plaintext", "group": "trunk", "label": empty}
    used = {g.receivers[r].name for r in np.flatnonzero(circuit.kept.any(axis=0))}
    above = ""
    for number, (text, names) in enumerate(ranks):
        tag = f"rank {number}"
        label = "" if text == above else text
        above = text
        size = str(look.size(11))
        out.add_node(tag, shape="plaintext", label=label, fontcolor=GREY, fontsize=size, group="tags")
        for name in names:
            out.add_node(name, **(looks.get(name) or _head(name, used, look)))
        out.add_subgraph([tag, *names], rank="same")
        out.add_edge(tag, names[0], style="invis")
        if number:
            out.add_edge(f"rank {number - 1}", tag, style="invis", weight="100")


def _add_edges(out: pgv.AGraph, circuit: Circuit, scores: np.ndarray, scale: Scale, look: PictureStyle) -> None:
    g = circuit.graph
    _, leave, enter = DIRECTIONS[look.direction]
    # Heavy edges are drawn straight: they make a column of input, MLPs and logits. Where two have no edge,
    # an invisible one does it.
    mlps = [s.name for s in g.senders if s.kind == "mlp" and out.has_node(s.name)]
    middle = mlps or ["empty"] * out.has_node("empty")
    column = dict.fromkeys(pairwise([g.inputs[0], *middle, "logits"]), "invis")
    for s, r in np.argwhere(circuit.kept):
        sender, receiver, score, name = g.senders[s], g.receivers[r], float(scores[s, r]), g.edge_name(s, r)
        colour = COLOURS.get(receiver.kind, INK)
        label = {"label": f" {score:.2g}", "fontname": FONT, "fontsize": str(look.size(9)), "fontcolor": colour}
        out.add_edge(
            sender.name,
            receiver.node,
            key=name,
            id=name,
            tooltip=f"{name}  {score:.4g}" if math.isfinite(score) else name,
            tailport=leave if sender.kind == "input" else f"name:{leave}",
            headport={"logits": enter, "mlp": f"name:{enter}"}.get(receiver.kind, f"{receiver.kind}:{enter}"),
            color=scale.colour(colour, score),
            penwidth=f"{scale.width(score):.2f}",
            style="dashed" if score < 0 else "solid",
            weight=HEAVY if column.pop((sender.name, receiver.node), "") else "1",
            **(label if look.scores and math.isfinite(score) else {}),
        )
    for below, above in column:
        out.add_edge(below, above, style="invis", weight=HEAVY)


def _end(name: str) -> dict[str, str]:
    look = {"shape": "box", "style": "rounded,filled", "color": INK, "fillcolor": INK, "fontcolor": "white"}
    return look | {"group": "trunk", "label": name.replace("\\", "\\\\")}


def _mlp(name: str, look: PictureStyle) -> dict[str, str]:
    width, height = (40, 58) if look.sideways else (76, 22)
    fill = look.fill(name) or SAND
    row = f'<TR><TD PORT="name" WIDTH="{width}" HEIGHT="{height}" BGCOLOR="{fill}">{name}</TD></TR>'
    return {"shape": "plain", "group": "trunk", "label": _box(row, 0, look)}


def _head(name: str, used: set[str], look: PictureStyle) -> dict[str, str]:
    """The name at the side where edges leave, the inputs at the side where they enter."""
    inputs = []
    for c in QKV:
        fill, ink = (COLOURS[c], "white") if f"{name}<{c}>" in used else (PALE, "#A0A0A0")
        inputs.append(f'<TD PORT="{c}" BGCOLOR="{fill}" WIDTH="14">{_text(c, look.size(9), ink)}</TD>')
    tint = look.fill(name)
    fill = f' BGCOLOR="{tint}"' if tint else ""
    title = f'<TD PORT="name" {"ROW" if look.sideways else "COL"}SPAN="3"{fill}>{name}</TD>'
    rows = {
        "up": [[title], inputs],
        "down": [inputs, [title]],
        "right": [[inputs[0], title], *([x] for x in inputs[1:])],
        "left": [[title, inputs[0]], *([x] for x in inputs[1:])],
    }[look.direction]
    return {"shape": "plain", "label": _box("".join(f"<TR>{''.join(row)}</TR>" for row in rows), 2, look)}


def _box(rows: str, spacing: int, look: PictureStyle) -> str:
    """A box with some room at its sides. (Graphviz's nodesep would also spread the lines that pass by.)"""
    frame = f'BORDER="1" CELLBORDER="0" CELLPADDING="1" COLOR="{INK}" BGCOLOR="white"'
    box = f'<TD><TABLE {frame} CELLSPACING="{spacing}">{rows}</TABLE></TD>'
    if look.sideways:
        side = '<TR><TD HEIGHT="7"></TD></TR>'
        return f"<{_table(f'{side}<TR>{box}</TR>{side}')}>"
    side = '<TD WIDTH="7"></TD>'
    return f"<{_table(f'<TR>{side}{box}{side}</TR>')}>"


def _counts(circuit: Circuit, shown: Circuit) -> str:
    g = circuit.graph
    text = f"{circuit.n_edges:,} of {g.n_edges:,} edges (residual)"
    if circuit.direct is not None:
        text += f", {circuit.n_edges + circuit.n_direct:,} of {g.n_edges_direct:,} with direct edges"
    if shown.n_edges < circuit.n_edges:
        scored = shown.scores is not None and np.isfinite(shown.scores[shown.kept]).any()
        text += f"; the {shown.n_edges:,} strongest are drawn" if scored else f"; {shown.n_edges:,} are drawn"
    return text


Entry = tuple[str, int, str]  # of the legend: colour and height of the line, text


def _legend(shown: Circuit, scale: Scale, negative: bool, look: PictureStyle) -> list[list[Entry]]:
    """Its entries: colours of edges, their widths, classes of nodes."""
    into = [(COLOURS[c], 3, f"into {word}") for c, word in zip(QKV, ("query", "key", "value"), strict=True)]
    legend: list[list[Entry]] = [[*into, (INK, 3, "into MLP or logits")]]
    if scale.high > 0:
        marks = [(scale.colour(INK, x), round(scale.width(x)), f"{x:.2g}") for x in scale.marks]
        legend.append([*marks, ("", 0, "|score|, dashed if negative" if negative else "score of the edge")])
    nodes = set(shown.nodes())
    classes = [(tint, 10, name) for name, tint in look.tints.items() if nodes & set(look.classes[name])]
    if look.published is None or not classes:
        return legend
    return [*legend, [*classes, ("", 0, f"class in {look.published.model}, as published")]]


def _header(title: str, counts: str, legend: list[list[Entry]], look: PictureStyle) -> str:
    """Title, counts and legend. In a picture of a set width the legend has the columns there is room for, and the
    text above it, which would stretch them, its width."""
    size = look.size(10)

    def table(columns: int) -> list[list[Entry]]:
        return [group[i : i + columns] for group in legend for i in range(0, len(group), columns)]

    def extent(columns: int) -> float:
        texts = zip_longest(*([_extent(text, size) for *_, text in row] for row in table(columns)), fillvalue=0.0)
        return sum(38 + max(column) for column in texts)

    columns = next((n for n in (4, 2) if extent(n) <= look.room), 1)
    room = math.inf if look.width is None else extent(columns)
    entries = "".join(f"<TR>{''.join(_entry(*entry, size) for entry in row)}</TR>" for row in table(columns))
    rows = [_lines(title, 18, INK, room)] if title else []
    rows += [_lines(counts, look.size(11), GREY, room), _table(entries, padding=2)]
    cells = "".join(f'<TR><TD ALIGN="LEFT">{row}</TD></TR>' for row in rows)
    space = '<TR><TD HEIGHT="14"></TD></TR>'
    return f"<{_table(cells + space, spacing=2)}>"


def _extent(text: str, size: int) -> float:
    """About how long a text is, in points: Helvetica's letters are half as wide as high, on average."""
    return 0.5 * size * len(text)


def _lines(text: str, size: int, colour: str, room: float) -> str:
    """Text in as many lines as it takes."""
    if _extent(text, size) <= room:
        return _text(text, size, colour)
    lines = textwrap.wrap(text, int(room / _extent("x", size)), break_long_words=False)
    return "".join(f'{_text(line, size, colour)}<BR ALIGN="LEFT"/>' for line in lines)


def _entry(colour: str, height: int, text: str, size: int) -> str:
    line = f'<TR><TD BGCOLOR="{colour}" FIXEDSIZE="TRUE" WIDTH="22" HEIGHT="{height}"></TD></TR>'
    cells = f"<TD>{_table(line) if height else ''}</TD>"
    return cells + f'<TD ALIGN="LEFT">{_text(text, size, INK)}</TD><TD WIDTH="6"></TD>'


def _table(rows: str, spacing: int = 0, padding: int = 0) -> str:
    return f'<TABLE BORDER="0" CELLSPACING="{spacing}" CELLPADDING="{padding}">{rows}</TABLE>'


def _text(text: str, size: int, colour: str) -> str:
    return f'<FONT POINT-SIZE="{size}" COLOR="{colour}">{escape(text)}</FONT>'
