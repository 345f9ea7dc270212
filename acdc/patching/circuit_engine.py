"""Evaluate a circuit without, or with, each of some edges or edge-spans, without running the circuit again.

All nodes of the circuit have their current values. A change of one edge is followed through the nodes that kept edges
reach; everything else keeps its value. Many changes are evaluated at once, independently of each other.

A node that no kept edge enters writes what its removed edges carry, likewise by span, so that a value is that of the
circuit without its dead edges. Nodes that are read at the scored positions only are computed there only
(`acdc.patching.live`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.circuit import Circuit, fed_by
from acdc.graph.graph import QKV, Graph
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.patching.engine import BATCH_BYTES
from acdc.patching.metrics import Metric
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
        self.model = model
        self.graph = graph
        self.start = cache.first  # the first live position
        self.columns = torch.unique(cache.rows[:, 1]) - self.start
        self.row_example = cache.rows[:, 0]
        self.row_column = torch.searchsorted(self.columns, cache.rows[:, 1] - self.start)
        self.positions = positions_of(cache.pad, cache.mask.shape[1])
        self.mask = cache.mask[:, self.start :]
        self.logits = graph.receiver_index["logits"]
        self.masks: dict[bool, Tensor] = {}  # at the scored positions or all live ones → Float[span batch pos 1]
        if cache.spans is not None:
            masks = cache.spans[:, :, self.start :, None].to(model.dtype)
            self.masks = {False: masks, True: masks.index_select(-2, self.columns)}
        # What doesn't depend on the circuit, at the live positions:
        self.ablated: dict[int, Tensor] = {}  # sender → what its removed edges carry; of a head z
        self.base: dict[int, Tensor] = {}  # receiver → its input without any edge
        self.before: dict[tuple[int, str], Tensor] = {}  # (head, "k" or "v") → before the live positions
        # The current circuit:
        self.kept = np.zeros_like(graph.edges)  # at any span
        self.kept_at = np.zeros((*graph.edges.shape, max(1, len(self.masks.get(False, ())))), dtype=bool)
        self.fed = np.zeros((len(graph.senders), self.kept_at.shape[2]), dtype=bool)  # where edges enter a sender
        self.fed[: len(graph.inputs)] = True
        self.scored = np.zeros(len(graph.senders), dtype=bool)  # senders computed at the scored positions only
        self.input: dict[int, Tensor] = {}  # receiver → what it reads
        self.heads: dict[int, dict[str, Tensor]] = {}  # sender → q, k and v
        self.delta: dict[int, Tensor] = {}  # sender → current − ablated output, Float[batch pos d_model]
        self._read(cache, nodes)

    def _read(self, cache: ActivationCache, nodes: frozenset[str]) -> None:
        """Take from the activations what the nodes need."""
        graph = self.graph
        x = cache.ablated.inputs[:, :, self.start :].sum(0)
        for i in range(len(graph.inputs)):
            self.delta[i] = (cache.clean.inputs[i] - cache.ablated.inputs[i])[:, self.start :]
        for layer in range(graph.n_layers):
            z = cache.ablated.z[layer][:, :, self.start :]
            after = self.model.after_attention(layer, x, z)
            for head in range(graph.n_heads):
                s = graph.sender_index[f"a{layer}.h{head}"]
                if graph.senders[s].name not in nodes:
                    continue
                self.ablated[s] = z[:, head]
                self.base |= dict.fromkeys(graph.own_receivers[s], x)
                if self.start:
                    clean = cache.residual[layer][:, : self.start]
                    positions = self.positions[:, : self.start]
                    for c in "kv":
                        self.before[s, c] = self.model.project(c, layer, head, clean, positions)
            if graph.mlp:
                s = graph.sender_index[f"m{layer}"]
                written = cache.ablated.mlp[layer][:, self.start :]
                if graph.senders[s].name in nodes:
                    self.ablated[s] = written
                    self.base[graph.own_receivers[s][0]] = x if graph.parallel else after
                after = after + written
            x = after
        self.base[self.logits] = x

    def capacity(self) -> int:
        """How many candidates can be evaluated at once within `BATCH_BYTES`."""
        c = self.model.config
        widest = self.positions.shape[0] * self.mask.shape[1] * (c.d_mlp + 4 * c.d_model)
        numbers = widest + sum(x.numel() for x in self.delta.values()) // 2
        return max(1, BATCH_BYTES // (numbers * self.model.dtype.itemsize))

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
        for s, own in enumerate(graph.own_receivers):
            readers = [self.graph.node_of[r] for r in np.flatnonzero(kept[s]).tolist() if r != self.logits]
            self.last_reader[s] = max(readers, default=-1)
            if own:
                self.fed[s] = fed_by(kept_at[:s, own], self.fed[:s])
            if own and not kept[:, own].any():
                self._remove(s)
            elif own:
                known = s in self.delta and not narrower[s]
                stale = [r for r in own if not known or changed[r] or (kept[:, r] & moved).any()]
                moved[s] = bool(stale)
                if stale:
                    self._refresh(s, stale)
        self.input[self.logits] = self._current_input(self.logits)

    def _remove(self, s: int) -> None:
        """Drop the values of a node that no kept edge enters."""
        self.delta.pop(s, None)
        self.heads.pop(s, None)
        for r in self.graph.own_receivers[s]:
            self.input.pop(r, None)

    def _refresh(self, s: int, receivers: Sequence[int]) -> None:
        """Compute a node again from some of its inputs."""
        new = {}
        for r in receivers:
            self.input[r] = self._current_input(r)
            kind = self.graph.receivers[r].kind
            new[kind] = self._vector(kind, s, self.input[r][None])
        (self.delta[s],) = self._only_at(self.fed[s], self._output(s, new), bool(self.scored[s]))
        if self.graph.senders[s].kind == "head":
            self.heads.setdefault(s, {}).update({kind: x[0] for kind, x in new.items()})

    def _current_input(self, r: int) -> Tensor:
        """What a receiver reads: Float[batch pos d_model]. Summed anew each time, so that rounding doesn't add up."""
        x = self._narrow(self.base[r], self._reads_scored(r))
        for s in np.flatnonzero(self.kept[:, r]).tolist():
            x = x + self._carried(self.delta[s], s, r)
        return x

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
        for s in sorted(s for s in self.delta if nodes and s >= min(nodes)):
            for done in [other for other in changes if self.last_reader[other] < s]:
                del changes[done]
            change = self._change(s, edges, into, changes)
            if change is not None:
                changes[s] = change
                if self.kept[s, self.logits]:
                    final += self._carried(change.versions, s, self.logits)[change.sees]
        for i in into[self.logits]:
            final[i] += self._flip(edges[i])
        return self.model.normalise(final[:, self.row_example, self.row_column])

    def _change(
        self, s: int, edges: Sequence[Edge], into: dict[int, list[int]], changes: dict[int, Change]
    ) -> Change | None:
        """How a node changes, given the changes before it; None if it doesn't."""
        own = self.graph.own_receivers[s]
        feeding = {r: [c for c in changes if self.kept[c, r]] for r in own}
        moved = np.zeros(len(edges), dtype=bool)
        for r in own:
            moved[into.get(r, [])] = True
            for c in feeding[r]:
                moved |= changes[c].moved
        which = np.flatnonzero(moved).tolist()
        if not which:
            return None
        of = torch.tensor(which).to(self.model.device)
        new = {}
        for r in own:
            if not into.get(r) and not feeding[r]:
                continue
            x = self.input[r].expand(len(which), *self.input[r].shape).clone()
            for c in feeding[r]:
                x += self._carried(changes[c].versions, c, r)[changes[c].sees[of]]
            for i in into.get(r, []):
                x[which.index(i)] += self._flip(edges[i])
            kind = self.graph.receivers[r].kind
            new[kind] = self._vector(kind, s, x)
        delta = self._output(s, new)
        fed = np.repeat(self.fed[None, s], len(edges), 0)
        for j, i in enumerate(which):
            fed[i] = self._fed_in(s, edges[i], i, changes)
            delta[j] = self._only_at(fed[i], delta[j], bool(self.scored[s]))
        versions = torch.cat([torch.zeros_like(delta[:1]), delta - self.delta[s]])
        sees = torch.from_numpy(np.cumsum(moved) * moved).to(self.model.device)
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
        written = self._only_at(here, self._written(self.delta[s], s, r), self._reads_scored(r))
        return -written if self.kept_at[s, r, span] else written

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _output(self, s: int, new: dict[str, Tensor]) -> Tensor:
        """Output − ablated output of a node for new values (the inputs of an MLP, or some of q, k and v of a head):
        Float[version batch pos d_model]."""
        sender = self.graph.senders[s]
        scored = bool(self.scored[s])
        ablated = self._narrow(self.ablated[s], scored)
        if sender.kind == "mlp":
            return self.model.mlp(sender.layer, new["mlp"]) - ablated
        q, k, v = (new[c] if c in new else self.heads[s][c] for c in QKV)
        mask = self._narrow(self.model.window(sender.layer, self.mask, self.start), scored)
        return self.model.write(sender.layer, sender.head, self.model.attend(q, k, v, mask) - ablated)

    def _vector(self, kind: str, s: int, x: Tensor) -> Tensor:
        """q, k or v of a head from its inputs Float[version batch pos d_model], k and v with those before the live
        positions; the inputs of an MLP as they are."""
        if kind == "mlp":
            return x
        sender = self.graph.senders[s]
        positions = self.positions[:, self.start :]
        if kind == "q" and self.scored[s]:
            positions = positions[:, self.columns]
        y = self.model.project(kind, sender.layer, sender.head, x, positions)
        if kind == "q" or not self.start:
            return y
        before = self.before[s, kind]
        return torch.cat([before.expand(len(y), *before.shape), y], 2)

    def _reads_scored(self, r: int) -> bool:
        """Whether a receiver reads the scored positions only."""
        return r == self.logits or (
            self.graph.receivers[r].kind not in "kv" and bool(self.scored[self.graph.node_of[r]])
        )

    def _carried(self, x: Tensor, s: int, r: int) -> Tensor:
        """What a kept edge carries of what its sender writes, at the positions where the receiver reads it."""
        return self._only_at(self.kept_at[s, r], self._written(x, s, r), self._reads_scored(r))

    def _only_at(self, spans: Array, x: Tensor, scored: bool) -> Tensor:
        """Values Float[... batch pos any] at some of the spans, Bool[span], and 0 at the others."""
        if spans.all():
            return x
        if not spans.any():
            return torch.zeros_like(x)
        return x * self.masks[scored][torch.as_tensor(spans).to(x.device)].sum(0)

    def _written(self, x: Tensor, s: int, r: int) -> Tensor:
        """What a sender writes, at the positions where a receiver reads it."""
        wide = len(self.graph.own_receivers[s]) == 0 or not self.scored[s]  # inputs are kept at all live positions
        return self._narrow(x, wide and self._reads_scored(r))

    def _narrow(self, x: Tensor, scored: bool) -> Tensor:
        """Float[... pos any] from the live to the scored positions if asked."""
        return x.index_select(-2, self.columns) if scored else x


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
