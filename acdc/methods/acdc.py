"""ACDC: remove every edge whose removal raises the metric by less than a threshold (Conmy et al. 2023, section 3).

Start with H = the full graph. For each receiver in reverse topological order, for each of its edges: remove it iff
`metric(H without it) − metric(H) < τ`, strictly, signed, relative to the current H. Order as in the paper's code: the
logits; then per layer from last to first: the MLP; the direct v, k, q edges, heads high to low; the v, k, q inputs,
heads high to low. An edge's parents: later layers first, MLP before heads, heads high to low, inputs last. A node
that no kept edge leaves is skipped, and its incoming edges go with it.

With spans, an edge that stays is tested at each of its spans, from the last to the first, by the same rule, and loses
those that don't matter. It may lose all.

Most edges are removed. So a batch of candidates is evaluated as if every earlier one of the batch had been removed. The
longest prefix for which that is true is accepted, with the edge that ended it, and the rest is evaluated again. The
decisions are the same as one by one.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.errors import UserError
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.progress import Progress, Show, silent
from acdc.methods.log import Decision, Journal
from acdc.methods.workload import Workload
from acdc.patching.activations import non_finite_advice
from acdc.patching.engine import Engine, Removal
from acdc.patching.offload import PartedEngine

SHARE = 0.01  # of what the metric may still rise, where there is a limit: so much is τ
# What a batch costs beside its candidates, in rows of the stream, of which each candidate has one for every prompt and
# live position.
BATCH_ROWS = 150  # measured on a CPU
GPU_BATCH_ROWS = 3000  # estimated from a launch's 10 µs
GUESS_SHARE = 0.7  # a guessed change of this share of τ counts as an edge that stays


@dataclass(frozen=True)
class Options:
    """Options of the method."""

    threshold: float = 0.0  # τ, in the metric's units
    limit: float | None = None  # instead of τ: the largest metric of the circuit; see `SHARE`
    magnitude: bool = False  # compare |change| with τ instead of the signed change
    order: str = "paper"  # one of `acdc.registry.ORDERS`
    direct: bool = True  # test the direct edges too
    seed: int = 0  # of the random order
    batch: int = 64  # largest number of candidates evaluated at once

    def bound(self, metric: float) -> float:
        """The rise at which an edge stays in a circuit of this metric."""
        return self.threshold if self.limit is None else SHARE * (self.limit - metric)


def discover(
    engine: Engine | PartedEngine,
    options: Options,
    journal: Journal | None = None,
    progress: Show = silent,
    allowed: np.ndarray | None = None,
) -> Circuit:
    """Return the circuit that ACDC finds, dead edges included; its scores are the changes of the metric.

    Decisions that the journal already holds are repeated without evaluating them. `allowed`, Bool[sender receiver], are
    the edges that may be kept; all others are removed without a test when their receiver's turn comes. Raises UserError
    if the metric is not finite, FileError if the journal holds other decisions, or can't be written.
    """
    search = _Search(engine, options, journal or Journal(), progress, allowed)
    for number in range(len(search.stages)):
        search.decide(number)
    direct = (search.direct, search.direct_scores) if options.direct else (None, None)
    if engine.spans:
        return Circuit(engine.graph, engine.kept_at.copy(), direct[0], search.span_scores, direct[1], engine.spans)
    return Circuit(engine.graph, engine.kept.copy(), direct[0], search.scores, direct[1])


def stages(graph: Graph, options: Options) -> Iterator[list[int]]:
    """Yield groups of receivers in the order of their decisions; no path leads from one to another of its group."""
    index = graph.receiver_index
    yield [index["logits"]]
    for layer in reversed(range(graph.n_layers)):
        mlps = [index[name] for name in reversed(graph.mlp_names(layer))]
        if mlps and not graph.parallel:
            yield mlps
        heads = list(reversed(range(graph.n_heads)))
        if options.order == "heads-ascending":
            heads.reverse()
        elif options.order == "random":
            random.Random(f"heads {layer} {options.seed}").shuffle(heads)
        yield [index[f"a{layer}.h{h}<{c}>"] for c in "vkq" for h in heads]
        if mlps and graph.parallel:
            yield mlps


def _parents(graph: Graph, receiver: int, options: Options) -> list[int]:
    """The senders that a receiver reads, in the order in which they are tested."""
    n = graph.n_parents(graph.receivers[receiver])

    def key(i: int) -> tuple[int, bool, int]:
        s = graph.senders[i]
        layer = s.layer if options.order == "parents-ascending" else -s.layer
        head = s.head if options.order == "heads-ascending" else -s.head
        return layer, s.kind != "mlp", head

    parents = sorted(range(n), key=key)
    if options.order == "random":
        random.Random(f"{graph.receivers[receiver].name} {options.seed}").shuffle(parents)
    return parents


@dataclass
class _Search:
    """One discovery: the engine holds the circuit, this class the scores and the direct edges."""

    engine: Engine | PartedEngine
    options: Options
    journal: Journal
    progress: Show
    allowed: np.ndarray | None

    def __post_init__(self) -> None:
        self.graph = self.engine.graph
        self.scores = np.full(self.graph.edges.shape, np.nan)
        self.span_scores = np.full(self.engine.kept_at.shape, np.nan)
        self.direct_scores = np.full(len(self.graph.receivers), np.nan)
        self.direct = self.graph.direct.copy()
        self.stages = list(stages(self.graph, self.options))
        self.workload = Workload(self.engine, self.stages, self.allowed, self.options.direct)
        self.n_kept = 0  # edges that were tested and stay
        # The typical number of removals in a row, of edges and of spans, which sets the batch size: it depends on the
        # decisions alone, so that a replay makes the same batches.
        self.streak = {"edges": 8.0, "spans": 2.0}
        # If a batch costs as much as r candidates do, and edges stay every n candidates, about √(2rn) are worth trying.
        batch_rows = GPU_BATCH_ROWS if self.engine.model.few_launches else BATCH_ROWS
        self.boldness = min(6.0, max(1.0, math.sqrt(2 * batch_rows / self.engine.extent[0])))
        rows = self.engine.rows([], none=True)
        (self.metric,) = self.engine.metric(rows)
        if not math.isfinite(self.metric):
            raise self._non_finite(self.metric, rows, "with all edges")

    def decide(self, stage: int) -> None:
        """Decide all edges into the receivers of a stage."""
        receivers = self.stages[stage]
        alive = [r for r in receivers if self.engine.alive(r)]
        for receiver in set(receivers) - set(alive):  # nothing reads its node
            self.engine.drop(receiver)
            self.direct[receiver] = False
        if not alive:
            return
        self.engine.open(alive)
        if self.allowed is not None:
            alive = self._filter(alive, self.allowed)
            if not alive:
                return
        most = min(self.options.batch, self.engine.capacity(alive))
        kept = self.engine.kept
        directs = [Removal(r, None) for r in alive] if self.options.direct and self.graph.direct[alive[0]] else []
        self.workload.begin(stage)
        if directs:
            self._test(directs, most, alive)
            alive = [r for r in alive if self.direct[r]]
        queue = [Removal(r, s) for r in alive for s in _parents(self.graph, r, self.options) if kept[s, r]]
        self._test(queue, most, [])

    def _test(self, queue: list[Removal], most: int, then: list[int]) -> None:
        """Decide some edges, in batches of at most so many; `then` come those into some receivers."""
        while queue:
            kind = "edges" if queue[0].span is None else "spans"
            decisions = self.journal.begin(self._name(removal) for removal in queue)
            resumed = self.journal.resumed if decisions else ""
            if decisions is None:
                decisions = self._evaluate(queue, most, kind)
                self.journal.write(decisions)
            self._apply(queue[: len(decisions)], decisions, kind)
            receiver = queue[0].receiver
            last = queue[len(decisions) - 1]
            queue = queue[len(decisions) :]
            if decisions[-1].kept:
                queue = self._spans(last) + queue
            edges = dict(zip(then, self.engine.kept[:, then].sum(0).tolist(), strict=True))
            maybe = sum(edges.pop(removal.receiver, 0) for removal in queue)
            self.workload.tested(len(decisions), len(queue) + sum(edges.values()), maybe)
            self._show(receiver, resumed)

    def _spans(self, edge: Removal) -> list[Removal]:
        """The spans to test of an edge that stays, from the last to the first. Where removing the edge changes
        something at one span only, it was that span's test."""
        if edge.sender is None or edge.span is not None:
            return []
        spans = [edge._replace(span=span) for span in reversed(range(len(self.engine.spans)))]
        active = [removal for removal in spans if not self.engine.inert(removal)]
        if len(active) == 1:
            self.span_scores[edge.sender, edge.receiver, active[0].span] = self.scores[edge.sender, edge.receiver]
            spans.remove(active[0])
        return spans

    def _evaluate(self, queue: list[Removal], most: int, kind: str) -> list[Decision]:
        """Decisions on the longest prefix of the queue, of `edges` or `spans`, that one batch can settle."""
        size = max(1, min(most, round(self.boldness * self.streak[kind] ** 0.5)))
        candidates: list[Removal] = []
        active: list[Removal] = []  # those whose removal changes anything
        for removal in queue:
            if kind == "spans" and removal.span is None:  # one of an edge's spans stays as a rule
                break
            if not self.engine.inert(removal):
                if len(active) == size:
                    break
                active.append(removal)
            candidates.append(removal)
        values = self._values(active)
        active_set = set(active)
        metric = self.metric
        decisions = []
        for removal in candidates:
            new = next(values) if removal in active_set else metric
            change = new - metric
            margin = self.options.bound(metric) - (abs(change) if self.options.magnitude else change)
            kept = not margin > 0
            metric = metric if kept else new
            decisions.append(Decision(self.journal.batch, self._name(removal), change, margin, metric, kept))
            if kept:
                break
        return decisions

    def _values(self, removals: list[Removal]) -> Iterator[float]:
        """Yield the metric after each of some cumulative removals.

        It is evaluated in pieces, as far as the caller asks: a piece ends where a cheap guess expects an edge that
        stays, since what follows in the batch would be of no use.
        """
        if not removals:
            return
        rows = self.engine.rows(removals, none=self.engine.guess_of is not None)
        guess = self.engine.guess(rows)
        rows = rows[-len(removals) :]
        start = 0
        for end in range(1, len(removals) + 1):
            stays = guess is not None and guess[end] - guess[end - 1] > GUESS_SHARE * self.options.bound(self.metric)
            if stays or end == len(removals):
                for i, value in enumerate(self.engine.metric(rows[start:end]), start):
                    if not math.isfinite(value):
                        raise self._non_finite(value, rows[i : i + 1], f"without {self._name(removals[i])}")
                    yield value
                start = end

    def _apply(self, removals: list[Removal], decisions: list[Decision], kind: str) -> None:
        """Store the decisions of a batch, and commit its removals."""
        gone = []
        for removal, decision in zip(removals, decisions, strict=True):
            receiver, sender, span = removal
            if sender is None:
                self.direct_scores[receiver] = decision.change
                self.direct[receiver] = decision.kept
            elif span is None:
                self.scores[sender, receiver] = decision.change
            else:
                self.span_scores[sender, receiver, span] = decision.change
            if not decision.kept:
                gone.append(removal)
            elif span is None:
                self.n_kept += 1
        if gone:
            self.engine.commit(gone)
        self.metric = decisions[-1].metric
        if decisions[-1].kept:
            self.streak[kind] = 0.6 * self.streak[kind] + 0.4 * (len(gone) + 1)
        else:
            self.streak[kind] += len(gone)

    def _show(self, receiver: int, resumed: str) -> None:
        all_edges = self.graph.n_edges_direct if self.options.direct else self.graph.n_edges
        present = int(self.engine.kept.sum()) + (int(self.direct.sum()) if self.options.direct else 0)
        counts = f"kept {self.n_kept:,}, left {present - self.n_kept:,}, removed {all_edges - present:,}"
        note = f"metric {self.metric:.4g}, {self.graph.receivers[receiver].name}, {counts}"
        self.progress(Progress("search", self.workload.done, self.workload.total, note, resumed))

    def _filter(self, receivers: list[int], allowed: np.ndarray) -> list[int]:
        """Remove the edges that may not be kept; returns the receivers that still have edges."""
        kept = self.engine.kept
        gone = [Removal(r, s) for r in receivers for s in np.flatnonzero(kept[:, r] & ~allowed[:, r]).tolist()]
        self.engine.commit(gone)
        (self.metric,) = self.engine.metric(self.engine.rows([], none=True))
        left = [r for r in receivers if kept[:, r].any()]
        for receiver in set(receivers) - set(left):
            self.direct[receiver] = False
        return left

    def _non_finite(self, metric: float, rows: Tensor, where: str) -> UserError:
        """The error for a metric that is not finite at some rows, Float[1 row d_model]."""
        first = int((~torch.isfinite(self.engine.metric_of(rows))).any(0).nonzero()[0])
        prompt = f"prompt {first + 1} of the discovery half"
        return UserError(f"{where} the metric is {metric}, first on {prompt}; {non_finite_advice(self.engine.model)}")

    def _name(self, removal: Removal) -> str:
        if removal.sender is None:
            return self.graph.direct_name(removal.receiver)
        span = () if removal.span is None else (removal.span,)
        return self.graph.part_name((removal.sender, removal.receiver, *span), self.engine.spans)
