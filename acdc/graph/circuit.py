"""A circuit: some of a graph's edges, with their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import numpy as np

from acdc.graph.graph import QKV, Array, Graph, Sender


@dataclass(frozen=True)
class Circuit:
    """Some of the edges of a graph, or of its edge-spans, with their scores.

    An edge-span is an edge at one span of the prompts (`acdc.task.spans`): a circuit with spans says where in the
    prompt an edge is kept. The larger a score, the more important is the edge. ACDC's scores are the rise of the metric
    when the edge was tested.
    """

    graph: Graph
    kept: Array  # Bool[sender receiver], the residual edges in the circuit, or Bool[sender receiver span]
    direct: Array | None = None  # Bool[receiver], the direct edges in the circuit; None if direct edges don't count
    scores: Array | None = None  # Float in the shape of `kept`, NaN for an edge without one
    direct_scores: Array | None = None  # Float[receiver], likewise
    spans: tuple[str, ...] = ()  # names; none if edges are kept at all positions

    _repr_html_: ClassVar[Callable[[Circuit], str]]  # a picture for notebooks, set in acdc.library

    @classmethod
    def full(cls, graph: Graph, spans: tuple[str, ...] = ()) -> Circuit:
        """All edges, residual and direct, at all spans."""
        return cls(graph, graph.edges_at(spans).copy(), graph.direct.copy(), spans=spans)

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edges, neither residual nor direct."""
        return cls(graph, np.zeros_like(graph.edges), np.zeros_like(graph.direct))

    @property
    def edges(self) -> Array:
        """The residual edges kept, at any span: Bool[sender receiver]."""
        return np.any(self.kept, -1) if self.spans else self.kept

    @property
    def n_edges(self) -> int:
        """The number of residual edges kept."""
        return int(self.edges.sum())

    @property
    def size(self) -> int:
        """The number of edge-spans kept, or of residual edges without spans."""
        return int(self.kept.sum())

    @property
    def n_direct(self) -> int:
        """The number of direct edges kept, 0 if they don't count."""
        return 0 if self.direct is None else int(self.direct.sum())

    def edge_names(self) -> list[str]:
        """Names of the kept residual edges in (sender, receiver) order."""
        return [self.graph.edge_name(s, r) for s, r in np.argwhere(self.edges)]

    def labels(self) -> list[str]:
        """Names of the kept residual edges, or edge-spans, in index order."""
        return [self.graph.part_name(part, self.spans) for part in np.argwhere(self.kept).tolist()]

    def direct_names(self) -> list[str]:
        """Names of the kept direct edges."""
        return [] if self.direct is None else [self.graph.direct_name(j) for j in np.flatnonzero(self.direct).tolist()]

    @property
    def open(self) -> Array:
        """The kept edges into receivers whose direct edge is kept, or doesn't count; in the shape of `kept`. Without
        its direct edge, a receiver reads all its edges as removed."""
        if self.direct is None:
            return self.kept
        let = self.direct | ~self.graph.direct
        if self.spans:
            let = let[:, None]
        return self.kept & let

    def live(self) -> Array:
        """The kept edges on a path from an input to the logits, in the shape of `kept`. An MLP reads and writes at one
        span, and so does a head with its query; with keys and values it may move what it reads to any span."""
        g = self.graph
        kept = self.open.reshape(*g.edges.shape, -1)
        own_receivers = list(map(list, g.own_receivers))  # of a head q, k and v
        fed = np.zeros((len(g.senders), kept.shape[2]), dtype=bool)  # a path leads from an input to the sender's span
        for s, own in enumerate(own_receivers):
            fed[s] = fed_by(kept[:s, own], fed[:s]) if own else True
        used = np.zeros((len(g.receivers), kept.shape[2]), dtype=bool)  # a path leads from the span to the logits
        used[g.receiver_index["logits"]] = True
        for s, own in reversed(list(enumerate(own_receivers))):
            out = (kept[s] & used).any(0)
            used[own[:1]] = out
            used[own[1:]] = out.any()
        return (kept & fed[:, None] & used[None]).reshape(self.kept.shape)

    def pruned(self) -> Circuit:
        """The circuit without dead edges, which are on no path from an input to the logits."""
        circuit = replace(self, kept=self.live())
        direct = None if self.direct is None else self.direct & circuit.edges.any(axis=0)
        return replace(circuit, direct=direct)

    def union(self) -> Circuit:
        """The circuit without spans: an edge is kept everywhere if it is kept at any span. It has the score of largest
        magnitude among the spans at which it is kept, or among all if it isn't."""
        if not self.spans:
            return self
        scores = None
        if self.scores is not None:
            counted = np.where(self.kept | ~self.edges[:, :, None], self.scores, np.nan)
            largest = np.abs(np.nan_to_num(counted)).argmax(-1)[..., None]
            scores = np.take_along_axis(counted, largest, -1)[..., 0]
        return Circuit(self.graph, self.edges, self.direct, scores, self.direct_scores)

    def whole(self) -> Circuit:
        """The circuit without spans, with every MLP as one node: an edge is kept if one between its parts is, and has
        the score of largest magnitude among theirs."""
        of = self.union()
        if not self.graph.features:
            return of
        g = self.graph.whole
        senders = np.array([g.sender_index[_whole(s.name)] for s in self.graph.senders])
        receivers = np.array([g.receiver_index[_whole(r.name)] for r in self.graph.receivers])
        kept = np.zeros_like(g.edges)
        s, r = np.nonzero(of.kept)
        kept[senders[s], receivers[r]] = True
        scores = None
        if of.scores is not None:
            scores = np.full(g.edges.shape, np.nan)
            s, r = np.unravel_index(
                np.argsort(np.nan_to_num(np.abs(of.scores), nan=-1.0), None, "stable"), of.scores.shape
            )
            scores[senders[s], receivers[r]] = of.scores[s, r]  # of several values, the last one stays
            scores = np.where(g.edges, scores, np.nan)
        direct = [None if x is None else np.zeros(g.direct.shape, x.dtype) for x in (of.direct, of.direct_scores)]
        for into, x in zip(direct, (of.direct, of.direct_scores), strict=True):
            if into is not None and x is not None:
                into[receivers] = x
        return Circuit(g, kept, direct[0], scores, direct[1])

    @property
    def n_dead(self) -> int:
        """The number of kept edges, or edge-spans, and direct edges that `pruned` leaves out."""
        live = self.pruned()
        return self.size + self.n_direct - live.size - live.n_direct

    def nodes(self) -> list[str]:
        """Names of the nodes at the ends of kept edges, in forward order, `logits` last."""
        g = self.graph
        touched = {g.senders[s].name for s in np.flatnonzero(self.edges.any(axis=1))}
        touched |= {g.receivers[r].node for r in np.flatnonzero(self.edges.any(axis=0))}
        return [name for name in (*(s.name for s in g.senders), "logits") if name in touched]

    def to_networkx(self) -> nx.MultiDiGraph:
        """A multigraph of nodes (`input`, `a5.h1`, `m8`, `logits`).

        Attributes have the names that Gephi, Cytoscape and yEd know. Each node has `label`, `type` (input, head, mlp or
        logits), `layer`, and a place, `x` and `y`: the logits above the layers, the inputs below them. Each edge has
        `label`, its name, `input` (q, k, v or empty) and, if known, `score` and `weight`, its magnitude; in a circuit
        with spans also `spans`, where it is kept. Direct edges don't join nodes; they and their scores are listed in
        the graph's attributes.
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
            side = {"input": len(g.inputs), "head": g.n_heads, "mlp": len(g.mlp_names(layer))}.get(kind, 1)
            place = {"x": 100.0 * (head - (side - 1) / 2), "y": 100.0 * (2 * layer + (kind == "mlp"))}
            out.add_node(name, label=name, type=kind, layer=layer, **place)
        scores = self.union().scores
        for s, r in np.argwhere(self.edges):
            name = g.edge_name(s, r)
            receiver = g.receivers[r]
            data: dict[str, str | float] = {"label": name, "input": receiver.kind if receiver.kind in QKV else ""}
            if self.spans:
                data["spans"] = ",".join(self.spans[i] for i in np.flatnonzero(self.kept[s, r]))
            if scores is not None and np.isfinite(scores[s, r]):
                data["score"] = float(scores[s, r])
                data["weight"] = abs(float(scores[s, r]))
            out.add_edge(g.senders[s].name, receiver.node, key=name, **data)
        return out


def _whole(name: str) -> str:
    """The name of the MLP that a feature or the rest belongs to; any other name as it is."""
    return name.partition(".")[0] if name.startswith("m") else name


def fed_by(entering: Array, fed: Array) -> Array:
    """The spans at which a node is fed, Bool[span], from the edges into its q, k and v or its MLP, Bool[sender receiver
    span], and the spans at which their senders are, Bool[sender span]. Keys and values feed a head at any span."""
    into: Array = np.any(entering & fed[:, None], 0)
    return into[0] | np.any(into[1:])
