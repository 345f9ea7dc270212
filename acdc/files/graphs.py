"""A circuit as a graph for other programs. Direct edges don't join nodes: they are attributes of the whole graph, and
CSV leaves them out."""

import io
import json
import math
import re

import networkx as nx

from acdc.files.circuit import CircuitFile
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV
from acdc.io.files import to_csv as rows_to_csv

COLUMNS = ("source", "target", "label", "input", "weight", "score", "change")  # Gephi knows the first three and weight


def to_graphml(circuit: Circuit) -> bytes:
    """Return GraphML, for `networkx.read_graphml`, Gephi, Cytoscape and yEd."""
    out = io.BytesIO()
    nx.write_graphml_xml(circuit.to_networkx(), out)
    return out.getvalue() + b"\n"


def to_gexf(circuit: Circuit) -> str:
    """Return GEXF, for `networkx.read_gexf` and Gephi, which places the nodes layer by layer."""
    graph = circuit.to_networkx()
    for _, data in graph.nodes(data=True):
        data["viz"] = {"position": {"x": data.pop("x"), "y": data.pop("y"), "z": 0.0}}
    text = "\n".join(nx.generate_gexf(graph))
    return re.sub(r' lastmodifieddate="[^"]*"', "", text, count=1) + "\n"  # the same circuit gives the same bytes


def to_node_link(circuit: Circuit) -> str:
    """Return node-link JSON text, for `networkx.node_link_graph(…, edges="edges")` and D3."""
    data = nx.node_link_data(circuit.to_networkx(), edges="edges")
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def to_csv(file: CircuitFile) -> str:
    """Return the residual edges as CSV, a line each, for spreadsheets, pandas and Gephi; or the edge-spans, with a
    column more."""
    graph = file.model.graph
    rows: list[tuple[object, ...]] = [(*COLUMNS, "span") if file.spans else COLUMNS]
    for edge in file.edges:
        place = graph.parse_edge(edge.name)
        if place is not None:
            receiver = graph.receivers[place[1]]
            weight = None if edge.score is None else math.fabs(edge.score)
            kind = receiver.kind if receiver.kind in QKV else ""
            ends = (graph.senders[place[0]].name, receiver.node)
            span = (edge.span,) if file.spans else ()
            rows.append((*ends, edge.label, kind, weight, edge.score, edge.change, *span))
    return rows_to_csv(rows)
