"""ACDC: remove every edge whose removal raises the metric by less than a threshold (Conmy et al. 2023, section 3).

Start with H = the full graph. For each receiver in reverse topological order, for each of its edges: remove it iff
`metric(H without it) − metric(H) < τ`, strictly, signed, relative to the current H. Order as in the paper's code: the
logits; then per layer from last to first: the MLP; the direct v, k, q edges, heads high to low; the v, k, q inputs,
heads high to low. An edge's parents: later layers first, MLP before heads, heads high to low, inputs last. A node
that no kept edge leaves is skipped, and its incoming edges go with it.

Most edges are removed, so a batch of candidates is evaluated on the guess that every one before it was; the longest
prefix for which the guess holds is accepted, with the edge that broke it, and the rest is evaluated anew: the same
decisions as one by one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from acdc.errors import FileError, UserError
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.progress import Progress, Show, silent
from acdc.methods.log import Decision, Journal
from acdc.patching.activations import non_finite_advice
from acdc.patching.engine import Engine, Removal
from acdc.patching.offload import PartedEngine

MAX_BATCH = 64
GUESS_SHARE = 0.7  # a guessed change of this share of τ counts as an edge that stays


@dataclass(frozen=True)
class Options:
    """Options of the method.

    Args:
        threshold: τ, in the metric's units
        magnitude: compare |change| with τ instead of the signed change
        order: one of `acdc.registry.ORDERS`
        direct: test the direct edges too
        seed: of the random order
        batch: largest number of candidates evaluated at once
    """

    threshold: float
    magnitude: bool = False
    order: str = "paper"
    direct: bool = True
    seed: int = 0
    batch: int = MAX_BATCH


def discover(
    engine: Engine | PartedEngine,
    options: Options,
    journal: Journal | None = None,
    progress: Show = silent,
    allowed: np.ndarray | None = None,
) -> Circuit:
    """The circuit that ACDC finds; its scores are the changes of the metric (dead edges are still in it).

    Decisions that the journal already holds are taken over without evaluating them.

    Args:
        allowed: Bool[sender receiver], the edges that may be kept: when its receiver's turn comes, any other one is
            removed without a test
    Raises:
        UserError: the metric is not finite.
        FileError: the journal holds other decisions.
    """
    journal = journal or Journal()
    search = _Search(engine, options, journal, progress, allowed)
    for stage in stages(engine.graph, options):
        search.decide(stage)
    return search.circuit()


def stages(graph: Graph, options: Options) -> Iterator[list[int]]:
    """Groups of receivers between which no path leads, in the order in which they are visited.

    A group of head inputs comes twice where direct edges are tested: `_Search.candidates` tells the visits apart.
    """
    index = graph.receiver_index
    yield [index["logits"]]
    for layer in reversed(range(graph.n_layers)):
        if graph.mlp and not graph.parallel:
            yield [index[f"m{layer}"]]
        heads = _heads(graph, layer, options)
        inputs = [index[f"a{layer}.h{h}<{c}>"] for c in "vkq" for h in heads]
        yield inputs
        if graph.mlp and graph.parallel:
            yield [index[f"m{layer}"]]


def _heads(graph: Graph, layer: int, options: Options) -> list[int]:
    heads = list(reversed(range(graph.n_heads)))
    if options.order == "heads-ascending":
        heads.reverse()
    elif options.order == "random":
        random.Random(f"heads {layer} {options.seed}").shuffle(heads)
    return heads


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


class _Search:
    """The state of one discovery beside the engine's."""

    def __init__(
        self,
        engine: Engine | PartedEngine,
        options: Options,
        journal: Journal,
        progress: Show,
        allowed: np.ndarray | None,
    ) -> None:
        g, self.allowed = engine.graph, allowed
        self.engine, self.graph, self.options, self.journal, self.progress = engine, g, options, journal, progress
        self.scores = np.full(g.edges.shape, np.nan)
        self.direct_scores = np.full(len(g.receivers), np.nan)
        self.direct = g.direct.copy()
        self.left = g.n_edges_direct if options.direct else g.n_edges
        self.n_kept = 0
        self.n_removed = 0
        self.replay = iter(journal.batches())
        self.batch = 0
        self.capacity = 1
        self.run = 8.0  # typical number of removals in a row
        rows = engine.rows([])
        (self.metric,) = engine.metric(rows)
        if not math.isfinite(self.metric):
            raise self._unsound(self.metric, rows, "with all edges")

    def decide(self, receivers: list[int]) -> None:
        """Decide all edges into the receivers of one stage."""
        alive = []
        for receiver in receivers:
            if self.engine.alive(receiver):
                alive.append(receiver)
            else:
                self._drop(receiver)
        if not alive:
            return
        self.engine.open(alive)
        if self.allowed is not None:
            self._filter(alive)
            alive = [r for r in alive if self.engine.kept[:, r].any()]
            if not alive:
                return
        self.capacity = self.engine.capacity(alive)
        if self.options.direct and self.graph.direct[alive[0]]:
            self._queue([Removal(r, None) for r in alive])
            alive = [r for r in alive if self.direct[r]]
        kept = self.engine.kept
        self._queue([Removal(r, s) for r in alive for s in _parents(self.graph, r, self.options) if kept[s, r]])

    def circuit(self) -> Circuit:
        direct = self.options.direct
        return Circuit(
            self.graph,
            self.engine.kept.copy(),
            self.direct if direct else None,
            self.scores,
            self.direct_scores if direct else None,
        )

    def _filter(self, receivers: list[int]) -> None:
        """Remove the edges that may not be kept."""
        assert self.allowed is not None
        gone = [
            Removal(r, s)
            for r in receivers
            for s in np.flatnonzero(self.engine.kept[:, r] & ~self.allowed[:, r]).tolist()
        ]
        count = len(gone)
        self.engine.commit(gone)
        for r in receivers:
            if self.options.direct and self.direct[r] and not self.engine.kept[:, r].any():
                self.direct[r] = False
                count += 1
        self.n_removed += count
        self.left -= count
        (self.metric,) = self.engine.metric(self.engine.rows([]))

    def _drop(self, receiver: int) -> None:
        count = self.engine.drop(receiver)
        if self.options.direct and self.graph.direct[receiver]:
            self.direct[receiver] = False
            count += 1
        self.left -= count
        self.n_removed += count

    def _queue(self, queue: list[Removal]) -> None:
        while queue:
            self.batch += 1
            decisions = next(self.replay, None)
            if decisions is None:
                decisions = self._evaluate(queue)
                self.journal.write(decisions)
            taken, queue = queue[: len(decisions)], queue[len(decisions) :]
            if [d.edge for d in decisions] != [self._name(r) for r in taken]:
                raise FileError(f"{self.journal.path}: batch {self.batch} tests other edges than this run; use --force")
            self._take(taken, decisions)

    def _evaluate(self, queue: list[Removal]) -> list[Decision]:
        """Decisions on the longest prefix of the queue that one batch can settle."""
        candidates: list[Removal] = []
        active: list[Removal] = []
        for removal in queue:
            if not self.engine.inert(removal):
                if len(active) == self._size():
                    break
                active.append(removal)
            candidates.append(removal)
        values = self._values(active)
        active_set, metric, decisions = set(active), self.metric, []
        for removal in candidates:
            new = next(values) if removal in active_set else metric
            change = new - metric
            margin = self.options.threshold - (abs(change) if self.options.magnitude else change)
            kept = not margin > 0
            metric = metric if kept else new
            decisions.append(Decision(self.batch, self._name(removal), change, margin, metric, kept))
            if kept:
                break
        return decisions

    def _values(self, removals: list[Removal]) -> Iterator[float]:
        """The metric after each of some cumulative removals. It is evaluated piece by piece, as far as it is asked for:
        a piece ends where a cheap guess expects an edge that stays, behind which this batch is of no use."""
        if not removals:
            return
        rows = self.engine.rows(removals)
        guess = self.engine.guess(rows)
        start = 0
        for end in range(1, len(removals) + 1):
            stays = guess is not None and guess[end] - guess[end - 1] > GUESS_SHARE * self.options.threshold
            if stays or end == len(removals):
                for i, value in enumerate(self.engine.metric(rows[start + 1 : end + 1]), start):
                    if not math.isfinite(value):
                        raise self._unsound(value, rows[i + 1 : i + 2], f"without {self._name(removals[i])}")
                    yield value
                start = end

    def _unsound(self, metric: float, rows: Tensor, where: str) -> UserError:
        """What to say where the metric at some rows, Float[1 row d_model], is not finite."""
        prompt = f"prompt {self.engine.first_non_finite(rows) + 1} of the discovery half"
        return UserError(f"{where} the metric is {metric}, first on {prompt}; {non_finite_advice(self.engine.model)}")

    def _take(self, removals: list[Removal], decisions: list[Decision]) -> None:
        gone = []
        for removal, decision in zip(removals, decisions, strict=True):
            scores, at = (
                (self.direct_scores, removal.receiver)
                if removal.sender is None
                else (self.scores, (removal.sender, removal.receiver))
            )
            scores[at] = decision.change
            if decision.kept:
                self.n_kept += 1
            else:
                gone.append(removal)
        for removal in gone:
            if removal.sender is None:
                self.direct[removal.receiver] = False
                count = 1 + int(self.engine.kept[:, removal.receiver].sum())
            else:
                count = 1
            self.n_removed += count
            self.left -= count
        self.left -= len(decisions) - len(gone)
        if gone:
            self.engine.commit(gone)
        self.metric = decisions[-1].metric
        self._adapt(len(gone), decisions[-1].kept)
        node = self.graph.receivers[removals[-1].receiver].name
        done = self.n_removed + self.n_kept
        note = f"removed {self.n_removed}, kept {self.n_kept}, left {self.left}, {node}, metric {self.metric:.4f}"
        self.progress(Progress(done, done + self.left, "edges", note))

    def _name(self, removal: Removal) -> str:
        if removal.sender is None:
            return self.graph.direct_name(removal.receiver)
        return self.graph.edge_name(removal.sender, removal.receiver)

    def _size(self) -> int:
        return max(1, min(self.options.batch, self.capacity, round(2.5 * self.run**0.5)))

    def _adapt(self, removed: int, broken: bool) -> None:
        """Batches as long as removals tend to come in a row: a function of the decisions, so that a replay agrees."""
        self.run = 0.6 * self.run + 0.4 * (removed + 1) if broken else self.run + removed
