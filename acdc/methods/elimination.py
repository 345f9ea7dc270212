"""The smallest circuit that is as faithful as asked for, or the best one with so many edges.

Exact backward elimination, from a superset (`acdc.methods.superset`) to nothing:

1. Take the effect of every edge: the rise of the metric when it alone is removed from the current circuit. Remove the
   edge with the smallest effect, and what is dead without it. Effects change little from step to step, so only the
   smallest are taken again, until the smallest of all is one of the current circuit (lazy evaluation, Minoux 1978).
   Several edges go at once as long as they raise the metric by next to nothing together, which is checked.
2. At the goal, exchange: add an edge that lowers the metric, as gradients suggest and an exact test confirms; then
   remove others. The circuit is taken if it is smaller, or as large and better.
3. Verify that no edge can go: all effects are taken again.
4. Go on to the empty circuit. If a circuit on the way is a better answer, as the metric may fall again, go back to it,
   and to 2. Otherwise the order in which edges went gives a nested circuit of every size.

Everything is measured on the discovery half, by the engine that follows a change through kept edges only. With spans,
it is edge-spans that go and come, and arrays have an axis for spans: Bool[sender receiver span].
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from acdc.errors import UserError
from acdc.io.progress import Progress, Show
from acdc.methods.log import Decision, Journal
from acdc.methods.superset import Ends, gradients
from acdc.patching.activations import non_finite_advice
from acdc.patching.circuit_engine import CircuitEngine, Edge
from acdc.patching.problem import Problem

Array = np.ndarray

RETAKEN = 8  # effects that are taken again at once
SMALL = 0.01  # edges that go together raise the metric's distance to the full model's by at most this share of it,
SMALLEST = 0.0005  # or by this share of the distance from the full model to everything ablated
SCREENED = 24  # edges, the best by gradient, that an exchange tests exactly
TRIED = 6  # of them that it tries, the best by test
GAIN = 0.0001  # an exchange that leaves the size as it is lowers the metric by this share of that distance


@dataclass(frozen=True)
class Goal:
    """What is asked for: one of the two."""

    metric: float | None = None  # the largest metric of the circuit, mean over the prompts
    edges: int | None = None  # the largest number of edges

    def nearer(self, size: int, metric: float, than: tuple[int, float], gain: float) -> bool:
        """Whether a circuit is a better answer than another, given as its size and metric: smaller, or as large and
        better by some gain; for a number of edges, better by that gain, or smaller and no worse."""
        smaller = size < than[0]
        better = metric < than[1] - gain
        if self.edges is not None:
            return size <= self.edges and (better or (smaller and metric <= than[1]))
        return self.metric is not None and metric <= self.metric and (smaller or (size == than[0] and better))


@dataclass(frozen=True)
class Smallest:
    """The circuit at the goal, and the path to the empty circuit."""

    kept: Array  # Bool[sender receiver]
    effects: Array  # Float[sender receiver], rise of the metric without each of its edges; NaN for others
    metric: float
    scores: Array  # Float[sender receiver]: 1/N, N the size of the smallest nested circuit that has the edge; or 0


def smallest(
    engine: CircuitEngine,
    problem: Problem,
    start: Array,
    allowed: Array,
    goal: Goal,
    ends: Ends,
    journal: Journal,
    progress: Show,
) -> Smallest:
    """Find the smallest circuit, and the path to the empty one.

    Args:
        start: Bool[sender receiver], the circuit to begin with, without dead edges
        allowed: Bool[sender receiver], the edges that an exchange may add
    Raises:
        UserError: the metric is not finite.
        FileError: the journal holds other tests, or can't be written.
    """
    search = _Search(engine, problem, start, allowed, goal, ends, journal, progress)
    search.eliminate()
    better = True
    while better:
        search.exchange()
        while search.least_of_all() is not None:  # an effect that wasn't taken again had become smaller
            search.eliminate()
        kept = search.kept
        metric = search.metric
        effects = np.full(kept.shape, np.nan)
        for edge in search.edges():
            effects[edge] = search.effects[edge]
        better = search.descend()
    scores = np.where(problem.candidates, 0.0, np.nan)
    sizes = sorted(search.left_at.values())
    for edge, size in search.left_at.items():
        scores[edge] = 1 / bisect_right(sizes, size)  # after an exchange, edges have left twice at one size
    return Smallest(kept, effects, metric, scores)


@dataclass
class _Search:
    """The current circuit, the effects of its edges, and the log, from which tests of an earlier run are repeated."""

    engine: CircuitEngine
    problem: Problem
    kept: Array  # Bool[sender receiver]
    allowed: Array
    goal: Goal
    ends: Ends
    journal: Journal
    progress: Show
    effects: dict[Edge, float] = field(default_factory=dict)
    taken_in: dict[Edge, int] = field(default_factory=dict)  # edge → number of the circuit that its effect was taken in
    left_at: dict[Edge, int] = field(default_factory=dict)  # edge → size of the last circuit that had it
    circuit: int = 0  # number of the current circuit
    circuits: int = 0  # how many there were
    tests: int = 0  # effects taken and changes made
    resumed: str = ""  # what the last of them was repeated from
    exchanging: bool = False
    aside: int = 0  # tests for exchanges

    def __post_init__(self) -> None:
        self.metric = self.engine.metric(self.kept)
        self.start = self.size

    @property
    def size(self) -> int:
        """The number of edges of the current circuit."""
        return int(self.kept.sum())

    def edges(self) -> list[Edge]:
        """The edges of the current circuit."""
        return _edges(self.kept)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def eliminate(self) -> None:
        """Remove the edges with the smallest effects, as long as the goal allows."""
        while (edges := self._next()) is not None:
            self._remove(edges)

    def descend(self) -> bool:
        """Go on to the empty circuit and, if one on the way is a better answer, back to that; returns whether."""
        goal = self.goal
        best = None
        than = self.size, self.metric
        self.goal = Goal(edges=0)
        while (edges := self._next()) is not None:
            self._remove(edges)
            if goal.nearer(self.size, self.metric, than, self._gain):
                than = self.size, self.metric
                best = self._undo()
        self.goal = goal
        if best is not None:
            best()
        return best is not None

    def exchange(self) -> None:
        """Add edges and remove others, until that makes the circuit neither smaller nor better."""
        self.exchanging = True
        while any(self._exchanged(edge) for edge in self._candidates()):
            pass
        self.exchanging = False

    def least_of_all(self) -> Edge | None:
        """Take all effects again; returns the edge with the smallest one if the goal allows it to go."""
        self.take([edge for edge in self.edges() if not self._fresh(edge)])
        edge = min(self.edges(), key=self._rank, default=None)
        return edge if edge is not None and self._can_go(edge) else None

    @property
    def _gain(self) -> float:
        """The least fall of the metric that counts."""
        return GAIN * self.ends.span

    # --- elimination --------------------------------------------------------------------------------------------------

    def _next(self) -> list[Edge] | None:
        """The edges to remove next, one or, if their effects are small, several; None if none can go."""
        edge = self.least()
        if edge is None or not self._can_go(edge):
            return None
        block = [edge]
        total = max(0.0, self.effects[edge])
        for other in sorted(self.edges(), key=self._rank)[1:]:
            total += max(0.0, self.effects[other])
            full = self.goal.edges is not None and self.size - len(block) <= self.goal.edges
            if not self._fresh(other) or total > self._small() or full:
                break
            block.append(other)
        return block if self._within(self.metric + total) else [edge]

    def least(self, but: Edge | None = None) -> Edge | None:
        """The edge with the smallest effect, taken in the current circuit."""
        edges = [edge for edge in self.edges() if edge != but]
        self.take([edge for edge in edges if edge not in self.effects])
        while edges:
            edges.sort(key=self._rank)
            if self._fresh(edges[0]):
                return edges[0]
            self.take([edge for edge in edges[:RETAKEN] if not self._fresh(edge)])
        return None

    def _remove(self, edges: list[Edge]) -> None:
        """Remove edges, or only half of them, and so on, if the metric rises by more than is small."""
        limit = self.metric + self._small()
        undo = self._undo()
        self.flip(edges)
        while len(edges) > 1 and not (self.metric <= limit and self._within(self.metric)):
            undo()
            edges = edges[: len(edges) // 2]
            self.flip(edges)

    def _fresh(self, edge: Edge) -> bool:
        """Whether an effect was taken in the current circuit."""
        return self.taken_in.get(edge) == self.circuit

    def _rank(self, edge: Edge) -> tuple[float, Edge]:
        return self.effects[edge], edge

    def _small(self) -> float:
        """The rise of the metric that several edges may make together."""
        return max(SMALL * (self.metric - self.ends.full), SMALLEST * self.ends.span)

    def _within(self, metric: float) -> bool:
        """Whether the goal allows a metric."""
        return self.goal.metric is None or metric <= self.goal.metric

    def _can_go(self, edge: Edge) -> bool:
        """Whether the goal allows an edge to be removed: there are too many, or nothing is lost."""
        if self.goal.edges is None:
            return self._within(self.metric + self.effects[edge])
        return self.size > self.goal.edges or self.effects[edge] <= 0

    # --- exchange -----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Edge]:
        """Edges whose addition lowers the metric, the best first."""
        nodes = set(self.problem.circuit(self.kept).nodes()) | set(self.engine.graph.inputs)
        writes = np.array([s.name in nodes for s in self.engine.graph.senders])
        reads = np.array([r.node in nodes for r in self.engine.graph.receivers])
        slope = gradients(self.problem, self.kept)
        fits = self.allowed & ~self.kept & (slope < 0)
        fits[~(writes[:, None] & reads)] = False
        ranked = sorted((float(slope[edge]), edge) for edge in _edges(fits))
        edges = [edge for _, edge in ranked[:SCREENED]]
        self.take(edges)
        return [edge for edge in sorted(edges, key=self._rank) if self.effects[edge] < 0][:TRIED]

    def _exchanged(self, edge: Edge) -> bool:
        """Add an edge and remove others; take it back unless that is nearer to the goal."""
        before = self.size, self.metric
        undo = self._undo()
        self.flip([edge])
        while (other := self.least(edge)) is not None and self._can_go(other):
            self.flip([other])
        if self.goal.nearer(self.size, self.metric, before, self._gain):
            return True
        undo()
        return False

    # --- tests and changes, logged ------------------------------------------------------------------------------------

    def take(self, edges: Sequence[Edge]) -> None:
        """Take the effects of some edges: of removing them or, if the circuit lacks them, of adding them."""
        if not edges:
            return
        recorded = self._recorded(edges)
        if recorded is None:
            values = self.engine.values(self.kept, edges)
            recorded = [self._decision(*pair, taken=False) for pair in zip(edges, values, strict=True)]
            self.journal.write(recorded)
        for edge, decision in zip(edges, recorded, strict=True):
            self.effects[edge] = decision.change
            self.taken_in[edge] = self.circuit
        self._show(len(edges))

    def flip(self, edges: Sequence[Edge], metric: float | None = None) -> None:
        """Remove edges from the circuit, and what is dead then, or add those that it lacks. `metric` is that of the new
        circuit, if it is known."""
        kept = self.kept.copy()
        for edge in edges:
            kept[edge] = not kept[edge]
        kept = self.problem.circuit(kept).live()
        recorded = self._recorded(edges)
        if recorded is None:
            value = self.engine.metric(kept) if metric is None else metric
            recorded = [self._decision(edge, value, taken=True) for edge in edges]
            self.journal.write(recorded)
        for edge in _differing(self.kept, kept):
            if kept[edge]:
                self.left_at.pop(edge, None)
            else:
                self.left_at[edge] = self.size
        self.kept = kept
        self.metric = recorded[0].metric
        self.circuits += 1
        self.circuit = self.circuits
        self._show(1)

    def _name(self, edge: Edge) -> str:
        return self.engine.graph.part_name(edge, self.engine.spans)

    def _undo(self) -> Callable[[], None]:
        """Return what goes back to the current circuit, whose effects then count again."""
        kept = self.kept
        metric = self.metric
        left_at = dict(self.left_at)
        circuit = self.circuit

        def undo() -> None:
            if changed := _differing(kept, self.kept):
                self.flip(changed, metric)
            self.left_at = dict(left_at)
            self.circuit = circuit

        return undo

    def _recorded(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """The next batch of the log, which must be about these edges; None at its end."""
        recorded = self.journal.begin(map(self._name, edges), whole=True)
        self.resumed = self.journal.resumed if recorded else ""
        return recorded

    def _decision(self, edge: Edge, value: float, taken: bool) -> Decision:
        """A line of the log: `value` is the metric with the change, which was tested or, if `taken`, made."""
        name = self._name(edge)
        if not math.isfinite(value):
            advice = non_finite_advice(self.engine.model)
            raise UserError(f"the metric is {value} when {name} is removed or added; {advice}")
        goal = self.metric if self.goal.metric is None else self.goal.metric
        present = bool(self.kept[edge])
        metric = value if taken else self.metric
        return Decision(self.journal.batch, name, value - self.metric, goal - value, metric, present != taken)

    def _show(self, tests: int) -> None:
        """Report some tests. How many are to come isn't known: every edge goes sooner or later, after as many tests as
        the others so far, and an exchange takes a few for each of its candidates."""
        self.tests += tests
        self.aside += tests if self.exchanging else 0
        gone = self.start - self.size
        each = (self.tests - self.aside - self.start) / gone if gone else RETAKEN
        left = each * self.size + max(0, SCREENED + 2 * TRIED * RETAKEN - self.aside)
        note = f"faithfulness {self.ends.faithfulness(self.metric):.3f}, {self.size:,} edges left"
        self.progress(Progress("elimination", self.tests, self.tests + left, note, self.resumed))


def _differing(a: Array, b: Array) -> list[Edge]:
    return _edges(a != b)


def _edges(some: Array) -> list[Edge]:
    return [tuple(edge) for edge in np.argwhere(some).tolist()]
