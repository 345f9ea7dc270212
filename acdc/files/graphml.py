"""Circuits for graph tools: GraphML (Gephi, Cytoscape, yEd, networkx) and networkx's node-link JSON (D3).

Both hold the kept edges with their scores, and the sizes of the graph. Direct edges connect no two nodes: their names
and scores are attributes of the graph.
"""

import io
import json

import networkx as nx

from acdc.graph.circuit import Circuit


def to_graphml(circuit: Circuit) -> bytes:
    """Return the circuit as GraphML, for `networkx.read_graphml`."""
    out = io.BytesIO()
    nx.write_graphml_xml(circuit.to_networkx(), out)
    return out.getvalue() + b"\n"


def to_node_link(circuit: Circuit) -> str:
    """Return the circuit as node-link JSON text, for `networkx.node_link_graph(…, edges="edges")`."""
    data = nx.node_link_data(circuit.to_networkx(), edges="edges")
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
