"""Evaluate the removal of edges without running the model again.

While receivers are visited in reverse topological order,

1. upstream of the current receiver everything is clean, so removing edges from it changes its input by a sum of known
   differences ablated − clean;
2. downstream a change reaches only what kept edges reach; everything else keeps its value;
3. nothing changes before the first position at which the runs differ, and a node that is read at the scored positions
   only is computed there only;
4. many candidates are evaluated at once: candidate i stands for the removal of all candidates up to i;
5. what a stage has removed goes downstream with the changes of each of its candidates, and once for all when it ends.

The state depends on the committed batches of decisions only, not on what was evaluated in between, so that replaying a
log gives the same bits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import QKV, Graph
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.live import CACHE_BYTES, LiveActivations
from acdc.patching.metrics import Metric
from acdc.patching.nodes import Nodes, Values
from acdc.patching.state import State

BATCH_BYTES = 256 << 20  # rough bound on one batch of candidates


class Removal(NamedTuple):
    """A candidate: the residual edge sender → receiver (indices), at one span or everywhere, or the receiver's direct
    edge if `sender` is None."""

    receiver: int
    sender: int | None
    span: int | None = None


class Engine:
    """The current circuit H of one discovery, beginning with the full graph, and the values of all nodes in it.

    Receivers must be opened (`open`) and decided (`commit`, `drop`) in reverse topological order.
    """

    def __init__(
        self,
        model: Transformer,
        graph: Graph,
        cache: ActivationCache,
        metric: Metric,
        guess: Metric | None = None,
        spans: tuple[str, ...] = (),
    ) -> None:
        """`spans` are the names of the cache's spans, if edges are kept by span."""
        self.model = model
        self.graph = graph
        self.nodes = Nodes(model, graph, cache)
        self.live = LiveActivations(self.nodes, cache)
        self.metric_of = metric
        self.guess_of = guess
        self.spans = spans
        self.kept = graph.edges.copy()  # at any span
        self.kept_at = graph.edges_at(spans or ("everywhere",))  # Bool[sender receiver span]
        self.state = State()
        self.scored_at: dict[int, bool] = {}  # sender → whether it is computed at the scored positions only
        self.last_reader: dict[int, int] = {}  # sender → the last node that reads it, −1 if only the logits do
        self.evaluations = 0
        self._sums: dict[tuple[int, int], Tensor] = {}  # (receiver, layer) → `_together`
        self.logits = graph.receiver_index["logits"]
        self.extent = self.nodes.extent
        self._set_clean_input(self.logits)

    # --- for the method ---------------------------------------------------------------------------------------------

    def alive(self, receiver: int) -> bool:
        """Whether a kept edge leaves the receiver's node."""
        return receiver == self.logits or bool(self.kept[self.graph.node_of[receiver]].any())

    def drop(self, receiver: int) -> None:
        """Remove all edges into a receiver whose node nothing reads."""
        self._remove(Removal(receiver, None))

    def open(self, receivers: Sequence[int]) -> None:
        """Begin a stage: the inputs of the heads of one layer, one MLP, or the logits."""
        self._settle()
        n = self.graph.n_parents(self.graph.receivers[receivers[0]])
        self.live.forget(n)  # receivers to come read the first n senders only
        self._forget(receivers)
        new = {self.graph.node_of[r] for r in receivers if r not in self.state.base}
        if new:
            self._open(sorted(new))

    def capacity(self, receivers: Sequence[int]) -> int:
        """How many candidates of one stage can be evaluated at once within `BATCH_BYTES`."""
        c = self.model.config
        live, scored, _ = self.extent
        extent = scored if all(self._reads_scored(r) for r in receivers) else live
        numbers = extent * (c.d_mlp + 4 * c.d_model)
        return max(1, BATCH_BYTES // (numbers * self.model.dtype.itemsize))

    def inert(self, removal: Removal) -> bool:
        """Whether a removal changes nothing at all: clean and ablated output are equal where the receiver reads, or
        what its node writes at the span is not read."""
        receiver, sender, span = removal
        scored = self._reads_scored(receiver)
        if sender is None:
            return not any(self.live.differs(s, scored) for s in np.flatnonzero(self.kept[:, receiver]).tolist())
        local = receiver != self.logits and self.graph.receivers[receiver].kind not in "kv"
        if span is not None and local and not self.kept_at[self.graph.node_of[receiver], :, span].any():
            return True
        return not self.live.differs(sender, scored, span)

    def rows(self, removals: Sequence[Removal], none: bool) -> Tensor:
        """Normalised final rows after removing `none` (if asked), the first, … all of some candidates:
        Float[none+candidate row d_model]."""
        now = self.state.input[self.logits]
        if removals and removals[0].receiver == self.logits:
            final = self._inputs(self.logits, removals)[not none :]
        else:
            known = not self.state.moved  # the rows after none
            every = range(known or not none, 1 + len(removals))
            final = self.nodes.total(now, self._propagate(self._changes(removals, every)))
            final = final.expand(len(every), *now.shape)  # without versions if the changes reach nothing
            final = torch.cat([now[None], final]) if known and none else final
        return self.nodes.final_rows(final)

    def metric(self, rows: Tensor) -> list[float]:
        """The metric, mean over the prompts, of candidates' rows: Float[candidate row d_model]."""
        self.evaluations += len(rows)
        return self.metric_of(rows).cpu().double().mean(1).tolist()

    def guess(self, rows: Tensor) -> list[float] | None:
        """A cheap guess at `metric`, or None where there is none."""
        return None if self.guess_of is None else self.guess_of(rows).cpu().double().mean(1).tolist()

    def commit(self, removals: Iterable[Removal]) -> None:
        """Remove some candidates from the circuit."""
        touched: set[int] = set()
        base = self.state.base
        for receiver, some in groupby(removals, lambda removal: removal.receiver):
            gone = list(some)
            active = [removal for removal in gone if not self.inert(removal)]
            scored = self._reads_scored(receiver)
            if gone[0].sender is None and (active or self.model.config.post_norm):
                base[receiver] = self.live.ablated_input(receiver, scored)
            elif active:
                single = [removal for removal in active if self.nodes.group(removal.sender) is None]
                base[receiver] = self.nodes.total(base[receiver], (self._difference(one, scored) for one in single))
            if active:
                touched.add(receiver)
            for removal in gone:
                self._remove(removal)
            for layer in sorted({layer for one in gone if (layer := self.nodes.group(one.sender)) is not None}):
                if not self.kept[self._heads(layer), receiver].any():
                    base[receiver] = base[receiver] + self.live.ablated_heads(layer, scored)
        self.state.moved |= self._refresh(sorted(touched))

    def offload(self) -> None:
        """Free large tensors; set `live.cache` and `state` before the engine is used again."""
        self.live.offload()
        self.state = State()
        self._sums.clear()

    def _remove(self, removal: Removal) -> None:
        receiver, sender, span = removal
        senders = slice(None) if sender is None else sender
        self.kept_at[senders, receiver, slice(None) if span is None else span] = False
        self.kept[senders, receiver] = self.kept_at[senders, receiver].any(-1)
        for key in [key for key in self._sums if key[0] == receiver]:
            del self._sums[key]

    # --- one stage -------------------------------------------------------------------------------------------------

    def _forget(self, stage: Sequence[int]) -> None:
        self.state.forget(self.graph, self.kept, [*stage, self.logits], decided=self.scored_at)
        self._sums = {key: x for key, x in self._sums.items() if key[0] in self.state.input}

    def _open(self, senders: list[int]) -> None:
        """Begin with nodes of one stage: set their current values to the clean ones."""
        graph = self.graph
        for s in senders:
            readers = np.flatnonzero(self.kept[s]).tolist()
            self.scored_at[s] = self.nodes.all_scored or all(self._reads_scored(j) for j in readers)
            self.last_reader[s] = max((graph.node_of[j] for j in readers if j != self.logits), default=-1)
            for j in graph.own_receivers[s]:
                self._set_clean_input(j)
            self.state.nodes[s] = {"out": self.live.clean(s, self.scored_at[s])}
        if graph.senders[senders[0]].kind == "head":
            stream = self.live.cache.residual[graph.senders[senders[0]].layer]
            for s, values in self.nodes.heads(senders, QKV, stream).items():
                q = self.nodes.narrow(values["q"][:, self.nodes.start :], False, self.scored_at[s])
                self.state.nodes[s] |= values | {"q": q}

    def _set_clean_input(self, receiver: int) -> None:
        x = self.live.clean_input(receiver, self._reads_scored(receiver))
        self.state.base[receiver] = x
        self.state.input[receiver] = x

    def _reads_scored(self, receiver: int) -> bool:
        """Whether a receiver reads the scored positions only (keys and values read all live ones)."""
        if receiver == self.logits or self.nodes.all_scored:
            return True
        return self.graph.receivers[receiver].kind not in "kv" and self.scored_at[self.graph.node_of[receiver]]

    # --- a batch of candidates ---------------------------------------------------------------------------------------

    def _changes(self, removals: Sequence[Removal], every: range) -> dict[int, Tensor]:
        """How what the nodes of this stage write changes with all that was removed in it so far and, for `every` number
        i, the first i candidates: Float[i batch pos d_model] each."""
        touching: dict[int, list[int]] = defaultdict(list)  # receiver → the candidates that touch it, counted from 1
        nodes: dict[int, list[int]] = defaultdict(list)  # sender → likewise
        for i, removal in enumerate(removals, 1):
            touching[removal.receiver].append(i)
            nodes[self.graph.node_of[removal.receiver]].append(i)
        new: dict[int, Values] = {}
        for sender, candidates in nodes.items():
            new[sender] = {}
            for receiver in self.graph.own_receivers[sender]:
                if own := touching.get(receiver):
                    x = self._inputs(receiver, [removals[i - 1] for i in own])
                    new[sender][self.graph.receivers[receiver].kind] = _seen(candidates, own, x)
        changes = {s: x.expand(len(every), *x.shape) for s, x in self.state.moved.items()}
        for s, x in self._differences(new).items():
            before = changes[s][:1] if s in changes else torch.zeros_like(x[:1])
            after = before + x if s in changes else x
            changes[s] = _seen(every, nodes[s], torch.cat([before, after]))
        return changes

    def _inputs(self, receiver: int, removals: Sequence[Removal]) -> Tensor:
        """Inputs of a receiver after none, the first, … all of some removals: Float[1+candidate batch pos d_model]."""
        scored = self._reads_scored(receiver)
        now = self.state.input[receiver]
        if removals and removals[0].sender is None:
            return torch.stack([now, self.live.ablated_input(receiver, scored)])
        groups: dict[int | None, list[int]] = defaultdict(list, {None: []})
        for i, removal in enumerate(removals, 1):
            groups[self.nodes.group(removal.sender)].append(i)
        terms = []
        for layer, own in groups.items():
            before = now if layer is None else self._together(receiver, layer)
            x = running_sums(torch.stack([before, *(self._difference(removals[i - 1], scored) for i in own)]))
            x = x if layer is None else self.nodes.shift(layer, before, x)
            terms.append(_seen(range(1 + len(removals)), own, x))
        return self.nodes.total(terms[0], terms[1:])

    def _difference(self, removal: Removal, scored: bool) -> Tensor:
        """What the removal of a residual edge adds to its receiver's input: Float[batch pos d_model]."""
        assert removal.sender is not None
        difference = self.live.difference(removal.sender, scored)
        if removal.span is None:
            return difference
        return self.nodes.only_at(np.arange(len(self.spans)) == removal.span, difference, scored)

    def _differences(self, new: dict[int, Values]) -> dict[int, Tensor]:
        """How what nodes of one block write changes with their inputs: Float[candidate batch pos d_model] each."""
        current = {s: self.state.nodes[s]["out"] for s in new}
        computed = self.nodes.compute(new, self.state.nodes, self.scored_at, current)
        return {s: node.difference for s, node in computed.items()}

    def _propagate(self, changes: dict[int, Tensor]) -> Iterator[Tensor]:
        """Yield, in parts, what changes of what nodes write, Float[candidate batch pos d_model] each, add to the final
        residual stream, themselves and through the nodes behind them."""
        yield from self._added(self.logits, changes)
        for block in self.nodes.blocks(self._downstream(changes)):
            for done in [s for s in changes if self.last_reader[s] < block[0]]:
                del changes[done]
            new: dict[int, Values] = {}
            for sender in block:
                for receiver in self.graph.own_receivers[sender]:
                    x = self._received(receiver, changes)
                    if x is not None:
                        new.setdefault(sender, {})[self.graph.receivers[receiver].kind] = x
            fresh = self._differences(new)
            yield from self._added(self.logits, fresh)
            changes |= fresh

    def _downstream(self, changes: Iterable[int]) -> list[int]:
        """Nodes decided earlier than the changed ones, in forward order."""
        first = min(changes, default=len(self.graph.senders))
        return [s for s in sorted(self.state.nodes) if s > first and s not in changes and self.kept[s].any()]

    def _received(self, receiver: int, changes: dict[int, Tensor]) -> Tensor | None:
        """New inputs of a receiver, Float[candidate batch pos d_model], or None if no changed sender feeds it."""
        added = list(self._added(receiver, changes))
        return self.nodes.total(self.state.input[receiver], added) if added else None

    def _added(self, receiver: int, changes: dict[int, Tensor]) -> Iterator[Tensor]:
        """Yield, in parts, what changes of what senders write add to a receiver's input."""
        carried = ((s, self._carried(x, s, receiver)) for s, x in changes.items() if self.kept[s, receiver])
        return self.nodes.added(carried, lambda layer: self._together(receiver, layer))

    def _heads(self, layer: int) -> slice:
        """The heads of a layer among the senders."""
        first = self.graph.sender_index[f"a{layer}.h0"]
        return slice(first, first + self.graph.n_heads)

    def _together(self, receiver: int, layer: int) -> Tensor:
        """What the heads of a layer write together to a receiver in the circuit: Float[batch pos d_model]."""
        key = receiver, layer
        if key in self._sums:
            return self._sums[key]
        scored = self._reads_scored(receiver)
        heads = range(len(self.graph.senders))[self._heads(layer)]
        z = self.live.heads(self.live.cache.clean, layer, scored)
        ablated = (self.live.heads(self.live.cache.ablated, layer, scored) - z).unbind(1)
        removed = ~self.kept_at[:, receiver]
        change = [self.nodes.only_at(removed[s], x, scored) for s, x in zip(heads, ablated, strict=True)]
        moved = [s for s in heads if s in self.state.deviation and self.kept[s, receiver]]
        carried = (self._carried(self.state.deviation[s], s, receiver) for s in moved)
        out = self.nodes.total(self.model.written_together(layer, z + torch.stack(change, 1)), carried)
        if out.nbytes * (len(self._sums) + 1) <= CACHE_BYTES:
            self._sums[key] = out
        return out

    def _carried(self, x: Tensor, sender: int, receiver: int) -> Tensor:
        """What a kept edge carries of its sender's values, Float[... batch pos d_model], at the positions where the
        receiver reads."""
        scored = self._reads_scored(receiver)
        x = self.nodes.narrow(x, self.scored_at.get(sender, False), scored)
        return self.nodes.only_at(self.kept_at[sender, receiver], x, scored)

    # --- decisions --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Pass on what the nodes of the last stage have changed by to all that they reach."""
        stale = self._deviate(self.state.moved)
        self.state.moved = {}
        for block in self.nodes.blocks(sorted(self.state.nodes)):
            stale |= self._deviate(self._refresh(r for s in block for r in self.graph.own_receivers[s] if stale[r]))
        self._refresh(r for r in [self.logits] if stale[r])

    def _deviate(self, deviation: dict[int, Tensor]) -> np.ndarray:
        """Take over current − clean output of some nodes; returns which receivers read it: Bool[receiver]."""
        self.state.deviation |= deviation
        layers = {self.nodes.group(s) for s in deviation}
        self._sums = {key: x for key, x in self._sums.items() if key[1] not in layers}
        return self.kept[list(deviation)].any(0)

    def _refresh(self, receivers: Iterable[int]) -> dict[int, Tensor]:
        """Take new values for some receivers, of nodes of one block or the logits, and for their nodes; returns current
        − clean output of these."""
        new: dict[int, Values] = defaultdict(dict)
        for r in receivers:
            self.state.input[r] = self._current_input(r)
            if r != self.logits:
                new[self.graph.node_of[r]][self.graph.receivers[r].kind] = self.state.input[r][None]
        clean = {s: self.live.clean(s, self.scored_at[s]) for s in new}
        computed = self.nodes.compute(new, self.state.nodes, self.scored_at, clean)
        for s, node in computed.items():
            self.state.nodes[s] |= {kind: x[0] for kind, x in node.values.items()}
        return {s: node.difference[0] for s, node in computed.items()}

    def _current_input(self, receiver: int) -> Tensor:
        """Base input + deviations over kept edges, summed in the order of the senders."""
        deviations = sorted(self.state.deviation.items())
        moved = [(s, x) for s, x in deviations if self.kept[s, receiver]]
        terms = [self._carried(x, s, receiver) for s, x in moved if self.nodes.group(s) is None]
        if self.model.config.post_norm:
            terms += self._shifts(receiver, {self.nodes.group(s) for s, _ in moved})
        return self.nodes.total(self.state.base[receiver], terms)

    def _shifts(self, receiver: int, moved: set[int | None]) -> Iterator[Tensor]:
        """Yield how much more than in the clean run the heads of a layer add to a receiver's input: for each layer some
        of whose edges are kept, if others are removed or its heads have `moved`. The base has the layers without."""
        scored = self._reads_scored(receiver)
        for layer in range(self.graph.n_layers):
            kept = self.kept_at[self._heads(layer), receiver]
            if kept.any() and (layer in moved or not kept.all()):
                clean = self.model.written_together(layer, self.live.heads(self.live.cache.clean, layer, scored))
                yield self.nodes.shift(layer, clean, self._together(receiver, layer))


def _seen(candidates: Sequence[int], own: Sequence[int], x: Tensor) -> Tensor:
    """Values for each of some candidates, given those before and after each of its `own` ones, Float[1+own ...]; the
    others see what the last one before them does."""
    seen = np.searchsorted(own, candidates, side="right")
    if (np.diff(seen) == 1).all():
        return x[seen[0] :]
    return x.index_select(0, torch.from_numpy(seen).to(x.device))


def running_sums(x: Tensor) -> Tensor:
    """x[0], x[0] + x[1], …: Float[n ...] to the same shape. On CUDA, `cumsum` has no fixed order; a product has."""
    if x.device.type == "cpu":
        return x.cumsum(0)
    below = torch.ones(len(x), len(x), dtype=x.dtype, device=x.device).tril()
    return (below @ x.flatten(1)).view_as(x)
