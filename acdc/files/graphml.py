"""Circuits for graph tools: GraphML (Gephi, Cytoscape, yEd, networkx) and networkx's node-link JSON (D3).

Both hold the kept edges with their scores, and the sizes it takes to rebuild the circuit. Direct edges join
no nodes: their names and scores are attributes of the graph.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from acdc.errors import FileError
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import read_json

RESIDUAL, WITH_DIRECT = "residual", "residual and direct"


def to_graphml(circuit: Circuit) -> bytes:
    """The circuit as GraphML, which `networkx.read_graphml` reads."""
    out = io.BytesIO()
    nx.write_graphml_xml(to_networkx(circuit), out)
    return out.getvalue() + b"\n"


def to_node_link(circuit: Circuit) -> str:
    """The circuit as node-link JSON text, which `networkx.node_link_graph(…, edges="edges")` reads."""
    data = nx.node_link_data(to_networkx(circuit), edges="edges")
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def read_node_link(path: Path) -> Circuit:
    """The circuit in a node-link file that `to_node_link` made.

    Raises:
        FileError: one line that says what is wrong.
    """
    raw = read_json(path)
    try:
        graph = nx.node_link_graph(raw, edges="edges")
    except (KeyError, TypeError, AttributeError, nx.NetworkXException):
        raise FileError(f"{path}: is not node-link JSON with nodes and edges") from None
    try:
        return from_networkx(graph)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def to_networkx(circuit: Circuit) -> nx.MultiDiGraph:
    """`Circuit.to_networkx`, with what it takes to come back."""
    out = circuit.to_networkx()
    out.graph["convention"] = RESIDUAL if circuit.direct is None else WITH_DIRECT
    if circuit.direct is not None and circuit.direct_scores is not None:
        out.graph["direct_scores"] = ",".join(repr(float(s)) for s in circuit.direct_scores[circuit.direct])
    return out


def from_networkx(graph: nx.Graph) -> Circuit:
    """The circuit that `to_networkx` turned into a graph.

    Raises:
        FileError: the graph is none of ours.
    """
    attributes = graph.graph
    g = _graph(attributes)
    kept, scores = np.zeros_like(g.edges), np.full(g.edges.shape, np.nan)
    for source, target, edge in graph.edges(data=True):
        name = edge.get("name")
        place = g.parse_edge(name) if isinstance(name, str) else None
        if place is None or (source, target) != (g.senders[place[0]].name, g.receivers[place[1]].node):
            raise FileError(f"the model of this circuit has no edge {name!r} from {source!r} to {target!r}")
        kept[place], scores[place] = True, _number(name, edge.get("score", np.nan))
    if attributes.get("convention") == RESIDUAL:
        return Circuit(g, kept, None, scores)
    direct, direct_scores = np.zeros_like(g.direct), np.full(g.direct.shape, np.nan)
    names = _list(attributes.get("direct"))
    values = _list(attributes.get("direct_scores")) or ["nan"] * len(names)
    if len(values) != len(names) or not set(names) <= set(g.direct_index):
        raise FileError("direct and direct_scores should name direct edges and have a score for each")
    for name, value in zip(names, values, strict=True):
        direct[g.direct_index[name]], direct_scores[g.direct_index[name]] = True, _number(name, value)
    return Circuit(g, kept, direct, scores, direct_scores)


def _graph(attributes: dict[str, Any]) -> Graph:
    for key, kind in {"n_layers": int, "n_heads": int, "mlp": bool, "parallel": bool, "inputs": str}.items():
        value = attributes.get(key)
        if type(value) is not kind or (isinstance(value, int) and kind is int and not 0 < value <= 1000):
            raise FileError(f"is not a circuit of acdc: it needs {key} as {kind.__name__}, has {value!r}")
    return Graph(
        attributes["n_layers"],
        attributes["n_heads"],
        attributes["mlp"],
        tuple(attributes["inputs"].split(",")),
        attributes["parallel"],
    )


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise FileError(f"the score of edge {name!r} should be a number, is {value!r}") from None


def _list(value: object) -> list[str]:
    return value.split(",") if isinstance(value, str) and value else []
