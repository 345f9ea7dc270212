"""Evaluate the removal of edges without running the model again.

While receivers are visited in reverse topological order,

1. upstream of the current receiver everything is clean, so removing edges from it changes its input by a sum of known
   differences ablated − clean;
2. downstream a change reaches only what kept edges reach; everything else keeps its value;
3. nothing changes before the first position at which the runs differ, and a node that is read at the scored positions
   only is computed there only;
4. many candidates are evaluated at once: candidate i stands for the removal of all candidates up to i.

The state is a function of the batches of decisions alone, and not of what was evaluated on the way: committing the same
batches again, as a replayed log does, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import QKV, Graph, Sender
from acdc.model.transformer import Activations, Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.patching.metrics import Metric

CACHE_BYTES = 256 << 20  # of differences kept for the receivers to come
BATCH_BYTES = 256 << 20  # of one batch of candidates, roughly


class Removal(NamedTuple):
    """A candidate: the residual edge sender → receiver (indices), or the receiver's direct edge if `sender` is None."""

    receiver: int
    sender: int | None


class Change(NamedTuple):
    """How a sender's output differs from its current one, over a batch of candidates.

    Args:
        versions: Float[version batch pos d_model]; version 0 is no change
        sees: Int[candidate], the version each candidate sees
        scored: whether pos are the scored positions only, rather than all live ones
    """

    versions: Tensor
    sees: Tensor
    scored: bool


@dataclass
class Head:
    """Current q Float[batch pos d_head], k and v Float[batch key d_head], and z."""

    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor


@dataclass
class State:
    """The current values of the nodes that are decided or being decided, as far as they can still change.

    Args:
        base: receiver → clean input + differences of the edges removed from it, Float[batch pos d_model]
        input: receiver → current input
        heads: sender → current values
        mlps: sender → current output
        deviation: sender → current − clean output; absent where there is none
    """

    base: dict[int, Tensor] = field(default_factory=dict)
    input: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Head] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)
    deviation: dict[int, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as `of` reads them."""
        out: dict[str, Tensor] = {}
        for name in ("base", "input", "mlps", "deviation"):
            out |= {f"{name} {key}": x for key, x in getattr(self, name).items()}
        for key, head in self.heads.items():
            out |= {f"heads {key} {c}": getattr(head, c) for c in "qkvz"}
        return out

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> State:
        """The state with these tensors."""
        state = cls()
        heads: dict[int, dict[str, Tensor]] = {}
        for name, x in tensors.items():
            kind, key, *which = name.split()
            if which:
                heads.setdefault(int(key), {})[which[0]] = x
            else:
                getattr(state, kind)[int(key)] = x
        state.heads = {key: Head(**parts) for key, parts in sorted(heads.items())}
        return state


class Engine:
    """The current circuit H of one discovery, starting from the full graph, and the values of all nodes in it.

    Receivers must be opened (`open`), decided and left in reverse topological order.
    """

    def __init__(
        self, model: Transformer, graph: Graph, runs: ActivationCache, metric: Metric, guess: Metric | None = None
    ) -> None:
        self.model, self.graph, self.runs = model, graph, runs
        self.metric_of, self.guess_of = metric, guess
        self.kept = graph.edges.copy()
        self.start = runs.first
        self.batch, self.n_live = len(runs.pad), runs.mask.shape[1] - self.start
        columns = torch.unique(runs.rows[:, 1]) - self.start
        self.all_scored = len(columns) == self.n_live
        self.columns = columns  # scored positions among the live ones
        self.positions = positions_of(runs.pad, runs.mask.shape[1])
        self.row_example = runs.rows[:, 0]
        self.row_column = torch.searchsorted(columns, runs.rows[:, 1] - self.start)
        self.scored_at: dict[int, bool] = {}  # sender → whether it is computed at the scored positions only
        self.last_reader: dict[int, int] = {}  # sender → the last node that reads it, −1 if only the logits do
        self.state = State()
        self.differences: dict[tuple[int, bool], Tensor] = {}  # (sender, scored) → ablated − clean output there
        self.ablated: dict[tuple[int, bool], Tensor] = {}  # (number of senders, scored) → input with all edges removed
        self.evaluations = 0
        self.logits = graph.receiver_index["logits"]
        self.node_of = {r: s for s, own in enumerate(graph.own_receivers) for r in own}
        self.nonzero = self._nonzero()
        self._open(self.logits)

    # --- what the method asks ---------------------------------------------------------------------------------------

    def alive(self, receiver: int) -> bool:
        """Whether a kept edge leaves the receiver's node."""
        return receiver == self.logits or bool(self.kept[self.node_of[receiver]].any())

    def drop(self, receiver: int) -> int:
        """Remove all edges into a receiver whose node nothing reads; returns their number."""
        count = int(self.kept[:, receiver].sum())
        self.kept[:, receiver] = False
        return count

    def open(self, receivers: Sequence[int]) -> None:
        """Begin with the receivers of one stage: the inputs of heads of one layer, one MLP, or the logits."""
        n = self.graph.n_parents(self.graph.receivers[receivers[0]])
        for key in [k for k in self.differences if k[0] >= n]:
            del self.differences[key]  # nothing that is still to come reads it
        self.ablated.clear()
        self._forget(receivers)
        for receiver in receivers:
            if receiver not in self.state.base:
                self._open(receiver)

    def capacity(self, receivers: Sequence[int]) -> int:
        """How many candidates of one stage may be evaluated at once; bounds memory."""
        c = self.model.config
        n_pos = len(self.columns) if all(self._reads_scored(r) for r in receivers) else self.n_live
        numbers = self.batch * n_pos * (c.d_mlp + 4 * c.d_model)
        return max(1, BATCH_BYTES // (numbers * self.model.dtype.itemsize))

    def inert(self, removal: Removal) -> bool:
        """Whether a removal changes nothing at all: clean and ablated output are equal where the receiver reads."""
        senders = (
            [removal.sender] if removal.sender is not None else np.flatnonzero(self.kept[:, removal.receiver]).tolist()
        )
        return not any(self._differs(s, removal.receiver) for s in senders)

    def rows(self, removals: Sequence[Removal]) -> Tensor:
        """Normalised final rows after removing none, the first, the first two, … all of some candidates.

        Returns:
            Float[1+candidate row d_model]
        """
        now = self.state.input[self.logits][None]
        final = self._propagate(self._changes(removals), len(removals)) if removals else None
        if final is None:  # the changes reach nothing
            final = now.expand(len(removals), *now.shape[1:])
        rows = torch.cat([now, final])[:, self.row_example, self.row_column]
        return self.model.normalise(rows)

    def metric(self, rows: Tensor) -> list[float]:
        """The metric, mean over the prompts, of candidates' rows: Float[candidate row d_model]."""
        self.evaluations += len(rows)
        values: list[float] = self.metric_of(rows).double().mean(1).tolist()
        return values

    def first_non_finite(self, rows: Tensor) -> int:
        """The first prompt on which the metric of some rows, Float[candidate row d_model], is not finite."""
        return int((~torch.isfinite(self.metric_of(rows))).any(0).nonzero()[0])

    def guess(self, rows: Tensor) -> list[float] | None:
        """A cheap guess at `metric`, or None where there is none."""
        if self.guess_of is None:
            return None
        values: list[float] = self.guess_of(rows).double().mean(1).tolist()
        return values

    def commit(self, removals: Iterable[Removal]) -> None:
        """Take some candidates out of the circuit for good."""
        touched = set()
        for removal in removals:
            receiver, sender = removal
            if not self.inert(removal):
                base = self.state.base[receiver]
                self.state.base[receiver] = (
                    self._ablated_input(receiver) if sender is None else base + self._difference(sender, receiver)
                )
                touched.add(receiver)
            self.kept[slice(None) if sender is None else sender, receiver] = False
        self._settle(touched)

    def offload(self) -> None:
        """Let go of all that is large; `runs` and `state` must be set again before the engine is used."""
        del self.runs
        self.state = State()
        self.differences.clear()
        self.ablated.clear()

    # --- one stage -------------------------------------------------------------------------------------------------

    def _forget(self, stage: Sequence[int]) -> None:
        """Let go of what never changes again, and that nothing which still changes reads.

        A receiver still changes if it is of this stage or one to come, or if a kept edge leads into it from a node with
        such a receiver. The others need no input any more, nodes without one nothing at all; and what a decided node
        has moved by is added up only for receivers that still change.
        """
        graph, state, kept = self.graph, self.state, self.kept
        changes, moving = np.zeros(len(graph.receivers), dtype=bool), np.zeros(len(graph.senders), dtype=bool)
        changes[[*stage, self.logits]] = True  # a node that is decided at all leads to the logits
        for sender, own in enumerate(map(list, graph.own_receivers)):  # forward: what feeds a node comes before it
            changes[own] |= (kept[:, own] & moving[:, None]).any(0) if sender in self.scored_at else True
            moving[sender] = changes[own].any()
        for values in (state.base, state.input):
            for receiver in [r for r in values if not changes[r]]:
                del values[receiver]
        for nodes in (state.heads, state.mlps):
            for sender in [s for s in nodes if not moving[s]]:
                del nodes[sender]
        for sender in [s for s in state.deviation if not kept[s, changes].any()]:
            del state.deviation[sender]

    def _open(self, receiver: int) -> None:
        r = self.graph.receivers[receiver]
        if receiver == self.logits:
            self.state.base[receiver] = self.state.input[receiver] = self._clean_input(receiver)
            return
        sender = self.node_of[receiver]
        readers = np.flatnonzero(self.kept[sender]).tolist()
        self.scored_at[sender] = self.all_scored or all(self._reads_scored(j) for j in readers)
        self.last_reader[sender] = max((self.node_of[j] for j in readers if j != self.logits), default=-1)
        if r.kind == "mlp":
            self.state.base[receiver] = self.state.input[receiver] = self._clean_input(receiver)
            self.state.mlps[sender] = self.model.mlp(r.layer, self.state.input[receiver])
            return
        own = self.graph.own_receivers[sender]
        for j in own:
            self.state.base[j] = self.state.input[j] = self._clean_input(j)
        x = self.runs.residual[r.layer]
        k, v = (self.model.project(c, r.layer, r.head, x, self.positions) for c in "kv")
        q = self._project("q", sender, self.state.input[own[0]])
        self.state.heads[sender] = Head(q, k, v, self._clean_z(sender))

    def _reads_scored(self, receiver: int) -> bool:
        """Whether a receiver reads the scored positions only (keys and values read all live ones)."""
        if receiver == self.logits or self.all_scored:
            return True
        return self.graph.receivers[receiver].kind not in "kv" and self.scored_at[self.node_of[receiver]]

    def _clean_input(self, receiver: int) -> Tensor:
        r = self.graph.receivers[receiver]
        x = self.runs.residual[r.layer][:, self.start :]
        if r.kind == "mlp" and not self.graph.parallel:
            z, w = self.runs.clean.z[r.layer][:, :, self.start :], self.model.weights
            x = x + torch.einsum("bhte,hed->btd", z, w[f"layers.{r.layer}.o.weight"]) + w[f"layers.{r.layer}.o.bias"]
        return self._narrow(x, False, self._reads_scored(receiver))

    def _clean_z(self, sender: int) -> Tensor:
        s = self.graph.senders[sender]
        z = self.runs.clean.z[s.layer][:, s.head, self.start :]
        return self._narrow(z, False, self.scored_at[sender])

    def _narrow(self, x: Tensor, scored: bool, to_scored: bool) -> Tensor:
        """From the live positions to the scored ones, where asked: x Float[... pos any]."""
        return x if scored == to_scored or self.all_scored else x.index_select(-2, self.columns)

    def _nonzero(self) -> np.ndarray:
        """Bool[sender 2]: whether clean and ablated output differ at any live position, and at any scored one."""
        runs, flags = self.runs, []
        for s in self.graph.senders:
            ablated, clean = (self._stored(a, s) for a in (runs.ablated, runs.clean))
            at = (ablated != clean).any(-1).any(0)
            flags.append(torch.stack([at.any(), at[self.columns].any()]))
        return torch.stack(flags).cpu().numpy()

    def _stored(self, activations: Activations, s: Sender) -> Tensor:
        """What is kept of a sender's output at the live positions: a head's z, else the output itself."""
        if s.kind == "head":
            return activations.z[s.layer][:, s.head, self.start :]
        return (activations.inputs[s.head] if s.kind == "input" else activations.mlp[s.layer])[:, self.start :]

    def _differs(self, sender: int, receiver: int) -> bool:
        return bool(self.nonzero[sender, int(self._reads_scored(receiver))])

    def _difference(self, sender: int, receiver: int) -> Tensor:
        """Ablated − clean output of a sender where a receiver reads it: Float[batch pos d_model]."""
        key = sender, self._reads_scored(receiver)
        if key not in self.differences:
            s = self.graph.senders[sender]
            ablated, clean = (self._stored(a, s) for a in (self.runs.ablated, self.runs.clean))
            d = self._narrow(ablated - clean, False, key[1])
            d = self.model.write(s.layer, s.head, d) if s.kind == "head" else d
            if d.nbytes * (len(self.differences) + 1) > CACHE_BYTES:
                return d
            self.differences[key] = d
        return self.differences[key]

    def _ablated_input(self, receiver: int) -> Tensor:
        """A receiver's input with all its edges removed: the same for all that read one layer at the same positions."""
        n, scored = self.graph.n_parents(self.graph.receivers[receiver]), self._reads_scored(receiver)
        if (n, scored) not in self.ablated:
            x = self._clean_input(receiver).clone()
            for sender in range(n):
                x += self._difference(sender, receiver)
            self.ablated[n, scored] = x
        return self.ablated[n, scored]

    # --- a batch of candidates ---------------------------------------------------------------------------------------

    def _changes(self, removals: Sequence[Removal]) -> dict[int, Change] | Tensor:
        """How the nodes of the candidates' receivers change; for the logits, the new final streams themselves."""
        at: dict[int, list[int]] = {}
        for i, removal in enumerate(removals):
            at.setdefault(removal.receiver, []).append(i)
        inputs = {r: self._inputs(r, [removals[i].sender for i in where]) for r, where in at.items()}
        if self.logits in inputs:
            return inputs[self.logits]
        nodes: dict[int, list[int]] = {}
        for receiver, where in at.items():
            nodes.setdefault(self.node_of[receiver], []).extend(where)
        changes = {}
        for sender, where in nodes.items():
            where.sort()
            own = self.graph.own_receivers[sender]
            new = {r: (inputs[r], at[r]) for r in own if r in inputs}
            versions = self._node_versions(sender, new, where)
            index = torch.bucketize(torch.arange(len(removals)), torch.tensor(where), right=True)
            changes[sender] = Change(versions, index.to(self.model.device), self.scored_at[sender])
        return changes

    def _inputs(self, receiver: int, senders: list[int | None]) -> Tensor:
        """Inputs of a receiver after each of some cumulative removals: Float[candidate batch pos d_model]."""
        current = self.state.input[receiver]
        if senders == [None]:
            return self._ablated_input(receiver)[None]
        return torch.stack([self._difference(s, receiver) for s in senders if s is not None]).cumsum(0) + current

    def _node_versions(self, sender: int, new: dict[int, tuple[Tensor, list[int]]], where: list[int]) -> Tensor:
        """Change of a node's output after each candidate that touches it, 0 first: Float[version batch pos d_model]."""
        s = self.graph.senders[sender]
        if s.kind == "mlp":
            ((x, _),) = new.values()
            delta = self.model.mlp(s.layer, x) - self.state.mlps[sender]
        else:
            head, parts = self.state.heads[sender], {}
            for receiver, (x, touched) in new.items():
                kind = self.graph.receivers[receiver].kind
                current = getattr(head, kind)
                values = torch.cat([current[None], self._vector(kind, sender, x)])
                index = torch.bucketize(torch.tensor(where), torch.tensor(touched), right=True)
                parts[kind] = values[index.to(values.device)]
            delta = self._head_change(sender, parts)
        return torch.cat([torch.zeros_like(delta[:1]), delta])

    def _vector(self, kind: str, sender: int, x: Tensor) -> Tensor:
        """q, k or v of a head from its inputs Float[candidate batch pos d_model]; k, v with the fixed positions."""
        y = self._project(kind, sender, x)
        if kind == "q" or not self.start:
            return y
        fixed = getattr(self.state.heads[sender], kind)[:, : self.start]
        return torch.cat([fixed.expand(len(y), *fixed.shape), y], 2)

    def _project(self, kind: str, sender: int, x: Tensor) -> Tensor:
        s, positions = self.graph.senders[sender], self.positions[:, self.start :]
        if kind == "q" and self.scored_at[sender] and not self.all_scored:
            positions = positions[:, self.columns]
        return self.model.project(kind, s.layer, s.head, x, positions)

    def _head_change(self, sender: int, parts: dict[str, Tensor]) -> Tensor:
        s, head = self.graph.senders[sender], self.state.heads[sender]
        z = self._attend(sender, *(parts.get(c, getattr(head, c)) for c in QKV))
        return self.model.write(s.layer, s.head, z - head.z)

    def _attend(self, sender: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.model.window(self.graph.senders[sender].layer, self.runs.mask[:, self.start :], self.start)
        mask = self._narrow(mask, False, self.scored_at[sender])
        return self.model.attend(q, k, v, mask)

    def _propagate(self, changes: dict[int, Change] | Tensor, n: int) -> Tensor | None:
        """Final residual stream at the scored positions for each candidate, Float[candidate batch pos d_model]."""
        if isinstance(changes, Tensor):
            return changes
        index = torch.arange(1, n + 1, device=self.model.device)
        final = self._received(self.logits, changes, n)
        for sender in self._downstream(changes):
            for done in [s for s in changes if self.last_reader[s] < sender]:
                del changes[done]
            parts = {}
            for receiver in self.graph.own_receivers[sender]:
                x = self._received(receiver, changes, n)
                if x is None:
                    continue
                kind = self.graph.receivers[receiver].kind
                parts[kind] = x if kind == "mlp" else self._vector(kind, sender, x)
            if parts:
                if "mlp" in parts:
                    delta = self.model.mlp(self.graph.senders[sender].layer, parts["mlp"]) - self.state.mlps[sender]
                else:
                    delta = self._head_change(sender, parts)
                versions = torch.cat([torch.zeros_like(delta[:1]), delta])
                changes[sender] = Change(versions, index, self.scored_at[sender])
                final = self._received(self.logits, {sender: changes[sender]}, n, final)
        return final

    def _downstream(self, changes: Iterable[int]) -> list[int]:
        """Nodes decided earlier than the changed ones, in forward order."""
        first = min(changes)
        return [
            s
            for s in sorted((*self.state.heads, *self.state.mlps))
            if s > first and s not in changes and self.kept[s].any()
        ]

    def _received(
        self, receiver: int, changes: dict[int, Change], n: int, before: Tensor | None = None
    ) -> Tensor | None:
        """New inputs of a receiver, Float[candidate batch pos d_model], or None if no changed sender feeds it.

        Args:
            before: those after earlier changes, to which these are added in place
        """
        feeding = [c for s, c in changes.items() if self.kept[s, receiver]]
        if not feeding:
            return before
        to_scored, current = self._reads_scored(receiver), self.state.input[receiver]
        x = current.expand(n, *current.shape).clone() if before is None else before
        for change in feeding:
            x += self._narrow(change.versions, change.scored, to_scored)[change.sees]
        return x

    # --- decisions --------------------------------------------------------------------------------------------------

    def _settle(self, touched: set[int]) -> None:
        """Bring the current values up to date behind receivers whose base changed."""
        changed: set[int] = set()
        for sender in sorted((*self.state.heads, *self.state.mlps)):
            own = self.graph.own_receivers[sender]
            stale = [r for r in own if r in touched or (self.kept[list(changed), r]).any()]
            if stale:
                self._refresh(sender, stale)
                changed.add(sender)
        if self.logits in touched or (self.kept[list(changed), self.logits]).any():
            self.state.input[self.logits] = self._current_input(self.logits)

    def _refresh(self, sender: int, receivers: list[int]) -> None:
        s = self.graph.senders[sender]
        for receiver in receivers:
            self.state.input[receiver] = self._current_input(receiver)
        if s.kind == "mlp":
            self.state.mlps[sender] = self.model.mlp(s.layer, self.state.input[receivers[0]])
            clean = self._narrow(self.runs.clean.mlp[s.layer][:, self.start :], False, self.scored_at[sender])
            self.state.deviation[sender] = self.state.mlps[sender] - clean
            return
        head = self.state.heads[sender]
        for receiver in receivers:
            kind = self.graph.receivers[receiver].kind
            setattr(head, kind, self._vector(kind, sender, self.state.input[receiver][None])[0])
        head.z = self._attend(sender, head.q, head.k, head.v)
        self.state.deviation[sender] = self.model.write(s.layer, s.head, head.z - self._clean_z(sender))

    def _current_input(self, receiver: int) -> Tensor:
        """Base input + deviations over kept edges, summed in the order of the senders."""
        x, to_scored = self.state.base[receiver], self._reads_scored(receiver)
        for sender in sorted(self.state.deviation):
            if self.kept[sender, receiver]:  # without any, base and current input are one tensor
                x = x + self._narrow(self.state.deviation[sender], self.scored_at[sender], to_scored)
        return x
