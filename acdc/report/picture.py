"""The picture of a circuit: inputs at the bottom, the layers above them, logits on top.

Graphviz does the layout. Each layer has two ranks, the heads and above them the MLP. A head shows its q, k, v
inputs; those in use have the colour of their edges. Width and opacity of an edge follow its score.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import pygraphviz as pgv

from acdc.graph import QKV, Circuit

# Okabe and Ito's colours, which can be told apart with every kind of colour blindness.
COLOURS = {"q": "#D55E00", "k": "#0072B2", "v": "#009E73"}
INK, GREY, PALE, SAND = "#333333", "#8A8A8A", "#F0F0F0", "#F2E9C9"
FONT = "Helvetica,Arial,sans-serif"
THIN, THICK = 1, 5  # points
HEAVY = "20"
FAINT = 0.4  # opacity of the weakest edge
MOST = 300  # edges in a picture: of more, a layout takes minutes and shows nothing


def to_dot(circuit: Circuit, title: str = "") -> str:
    """The picture as DOT text, with every edge of the circuit."""
    return str(_drawing(circuit, title, circuit.n_edges).to_string())


def to_svg(circuit: Circuit, title: str = "") -> str:
    """The picture as SVG text; of a large circuit the strongest edges, and it says so. Edge ids are names."""
    svg = _draw(_drawing(circuit, title, MOST), "svg")
    # Graphviz titles an edge by its ends and ports, and browsers show that, not the tooltip.
    tooltip = r'<title>.*</title>(\n<g id="a_.*"><a xlink:title="(.*)">)'
    return re.sub(tooltip, r"<title>\2</title>\1", svg.decode())


def to_png(circuit: Circuit, title: str = "") -> bytes:
    """The picture as a bitmap at 144 dots an inch; of a large circuit the strongest edges, and it says so."""
    drawing = _drawing(circuit, title, MOST)
    drawing.graph_attr["dpi"] = "144"
    return _draw(drawing, "png")


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
        return THIN + (THICK - THIN) * self.weight(score)

    def colour(self, colour: str, score: float) -> str:
        return f"{colour}{round(255 * (FAINT + (1 - FAINT) * self.weight(score))):02x}"


def _drawing(circuit: Circuit, title: str, most: int) -> pgv.AGraph:
    scores = np.full(circuit.kept.shape, np.nan) if circuit.scores is None else circuit.scores
    shown = Circuit(circuit.graph, _strongest(circuit.kept, scores, most), scores=scores)
    scale = Scale.of(scores[shown.kept])
    header = _header(title, _counts(circuit, shown), scale, bool((scores[shown.kept] < 0).any()))
    out = pgv.AGraph(directed=True, strict=False, name="circuit")
    out.graph_attr.update(rankdir="BT", ranksep="0.36", nodesep="0.06", pad="0.3", bgcolor="white")
    out.graph_attr.update(outputorder="edgesfirst", fontname=FONT, label=header, labelloc="t", labeljust="l")
    out.node_attr.update(fontname=FONT, fontsize="12", fontcolor=INK, height="0.32", width="0.6")
    out.edge_attr.update(arrowsize="0.6")
    _add_nodes(out, shown)
    _add_edges(out, shown, scores, scale)
    return out


def _strongest(kept: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Bool[sender receiver]: the kept edges with the largest |score|; those without a score come last."""
    order = np.argsort(-np.nan_to_num(np.abs(scores[kept]), nan=-1.0), kind="stable")
    shown = np.zeros_like(kept)
    shown[tuple(np.argwhere(kept)[order[:most]].T)] = True
    return shown


def _add_nodes(out: pgv.AGraph, circuit: Circuit) -> None:
    """The nodes, rank by rank from the bottom, and the layer's number left of them."""
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
    looks |= {s.name: _mlp(s.name) for s in g.senders if s.kind == "mlp"}
    empty = "The circuit is empty: no edge was kept."
    looks["empty"] = {"shape": "plaintext", "group": "trunk", "label": empty}
    used = {g.receivers[r].name for r in np.flatnonzero(circuit.kept.any(axis=0))}
    above = ""
    for number, (text, names) in enumerate(ranks):
        tag = f"rank {number}"
        label = "" if text == above else text
        above = text
        out.add_node(tag, shape="plaintext", label=label, fontcolor=GREY, fontsize="11", group="tags")
        for name in names:
            out.add_node(name, **(looks.get(name) or _head(name, used)))
        out.add_subgraph([tag, *names], rank="same")
        out.add_edge(tag, names[0], style="invis")
        if number:
            out.add_edge(f"rank {number - 1}", tag, style="invis", weight="100")


def _add_edges(out: pgv.AGraph, circuit: Circuit, scores: np.ndarray, scale: Scale) -> None:
    g = circuit.graph
    # Heavy edges are drawn straight: they make a column of input, MLPs and logits. Where two have no edge,
    # an invisible one does it.
    mlps = [s.name for s in g.senders if s.kind == "mlp" and out.has_node(s.name)]
    middle = mlps or ["empty"] * out.has_node("empty")
    column = dict.fromkeys(pairwise([g.inputs[0], *middle, "logits"]), "invis")
    for s, r in np.argwhere(circuit.kept):
        sender, receiver, score, name = g.senders[s], g.receivers[r], float(scores[s, r]), g.edge_name(s, r)
        out.add_edge(
            sender.name,
            receiver.node,
            key=name,
            id=name,
            tooltip=f"{name}  {score:.4g}" if math.isfinite(score) else name,
            tailport="n" if sender.kind == "input" else "name:n",
            headport={"logits": "s", "mlp": "name:s"}.get(receiver.kind, f"{receiver.kind}:s"),
            color=scale.colour(COLOURS.get(receiver.kind, INK), score),
            penwidth=f"{scale.width(score):.2f}",
            style="dashed" if score < 0 else "solid",
            weight=HEAVY if column.pop((sender.name, receiver.node), "") else "1",
        )
    for below, above in column:
        out.add_edge(below, above, style="invis", weight=HEAVY)


def _end(name: str) -> dict[str, str]:
    look = {"shape": "box", "style": "rounded,filled", "color": INK, "fillcolor": INK, "fontcolor": "white"}
    return look | {"group": "trunk", "label": name.replace("\\", "\\\\")}


def _mlp(name: str) -> dict[str, str]:
    row = f'<TR><TD PORT="name" WIDTH="76" HEIGHT="22" BGCOLOR="{SAND}">{name}</TD></TR>'
    return {"shape": "plain", "group": "trunk", "label": _box(row, 0)}


def _head(name: str, used: set[str]) -> dict[str, str]:
    cells = ""
    for c in QKV:
        fill, ink = (COLOURS[c], "white") if f"{name}<{c}>" in used else (PALE, "#A0A0A0")
        cells += f'<TD PORT="{c}" BGCOLOR="{fill}" WIDTH="14">{_text(c, 9, ink)}</TD>'
    rows = f'<TR><TD PORT="name" COLSPAN="3">{name}</TD></TR><TR>{cells}</TR>'
    return {"shape": "plain", "label": _box(rows, 2)}


def _box(rows: str, spacing: int) -> str:
    """A box with some room at its sides. (Graphviz's nodesep would also spread the lines that pass by.)"""
    side = '<TD WIDTH="7"></TD>'
    frame = f'BORDER="1" CELLBORDER="0" CELLPADDING="1" COLOR="{INK}" BGCOLOR="white"'
    box = f'<TABLE {frame} CELLSPACING="{spacing}">{rows}</TABLE>'
    return f"<{_table(f'<TR>{side}<TD>{box}</TD>{side}</TR>')}>"


def _counts(circuit: Circuit, shown: Circuit) -> str:
    g = circuit.graph
    text = f"{circuit.n_edges:,} of {g.n_edges:,} edges (residual)"
    if circuit.direct is not None:
        text += f", {circuit.n_edges + circuit.n_direct:,} of {g.n_edges_direct:,} with direct edges"
    if shown.n_edges < circuit.n_edges:
        scored = shown.scores is not None and np.isfinite(shown.scores[shown.kept]).any()
        text += f"; the {shown.n_edges:,} strongest are drawn" if scored else f"; {shown.n_edges:,} are drawn"
    return text


def _header(title: str, counts: str, scale: Scale, negative: bool) -> str:
    """Title, counts and legend."""
    into = [(COLOURS[c], 3, f"into {word}") for c, word in zip(QKV, ("query", "key", "value"), strict=True)]
    legend = _entries([*into, (INK, 3, "into MLP or logits")])
    if scale.high > 0:
        marks = [(scale.colour(INK, x), round(scale.width(x)), f"{x:.2g}") for x in scale.marks]
        unit = "|score|, dashed if negative" if negative else "score of the edge"
        legend += _entries([*marks, ("", 0, unit)])
    rows = [_text(title, 18, INK)] if title else []
    rows += [_text(counts, 11, GREY), _table(legend, padding=2)]
    cells = "".join(f'<TR><TD ALIGN="LEFT">{row}</TD></TR>' for row in rows)
    space = '<TR><TD HEIGHT="14"></TD></TR>'
    return f"<{_table(cells + space, spacing=2)}>"


def _entries(entries: list[tuple[str, int, str]]) -> str:
    """A row of the legend, from (colour, width, text)."""
    cells = ""
    for colour, width, text in entries:
        line = f'<TR><TD BGCOLOR="{colour}" FIXEDSIZE="TRUE" WIDTH="22" HEIGHT="{width}"></TD></TR>'
        cells += f"<TD>{_table(line) if width else ''}</TD>"
        cells += f'<TD ALIGN="LEFT">{_text(text, 10, INK)}</TD><TD WIDTH="6"></TD>'
    return f"<TR>{cells}</TR>"


def _table(rows: str, spacing: int = 0, padding: int = 0) -> str:
    return f'<TABLE BORDER="0" CELLSPACING="{spacing}" CELLPADDING="{padding}">{rows}</TABLE>'


def _text(text: str, size: int, colour: str) -> str:
    return f'<FONT POINT-SIZE="{size}" COLOR="{colour}">{escape(text)}</FONT>'
