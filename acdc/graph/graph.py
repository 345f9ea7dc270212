"""The computational graph of a transformer at the level of edges.

Senders write to the residual stream: `input`, heads `a5.h1`, MLPs `m8`. Receivers read it: head inputs
`a5.h1<q>`, `a5.h1<k>`, `a5.h1<v>`, MLP inputs `m8`, and `logits`. An edge is `sender->receiver`; the *direct* edge
`a5.h1<q>->a5.h1` stands for a head's whole query (key, value) vector, as the ACDC paper counts it (Conmy et al. 2023).
Names and index order are those of EAP-IG: sender row 1 + l(H+1) + h, receiver column l(3H+1) + {q,k,v}H + h.

Some features of an MLP may be nodes of their own, such as the neuron `m5.n123`; what else the MLP writes is then the
node `m5.rest`. They stand in the place of `m5`, `rest` last, and don't read each other.

Two conventions count edges: *residual* edges only (GPT-2 small: 32,491) and residual plus *direct* ones (32,923).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from acdc.errors import short

Array = np.ndarray

QKV = "qkv"
AT = " @ "  # between an edge and a span
REST = "rest"  # what an MLP writes beside its features
INPUTS = (("input",), ("tok", "pos"))  # the inputs of a graph; the position embedding may be a sender of its own
MAX_NODES = 17_000  # heads and MLPs of a graph: Llama 3.1's with 405 billion weights has 16,254


class Sender(NamedTuple):
    """A node that writes to the residual stream. `layer` is -1 for an input."""

    name: str
    kind: str  # "input", "head" or "mlp"
    layer: int
    head: int  # which head of its layer it is, which input, or which node of its MLP

    @property
    def is_feature(self) -> bool:
        """Whether it is a feature of an MLP, not a whole MLP or the rest of one."""
        return self.kind == "mlp" and "." in self.name and not self.name.endswith(REST)


class Receiver(NamedTuple):
    """An input that reads the residual stream: `kind` is "q", "k", "v", "mlp" or "logits", `node` the node's name."""

    name: str
    kind: str
    layer: int
    head: int
    node: str


@dataclass(frozen=True)
class Graph:
    """All edges of one transformer."""

    n_layers: int
    n_heads: int  # query heads
    mlp: bool = True  # whether the layers have MLPs
    inputs: tuple[str, ...] = INPUTS[0]  # senders
    parallel: bool = False  # MLP l does not read the heads of layer l (GPT-NeoX style blocks)
    features: tuple[tuple[str, ...], ...] = ()  # per layer: features of its MLP that are nodes; or none anywhere

    def mlp_names(self, layer: int) -> tuple[str, ...]:
        """The nodes of a layer's MLP: none, the MLP, or its features and the rest of it."""
        if not self.mlp:
            return ()
        features = self.features[layer] if self.features else ()
        return tuple(f"m{layer}.{name}" for name in (*features, REST)) if features else (f"m{layer}",)

    @cached_property
    def _first_mlps(self) -> list[int]:
        """How many nodes the MLPs before each layer have, and those of all layers."""
        return list(accumulate((len(self.mlp_names(layer)) for layer in range(self.n_layers)), initial=0))

    def mlps(self, layer: int) -> slice:
        """The nodes of a layer's MLP among those of all MLPs, in forward order."""
        return slice(*self._first_mlps[layer : layer + 2])

    @property
    def whole(self) -> "Graph":
        """The same with every MLP as one node."""
        return replace(self, features=())

    @cached_property
    def senders(self) -> tuple[Sender, ...]:
        """All senders in forward order: the axis `sender`."""
        out = [Sender(name, "input", -1, i) for i, name in enumerate(self.inputs)]
        for layer in range(self.n_layers):
            out += [Sender(f"a{layer}.h{h}", "head", layer, h) for h in range(self.n_heads)]
            out += [Sender(name, "mlp", layer, i) for i, name in enumerate(self.mlp_names(layer))]
        return tuple(out)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """All receivers, per layer all q, all k, all v and the MLP, then the logits: the axis `receiver`."""
        out = []
        for layer in range(self.n_layers):
            for c in QKV:
                out += [Receiver(f"a{layer}.h{h}<{c}>", c, layer, h, f"a{layer}.h{h}") for h in range(self.n_heads)]
            out += [Receiver(name, "mlp", layer, i, name) for i, name in enumerate(self.mlp_names(layer))]
        out.append(Receiver("logits", "logits", self.n_layers, 0, "logits"))
        return tuple(out)

    @cached_property
    def sender_index(self) -> dict[str, int]:
        """Name → index in `senders`."""
        return {s.name: i for i, s in enumerate(self.senders)}

    @cached_property
    def receiver_index(self) -> dict[str, int]:
        """Name → index in `receivers`."""
        return {r.name: i for i, r in enumerate(self.receivers)}

    def n_parents(self, receiver: Receiver) -> int:
        """The number of senders that the receiver reads; they are always the first ones."""
        n = len(self.inputs) + receiver.layer * self.n_heads + self._first_mlps[receiver.layer]
        return n + self.n_heads if receiver.kind == "mlp" and not self.parallel else n

    @cached_property
    def edges(self) -> Array:
        """The residual edges that exist, Bool[sender receiver]."""
        mask = np.zeros((len(self.senders), len(self.receivers)), dtype=bool)
        for j, receiver in enumerate(self.receivers):
            mask[: self.n_parents(receiver), j] = True
        return mask

    def edges_at(self, spans: Sequence[str]) -> Array:
        """The edge-spans that exist, Bool[sender receiver span], or without spans the edges, Bool[sender receiver]."""
        return np.repeat(self.edges[:, :, None], len(spans), 2) if spans else self.edges

    @cached_property
    def direct(self) -> Array:
        """The receivers that have a direct edge (head inputs), Bool[receiver]."""
        return np.array([r.kind in QKV for r in self.receivers])

    @cached_property
    def n_edges(self) -> int:
        """Count in the convention of EAP-IG and MIB: residual edges only."""
        return sum(self.n_parents(receiver) for receiver in self.receivers)

    @property
    def n_edges_direct(self) -> int:
        """Count in the convention of the ACDC paper: residual and direct edges."""
        return self.n_edges + len(self.direct_index)

    @property
    def words(self) -> str:
        """A description for messages: `12 layers, 12 heads, parallel blocks`."""
        extra = ("" if self.mlp else ", no MLPs") + (", parallel blocks" if self.parallel else "")
        inputs = "" if self.inputs == INPUTS[0] else f", inputs {' and '.join(self.inputs)}"
        features = f", {sum(map(len, self.features)):,} features" if self.features else ""
        return f"{self.n_layers} layers, {self.n_heads} heads{extra}{inputs}{features}"

    def edge_name(self, sender: int, receiver: int) -> str:
        """The name of a residual edge, such as `a0.h1->m0`."""
        return f"{self.senders[sender].name}->{self.receivers[receiver].name}"

    def part_name(self, edge: Sequence[int], spans: Sequence[str]) -> str:
        """The name of an edge, (sender, receiver), or of an edge-span, (sender, receiver, span): `a0.h1->m0 @ S2`."""
        sender, receiver, *span = edge
        return AT.join([self.edge_name(sender, receiver), *(spans[i] for i in span)])

    def direct_name(self, receiver: int) -> str:
        """The name of a receiver's direct edge, such as `a5.h1<q>->a5.h1`."""
        r = self.receivers[receiver]
        return f"{r.name}->{r.node}"

    @cached_property
    def direct_index(self) -> dict[str, int]:
        """Name of a direct edge → its receiver's index in `receivers`."""
        return {self.direct_name(j): j for j in np.flatnonzero(self.direct).tolist()}

    def parse_edge(self, name: str) -> tuple[int, int] | None:
        """The (sender, receiver) of a residual edge's name, or None if the graph has no such edge."""
        sender, _, receiver = name.partition("->")
        if sender not in self.sender_index or receiver not in self.receiver_index:
            return None
        s = self.sender_index[sender]
        r = self.receiver_index[receiver]
        return (s, r) if s < self.n_parents(self.receivers[r]) else None

    @cached_property
    def own_receivers(self) -> tuple[tuple[int, ...], ...]:
        """For each sender the receivers of its node: (q, k, v) for a head, one for an MLP, none for an input."""
        index = self.receiver_index
        own: list[tuple[int, ...]] = []
        for s in self.senders:
            if s.kind == "head":
                own.append(tuple(index[f"{s.name}<{c}>"] for c in QKV))
            else:
                own.append((index[s.name],) if s.kind == "mlp" else ())
        return tuple(own)

    @cached_property
    def node_of(self) -> dict[int, int]:
        """Receiver → the sender of its node; the logits have none."""
        return {r: s for s, own in enumerate(self.own_receivers) for r in own}


def known_inputs(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the inputs that a file gives a graph; raise ValueError unless they are among `INPUTS`."""
    if names not in INPUTS:
        raise ValueError(f"should be {' or '.join(' and '.join(known) for known in INPUTS)}, not {short(names)}")
    return names
