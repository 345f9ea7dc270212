"""Evaluate a circuit without, or with, each of some edges or edge-spans, without running the circuit again.

All nodes of the circuit have their current values. A change of one edge is followed through the nodes that kept edges
reach; everything else keeps its value. Many changes are evaluated at once, independently of each other.

A node that no kept edge enters writes what its removed edges carry, likewise by span, so that a value is that of the
circuit without its dead edges. Nodes that are read at the scored positions only are computed there only
(`acdc.patching.live`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.circuit import Circuit, fed_by
from acdc.graph.graph import QKV, Graph
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.engine import BATCH_BYTES
from acdc.patching.metrics import Metric
from acdc.patching.nodes import Computed, Nodes, Values
from acdc.patching.offload import Parts

Array = np.ndarray
Edge = tuple[int, ...]  # (sender, receiver) or, with spans, (sender, receiver, span)


class Change(NamedTuple):
    """How a sender's output differs from its current one, over a batch of candidates."""

    versions: Tensor  # Float[version batch pos d_model]; version 0 is no change
    sees: Tensor  # Int[candidate], the version each candidate sees
    moved: Array  # Bool[candidate], whether it sees another one than version 0
    fed: Array  # Bool[candidate span], where edges enter the sender


class CircuitEngine:
    """The metric of circuits within a superset, and of their neighbours, which differ from them in one edge.

    What it returns is a matter of the arguments alone: what was evaluated before makes it faster, not different.
    """

    def __init__(self, model: Transformer, parts: Parts, metric: Metric, superset: Array) -> None:
        """Prepare for circuits whose nodes are among those of a circuit, Bool[sender receiver] or, with spans,
        Bool[sender receiver span], as every circuit here."""
        self.model = model
        self.graph = model.config.graph()
        self.spans = parts.spans
        self.evaluations = 0
        self._metric = metric
        nodes = frozenset(Circuit(self.graph, superset, spans=self.spans).nodes())
        self._parts = [_Part(model, self.graph, cache, nodes) for cache in parts]

    def metric(self, kept: Array) -> float:
        """The metric of a circuit without dead edges: mean over the prompts."""
        self._set(kept, [])
        return self._evaluate([])[0]

    def values(self, kept: Array, edges: Sequence[Edge]) -> list[float]:
        """The metric of a circuit without dead edges, when each edge alone is removed or, if the circuit lacks it,
        added: mean over the prompts. Both ends of an edge must be nodes of the circuit, or inputs."""
        self._set(kept, edges)
        size = min(part.capacity() for part in self._parts)
        order = sorted(range(len(edges)), key=lambda i: (edges[i][1], edges[i]))  # similar ones into one batch
        out = [0.0] * len(edges)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for i, value in zip(batch, self._evaluate([edges[i] for i in batch]), strict=True):
                out[i] = value
        return out

    def _set(self, kept: Array, edges: Sequence[Edge]) -> None:
        read = kept.copy()
        for edge in edges:
            read[edge] = True
        by_span = (*self.graph.edges.shape, -1)
        scored = _only_scored(self.graph, read.reshape(by_span).any(-1))
        for part in self._parts:
            part.set(kept.reshape(by_span), scored)

    def _evaluate(self, edges: Sequence[Edge]) -> list[float]:
        """The metric with each edge changed or, without edges, of the circuit itself."""
        rows = torch.cat([part.rows(edges) for part in self._parts], 1)
        self.evaluations += len(rows)
        values: list[float] = self._metric(rows).cpu().double().mean(1).tolist()
        return values


class _Part:
    """The circuit on some of the prompts. It holds no clean activations, only what circuits change."""

    def __init__(self, model: Transformer, graph: Graph, cache: ActivationCache, nodes: frozenset[str]) -> None:
        self.graph = graph
        self.nodes = Nodes(model, graph, cache)
        self.logits = graph.receiver_index["logits"]
        # What doesn't depend on the circuit, at the live positions:
        self.ablated: dict[int, Tensor] = {}  # sender → what its removed edges carry; of a head z
        self.base: dict[int, Tensor] = {}  # receiver → its input without any edge
        self.together: dict[int, Tensor] = {}  # layer → what its ablated heads write, if they are normalised together
        self.before: dict[int, Values] = {}  # head → keys and values before the live positions
        # The current circuit:
        self.kept = np.zeros_like(graph.edges)  # at any span
        self.kept_at = np.zeros((*graph.edges.shape, self.nodes.n_spans), dtype=bool)
        self.fed = np.zeros((len(graph.senders), self.kept_at.shape[2]), dtype=bool)  # where edges enter a sender
        self.fed[: len(graph.inputs)] = True
        self.scored = np.zeros(len(graph.senders), dtype=bool)  # senders computed at the scored positions only
        self.input: dict[int, Tensor] = {}  # receiver → what it reads
        self.heads: dict[int, Values] = {}  # sender → q, k and v
        self.delta: dict[int, Tensor] = {}  # sender → current − ablated output, Float[batch pos d_model]
        self._read(cache, nodes)

    def _read(self, cache: ActivationCache, nodes: frozenset[str]) -> None:
        """Take from the activations what the nodes need."""
        graph = self.graph
        start = self.nodes.start
        x = cache.ablated.inputs[:, :, start:].sum(0)
        for i in range(len(graph.inputs)):
            self.delta[i] = (cache.clean.inputs[i] - cache.ablated.inputs[i])[:, start:]
        for layer in range(graph.n_layers):
            z = cache.ablated.z[layer][:, :, start:]
            after = self.nodes.model.after_attention(layer, x, z)
            heads = [graph.sender_index[f"a{layer}.h{head}"] for head in range(graph.n_heads)]
            heads = [s for s in heads if graph.senders[s].name in nodes]
            if heads and self.nodes.group(heads[0]) is not None:
                self.together[layer] = self.nodes.model.written_together(layer, z)
            for s in heads:
                self.ablated[s] = z[:, graph.senders[s].head]
                self.base |= dict.fromkeys(graph.own_receivers[s], x)
            if heads and start:
                self.before |= self.nodes.heads(heads, "kv", cache.residual[layer][:, :start])
            written = cache.ablated.mlp[graph.mlps(layer), :, start:]
            for name, ablated in zip(graph.mlp_names(layer), written, strict=True):
                if name in nodes:
                    self.ablated[graph.sender_index[name]] = ablated
                    self.base[graph.receiver_index[name]] = x if graph.parallel else after
            x = after + written.sum(0) if graph.mlp else after
        self.base[self.logits] = x

    def capacity(self) -> int:
        """How many candidates can be evaluated at once within `BATCH_BYTES`."""
        c = self.nodes.model.config
        widest = self.nodes.extent[0] * (c.d_mlp + 4 * c.d_model)
        numbers = widest + sum(x.numel() for x in self.delta.values()) // 2
        return max(1, BATCH_BYTES // (numbers * self.nodes.model.dtype.itemsize))

    # --- the current circuit ------------------------------------------------------------------------------------------

    def set(self, kept_at: Array, scored: Array) -> None:
        """Go over to another circuit, Bool[sender receiver span]: compute again what differs."""
        graph = self.graph
        moved = np.zeros(len(graph.senders), dtype=bool)
        changed = (kept_at != self.kept_at).any((0, 2))
        narrower = scored != self.scored
        self.kept_at = kept_at
        self.kept = kept = np.any(kept_at, -1)
        self.scored = scored
        self.last_reader = {}  # sender → the last node that reads it
        for s in range(len(graph.senders)):
            readers = [graph.node_of[r] for r in np.flatnonzero(kept[s]).tolist() if r != self.logits]
            self.last_reader[s] = max(readers, default=-1)
        for block in self.nodes.blocks(range(len(graph.inputs), len(graph.senders))):
            stale: dict[int, list[int]] = {}
            for s in block:
                own = graph.own_receivers[s]
                self.fed[s] = fed_by(kept_at[:s, own], self.fed[:s])
                known = s in self.delta and not narrower[s]
                if not kept[:, own].any():
                    self._remove(s)
                elif some := [r for r in own if not known or changed[r] or (kept[:, r] & moved).any()]:
                    stale[s] = some
            self._refresh(stale)
            moved[list(stale)] = True
        self.input[self.logits] = self._current_input(self.logits)

    def _remove(self, s: int) -> None:
        """Drop the values of a node that no kept edge enters."""
        self.delta.pop(s, None)
        self.heads.pop(s, None)
        for r in self.graph.own_receivers[s]:
            self.input.pop(r, None)

    def _refresh(self, nodes: dict[int, list[int]]) -> None:
        """Compute nodes of one block again, each from some of its inputs."""
        new: dict[int, Values] = {}
        for s, receivers in nodes.items():
            for r in receivers:
                self.input[r] = self._current_input(r)
            new[s] = {self.graph.receivers[r].kind: self.input[r][None] for r in receivers}
        for s, node in self._compute(new).items():
            self.delta[s] = self.nodes.only_at(self.fed[s], node.difference[0], bool(self.scored[s]))
            self.heads[s] = self.heads.get(s, {}) | {kind: x[0] for kind, x in node.values.items() if kind in QKV}

    def _current_input(self, r: int) -> Tensor:
        """What a receiver reads: Float[batch pos d_model]. Summed anew each time, so that rounding doesn't add up."""
        x = self.nodes.narrow(self.base[r], False, self._reads_scored(r))
        kept = ((s, self._carried(self.delta[s], s, r)) for s in np.flatnonzero(self.kept[:, r]).tolist())
        return self.nodes.total(x, self.nodes.added(kept, lambda layer: self._without(r, layer)))

    def _without(self, r: int, layer: int) -> Tensor:
        """What the heads of a layer, which are normalised together, write to a receiver without any edge: Float[batch
        pos d_model]."""
        return self.nodes.narrow(self.together[layer], False, self._reads_scored(r))

    def _now(self, r: int, layer: int) -> Tensor:
        """What they write to it in the circuit."""
        heads = (s for s in np.flatnonzero(self.kept[:, r]).tolist() if self.nodes.group(s) == layer)
        return self.nodes.total(self._without(r, layer), (self._carried(self.delta[s], s, r) for s in heads))

    def _moves(self, r: int, changes: dict[int, Change], of: Tensor | None = None) -> Iterator[Tensor]:
        """Yield, in parts, how a receiver's input moves with senders: Float[candidate batch pos d_model], for all
        candidates or those `of` some indices."""
        sees = {s: change.sees if of is None else change.sees[of] for s, change in changes.items()}
        feeding = [(s, change.versions) for s, change in changes.items() if self.kept[s, r]]
        carried = ((s, self._carried(x, s, r).index_select(0, sees[s])) for s, x in feeding)
        return self.nodes.added(carried, lambda layer: self._now(r, layer))

    # --- its neighbours -----------------------------------------------------------------------------------------------

    def rows(self, edges: Sequence[Edge]) -> Tensor:
        """Normalised final rows with each edge changed, or of the circuit itself without edges: Float[candidate row
        d_model]."""
        now = self.input[self.logits]
        final = now.expand(max(1, len(edges)), *now.shape).clone()
        into: dict[int, list[int]] = defaultdict(list)  # receiver → candidates
        for i, edge in enumerate(edges):
            into[edge[1]].append(i)
        nodes = [self.graph.node_of[r] for r in into if r != self.logits]
        changes: dict[int, Change] = {}
        for block in self.nodes.blocks(s for s in sorted(self.delta) if nodes and s >= min(nodes)):
            for done in [other for other in changes if self.last_reader[other] < block[0]]:
                del changes[done]
            fresh = self._changes(block, edges, into, changes)
            for moved in self._moves(self.logits, fresh):
                final += moved
            changes |= fresh
        for i in into[self.logits]:
            final[i] += self._flip(edges[i])
        return self.nodes.final_rows(final)

    def _changes(
        self, block: list[int], edges: Sequence[Edge], into: dict[int, list[int]], changes: dict[int, Change]
    ) -> dict[int, Change]:
        """How the nodes of a block change, given the changes before them; those that do."""
        moved: dict[int, Array] = {}  # sender → Bool[candidate], whether it changes
        new: dict[int, Values] = {}
        for s in block:
            own = self.graph.own_receivers[s]
            feeding = {r: [c for c in changes if self.kept[c, r]] for r in own}
            moves = np.zeros(len(edges), dtype=bool)
            for r in own:
                moves[into.get(r, [])] = True
                for c in feeding[r]:
                    moves |= changes[c].moved
            which = np.flatnonzero(moves)
            if not len(which):
                continue
            moved[s] = moves
            of = torch.from_numpy(which).to(self.input[own[0]].device)
            new[s] = {}
            for r in own:
                if not into.get(r) and not feeding[r]:
                    continue
                x = self.input[r].expand(len(which), *self.input[r].shape).clone()
                for move in self._moves(r, changes, of):
                    x += move
                for i in into.get(r, []):
                    x[np.searchsorted(which, i)] += self._flip(edges[i])
                new[s][self.graph.receivers[r].kind] = x
        return {s: self._change(s, edges, moved[s], node.difference, changes) for s, node in self._compute(new).items()}

    def _change(self, s: int, edges: Sequence[Edge], moved: Array, delta: Tensor, changes: dict[int, Change]) -> Change:
        """A node's change from its output less the ablated one, Float[version batch pos d_model] where it changes."""
        fed = np.repeat(self.fed[None, s], len(edges), 0)
        for j, i in enumerate(np.flatnonzero(moved).tolist()):
            fed[i] = self._fed_in(s, edges[i], i, changes)
            delta[j] = self.nodes.only_at(fed[i], delta[j], bool(self.scored[s]))
        versions = torch.cat([torch.zeros_like(delta[:1]), delta - self.delta[s]])
        sees = torch.from_numpy(np.cumsum(moved) * moved).to(delta.device)
        return Change(versions, sees, moved, fed)

    def _fed_in(self, s: int, edge: Edge, i: int, changes: dict[int, Change]) -> Array:
        """Where, in one candidate, edges lead into a node from one that is itself fed: Bool[span]."""
        own = self.graph.own_receivers[s]
        entering = self.kept_at[:s, own]
        if edge[1] in own:
            entering[edge[0], own.index(edge[1]), _span(edge)] ^= True
        fed = self.fed[:s].copy()
        for c, change in changes.items():
            fed[c] = change.fed[i]
        return fed_by(entering, fed)

    def _flip(self, edge: Edge) -> Tensor:
        """How the receiver's input changes when an edge is removed or added."""
        s, r = edge[:2]
        span = _span(edge)
        here = np.arange(self.kept_at.shape[2]) == span
        written = self.nodes.only_at(here, self._written(self.delta[s], s, r), self._reads_scored(r))
        change = -written if self.kept_at[s, r, span] else written
        return next(self.nodes.added([(s, change)], lambda layer: self._now(r, layer)))

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _compute(self, new: dict[int, Values]) -> dict[int, Computed]:
        """Nodes of one block from new inputs, less what their removed edges carry."""
        scored = {s: bool(self.scored[s]) for s in new}
        now = {s: self.before.get(s, {}) | self.heads.get(s, {}) for s in new}
        ablated = {s: self.nodes.narrow(self.ablated[s], False, scored[s]) for s in new}
        return self.nodes.compute(new, now, scored, ablated)

    def _reads_scored(self, r: int) -> bool:
        """Whether a receiver reads the scored positions only."""
        return r == self.logits or (
            self.graph.receivers[r].kind not in "kv" and bool(self.scored[self.graph.node_of[r]])
        )

    def _carried(self, x: Tensor, s: int, r: int) -> Tensor:
        """What a kept edge carries of what its sender writes, at the positions where the receiver reads it."""
        return self.nodes.only_at(self.kept_at[s, r], self._written(x, s, r), self._reads_scored(r))

    def _written(self, x: Tensor, s: int, r: int) -> Tensor:
        """What a sender writes, at the positions where a receiver reads it."""
        # The inputs, which have no receivers, are kept at all live positions.
        scored = bool(self.scored[s]) and len(self.graph.own_receivers[s]) > 0
        return self.nodes.narrow(x, scored, self._reads_scored(r))


def _span(edge: Edge) -> int:
    """The span of an edge-span; 0 for an edge, which has all positions."""
    return edge[2] if len(edge) > 2 else 0


def _only_scored(graph: Graph, kept: Array) -> Array:
    """The senders that are read at the scored positions only: by the logits, by MLPs and queries that are themselves
    read only there, and not by keys or values: Bool[sender]."""
    elsewhere = np.array([r.kind in "kv" for r in graph.receivers])
    scored = np.ones(len(graph.senders), dtype=bool)
    for s in reversed(range(len(graph.senders))):
        scored[s] = not (kept[s] & elsewhere).any()
        own = [r for r in graph.own_receivers[s] if graph.receivers[r].kind not in "kv"]
        elsewhere[own] = not scored[s]
    return scored
