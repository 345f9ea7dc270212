"""The computational graph at the level of edges, and circuits in it.

Senders write to the residual stream: `input`, heads `a5.h1`, MLPs `m8`. Receivers read it: head inputs
`a5.h1<q>`, `a5.h1<k>`, `a5.h1<v>`, MLP inputs `m8`, and `logits`. An edge is `sender->receiver`; the *direct* edge
`a5.h1<q>->a5.h1` stands for a head's whole query (key, value) vector, as the ACDC paper counts it (Conmy et al. 2023).
Names and index order are those of EAP-IG: sender row 1 + l(H+1) + h, receiver column l(3H+1) + {q,k,v}H + h.

Two conventions count edges: *residual* edges only (GPT-2 small: 32,491) and residual plus *direct* ones (32,923).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import networkx as nx
import numpy as np

Array = np.ndarray

QKV = "qkv"


class Sender(NamedTuple):
    """What writes to the residual stream. `layer` is -1 for an input."""

    name: str
    kind: str  # "input", "head" or "mlp"
    layer: int
    head: int


class Receiver(NamedTuple):
    """What reads the residual stream. `kind` is "q", "k", "v", "mlp" or "logits"; `node` the node it belongs to."""

    name: str
    kind: str
    layer: int
    head: int
    node: str


@dataclass(frozen=True)
class Graph:
    """All edges of one transformer.

    Args:
        n_layers, n_heads: sizes; the heads are query heads.
        mlp: whether the layers have MLPs.
        inputs: names of the input senders; ("tok", "pos") when the position embedding is a sender of its own.
        parallel: MLP l does not read the heads of layer l (GPT-NeoX style blocks).
    """

    n_layers: int
    n_heads: int
    mlp: bool = True
    inputs: tuple[str, ...] = ("input",)
    parallel: bool = False

    @cached_property
    def senders(self) -> tuple[Sender, ...]:
        """What writes, in the order of the computation: the axis `sender`."""
        out = [Sender(name, "input", -1, i) for i, name in enumerate(self.inputs)]
        for layer in range(self.n_layers):
            out += [Sender(f"a{layer}.h{h}", "head", layer, h) for h in range(self.n_heads)]
            if self.mlp:
                out.append(Sender(f"m{layer}", "mlp", layer, 0))
        return tuple(out)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """What reads: per layer all q, all k, all v and the MLP, then the logits; the axis `receiver`."""
        out = []
        for layer in range(self.n_layers):
            for c in QKV:
                out += [Receiver(f"a{layer}.h{h}<{c}>", c, layer, h, f"a{layer}.h{h}") for h in range(self.n_heads)]
            if self.mlp:
                out.append(Receiver(f"m{layer}", "mlp", layer, 0, f"m{layer}"))
        out.append(Receiver("logits", "logits", self.n_layers, 0, "logits"))
        return tuple(out)

    @cached_property
    def sender_index(self) -> dict[str, int]:
        """Name → place in `senders`."""
        return {s.name: i for i, s in enumerate(self.senders)}

    @cached_property
    def receiver_index(self) -> dict[str, int]:
        """Name → place in `receivers`."""
        return {r.name: i for i, r in enumerate(self.receivers)}

    @cached_property
    def per_layer(self) -> int:
        """Senders per layer."""
        return self.n_heads + int(self.mlp)

    def n_parents(self, receiver: Receiver) -> int:
        """How many senders, counted from the first, the receiver reads: they are always a prefix of `senders`."""
        n = len(self.inputs) + receiver.layer * self.per_layer
        return n + self.n_heads if receiver.kind == "mlp" and not self.parallel else n

    @cached_property
    def edges(self) -> Array:
        """Bool[sender receiver]: the residual edges that exist."""
        mask = np.zeros((len(self.senders), len(self.receivers)), dtype=bool)
        for j, receiver in enumerate(self.receivers):
            mask[: self.n_parents(receiver), j] = True
        return mask

    @cached_property
    def direct(self) -> Array:
        """Bool[receiver]: the receivers that have a direct edge (head inputs)."""
        return np.array([r.kind in QKV for r in self.receivers])

    @property
    def n_edges(self) -> int:
        """Count in the convention of EAP-IG and MIB: residual edges only."""
        return int(self.edges.sum())

    @property
    def n_edges_direct(self) -> int:
        """Count in the convention of the ACDC paper: residual and direct edges."""
        return self.n_edges + int(self.direct.sum())

    @property
    def words(self) -> str:
        """For messages, as far as graphs of one size can differ: `12 layers, 12 heads, parallel blocks`."""
        extra = ("" if self.mlp else ", no MLPs") + (", parallel blocks" if self.parallel else "")
        inputs = "" if self.inputs == ("input",) else f", inputs {' and '.join(self.inputs)}"
        return f"{self.n_layers} layers, {self.n_heads} heads{extra}{inputs}"

    def edge_name(self, sender: int, receiver: int) -> str:
        """The name of a residual edge, such as `a0.h1->m0`."""
        return f"{self.senders[sender].name}->{self.receivers[receiver].name}"

    def direct_name(self, receiver: int) -> str:
        """The name of a receiver's direct edge, such as `a5.h1<q>->a5.h1`."""
        r = self.receivers[receiver]
        return f"{r.name}->{r.node}"

    @cached_property
    def direct_index(self) -> dict[str, int]:
        """Name of a direct edge → its receiver's place in `receivers`."""
        return {self.direct_name(j): j for j in np.flatnonzero(self.direct).tolist()}

    def parse_edge(self, name: str) -> tuple[int, int] | None:
        """(sender, receiver) of a residual edge's name, or None if this graph has no such edge."""
        sender, _, receiver = name.partition("->")
        if sender not in self.sender_index or receiver not in self.receiver_index:
            return None
        s, r = self.sender_index[sender], self.receiver_index[receiver]
        return (s, r) if self.edges[s, r] else None

    @cached_property
    def own_receivers(self) -> tuple[tuple[int, ...], ...]:
        """For each sender, the receivers of the same node: (q, k, v) of a head, one of an MLP, none of an input."""
        index = self.receiver_index
        own: list[tuple[int, ...]] = []
        for s in self.senders:
            if s.kind == "head":
                own.append(tuple(index[f"{s.name}<{c}>"] for c in QKV))
            else:
                own.append((index[s.name],) if s.kind == "mlp" else ())
        return tuple(own)


@dataclass(frozen=True)
class Circuit:
    """Some edges of a graph.

    Args:
        graph: the graph.
        kept: Bool[sender receiver], the residual edges in the circuit.
        direct: Bool[receiver], the direct edges in the circuit; None if direct edges were not considered.
        scores: Float[sender receiver], NaN where an edge has none. For ACDC: the rise of the metric when the edge was
            tested, so larger is more important.
        direct_scores: Float[receiver], likewise.
    """

    graph: Graph
    kept: Array
    direct: Array | None = None
    scores: Array | None = None
    direct_scores: Array | None = None

    _repr_html_: ClassVar[Callable[[Circuit], str]]  # how a notebook shows it; set in acdc.library, which has pictures

    @classmethod
    def full(cls, graph: Graph, direct: bool = True) -> Circuit:
        """All edges; with `direct` also the direct ones."""
        return cls(graph, graph.edges.copy(), graph.direct.copy() if direct else None)

    @classmethod
    def empty(cls, graph: Graph, direct: bool = True) -> Circuit:
        """No edges; with `direct` no direct ones either, else these don't count."""
        return cls(graph, np.zeros_like(graph.edges), np.zeros_like(graph.direct) if direct else None)

    @property
    def n_edges(self) -> int:
        """Residual edges kept."""
        return int(self.kept.sum())

    @property
    def n_direct(self) -> int:
        """Direct edges kept; 0 where they don't count."""
        return 0 if self.direct is None else int(self.direct.sum())

    def edge_names(self) -> list[str]:
        """Names of the kept residual edges in (sender, receiver) order."""
        return [self.graph.edge_name(s, r) for s, r in np.argwhere(self.kept)]

    def direct_names(self) -> list[str]:
        """Names of the kept direct edges."""
        return [] if self.direct is None else [self.graph.direct_name(j) for j in np.flatnonzero(self.direct).tolist()]

    def live(self) -> Array:
        """Bool[sender receiver]: the kept edges that lie on a path from an input to the logits."""
        g = self.graph
        kept = self.kept if self.direct is None else self.kept & (self.direct | ~g.direct)
        order = range(len(g.senders))
        fed = np.zeros(len(g.senders), dtype=bool)  # a path from an input reaches the sender
        for s in order:
            own = list(g.own_receivers[s])
            fed[s] = g.senders[s].kind == "input" or bool((kept[:s, own] & fed[:s, None]).any())
        used = np.zeros(len(g.receivers), dtype=bool)  # a path leads from the receiver to the logits
        used[g.receiver_index["logits"]] = True
        for s in reversed(order):
            used[list(g.own_receivers[s])] = bool((kept[s] & used).any())
        live: Array = kept & fed[:, None] & used[None, :]
        return live

    def pruned(self) -> Circuit:
        """The circuit without dead edges (those not on a path input → logits)."""
        live = self.live()
        direct = None if self.direct is None else self.direct & live.any(axis=0)
        return Circuit(self.graph, live, direct, self.scores, self.direct_scores)

    def nodes(self) -> list[str]:
        """Names of the nodes that an edge of the circuit touches, in forward order, `logits` last."""
        g = self.graph
        touched = {g.senders[s].name for s in np.flatnonzero(self.kept.any(axis=1))}
        touched |= {g.receivers[r].node for r in np.flatnonzero(self.kept.any(axis=0))}
        return [name for name in (*(s.name for s in g.senders), "logits") if name in touched]

    def to_networkx(self) -> nx.MultiDiGraph:
        """A multigraph of nodes (`input`, `a5.h1`, `m8`, `logits`); each edge has `name`, `input` (q, k, v or empty)
        and, where known, `score`. Direct edges are no edges between nodes: they are listed in the graph's attributes.
        """
        g = self.graph
        out = nx.MultiDiGraph(
            n_layers=g.n_layers,
            n_heads=g.n_heads,
            mlp=g.mlp,
            parallel=g.parallel,
            inputs=",".join(g.inputs),
            direct=",".join(self.direct_names()),
        )
        layer = {s.name: s.layer for s in g.senders} | {"logits": g.n_layers}
        for name in self.nodes():
            out.add_node(name, layer=layer[name])
        for s, r in np.argwhere(self.kept):
            name, receiver = g.edge_name(s, r), g.receivers[r]
            data: dict[str, str | float] = {"name": name, "input": receiver.kind if receiver.kind in QKV else ""}
            if self.scores is not None and np.isfinite(self.scores[s, r]):
                data["score"] = float(self.scores[s, r])
            out.add_edge(g.senders[s].name, receiver.node, key=name, **data)
        return out
