"""A circuit: some of a graph's edges, with their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import numpy as np

from acdc.graph.graph import QKV, Array, Graph, Sender


@dataclass(frozen=True)
class Circuit:
    """Some of the edges of a graph, with their scores.

    The larger a score, the more important is the edge. ACDC's scores are the rise of the metric when the edge was
    tested.
    """

    graph: Graph
    kept: Array  # Bool[sender receiver], the residual edges in the circuit
    direct: Array | None = None  # Bool[receiver], the direct edges in the circuit; None if direct edges don't count
    scores: Array | None = None  # Float[sender receiver], NaN for an edge without one
    direct_scores: Array | None = None  # Float[receiver], likewise

    _repr_html_: ClassVar[Callable[[Circuit], str]]  # a picture for notebooks, set in acdc.library

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """All edges, residual and direct."""
        return cls(graph, graph.edges.copy(), graph.direct.copy())

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edges, neither residual nor direct."""
        return cls(graph, np.zeros_like(graph.edges), np.zeros_like(graph.direct))

    @property
    def n_edges(self) -> int:
        """The number of residual edges kept."""
        return int(self.kept.sum())

    @property
    def n_direct(self) -> int:
        """The number of direct edges kept, 0 if they don't count."""
        return 0 if self.direct is None else int(self.direct.sum())

    def edge_names(self) -> list[str]:
        """Names of the kept residual edges in (sender, receiver) order."""
        return [self.graph.edge_name(s, r) for s, r in np.argwhere(self.kept)]

    def direct_names(self) -> list[str]:
        """Names of the kept direct edges."""
        return [] if self.direct is None else [self.graph.direct_name(j) for j in np.flatnonzero(self.direct).tolist()]

    def live(self) -> Array:
        """The kept edges on a path from an input to the logits, Bool[sender receiver]."""
        g = self.graph
        kept = self.kept if self.direct is None else self.kept & (self.direct | ~g.direct)
        order = range(len(g.senders))
        fed = np.zeros(len(g.senders), dtype=bool)  # a path leads from an input to the sender
        for s in order:
            own = list(g.own_receivers[s])
            fed[s] = g.senders[s].kind == "input" or bool((kept[:s, own] & fed[:s, None]).any())
        used = np.zeros(len(g.receivers), dtype=bool)  # a path leads from the receiver to the logits
        used[g.receiver_index["logits"]] = True
        for s in reversed(order):
            used[list(g.own_receivers[s])] = bool((kept[s] & used).any())
        return kept & fed[:, None] & used[None, :]

    def pruned(self) -> Circuit:
        """The circuit without dead edges, which are on no path from an input to the logits."""
        live = self.live()
        direct = None if self.direct is None else self.direct & live.any(axis=0)
        return Circuit(self.graph, live, direct, self.scores, self.direct_scores)

    @property
    def n_dead(self) -> int:
        """The number of kept edges, residual and direct, that `pruned` leaves out."""
        live = self.pruned()
        return self.n_edges + self.n_direct - live.n_edges - live.n_direct

    def nodes(self) -> list[str]:
        """Names of the nodes at the ends of kept edges, in forward order, `logits` last."""
        g = self.graph
        touched = {g.senders[s].name for s in np.flatnonzero(self.kept.any(axis=1))}
        touched |= {g.receivers[r].node for r in np.flatnonzero(self.kept.any(axis=0))}
        return [name for name in (*(s.name for s in g.senders), "logits") if name in touched]

    def to_networkx(self) -> nx.MultiDiGraph:
        """A multigraph of nodes (`input`, `a5.h1`, `m8`, `logits`).

        Attributes have the names that Gephi, Cytoscape and yEd know. Each node has `label`, `type` (input, head, mlp or
        logits), `layer`, and a place, `x` and `y`: the logits above the layers, the inputs below them. Each edge has
        `label`, its name, `input` (q, k, v or empty) and, if known, `score` and `weight`, its magnitude. Direct edges
        don't join nodes; they and their scores are listed in the graph's attributes.
        """
        g = self.graph
        out = nx.MultiDiGraph(
            n_layers=g.n_layers,
            n_heads=g.n_heads,
            mlp=g.mlp,
            parallel=g.parallel,
            inputs=",".join(g.inputs),
            direct=",".join(self.direct_names()),
            convention="residual" if self.direct is None else "residual and direct",
        )
        if self.direct is not None and self.direct_scores is not None:
            out.graph["direct_scores"] = ",".join(repr(float(s)) for s in self.direct_scores[self.direct])
        nodes = {s.name: s for s in g.senders} | {"logits": Sender("logits", "logits", g.n_layers, 0)}
        for name in self.nodes():
            _, kind, layer, head = nodes[name]
            side = len(g.inputs) if kind == "input" else g.n_heads if kind == "head" else 1
            place = {"x": 100.0 * (head - (side - 1) / 2), "y": 100.0 * (2 * layer + (kind == "mlp"))}
            out.add_node(name, label=name, type=kind, layer=layer, **place)
        for s, r in np.argwhere(self.kept):
            name = g.edge_name(s, r)
            receiver = g.receivers[r]
            data: dict[str, str | float] = {"label": name, "input": receiver.kind if receiver.kind in QKV else ""}
            if self.scores is not None and np.isfinite(self.scores[s, r]):
                data["score"] = float(self.scores[s, r])
                data["weight"] = abs(float(self.scores[s, r]))
            out.add_edge(g.senders[s].name, receiver.node, key=name, **data)
        return out
