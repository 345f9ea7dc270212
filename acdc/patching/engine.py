"""Evaluate the removal of edges without running the model again.

While receivers are visited in reverse topological order,

1. upstream of the current receiver everything is clean, so removing edges from it changes its input by a sum of known
   differences ablated − clean;
2. downstream a change reaches only what kept edges reach; everything else keeps its value;
3. nothing changes before the first position at which the runs differ, and a node that is read at the scored positions
   only is computed there only;
4. many candidates are evaluated at once: candidate i stands for the removal of all candidates up to i.

The state depends on the committed batches of decisions only, not on what was evaluated in between, so that replaying a
log gives the same bits.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import Graph
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.patching.live import LiveActivations
from acdc.patching.metrics import Metric
from acdc.patching.state import State

BATCH_BYTES = 256 << 20  # rough bound on one batch of candidates


class Removal(NamedTuple):
    """A candidate: the residual edge sender → receiver (indices), at one span or everywhere, or the receiver's direct
    edge if `sender` is None."""

    receiver: int
    sender: int | None
    span: int | None = None


class Change(NamedTuple):
    """How a sender's output differs from its current one, over a batch of candidates."""

    versions: Tensor  # Float[version batch pos d_model]; version 0 is no change
    sees: Tensor  # Int[candidate], the version each candidate sees
    scored: bool  # whether pos are the scored positions only, rather than all live ones


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
        self.live = LiveActivations(model, graph, cache)
        self.metric_of = metric
        self.guess_of = guess
        self.spans = spans
        self.kept = graph.edges.copy()  # at any span
        self.kept_at = graph.edges_at(spans or ("everywhere",))  # Bool[sender receiver span]
        self.state = State()
        self.scored_at: dict[int, bool] = {}  # sender → whether it is computed at the scored positions only
        self.last_reader: dict[int, int] = {}  # sender → the last node that reads it, −1 if only the logits do
        self.evaluations = 0
        self.logits = graph.receiver_index["logits"]
        self.batch = len(cache.pad)
        self.positions = positions_of(cache.pad, cache.mask.shape[1])
        self.row_example = cache.rows[:, 0]
        self.row_column = torch.searchsorted(self.live.columns, cache.rows[:, 1] - self.live.start)
        # Numbers of live positions, of positions that are scored in any prompt, and of scored ones, over all prompts.
        self.extent = self.batch * self.live.n_live, self.batch * len(self.live.columns), len(self.row_example)
        self._open(self.logits)

    # --- for the method ---------------------------------------------------------------------------------------------

    def alive(self, receiver: int) -> bool:
        """Whether a kept edge leaves the receiver's node."""
        return receiver == self.logits or bool(self.kept[self.graph.node_of[receiver]].any())

    def drop(self, receiver: int) -> None:
        """Remove all edges into a receiver whose node nothing reads."""
        self._remove(Removal(receiver, None))

    def open(self, receivers: Sequence[int]) -> None:
        """Begin a stage: the inputs of the heads of one layer, one MLP, or the logits."""
        n = self.graph.n_parents(self.graph.receivers[receivers[0]])
        self.live.forget(n)  # receivers to come read the first n senders only
        self._forget(receivers)
        for receiver in receivers:
            if receiver not in self.state.base:
                self._open(receiver)

    def capacity(self, receivers: Sequence[int]) -> int:
        """How many candidates of one stage can be evaluated at once within `BATCH_BYTES`."""
        c = self.model.config
        n_pos = self.live.n_live
        if all(self._reads_scored(r) for r in receivers):
            n_pos = len(self.live.columns)
        numbers = self.batch * n_pos * (c.d_mlp + 4 * c.d_model)
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

    def rows(self, removals: Sequence[Removal]) -> Tensor:
        """Normalised final rows after removing none, the first, … all of some candidates: Float[1+candidate row
        d_model]."""
        now = self.state.input[self.logits][None]
        final = None
        if removals and removals[0].receiver == self.logits:
            final = self._inputs(self.logits, removals)
        elif removals:
            final = self._propagate(self._changes(removals), len(removals))
        if final is None:  # the changes reach nothing
            final = now.expand(len(removals), *now.shape[1:])
        rows = torch.cat([now, final])[:, self.row_example, self.row_column]
        return self.model.normalise(rows)

    def metric(self, rows: Tensor) -> list[float]:
        """The metric, mean over the prompts, of candidates' rows: Float[candidate row d_model]."""
        self.evaluations += len(rows)
        return self.metric_of(rows).cpu().double().mean(1).tolist()

    def guess(self, rows: Tensor) -> list[float] | None:
        """A cheap guess at `metric`, or None where there is none."""
        return None if self.guess_of is None else self.guess_of(rows).cpu().double().mean(1).tolist()

    def commit(self, removals: Iterable[Removal]) -> None:
        """Remove some candidates from the circuit."""
        touched = set()
        base = self.state.base
        for removal in removals:
            receiver = removal.receiver
            scored = self._reads_scored(receiver)
            if not self.inert(removal):
                touched.add(receiver)
                if removal.sender is None:
                    base[receiver] = self.live.ablated_input(receiver, scored)
                else:
                    base[receiver] = base[receiver] + self._difference(removal, scored)
            self._remove(removal)
        self._settle(touched)

    def offload(self) -> None:
        """Free large tensors; set `live.cache` and `state` before the engine is used again."""
        self.live.offload()
        self.state = State()

    def _remove(self, removal: Removal) -> None:
        receiver, sender, span = removal
        senders = slice(None) if sender is None else sender
        self.kept_at[senders, receiver, slice(None) if span is None else span] = False
        self.kept[senders, receiver] = self.kept_at[senders, receiver].any(-1)

    # --- one stage -------------------------------------------------------------------------------------------------

    def _forget(self, stage: Sequence[int]) -> None:
        self.state.forget(self.graph, self.kept, [*stage, self.logits], decided=self.scored_at)

    def _open(self, receiver: int) -> None:
        """Begin with a receiver: set the current values of its node to the clean ones."""
        r = self.graph.receivers[receiver]
        if receiver == self.logits:
            self._set_clean_input(receiver)
            return
        sender = self.graph.node_of[receiver]
        readers = np.flatnonzero(self.kept[sender]).tolist()
        self.scored_at[sender] = self.live.all_scored or all(self._reads_scored(j) for j in readers)
        self.last_reader[sender] = max((self.graph.node_of[j] for j in readers if j != self.logits), default=-1)
        own = self.graph.own_receivers[sender]
        for j in own:
            self._set_clean_input(j)
        if r.kind == "mlp":
            self.state.mlps[sender] = self.model.mlp(r.layer, self.state.input[receiver])
            return
        x = self.live.cache.residual[r.layer]
        k = self.model.project("k", r.layer, r.head, x, self.positions)
        v = self.model.project("v", r.layer, r.head, x, self.positions)
        q = self._project("q", sender, self.state.input[own[0]])
        self.state.heads[sender] = {"q": q, "k": k, "v": v, "z": self.live.clean(sender, self.scored_at[sender])}

    def _set_clean_input(self, receiver: int) -> None:
        x = self.live.clean_input(receiver, self._reads_scored(receiver))
        self.state.base[receiver] = x
        self.state.input[receiver] = x

    def _reads_scored(self, receiver: int) -> bool:
        """Whether a receiver reads the scored positions only (keys and values read all live ones)."""
        if receiver == self.logits or self.live.all_scored:
            return True
        return self.graph.receivers[receiver].kind not in "kv" and self.scored_at[self.graph.node_of[receiver]]

    # --- a batch of candidates ---------------------------------------------------------------------------------------

    def _changes(self, removals: Sequence[Removal]) -> dict[int, Change]:
        """How the nodes of the candidates' receivers change."""
        touching: dict[int, list[int]] = {}  # receiver → the candidates that touch it
        for i, removal in enumerate(removals):
            touching.setdefault(removal.receiver, []).append(i)
        nodes: dict[int, list[int]] = {}
        for receiver, candidates in touching.items():
            nodes.setdefault(self.graph.node_of[receiver], []).extend(candidates)
        changes = {}
        for sender, candidates in nodes.items():
            candidates.sort()
            new = {}
            for receiver in self.graph.own_receivers[sender]:
                if receiver in touching:
                    own = touching[receiver]
                    x = self._inputs(receiver, [removals[i] for i in own])
                    kind = self.graph.receivers[receiver].kind
                    new[kind] = x if kind == "mlp" else self._for_each(kind, sender, x, own, candidates)
            sees = torch.bucketize(torch.arange(len(removals)), torch.tensor(candidates), right=True)
            versions = self._versions(sender, new)
            changes[sender] = Change(versions, sees.to(self.model.device), self.scored_at[sender])
        return changes

    def _inputs(self, receiver: int, removals: Sequence[Removal]) -> Tensor:
        """Inputs of a receiver after each of some cumulative removals: Float[candidate batch pos d_model]."""
        scored = self._reads_scored(receiver)
        if removals[0].sender is None:
            return self.live.ablated_input(receiver, scored)[None]
        differences = [self._difference(removal, scored) for removal in removals]
        return running_sums(torch.stack(differences)) + self.state.input[receiver]

    def _difference(self, removal: Removal, scored: bool) -> Tensor:
        """What the removal of a residual edge adds to its receiver's input: Float[batch pos d_model]."""
        assert removal.sender is not None
        difference = self.live.difference(removal.sender, scored)
        if removal.span is None:
            return difference
        return self.live.only_at(np.arange(len(self.spans)) == removal.span, difference, scored)

    def _for_each(self, kind: str, sender: int, x: Tensor, own: list[int], candidates: list[int]) -> Tensor:
        """q, k or v of a head for each of some candidates, of which only its `own` change it: x Float[own batch pos
        d_model] to Float[candidate batch pos d_head]."""
        current = self.state.heads[sender][kind]
        values = torch.cat([current[None], self._vector(kind, sender, x)])
        index = torch.bucketize(torch.tensor(candidates), torch.tensor(own), right=True)
        return values[index.to(values.device)]

    def _vector(self, kind: str, sender: int, x: Tensor) -> Tensor:
        """q, k or v of a head from its inputs Float[candidate batch pos d_model]; k and v with those before the live
        positions. The inputs of an MLP stay as they are."""
        if kind == "mlp":
            return x
        y = self._project(kind, sender, x)
        if kind == "q" or not self.live.start:
            return y
        fixed = self.state.heads[sender][kind][:, : self.live.start]
        return torch.cat([fixed.expand(len(y), *fixed.shape), y], 2)

    def _project(self, kind: str, sender: int, x: Tensor) -> Tensor:
        s = self.graph.senders[sender]
        positions = self.positions[:, self.live.start :]
        if kind == "q" and self.scored_at[sender] and not self.live.all_scored:
            positions = positions[:, self.live.columns]
        return self.model.project(kind, s.layer, s.head, x, positions)

    def _versions(self, sender: int, new: dict[str, Tensor]) -> Tensor:
        """Change of a node's output, 0 first, for new values (the inputs of an MLP, or q, k or v of a head):
        Float[version batch pos d_model]."""
        s = self.graph.senders[sender]
        if s.kind == "mlp":
            delta = self.model.mlp(s.layer, new["mlp"]) - self.state.mlps[sender]
        else:
            head = self.state.heads[sender]
            delta = self.model.write(s.layer, s.head, self._attend(sender, head | new) - head["z"])
        return torch.cat([torch.zeros_like(delta[:1]), delta])

    def _attend(self, sender: int, head: dict[str, Tensor]) -> Tensor:
        mask = self.live.mask(self.graph.senders[sender].layer, self.scored_at[sender])
        return self.model.attend(head["q"], head["k"], head["v"], mask)

    def _propagate(self, changes: dict[int, Change], n: int) -> Tensor | None:
        """Final residual stream at the scored positions for each candidate, Float[candidate batch pos d_model]; None if
        no change reaches it."""
        sees = torch.arange(1, n + 1, device=self.model.device)
        final = self._received(self.logits, changes, n)
        for sender in self._downstream(changes):
            for done in [s for s in changes if self.last_reader[s] < sender]:
                del changes[done]
            new = {}
            for receiver in self.graph.own_receivers[sender]:
                x = self._received(receiver, changes, n)
                if x is not None:
                    kind = self.graph.receivers[receiver].kind
                    new[kind] = self._vector(kind, sender, x)
            if new:
                changes[sender] = Change(self._versions(sender, new), sees, self.scored_at[sender])
                final = self._received(self.logits, {sender: changes[sender]}, n, final)
        return final

    def _downstream(self, changes: Iterable[int]) -> list[int]:
        """Nodes decided earlier than the changed ones, in forward order."""
        first = min(changes)
        return [s for s in self.state.senders() if s > first and s not in changes and self.kept[s].any()]

    def _received(
        self, receiver: int, changes: dict[int, Change], n: int, before: Tensor | None = None
    ) -> Tensor | None:
        """New inputs of a receiver, Float[candidate batch pos d_model], or None if no changed sender feeds it. The
        changes are added in place to inputs `before` them, if given."""
        feeding = [(s, c) for s, c in changes.items() if self.kept[s, receiver]]
        if not feeding:
            return before
        x = before
        if x is None:
            current = self.state.input[receiver]
            x = current.expand(n, *current.shape).clone()
        for sender, change in feeding:
            x += self._carried(change.versions, sender, receiver, change.scored)[change.sees]
        return x

    def _carried(self, x: Tensor, sender: int, receiver: int, scored: bool) -> Tensor:
        """What a kept edge carries of its sender's values, Float[... batch pos d_model], at the positions where the
        receiver reads; `scored` says at which they are given."""
        to_scored = self._reads_scored(receiver)
        return self.live.only_at(self.kept_at[sender, receiver], self.live.narrow(x, scored, to_scored), to_scored)

    # --- decisions --------------------------------------------------------------------------------------------------

    def _settle(self, touched: set[int]) -> None:
        """Update the current values downstream of receivers whose base changed."""
        changed: set[int] = set()
        for sender in self.state.senders():
            own = self.graph.own_receivers[sender]
            stale = [r for r in own if r in touched or (self.kept[list(changed), r]).any()]
            if stale:
                self._refresh(sender, stale)
                changed.add(sender)
        if self.logits in touched or (self.kept[list(changed), self.logits]).any():
            self.state.input[self.logits] = self._current_input(self.logits)

    def _refresh(self, sender: int, receivers: list[int]) -> None:
        """Compute a node again from some of its inputs."""
        s = self.graph.senders[sender]
        for receiver in receivers:
            self.state.input[receiver] = self._current_input(receiver)
        clean = self.live.clean(sender, self.scored_at[sender])
        if s.kind == "mlp":
            output = self.model.mlp(s.layer, self.state.input[receivers[0]])
            self.state.mlps[sender] = output
            self.state.deviation[sender] = output - clean
            return
        head = self.state.heads[sender]
        for receiver in receivers:
            kind = self.graph.receivers[receiver].kind
            head[kind] = self._vector(kind, sender, self.state.input[receiver][None])[0]
        head["z"] = self._attend(sender, head)
        self.state.deviation[sender] = self.model.write(s.layer, s.head, head["z"] - clean)

    def _current_input(self, receiver: int) -> Tensor:
        """Base input + deviations over kept edges, summed in the order of the senders."""
        x = self.state.base[receiver]
        for sender in sorted(self.state.deviation):
            if self.kept[sender, receiver]:  # without any, base and current input are one tensor
                x = x + self._carried(self.state.deviation[sender], sender, receiver, self.scored_at[sender])
        return x


def running_sums(x: Tensor) -> Tensor:
    """x[0], x[0] + x[1], …: Float[n ...] to the same shape. On CUDA, `cumsum` has no fixed order; a product has."""
    if x.device.type == "cpu":
        return x.cumsum(0)
    below = torch.ones(len(x), len(x), dtype=x.dtype, device=x.device).tril()
    return (below @ x.flatten(1)).view_as(x)
