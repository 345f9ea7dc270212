"""Scores of edges, the circuits made from them, and their file, `scores.safetensors`.

A score says how much the metric rises, or is estimated to rise, without the edge: the larger, the more important; a
negative one says that the model does better without it. Methods that score nodes give an edge the score of its weaker
end, so that the edges above a threshold are those between the nodes above it; inputs and logits are always in.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from acdc.errors import FileError
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import read_bytes, write_atomic

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """A method's scores of all edges, or of all edge-spans: Float[sender receiver span] wherever it says Float[sender
    receiver] here."""

    graph: Graph
    edges: Array  # Float[sender receiver], NaN where the graph has no edge; larger is more important
    nodes: Array | None = None  # Float[sender], NaN for inputs; None for a method that scores edges
    spans: tuple[str, ...] = ()  # names of the spans

    @classmethod
    def of_nodes(cls, graph: Graph, nodes: Array) -> Scores:
        """Scores of edges from scores of nodes, Float[sender]; those of inputs don't count."""
        nodes = np.where([s.kind == "input" for s in graph.senders], np.nan, nodes)
        return cls(graph, _weaker_end(graph, nodes), nodes)

    @classmethod
    def random(cls, graph: Graph, seed: int, spans: tuple[str, ...] = ()) -> Scores:
        """The baseline: a number between 0 and 1 for every edge; the same seed gives the same."""
        edges = graph.edges_at(spans)
        numbers = np.random.default_rng(seed).random(edges.shape)
        return cls(graph, np.where(edges, numbers, np.nan), spans=spans)

    @property
    def ranked(self) -> Array:
        """What has a score: the edges that exist, Bool[sender receiver], or edge-spans."""
        return self.graph.edges_at(self.spans)

    @property
    def n(self) -> int:
        """How many edges, or edge-spans, have a score."""
        return self.graph.n_edges * max(1, len(self.spans))

    def non_finite(self) -> str | None:
        """Name of the first node or edge whose score is not finite, or None."""
        g = self.graph
        if self.nodes is not None:
            for sender, score in zip(g.senders, self.nodes, strict=True):
                if sender.kind != "input" and not np.isfinite(score):
                    return sender.name
        wrong = np.argwhere(self.ranked & ~np.isfinite(self.edges))
        return g.part_name(wrong[0].tolist(), self.spans) if len(wrong) else None

    def importance(self, magnitude: bool) -> Array:
        """What edges are ranked by, the score or its magnitude, −inf for no edge: Float[sender receiver]."""
        ranked = self.edges
        if magnitude:
            ranked = np.abs(ranked) if self.nodes is None else _weaker_end(self.graph, np.abs(self.nodes))
        return np.where(self.ranked, ranked, -np.inf)

    def above(self, threshold: float, magnitude: bool = False) -> Array:
        """The edges whose score is `threshold` or more, Bool[sender receiver]."""
        return self.importance(magnitude) >= threshold

    def top(self, n: int, magnitude: bool = False) -> Array:
        """The n edges with the largest scores, Bool[sender receiver]; of equal ones, the first in index order."""
        flat = self.importance(magnitude).ravel()
        kept = np.zeros(flat.size, dtype=bool)
        kept[np.argsort(-flat, kind="stable")[:n]] = True
        return kept.reshape(self.edges.shape)

    def best(self, share: float) -> Array:
        """The given share of the edges with the largest magnitudes, at least one: Bool[sender receiver]."""
        whole = self.whole()
        return whole.top(max(1, round(share * self.graph.n_edges)), magnitude=True)

    def whole(self) -> Scores:
        """The scores without spans: an edge has the sum over them."""
        return replace(self, edges=self.edges.sum(-1), spans=()) if self.spans else self

    def greedy(self, n: int, magnitude: bool = False) -> Array:
        """n edges grown from the logits, Bool[sender receiver]: each step adds the edge with the largest score among
        those into a node that is reached already (Hanna et al. 2024, section 3)."""
        g = self.graph
        ranked = self.importance(magnitude)
        kept = np.zeros_like(g.edges)
        reached: set[int] = set()
        frontier: list[tuple[float, int, int]] = []

        def reach(receivers: tuple[int, ...]) -> None:
            for r in receivers:
                for s in np.flatnonzero(g.edges[:, r]).tolist():
                    heapq.heappush(frontier, (-float(ranked[s, r]), s, r))

        reach((g.receiver_index["logits"],))
        for _ in range(n):
            _, s, r = heapq.heappop(frontier)
            kept[s, r] = True
            if s not in reached:
                reached.add(s)
                reach(g.own_receivers[s])
        return kept

    def circuit(self, kept: Array, direct: bool = True) -> Circuit:
        """The circuit of the kept edges, with all scores. It has a direct edge if it has an edge into its receiver."""
        circuit = Circuit(self.graph, kept, None, self.edges, spans=self.spans)
        return replace(circuit, direct=self.graph.direct & circuit.edges.any(axis=0)) if direct else circuit


def _weaker_end(graph: Graph, nodes: Array) -> Array:
    """The smaller score of an edge's two nodes, Float[sender], as Float[sender receiver]."""
    writer = np.where(np.isnan(nodes), np.inf, nodes)
    reader = np.full(len(graph.receivers), np.inf)
    for sender, own in enumerate(graph.own_receivers):
        reader[list(own)] = nodes[sender]
    edges = np.minimum(writer[:, None], reader[None, :])
    edges[np.isinf(edges)] = np.nanmax(nodes)  # from an input to the logits: as the most important node
    return np.where(graph.edges, edges, np.nan)


def write_scores(path: Path, scores: Scores) -> None:
    """Write tensors `edges` Float[sender receiver] and, for a method that scores nodes, `nodes` Float[sender]."""
    tensors = {"edges": scores.edges}
    if scores.nodes is not None:
        tensors["nodes"] = scores.nodes
    write_atomic(path, save({name: np.ascontiguousarray(x) for name, x in tensors.items()}))


def read_scores(path: Path, graph: Graph, spans: tuple[str, ...] = ()) -> Scores:
    """Read scores of a graph's edges, or edge-spans. Raises FileError if the file can't be read, or belongs to another
    graph."""
    try:
        tensors = load(read_bytes(path))
    except (SafetensorError, LookupError, TypeError, ValueError) as error:  # ValueError: a type that NumPy lacks
        raise FileError(f"{path}: not a file of scores ({error}); remove it") from None
    edges = tensors.get("edges")
    nodes = tensors.get("nodes")
    shape = (*graph.edges.shape, len(spans)) if spans else graph.edges.shape
    fits = edges is not None and edges.shape == shape and edges.dtype.kind == "f"
    if not fits or (nodes is not None and nodes.shape != graph.edges.shape[:1]):
        raise FileError(f"{path}: holds no scores of a graph of {graph.words}")
    scores = Scores(graph, tensors["edges"], nodes, spans)
    if wrong := scores.non_finite():
        raise FileError(f"{path}: the score of {wrong} is not finite; remove the file")
    return scores
